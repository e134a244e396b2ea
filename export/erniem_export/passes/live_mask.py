"""Masks that always leave something to attend to, and the scale of the scores folded into the queries.

Fused attention takes a mask as True and False and replaces what is False by its own value, minus infinity as a rule:
a row of padding only would become NaN. So such a row attends to everything, with queries of zero, whose scores are all
zero: that is the uniform attention that the model gives it. The zero costs nothing, for the queries are multiplied by
the scale of the scores anyway, here before the product, where no type can overflow and where TensorRT wants it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from erniem_export.errors import FusionError
from erniem_export.passes._casts import uncast
from erniem_export.passes.rewriter import Rewriter, producer

__all__ = ["keep_masks_alive"]

_BOOL, _INT32 = int(ir.DataType.BOOL), int(ir.DataType.INT32)


@dataclass(frozen=True)
class _Mask:
    """``safe (rows, 1, 1, keys)``: True where to attend, anywhere in every row; ``live (rows, 1, 1, 1)``."""

    safe: ir.Value
    live: ir.Value


def keep_masks_alive(model: ir.Model, layers: int) -> int:
    """Rewrite the mask and the scale of every layer's attention, in place; return how many.

    The graph may compute in any type, or in two: Casts between the parts of the attention are looked through.

    Raises:
        FusionError: A layer's attention is not as in the canonical graph, or there are not as many as ``layers``.
    """
    graph = model.graph
    anchors = [node for node in graph if node.op_type == "Softmax"]
    if len(anchors) != layers:
        raise FusionError(f"found {len(anchors)} attentions in a model of {layers} layers")
    masks: dict[ir.Value, _Mask] = {}
    for layer, softmax in enumerate(anchors):
        _rewrite(graph, softmax, f"attention of layer {layer}", masks)
    RemoveUnusedNodesPass()(model)
    return layers


def _rewrite(graph: ir.Graph, softmax: ir.Node, place: str, masks: dict[ir.Value, _Mask]) -> None:
    masked = producer(uncast(softmax.inputs[0]), "Where", f"{place}, mask")
    hidden = producer(masked.inputs[0], "Not", f"{place}, mask")
    attend = hidden.inputs[0]
    scores = producer(uncast(masked.inputs[2]), "MatMul", f"{place}, scores")
    scaled = producer(uncast(scores.inputs[0]), "Div", f"{place}, scaled query")
    if attend is None:
        raise FusionError(f"{place}: the mask is missing")
    if attend not in masks:
        masks[attend] = _keep_alive(graph, attend, hidden)
    mask = masks[attend]
    overwritten, kept = masked.inputs[1:3]
    for position, value in enumerate((mask.safe, kept, overwritten)):
        masked.replace_input_with(position, value)
    _scale(graph, scaled, mask, place)


def _keep_alive(graph: ir.Graph, attend: ir.Value, before: ir.Node) -> _Mask:
    rewriter = Rewriter(graph)
    counted = rewriter.op("Cast", attend, name="mask.int32", to=_INT32)
    most = rewriter.op("ReduceMax", counted, rewriter.int64([-1]), name="mask.most", keepdims=1)
    live = rewriter.op("Cast", most, name="mask.live", to=_BOOL)
    safe = rewriter.op("Or", attend, rewriter.op("Not", live, name="mask.dead"), name="mask.safe")
    safe.shape = attend.shape
    for value in (live, safe):
        value.type = ir.TensorType(ir.DataType.BOOL)
    rewriter.insert_before(before)
    return _Mask(safe, live)


def _scale(graph: ir.Graph, scaled: ir.Node, mask: _Mask, place: str) -> None:
    result = scaled.outputs[0]
    shape, dtype = result.shape, result.dtype
    if shape is None or not isinstance(shape[-1], int) or dtype is None:
        raise FusionError(f"{place}: the size of a head is not known, shape {shape}")
    rewriter = Rewriter(graph)
    name = f"mask.scale.{shape[-1]}.{dtype.name.lower()}"
    scale = next((use.node.outputs[0] for use in mask.live.uses() if use.node.name == name), None)
    if scale is None:
        factor, zero = rewriter.scalar(1 / math.sqrt(shape[-1]), dtype), rewriter.scalar(0.0, dtype)
        scale = rewriter.op("Where", mask.live, factor, zero, name=name)
        scale.type = ir.TensorType(dtype)
    query = rewriter.op("Mul", scaled.inputs[0], scale, name=f"{scaled.name}.multiplied")
    query.type, query.shape = result.type, shape
    rewriter.insert_before(scaled)
    ir.convenience.replace_all_uses_with(result, query)
