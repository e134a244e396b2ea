"""Separates rounding from mistakes: rounds the PyTorch model, and removes the rounding from a graph."""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from erniem_export.gate.weights import WORDS
from erniem_export.options import HALVES
from erniem_export.passes.precision import HALF_TYPES, emulate_half
from erniem_export.passes.rewriter import Rewriter, store, uncast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from erniem_export.gate.cases import Case
    from erniem_export.modeling import ErnieMPreTrainedModel

__all__ = ["Rounding", "holding", "sensitive_parts", "without_rounding"]

_PART = re.compile(r"(encoder\.layers\.\d+\.(?:self_attn|linear))[\w.]*\.weight$")
_COMPUTE = frozenset({"linear", "matmul", "softmax", "gelu", "relu", "silu", "tanh", "truediv", "div"})
_STEPS = 127


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
