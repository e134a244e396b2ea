"""Why an artifact differs from the PyTorch model: separates rounding from mistakes, and looks for a mistake's cause."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from erniem_export.gate.cases import Case
from erniem_export.gate.measures import Report, Thresholds, measure
from erniem_export.gate.weights import WORDS
from erniem_export.modeling import ErnieMPreTrainedModel
from erniem_export.onnx_export import open_session
from erniem_export.options import HALVES
from erniem_export.passes.precision import HALF_TYPES, emulate_half
from erniem_export.passes.rewriter import Rewriter, store, uncast
from erniem_export.quantization.quantize import DRAWN
from erniem_rt.manifest import Manifest

_PART = re.compile(r"(encoder\.layers\.\d+\.(?:self_attn|linear))[\w.]*\.weight$")
_COMPUTE = frozenset({"linear", "matmul", "softmax", "gelu", "relu", "silu", "tanh", "truediv", "div"})
_STEPS = 127

# A case, and the outputs of the artifact and of the reference by name.
Result = tuple[Case, Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]


def sensitive_parts(
    model: ErnieMPreTrainedModel, precision: Mapping[str, str], cases: Sequence[Case], share: float
) -> list[str]:
    """Return the fewest parts of the layers whose rounding causes ``share`` of the error, in the order of the layers.

    ``encoder.layers.3.self_attn`` is the attention of a layer, ``encoder.layers.3.linear`` its feed-forward part. Each
    part is rounded alone. The squared errors in the last hidden state add up, roughly, to the square of the total.
    """
    parts = list(dict.fromkeys(_parts(model).values()))
    base = cast("torch.nn.Module", getattr(model, "ernie_m", model))
    expected = [_hidden(base, case) for case in cases]
    squares = []
    for part in parts:
        with Rounding(model, precision, {part}):
            found = [_hidden(base, case) for case in cases]
        squares.append(sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True)))
    left, kept = sum(squares) * share, set()
    for square, part in sorted(zip(squares, parts, strict=True), reverse=True):
        if left > 0:
            kept.add(part)
            left -= square
    return [part for part in parts if part in kept]


def _hidden(base: torch.nn.Module, case: Case) -> Tensor:
    """Return the last hidden state at positions that are not padding."""
    attend = torch.from_numpy(case.attend.reshape(-1, case.attend.shape[-1]))
    feeds = {
        name: torch.from_numpy(array).flatten(0, -3 if name == "inputs_embeds" else -2)  # choices become rows
        for name, array in case.feeds.items()
        if name != "head_mask"
    }
    with torch.no_grad():
        return base(**feeds, return_dict=True).last_hidden_state[attend]  # type: ignore[no-any-return]


def _parts(model: ErnieMPreTrainedModel) -> dict[int, str]:
    found = ((parameter, _PART.search(name)) for name, parameter in model.named_parameters())
    return {id(parameter): match[1] for parameter, match in found if match}


class Rounding(TorchFunctionMode):
    """A context in which the model computes as in lower precision.

    It rounds the layers' matmuls with their weights, attention and the activation function. Residual sums, norms and
    all that follows the encoder stay in float32, as do results that would overflow: the graph keeps these in float32.

    Args:
        model: The model that will run.
        precision: ``weights`` and ``embedding``, as in the manifest; int8 of the weights is not emulated.
        parts: Which parts of the layers are rounded, as :func:`sensitive_parts` names them; None for all.
    """

    def __init__(
        self, model: ErnieMPreTrainedModel, precision: Mapping[str, str], parts: Collection[str] | None = None
    ) -> None:
        super().__init__()
        kind = precision.get("weights", "")
        self._dtype = getattr(torch, HALVES[kind]) if kind in HALVES else None
        self._part_of, self._parts = _parts(model), parts
        self._tables = {id(value) for name, value in model.named_parameters() if name.endswith(WORDS)}
        self._embedding = precision.get("embedding", "fp32")
        self._active = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run ``func``; within a layer, round its arguments and its result."""
        name, kwargs = getattr(func, "__name__", "").strip("_"), dict(kwargs or {})
        if name == "linear":
            part = self._part_of.get(id(args[1]))
            self._active = part is not None and (self._parts is None or part in self._parts)
        if name == "embedding" and id(args[1]) in self._tables:
            return self._stored(func(*args, **kwargs))
        if not self._active or self._dtype is None:
            return func(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            return self._attention(*args, **kwargs)
        if name in _COMPUTE:
            return self._rounded(func(*map(self._rounded, args), **kwargs))
        return func(*args, **kwargs)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, **_: Any) -> Tensor:
        query, key, value = (self._rounded(states) for states in (query, key, value))
        scaled = self._rounded(query / query.shape[-1] ** 0.5)
        scores = self._rounded(scaled @ key.transpose(-1, -2)) + attn_mask
        return self._rounded(self._rounded(functional.softmax(scores, dim=-1)) @ value)  # type: ignore[no-any-return]

    def _rounded(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        half = value.to(self._dtype)
        return half.float() if bool(torch.isfinite(half).all()) else value

    def _stored(self, rows: Tensor) -> Tensor:
        """Return embedding rows rounded to their stored precision."""
        if self._embedding in HALVES:
            return rows.to(getattr(torch, HALVES[self._embedding])).float()
        if self._embedding != "int8":
            return rows
        scale = rows.abs().amax(-1, keepdim=True) / _STEPS
        return torch.where(scale > 0, torch.round(rows / scale.clamp_min(torch.finfo(torch.float32).tiny)) * scale, 0.0)


@contextmanager
def holding(model: ErnieMPreTrainedModel, stored: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the values of some parameters within the context."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].data for name in stored}
    try:
        for name, value in stored.items():
            parameters[name].data = value
        yield
    finally:
        for name, value in before.items():
            parameters[name].data = value


def without_rounding(model: ir.Model, head_size: int) -> None:
    """Convert a graph in half precision or int8 to float32 with the stored weights, in place.

    It must then equal the PyTorch model with the same weights at the thresholds of fp32. So a wrong mask or a missing
    bias shows in every precision.

    Args:
        model: A graph in any precision.
        head_size: The attention's head size; its square root replaces the rounded constant.
    """
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype in HALF_TYPES.values() and value.const_value is not None and value.const_value.size == 1:
            _restore(value, head_size)
    emulate_half(model, rounding=False)
    for node in list(graph):
        if node.op_type == "MatMulIntegerToFloat":
            _multiply_in_float(graph, node)
        elif node.op_type == "DequantizeLinear":
            _keep_in_float(graph, node)


def _restore(value: ir.Value, head_size: int) -> None:
    assert value.const_value is not None
    rounded = value.const_value.numpy()
    for exact in (math.sqrt(head_size), 1 / math.sqrt(head_size)):
        if (np.full_like(rounded, exact) == rounded).all():
            array = np.full(rounded.shape, exact, dtype=np.float32)
            value.const_value, value.type = ir.tensor(array, name=value.name), ir.TensorType(ir.DataType.FLOAT)


def _multiply_in_float(graph: ir.Graph, node: ir.Node) -> None:
    entering, weight, _, scale, _, _, bias = node.inputs
    assert weight is not None
    assert scale is not None
    assert entering is not None
    quantize = entering.producer()
    assert quantize is not None
    array = _numbers(weight).astype(np.float32) * _numbers(scale)
    wide = ir.Value(name=f"{weight.name}.float32", const_value=ir.tensor(array, name=f"{weight.name}.float32"))
    wide.dtype, wide.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
    graph.register_initializer(wide)
    rewriter = Rewriter(graph)
    product = rewriter.op("MatMul", quantize.inputs[0], wide, name=f"{node.outputs[0].name}.product")
    result = product if bias is None else rewriter.op("Add", product, bias, name=f"{node.outputs[0].name}.float32")
    rewriter.insert_before(node)
    ir.convenience.replace_all_uses_with(node.outputs[0], result)
    graph.remove(node, safe=True)


def _keep_in_float(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a QuantizeLinear and DequantizeLinear pair by the ratio of its two scales, without rounding.

    Also store an int8 weight in float32, else OpenVINO would quantize the matmul's other input.
    """
    steps, scale, *_ = node.inputs
    assert steps is not None
    assert scale is not None
    quantize, rewriter, name = steps.producer(), Rewriter(graph), f"{node.outputs[0].name}.float32"
    if quantize is None:
        result = store(graph, name, _numbers(steps).astype(np.float32) * _numbers(scale))
    else:
        entering, unit, *_ = quantize.inputs
        assert entering is not None
        assert unit is not None
        factor = store(graph, f"{name}.factor", np.asarray(_numbers(scale) / _numbers(unit), dtype=np.float32))
        result = rewriter.op("Mul", entering, factor, name=name)
        rewriter.insert_before(node)
    ir.convenience.replace_all_uses_with(node.outputs[0], result)
    graph.remove(node, safe=True)


def _numbers(value: ir.Value) -> NDArray[Any]:
    value = uncast(value) or value
    assert value.const_value is not None
    return value.const_value.numpy()


# Up to this multiple of its threshold, a difference may still be rounding alone.
_NARROW = 2.0


def diagnose(artifact: Path, model: ErnieMPreTrainedModel, report: Report, results: Sequence[Result]) -> list[str]:
    """Return sentences on the cause and the remedy, in addition to the report's own failures.

    Args:
        artifact: The graph that failed.
        model: The reference model.
        report: The comparison's result.
        results: Every case with the artifact's and the reference's outputs.
    """
    if not results:
        return []
    causes = [_swapped_outputs(results), _swapped_columns(results)]
    if report.weights.changed:
        causes.append("Export again, or pass the checkpoint that the artifact was exported from.")
    if not any(causes):
        if _is_narrow(report):
            causes.append(_precision(report))
        else:
            causes += [_padding(report, results), _graph(artifact, model, report, results)]
    return [cause for cause in causes if cause]


def _swapped_outputs(results: Sequence[Result]) -> str:
    """Return a sentence if one output holds the values of another, else an empty string."""
    names = list(results[0][2])
    for name in names:
        for other in names:
            if other != name and not _same(results, name, name) and _same(results, name, other):
                return f"{name} carries the values of {other}: the outputs are swapped."
    return ""


def _swapped_columns(results: Sequence[Result]) -> str:
    """Return a sentence if a classifier's labels, or the choices, are in another order, else an empty string."""
    widths = {expected["logits"].shape[-1] for _, _, expected in results if "logits" in expected}
    if len(widths) != 1:
        return ""
    width = widths.pop()
    sources = [[i for i in range(width) if _same(results, "logits", "logits", (i, j))] for j in range(width)]
    order = [matches[0] for matches in sources if len(matches) == 1]
    if sorted(order) != list(range(width)) or order == sorted(order):
        return ""
    return f"The columns of logits are in another order: those of {list(range(width))} are found at {order}."


def _same(results: Sequence[Result], name: str, other: str, columns: tuple[int, int] | None = None) -> bool:
    """Return whether output ``name`` (or one of its columns) equals the reference's ``other`` on every case."""
    for _, found, expected in results:
        a, b = found[name], expected[other]
        if columns is not None:
            a, b = a[..., columns[0]], b[..., columns[1]]
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-3, atol=1e-3):
            return False
    return True


def _is_narrow(report: Report) -> bool:
    """Return whether a lower precision misses by so little that rounding explains it; a wrong mask misses by far."""
    alone = all(difference.excess(report.limits.alone) <= 1.0 for difference in report.invariance.values())
    return report.precision != "fp32" and report.weights.are_right and alone and report.worst()[2] < _NARROW


def remedy(manifest: Manifest) -> str:
    """Return what to do about an artifact that fails because of rounding alone."""
    weights, embedding = manifest.precision.get("weights", ""), manifest.precision.get("embedding", "")
    start = "Without rounding the graph gives the numbers of PyTorch, so nothing else is wrong."
    if weights == "int8":
        source = str(((manifest.engine or {}).get("int8") or {}).get("calibration", "other text"))
        if source.startswith(DRAWN):
            return (
                f"{start} The static scales of int8 were calibrated on {source}: put the tokenizer's files "
                "(sentencepiece.bpe.model, vocab.txt) beside the weights and give text like that to be served with "
                "--calibration, or leave out --int8."
            )
        return (
            f"{start} The static scales of int8 were calibrated on {source}: give text like that to be served with "
            "--calibration, or leave out --int8."
        )
    if weights == "fp32":
        return (
            f"{start} Word embeddings in {embedding} cost this model more than is allowed: take a larger --embedding."
        )
    kept = manifest.precision.get("kept_in_fp32")
    though = f", even with {len(kept.split(', '))} matmuls and operations in fp32" if kept else ""
    finer = "with --fp16, or in " if weights == "bf16" else "in "
    costs = f"{weights} costs this model more than is allowed{though}"
    return f"{start} {costs}: export {finer}fp32 (leave out --{weights})."


def _precision(report: Report) -> str:
    kind = report.precision.partition(",")[0]
    remedy = "calibrate on text like that to be served (--calibration), or " if kind == "int8" else ""
    return f"Nothing else is wrong: {kind} costs this model more than is allowed; {remedy}export in a higher precision."


def _padding(report: Report, results: Sequence[Result]) -> str:
    """Return a sentence if only batches with masked positions fail, else an empty string."""
    masked = {case.name for case, _, _ in results if not case.attend.all()}
    unattended = {case.name for case, _, _ in results if not case.attend.any(-1).all()}
    failing = report.failing_cases()
    if failing and failing <= unattended:
        return "Only rows that are all padding fail: the value that masks must be finite, as in PyTorch."
    if failing and failing <= masked:
        return (
            f"Only batches with padding fail ({', '.join(sorted(failing))}): "
            "the attention mask, or what follows from it, is wrong."
        )
    if not failing and any(difference.excess(report.limits.alone) > 1.0 for difference in report.invariance.values()):
        return "A row alone differs from the same row in a batch: something is computed across rows or from padding."
    return ""


def _graph(artifact: Path, model: ErnieMPreTrainedModel, report: Report, results: Sequence[Result]) -> str:
    """Return a sentence that names the part of the graph that differs, if the weights do not."""
    _, worst, excess = report.worst()
    if excess <= 1.0:
        return "Export again." if report.weights.missing else ""
    case = next(case for case, _, _ in results if case.name == worst)
    where = _first_difference(artifact, model, case, report.limits)
    start = "The graph" if report.weights.missing else "The weights are the checkpoint's; the graph"
    return (
        f"{start} itself differs{where}. Export again with other versions of torch "
        "and onnxruntime, and report it with the versions in the manifest."
    )


def _first_difference(artifact: Path, model: ErnieMPreTrainedModel, case: Case, limits: Thresholds) -> str:
    """Return the first part of the model whose output differs, as the end of a sentence; empty if unknown.

    Every part of the encoder ends in a LayerNorm, whose weight has the same name in the graph and the model.
    """
    expected = _model_norms(model, case)
    try:
        found = _graph_norms(artifact, case)
    # An engine error on the edited graph must not hide the gate's findings.
    except Exception:
        return ""
    if not found:
        return ""
    for name, values in expected.items():
        if name not in found:
            return f": it has no {name}"
        if found[name].shape != values.shape:
            return ""
        if measure(found[name], values).excess(limits) > 1.0:
            return f", first in {_part(name)}"
    return ", after the encoder"


def _part(norm: str) -> str:
    """Name the part that ends in a LayerNorm: ``encoder.layers.3.norm1`` follows the self-attention of layer 3."""
    *_, layer, last = norm.split(".")
    if last == "layer_norm":
        return "the embeddings"
    return f"the {'self-attention' if last == 'norm1' else 'feed-forward part'} of layer {layer}"


def _model_norms(model: ErnieMPreTrainedModel, case: Case) -> dict[str, NDArray[Any]]:
    """Run the model; return the output of each LayerNorm by its name, in the order of computation."""
    outputs: dict[str, NDArray[Any]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            outputs[name] = output.numpy()

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
    ]
    try:
        with torch.no_grad():
            model(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _graph_norms(artifact: Path, case: Case) -> dict[str, NDArray[Any]]:
    """Run the graph; return the output of each LayerNormalization by its weight's name without ``.weight``."""
    graph = onnx.load(artifact, load_external_data=False)
    norms = {
        node.input[1].removesuffix(".weight"): node.output[0]
        for node in graph.graph.node
        if node.op_type == "LayerNormalization" and node.input[1].endswith(".weight")
    }
    known = {value.name for value in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=value) for value in norms.values() if value not in known)
    session = open_session(graph.SerializeToString(), weights=artifact.parent)
    feeds = {"attention_mask": case.attend.astype("int64"), **case.feeds}
    return dict(zip(norms, session.run(list(norms.values()), feeds), strict=True))
