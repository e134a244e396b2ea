"""``--int8``: prepares calibration inputs, quantizes layer by layer and rewrites the graph.

Each layer is quantized on the outputs of the quantized layers before it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from erniem_export.checkpoint import Checkpoint
from erniem_export.errors import ExportError
from erniem_export.mask_mode import PADDING, with_padding_key
from erniem_export.modeling import ErnieMEncoderLayer, ErnieMModel, ErnieMPreTrainedModel
from erniem_export.options import ON_OPENVINO, Int8
from erniem_export.passes.int8 import int8_products, int8_weights, to_int8, to_int8_openvino
from erniem_export.progress import Terminal
from erniem_export.quantization.products import Form, Int8Linear, Int8Product, choose_input, round_product
from erniem_export.sources import FAST_TOKENIZER, read_text, tokenizer_files
from erniem_rt.machine import cpu_flags, has_vnni, is_arm
from erniem_rt.manifest import Limits
from erniem_rt.tokenizer import Tokenizer

# The flavour with int8 weights but no int8 matmuls, which needs no calibration.
_WEIGHTS_ONLY = "tensorrt-rtx"

_ATTENTION = "self_attn.self_attn."
_VALUE, _OUT = f"{_ATTENTION}v_proj", "self_attn.out_proj"
# Matmuls that read the same input share its quantization.
_GROUPS = ((f"{_ATTENTION}q_proj", f"{_ATTENTION}k_proj", _VALUE), (_OUT,), ("linear1",), ("linear2",))
# Number of tokens for choosing activation ranges; the search runs every candidate on all of them.
_SAMPLE = 768
_SEED = 0


def cpu_for(options: Int8, target: str = "auto") -> str:
    """Return ``avx2``, ``vnni`` or ``arm64``, from the options or this CPU.

    The last two accumulate 8-bit products exactly. The graph's ``target`` ``openvino`` is for ``vnni`` only.

    Raises:
        ExportError: This CPU cannot run the gate for it.
    """
    flags, vnni = cpu_flags(), has_vnni()
    if target == ON_OPENVINO:
        if vnni is False:
            raise ExportError(
                "--target openvino is int8 for a CPU with VNNI and cannot be checked here, on one without: leave it out"
            )
        return "vnni"
    if vnni is not None and "avx2" not in flags:
        raise ExportError("--int8 needs a CPU with AVX2, and this CPU has none: leave it out")
    if options.cpu == "auto":
        return "vnni" if vnni else "arm64" if is_arm() else "avx2"
    if options.cpu in ("vnni", "arm64") and vnni is False:
        raise ExportError(f"--cpu {options.cpu} cannot be checked here, on a CPU without VNNI: leave it out")
    return options.cpu


def check_int8(options: Int8, flavour: str | None, own: Path | None = None, target: str = "auto") -> None:
    """Refuse early what :func:`quantize` and :func:`quantize_for_engine` would refuse later.

    Args:
        options: The CPU and the calibration text.
        flavour: TensorRT's flavour; None for onnxruntime.
        own: The checkpoint's own text, once it is loaded.
        target: The graph's target, for onnxruntime.

    Raises:
        ExportError: The calibration text cannot be used, or this CPU cannot run the gate.
    """
    if flavour is None:
        cpu_for(options, target)
    text = options.calibration or own
    if text is not None and flavour != _WEIGHTS_ONLY:
        read_texts(text)


def quantize(
    graph: ir.Model,
    checkpoint: Checkpoint,
    folder: Path,
    options: Int8,
    limits: Limits,
    progress: Terminal,
    *,
    mask_mode: str = PADDING,
    target: str = "auto",
) -> dict[str, Any]:
    """Convert the encoder's matmuls to int8, in place; return the manifest's record of it.

    Args:
        graph: The checkpoint's graph.
        checkpoint: The model and its tokenizer.
        folder: The checkpoint's folder, for tokenizers other than ErnieM's.
        options: The CPU and the calibration text.
        limits: The model's limits.
        progress: Shows the layers.
        mask_mode: The manifest's.
        target: The graph's target; ``openvino`` gets its own form of int8.

    Raises:
        ExportError: The calibration text cannot be used, or this CPU cannot run the gate.
        FusionError: A matmul is not in the graph.
    """
    cpu = cpu_for(options, target)
    calibration = _calibration(checkpoint, folder, options, limits)
    progress.step(f"quantizing for {cpu}, calibrated on {calibration.source}")
    found = quantize_encoder(
        checkpoint.model,
        calibration,
        lambda layers: progress.track(layers, "layer"),
        form="pairs" if cpu == "avx2" else "exact",
        mask_mode=mask_mode,
    )
    (to_int8_openvino if target == ON_OPENVINO else to_int8)(graph, found.products)
    return {"cpu": cpu, **_described(found, calibration.source)}


def quantize_for_engine(
    graph: ir.Model,
    checkpoint: Checkpoint,
    folder: Path,
    options: Int8,
    limits: Limits,
    flavour: str,
    progress: Terminal,
) -> dict[str, Any]:
    """Quantize like :func:`quantize`, but in the form for this flavour of TensorRT; other operations keep their types.

    Raises:
        ExportError: The calibration text cannot be used, or there is no tokenizer for it.
    """
    if flavour == _WEIGHTS_ONLY:
        progress.step("storing the weights of the layers in int8")
        parameters = {name: tensor.numpy() for name, tensor in checkpoint.model.state_dict().items()}
        return {"weights_only": int8_weights(graph, parameters)}
    calibration = _calibration(checkpoint, folder, options, limits)
    if calibration.drawn and not checkpoint.is_random:
        raise ExportError(
            "--int8 for TensorRT is calibrated on text, and this checkpoint has no tokenizer to read it with: put its "
            "tokenizer's files beside the weights, or take --fp16"
        )
    progress.step(f"quantizing for TensorRT, calibrated on {calibration.source}")
    found = quantize_encoder(
        checkpoint.model, calibration, lambda layers: progress.track(layers, "layer"), form="symmetric"
    )
    int8_products(graph, found.products)
    return _described(found, calibration.source)


def _calibration(checkpoint: Checkpoint, folder: Path, options: Int8, limits: Limits) -> Calibration:
    tokenizer = checkpoint.tokenizer_dir or folder
    return calibration_for(options.calibration, tokenizer, limits, own=checkpoint.calibration)


def _described(found: Quantization, source: str) -> dict[str, Any]:
    return {
        "calibration": source,
        "relative_l2": found.error,
        "products": {
            name: {
                "error": product.error,
                "input_scale": product.entering.scale,
                "input_zero_point": product.entering.zero_point,
                "smoothed_channels": product.smoothed_channels(),
                "channels_in_fp32": product.entering.exact.tolist(),
            }
            for name, product in found.products.items()
        },
    }


@dataclass
class Quantization:
    """The int8 ``products`` by the name of their linear layer, and the relative L2 ``error`` that they cause.

    ``error`` is that of the last hidden state against float32, on the calibration text.
    """

    products: dict[str, Int8Product] = field(default_factory=dict)
    error: float = 0.0


@torch.no_grad()
def quantize_encoder(
    model: ErnieMPreTrainedModel,
    calibration: Calibration,
    track: Callable[[Sequence[ErnieMEncoderLayer]], Iterable[ErnieMEncoderLayer]] = iter,
    *,
    form: Form = "exact",
    mask_mode: str = PADDING,
) -> Quantization:
    """Quantize the matmuls of every encoder layer; ``model`` does not change.

    Args:
        model: The float32 model.
        calibration: The calibration inputs.
        track: Wraps the layers, for a progress bar.
        form: The arithmetic that will run the matmuls.
        mask_mode: The manifest's.
    """
    base = model if isinstance(model, ErnieMModel) else cast("ErnieMModel", model.ernie_m)
    prefix = "" if base is model else "ernie_m."
    batches = [_batch(ids, attend, base, mask_mode) for ids, attend in calibration.batches]
    exact, masks, attends = ([batch[i] for batch in batches] for i in range(3))
    found, result = exact, Quantization()
    for index, layer in enumerate(track(cast("list[ErnieMEncoderLayer]", list(base.encoder.layers)))):
        pair = _Pair(layer, masks, attends, exact, found, form)
        for group in _GROUPS:
            products = pair.quantize(group, f"{prefix}encoder.layers.{index}.")
            result.products |= {product.name: product for product in products}
        exact, found = pair.outputs()
    reference = torch.cat([states[mask] for states, mask in zip(exact, masks, strict=True)])
    states = torch.cat([states[mask] for states, mask in zip(found, masks, strict=True)])
    result.error = float((states - reference).norm() / reference.norm())
    return result


class _Pair:
    """A float32 layer and its quantized copy, each with its own inputs."""

    def __init__(
        self,
        layer: ErnieMEncoderLayer,
        masks: list[Tensor],
        attends: list[Tensor],
        exact: list[Tensor],
        found: list[Tensor],
        form: Form,
    ) -> None:
        self.form = form
        self.layer, self.quantized = layer, copy.deepcopy(layer)
        self.masks, self.attends, self.exact, self.found = masks, attends, exact, found
        first = [group[0] for group in _GROUPS]
        self.exact_inputs, self.exact_outputs = _run(layer, first, exact, masks, attends)

    def quantize(self, group: Sequence[str], prefix: str) -> list[Int8Product]:
        """Replace some linear layers by their int8 form."""
        first = group[0]
        inputs = _run(self.quantized, [first], self.found, self.masks, self.attends)[0][first]
        linears = {name: cast("nn.Linear", self.layer.get_submodule(name)) for name in group}
        weights = torch.cat([linear.weight.T for linear in linears.values()], dim=1)
        entering = choose_input(inputs, _sample(inputs), weights, folds=first == _OUT, form=self.form)
        products = []
        for name, linear in linears.items():
            product = round_product(prefix + name, linear, entering, (self.exact_inputs[first], inputs))
            products.append(product)
            self._put(name, product)
        if first == _OUT and entering.factors is not None:
            self._fold(products[0], entering.factors)
        return products

    def outputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs of the float32 layer and of the quantized one."""
        return self.exact_outputs, _run(self.quantized, [], self.found, self.masks, self.attends)[1]

    def _put(self, name: str, product: Int8Product) -> None:
        parent, _, attribute = name.rpartition(".")
        setattr(self.quantized.get_submodule(parent), attribute, Int8Linear(product))

    def _fold(self, out: Int8Product, factors: Tensor) -> None:
        """Fold the context's factors into the values' scales, at no cost: the context is a weighted mean of values."""
        value = cast("Int8Linear", self.quantized.get_submodule(_VALUE)).product
        value.scales *= factors
        value.bias *= factors
        value.exact_weight *= factors
        out.fold = True


