"""Compares a checkpoint's weights with its config, by names and shapes, before loading them."""

from __future__ import annotations

import copy
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from erniem_export.configuration import ErnieMConfig
from erniem_export.errors import CheckpointError, some
from erniem_export.heads import POOLER_OPTIONAL, make_model
from erniem_export.paddle import SUFFIX, read_arrays
from erniem_export.sources import CONFIG_FILE, listed_by
from erniem_rt.files import is_lfs_pointer

Shapes = dict[str, tuple[int, ...]]

# The types of weights; those with fewer bits need a scale.
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Tensors of other heads, or of a pooler that this head does not use.
_OTHER_HEADS = re.compile(
    r"^(?:ernie_m\.)?(pooler\.dense|classifier|qa_outputs|linear_start|linear_end)\.(weight|bias)$"
)

# The config key that defines each axis of a parameter.
_AXES = {
    "word_embeddings.weight": ("vocab_size", "hidden_size"),
    "position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "linear1.weight": ("intermediate_size", "hidden_size"),
    "linear1.bias": ("intermediate_size",),
    "linear2.weight": ("hidden_size", "intermediate_size"),
    "classifier.weight": ("num_labels", "hidden_size"),
    "classifier.bias": ("num_labels",),
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Fit:
    """The match of weights and a head: the name in the files of each parameter, the ignored tensors, and whether there
    is a pooler, for heads whose class has one.
    """

    names: dict[str, str]
    left_out: tuple[str, ...]
    pooler: bool


def read_shapes(files: Iterable[Path]) -> Shapes:
    """Return name to shape of every tensor in the weight files.

    PyTorch's pickled files are opened with ``weights_only``, and Paddle's are not unpickled: they cannot run code.

    Raises:
        CheckpointError: A file is truncated, is not a weight file, or contains other objects than tensors.
    """
    shapes: Shapes = {}
    places: dict[str, Path] = {}
    for file in files:
        if is_lfs_pointer(file):
            raise CheckpointError(f"{file} is a pointer of Git LFS, not the weights: run git lfs pull")
        found = _shapes_in(file)
        if not found:
            raise CheckpointError(f"{file} holds no tensors: fetch it again, or save the model again")
        if twice := found.keys() & places.keys():
            other = places[min(twice)].name
            raise CheckpointError(
                f"{file} and {other} both hold {some(twice)}: they are of two saves; fetch or save all of them again"
            )
        places |= dict.fromkeys(found, file)
        shapes.update(found)
    _check_index(places)
    return shapes


def read_tensors(files: Iterable[Path], names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the tensors ``names`` of weight files that :func:`read_shapes` accepted; ignores their metadata."""
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as content:
                tensors.update((name, content.get_tensor(name)) for name in content.keys() if name in names)  # noqa: SIM118
        elif file.suffix == SUFFIX:
            tensors.update((name, array.tensor()) for name, array in read_arrays(file).items() if name in names)
        else:
            tensors.update((name, tensor) for name, tensor in _unpickled(file).items() if name in names)
    return tensors


def expected_shapes(head: str, config: ErnieMConfig, *, pooler: bool = True, file: str = CONFIG_FILE) -> Shapes:
    """Return name to shape of every parameter of a head's class under ``config``; a ``qa`` head has two labels."""
    if head == "qa":
        config = copy.deepcopy(config)
        config.num_labels = 2
    try:
        model = make_model(head, config, pooler=pooler)
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"{file} describes no ErnieM model: {error}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_weights(
    head: str, config: ErnieMConfig, shapes: Shapes, said: Mapping[str, Any], file: str = CONFIG_FILE
) -> Fit:
    """Raise :class:`CheckpointError`, naming the contradiction, unless ``shapes`` fit head and config.

    ``said`` is the content of the config, whose name is ``file``.
    """
    names = {_name_in(head, name): name for name in shapes}
    found = {name: shapes[given] for name, given in names.items()}
    for part in ("word_embeddings.", "encoder.layers."):
        if not any(part in name for name in found):
            raise CheckpointError(f"these are not ErnieM weights: no {part}* among {some(found)}")
    _check_gathered(shapes)
    _check_depth(config, found, said, file)
    if head == "qa" and config.num_labels != 2 and "qa_outputs.weight" in found:
        raise CheckpointError(
            f"{file} says num_labels = {config.num_labels}, but a qa head scores 2 things, start and end"
        )
    pooler = head not in POOLER_OPTIONAL or any("pooler." in name for name in found)
    expected = expected_shapes(head, config, pooler=pooler, file=file)
    missing = expected.keys() - found.keys()
    if missing:
        raise CheckpointError(_missing(head, missing))
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(_mismatch(head, config, name, shape, found[name], said, file))
    extra = {name for name in found.keys() - expected.keys() if not _OTHER_HEADS.search(name)}
    unknown = {name for name in extra if not is_left_over(name)}
    if unknown:
        raise CheckpointError(f"the weights hold tensors that ErnieM does not have: {some(unknown)}")
    return Fit({name: names[name] for name in expected}, tuple(sorted(names[name] for name in extra)), pooler)


def check_floats(where: object, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise :class:`CheckpointError` unless all tensors are floating-point numbers that need no scale."""
    others = {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype not in _FLOATS}
    if others:
        kinds = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in others.values()}))
        raise CheckpointError(
            f"{where} stores {some(others)} as {kinds}; expected floating-point numbers, as float32, float16 or "
            "bfloat16: save it in one of these"
        )


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise :class:`CheckpointError` if a float32 tensor has NaN or infinite values."""
    # The sum is the faster test; it may overflow without them.
    if not tensor.sum().isfinite() and not tensor.isfinite().all():
        count = int((~tensor.isfinite()).sum())
        raise CheckpointError(
            f"{name} holds {count} NaN or infinite values in float32, of {tensor.numel()}: the weights are damaged; "
            "fetch them again, or take an earlier checkpoint of the training"
        )


def _check_index(places: Mapping[str, Path]) -> None:
    """Raise if the index of shards lists a tensor elsewhere; it may list shared tensors that are not there."""
    for name, said in listed_by([*dict.fromkeys(places.values())]).items():
        file = places.get(name)
        if file is not None and file.parent / said != file:
            raise CheckpointError(
                f"{file} holds {name}, which the index lists in {said}: the files are of two saves; fetch or save all "
                "of them again"
            )


def _shapes_in(file: Path) -> Shapes:
    if file.suffix == ".safetensors":
        return _safetensors_shapes(file)
    content = read_arrays(file) if file.suffix == SUFFIX else _unpickled(file)
    return {name: tuple(array.shape) for name, array in content.items()}


def _safetensors_shapes(file: Path) -> Shapes:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or not a safetensors file ({error}): fetch it again") from error


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        # Files in torch's format before 1.6 are not archives, and cannot be mapped.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle may raise any exception
        raise CheckpointError(
            f"{file} is damaged, or holds more than tensors, which is not loaded because it could run code: "
            "fetch it again, or convert it to safetensors where you trust it"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{file} holds no state dict: expected tensors by name, without anything around them")
    return content


def _name_in(head: str, name: str) -> str:
    """Return a tensor's name in the head's class; the base model's encoder has no prefix."""
    bare = name.removeprefix(PREFIX)
    return PREFIX + bare if head != "base" and bare.startswith(("embeddings.", "encoder.", "pooler.")) else bare


def _check_gathered(found: Mapping[str, tuple[int, ...]]) -> None:
    empty = [name for name, shape in found.items() if 0 in shape]
    if empty:
        raise CheckpointError(
            f"{len(empty)} of {len(found)} tensors are empty, as {empty[0]} of shape {found[empty[0]]}: DeepSpeed "
            "ZeRO-3 leaves such placeholders where it did not gather the weights. Run zero_to_fp32.py in the "
            "checkpoint's folder, or save with stage3_gather_16bit_weights_on_model_save"
        )


def _check_depth(config: ErnieMConfig, found: Iterable[str], given: Mapping[str, Any], file: str) -> None:
    layers = {int(match[1]) for name in found if (match := _LAYER.search(name))}
    depth = max(layers, default=-1) + 1
    if depth != config.num_hidden_layers:
        said = _said(given, "num_hidden_layers", config.num_hidden_layers)
        raise CheckpointError(f"{file} {said}, but the weights have {depth} layers")


def _mismatch(
    head: str,
    config: ErnieMConfig,
    name: str,
    expected: tuple[int, ...],
    found: tuple[int, ...],
    said: Mapping[str, Any],
    file: str,
) -> str:
    keys = next((axes for suffix, axes in _AXES.items() if name.endswith(suffix)), ("hidden_size",) * len(expected))
    for key, want, got in zip(keys, expected, found, strict=False):
        if want != got and getattr(config, key) == want:
            wrong, right = _said(said, key, want), f"set {key} to {got}"
            if key == "num_labels":
                wrong, right = _labels_said(said, want), f"name {got} labels in id2label"
            return f"{file} {wrong}, but {name} has {got}: {right} if the weights are right"
    return f"{name} has shape {found}; head {head!r} needs {expected}: is this a checkpoint of another head?"


def _said(given: Mapping[str, Any], key: str, value: object) -> str:
    """Return how a config leads to a value, for a message."""
    return f"says {key} = {value}" if given.get(key) is not None else f"has no {key}, which means {value}"


def _labels_said(said: Mapping[str, Any], count: int) -> str:
    """Return how config.json leads to ``count`` labels, for a message."""
    given = said.get("num_labels")
    if not said.get("id2label"):
        return f"says num_labels = {count}" if given is not None else f"names no labels, which means {count}"
    return f"names {count} labels in id2label" + (
        f", which counts more than num_labels = {given}" if given not in (None, count) else ""
    )


def _missing(head: str, missing: Iterable[str]) -> str:
    names = sorted(missing)
    if all(_OTHER_HEADS.search(name) for name in names):
        modules = ", ".join(sorted({name.rsplit(".", 1)[0] for name in names}))
        return f"the weights have no {modules}, which head {head!r} needs: this checkpoint was not trained for it"
    return f"the weights lack {some(names)}"


PREFIX = "ernie_m."

_WORDS = "embeddings.word_embeddings.weight"
# The name of the encoder in a class that somebody wrote around it, as uie_pytorch did: the heads have no prefix.
_ENCODER = "encoder."
# How uie_pytorch calls what is in an encoder of its own, as BERT does, and how transformers calls that.
_UIE_PYTORCH = (
    (r"\.layer\.(\d+)\.", r".layers.\1."),
    (r"attention\.self\.(q|k|v)(?:uery|ey|alue)\.", r"self_attn.self_attn.\1_proj."),
    (r"attention\.output\.dense\.", "self_attn.out_proj."),
    (r"attention\.output\.LayerNorm\.", "norm1."),
    (r"intermediate\.dense\.", "linear1."),
    (r"(?<=\d\.)output\.dense\.", "linear2."),
    (r"(?<=\d\.)output\.LayerNorm\.", "norm2."),
    (r"embeddings\.LayerNorm\.", "embeddings.layer_norm."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
# Prefixes of torch.compile, DataParallel, Lightning and peft.
_WRAPPERS = ("_orig_mod.", "module.", "model.", "base_model.model.")
# Tensors that no output depends on: position buffers, losses, pretraining heads, a counter of averaged weights.
_LEFT_OVER = re.compile(
    r"(?:ernie_m\.)?embeddings\.(?:position_ids|token_type_ids)"
    r"|(?:loss\w*|criterion|lm_head|cls\.predictions|cls\.seq_relationship)\..+"
    r"|n_averaged"
)
_ADAPTED = re.compile(r"\.(?:lora_\w+|base_layer|modules_to_save|ia3_l|adalora_\w+)\.")


def wrapper_of(names: Collection[str], prefix: str = PREFIX, layers: str = "encoder.layers.") -> str:
    """Return a training library's prefix of every tensor's name; empty without one.

    The model's own names begin with ``prefix``, and its layers' with ``layers`` after that.

    Raises:
        CheckpointError: The names are an adapter's, or have an unknown layout or prefix.
    """
    if adapted := [name for name in names if _ADAPTED.search(name)]:
        raise CheckpointError(
            f"the weights hold an adapter's tensors ({some(adapted)}): merge it with peft's merge_and_unload(), save "
            "the result with save_pretrained and export that folder"
        )
    words = min((name for name in names if name.endswith(_WORDS)), default=_WORDS)
    base = words.removesuffix(_WORDS)
    before = base.removesuffix(prefix)
    if not before or not any(name.startswith(f"{base}{layers}") for name in names):
        return ""
    bare = sorted(name for name in names if not name.startswith(before) and not is_left_over(name))
    if before == _ENCODER:
        return before
    if before not in _WRAPPERS or bare:
        rest = f", which {some(bare)} {'does' if len(bare) == 1 else 'do'} not" if bare else ""
        raise CheckpointError(
            f"the weights have {words} in place of {prefix}{_WORDS}: take {before} off the names that begin with it"
            f"{rest}"
        )
    return before


def wrapper_of_all(names: Collection[str]) -> str:
    """Return a training library's prefix of all names; empty without one."""
    return next((before for before in _WRAPPERS if all(name.startswith(before) for name in names)), "")


def is_uie_pytorch(names: Collection[str]) -> bool:
    """Whether tensors have the names of uie_pytorch, a port of UIE to PyTorch."""
    return any(name.startswith("encoder.encoder.layer.0.attention.self.") for name in names)


def from_uie_pytorch(name: str) -> str:
    """transformers' name of a tensor of uie_pytorch; it has the same shape."""
    if not name.startswith(_ENCODER):
        return name
    for pattern, ours in _UIE_PYTORCH:
        name = re.sub(pattern, ours, name)
    return PREFIX + name.removeprefix(_ENCODER)


def is_left_over(name: str) -> bool:
    """Return whether no output depends on a tensor."""
    return _LEFT_OVER.fullmatch(name) is not None