def _batch(ids: Tensor, attend: Tensor, base: ErnieMModel, mask_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the embeddings, which tokens are kept ``(batch, sequence)`` bool, and the attention's mask."""
    if mask_mode == PADDING:
        return base.embeddings(ids, None, None), attend, attend[:, None, None]
    inputs, bias = with_padding_key(ids, attend, base.config)
    states = base.embeddings(inputs["input_ids"], inputs["position_ids"], None)
    hidden = ~inputs["attention_mask"][:, None, None]
    counts = torch.cat([attend, torch.ones_like(attend[:, :1])], dim=1)
    return states, counts, bias.masked_fill(hidden, torch.finfo(bias.dtype).min)


def _run(
    layer: ErnieMEncoderLayer,
    names: Sequence[str],
    states: list[Tensor],
    masks: list[Tensor],
    attends: list[Tensor],
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run a layer; return the inputs of the linear layers ``names``, each ``(tokens, in)``, and the layer's outputs."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
        for name in names
    ]
    try:
        outputs = [layer(batch, attend, None, False)[0] for batch, attend in zip(states, attends, strict=True)]
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: torch.cat([batch[mask] for batch, mask in zip(batches, masks, strict=True)])
        for name, batches in seen.items()
    }, outputs


def _sample(inputs: Tensor) -> Tensor:
    """Return a random sample of the tokens."""
    if len(inputs) <= _SAMPLE:
        return inputs
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(_SEED))[:_SAMPLE]
    return inputs[chosen]


_BUILT_IN = Path(__file__).with_name("calibration.txt")
# The name of the source that is not text.
DRAWN = "random ids"
# More texts would hardly change the scales; one layer's activations of all texts are in memory at a time.
_MOST_TEXTS = 400
_LONGEST = 128
_BATCH_SIZE = 16


@dataclass(frozen=True)
class Calibration:
    """``source`` in words, for the report; ``batches`` of ``(input_ids, attend)``, each ``(batch, sequence)``.

    ``drawn``: the inputs are random ids, not text.
    """

    source: str
    batches: tuple[tuple[Tensor, Tensor], ...]
    drawn: bool = False


def calibration_for(text: Path | None, folder: Path | None, limits: Limits, own: Path | None = None) -> Calibration:
    """Return the calibration inputs.

    Args:
        text: A file of texts, one on each line; None for ``own``.
        folder: Folder of the tokenizer's files. Without a tokenizer, ids are random, from a fixed seed.
        limits: The model's limits.
        own: The checkpoint's own file of texts; None for the built-in ones, 200 lines in 60 languages.

    Raises:
        ExportError: The file cannot be read or holds no text, or there is no tokenizer for it.
    """
    encode = _tokenizer(folder, min(_LONGEST, limits.max_length))
    if text is None and encode is not None:
        text = own
    texts = read_texts(text)
    if encode is None:
        if text is not None:
            raise ExportError(f"the calibration text {text} cannot be read: the checkpoint has no tokenizer")
        drawn = _batches(_random_rows(limits), limits)
        return Calibration(f"{DRAWN} without a tokenizer", drawn, drawn=True)
    rows = [list(encode(first, second)) for first, second in _arranged(texts)]
    source = "built-in text" if text is None else text.name
    return Calibration(f"{source}, {len(texts)} lines", _batches(rows, limits))


def read_texts(path: Path | None) -> list[str]:
    """Return at most 400 lines of a file that are not blank, evenly spread; None for the built-in text.

    Raises:
        ExportError: The file does not exist, is not UTF-8, or is blank.
    """
    lines = read_text(path or _BUILT_IN, "calibration text").splitlines()
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ExportError(f"the calibration text {path} is empty: give sentences like those to be served, one a line")
    if len(texts) > _MOST_TEXTS:
        texts = [texts[i * len(texts) // _MOST_TEXTS] for i in range(_MOST_TEXTS)]
    return texts


def _arranged(texts: list[str]) -> list[tuple[str, str | None]]:
    """Return every text alone, some in pairs, and some joined into longer ones."""
    alone: list[tuple[str, str | None]] = [(text, None) for text in texts]
    pairs: list[tuple[str, str | None]] = list(zip(texts[::7], texts[1::7], strict=False))
    joined: list[tuple[str, str | None]] = [(" ".join(texts[i : i + 8]), None) for i in range(0, len(texts), 48)]
    return [*alone, *pairs, *joined]


def _tokenizer(folder: Path | None, longest: int) -> Callable[..., Sequence[int]] | None:
    if folder is None:
        return None
    if tokenizer_files(folder):
        ours = Tokenizer.from_dir(folder, verify=False)
        return lambda text, pair=None: ours(text, pair, truncation="longest_first", max_length=longest).input_ids
    # Checkpoints of other encoders may have a fast tokenizer's file only.
    if not (folder / FAST_TOKENIZER).is_file():
        return None
    fast: Any = import_module("tokenizers").Tokenizer.from_file(str(folder / FAST_TOKENIZER))
    fast.no_padding()
    fast.enable_truncation(longest)
    return lambda text, pair=None: fast.encode(text, pair).ids


def _random_rows(limits: Limits) -> list[list[int]]:
    rng = np.random.default_rng(0)
    first, last = 0, 2  # <s> and </s>
    longest = min(_LONGEST, limits.max_length)
    lengths = np.clip(rng.lognormal(3.0, 0.7, 120), 3, longest).astype(int)
    return [[first, *rng.integers(0, limits.vocab_size, max(length - 2, 0)).tolist(), last] for length in lengths]


def _batches(rows: list[list[int]], limits: Limits) -> tuple[tuple[Tensor, Tensor], ...]:
    """Batch rows of similar length."""
    rows = sorted((row[: limits.max_length] for row in rows), key=len)
    batches = []
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = rows[start : start + _BATCH_SIZE]
        ids = torch.full((len(batch), max(map(len, batch))), limits.pad_token_id)
        attend = torch.zeros(ids.shape, dtype=torch.bool)
        for i, row in enumerate(batch):
            ids[i, : len(row)], attend[i, : len(row)] = torch.tensor(row), True
        batches.append((ids, attend))
    return tuple(batches)
