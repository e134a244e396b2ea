"""Fuses attention into one node per layer: ONNX Runtime's MultiHeadAttention, or opset 23's Attention for TensorRT.

Both replace the canonical graph's MatMul, Where, Softmax, MatMul. There, a row of padding only has uniform attention
weights. MultiHeadAttention keeps them: it sets masked scores to the lowest float, as the canonical graph does.
Attention sets them to minus infinity, which would make such a row NaN; so :func:`keep_masks_alive` lets the row attend
to everything, with queries of zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import CONTRIB, Rewriter, producer, producer_if, single_use, uncast

ATTENTION_OPSET = 23

_MASK_NAME, _BIAS_NAME = "key_padding_mask", "attention_bias"
_BOOL, _INT32 = int(ir.DataType.BOOL), int(ir.DataType.INT32)


@dataclass(frozen=True)
class Attention:
    """The nodes of one layer's attention, and its bool mask ``attend (rows, 1, 1, keys)``, True where to attend.

    ``scaled`` divides the query by the square root of the head size, ``scores`` multiplies it by the key, and
    ``masked`` overwrites masked scores before ``softmax``. Casts may lie between them. ``bias (rows, 1, 1, keys)``, if
    any, is added to the scores.
    """

    place: str
    scaled: ir.Node
    scores: ir.Node
    masked: ir.Node
    softmax: ir.Node
    attend: ir.Value
    bias: ir.Value | None = None

    @property
    def context(self) -> ir.Node:
        """The matmul of attention weights and values; :class:`FusionError` if another node reads the weights."""
        return single_use(self.softmax.outputs[0], "MatMul", f"{self.place}, weights")


def _find_attentions(graph: ir.Graph, layers: int) -> list[Attention]:
    anchors = [node for node in graph if node.op_type == "Softmax"]
    if len(anchors) != layers:
        raise FusionError(f"found {len(anchors)} attentions in a model of {layers} layers")
    return [_match(softmax, f"attention of layer {layer}") for layer, softmax in enumerate(anchors)]


def _match(softmax: ir.Node, place: str) -> Attention:
    masked = producer(uncast(softmax.inputs[0]), "Where", f"{place}, mask")
    attend = producer(masked.inputs[0], "Not", f"{place}, mask").inputs[0]
    entering, bias = uncast(masked.inputs[2]), None
    if (added := producer_if(entering, "Add")) is not None:
        entering, bias = uncast(added.inputs[0]), uncast(added.inputs[1])
    scores = producer(entering, "MatMul", f"{place}, scores")
    scaled = producer(uncast(scores.inputs[0]), "Div", f"{place}, scaled query")
    if attend is None:
        raise FusionError(f"{place}: the mask is missing")
    return Attention(place, scaled, scores, masked, softmax, attend, bias)


def fuse_attention(model: ir.Model, layers: int) -> int:
    """Fuse the attention of every layer into MultiHeadAttention with a key padding mask, in place; return how many.

    Raises:
        FusionError: A layer's attention is not as in the canonical graph, or their number is not ``layers``. Names the
            layer and the reason; the model is then unusable.
    """
    for layer, found in enumerate(_find_attentions(model.graph, layers)):
        _fuse(model.graph, f"encoder.layers.{layer}.attention", found)
    model.opset_imports[CONTRIB] = 1
    RemoveUnusedNodesPass()(model)
    return layers


def _fuse(graph: ir.Graph, name: str, found: Attention) -> None:
    rewriter, place, context = Rewriter(graph), found.place, found.context
    attend = producer(found.attend, "Unsqueeze", f"{place}, mask").inputs[0]
    if attend is None:
        raise FusionError(f"{place}: the mask is missing")
    query, heads, head_size = _split(found.scaled.inputs[0], f"{place}, query")
    key, _, _ = _split(found.scores.inputs[1], f"{place}, key")
    value, _, _ = _split(context.inputs[1], f"{place}, value")
    swapped = single_use(context.outputs[0], "Transpose", f"{place}, context")
    merged = single_use(swapped.outputs[0], "Reshape", f"{place}, context")
    mask = next((use.node.outputs[0] for use in attend.uses() if use.node.name == _MASK_NAME), None)
    if mask is None:
        mask = rewriter.op("Cast", attend, name=_MASK_NAME, to=_INT32)
    fused = rewriter.op(
        "MultiHeadAttention",
        query,
        key,
        value,
        None,
        mask,
        *([] if found.bias is None else [_bias_per_query(rewriter, found.bias)]),
        name=name,
        domain=CONTRIB,
        num_heads=heads,
        scale=float(1 / np.sqrt(head_size)),
        mask_filter_value=float(np.finfo(np.float32).min),
    )
    fused.shape = merged.outputs[0].shape
    rewriter.insert_before(merged)
    ir.convenience.replace_all_uses_with(merged.outputs[0], fused, replace_graph_outputs=True)


def _bias_per_query(rewriter: Rewriter, bias: ir.Value) -> ir.Value:
    """Broadcast ``(rows, 1, 1, keys)`` to ``(rows, 1, queries, keys)``, once for all layers."""
    if known := next((use.node.outputs[0] for use in bias.uses() if use.node.name == _BIAS_NAME), None):
        return known
    rows = rewriter.op("Shape", bias, name="attention_bias.rows", start=0, end=2)
    keys = rewriter.op("Shape", bias, name="attention_bias.keys", start=3)
    grid = rewriter.op("Concat", rows, keys, keys, name="attention_bias.grid", axis=0)
    return rewriter.op("Expand", bias, grid, name=_BIAS_NAME)


def _split(value: ir.Value | None, place: str) -> tuple[ir.Value, int, int]:
    """Return the projection before its split into heads, the number of heads and the head size."""
    swapped = producer(value, "Transpose", place)
    split = producer(swapped.inputs[0], "Reshape", place)
    shape = split.outputs[0].shape
    if shape is None or len(shape) != 4 or not all(isinstance(size, int) for size in shape[2:]):
        raise FusionError(f"{place}: the number of heads is not known, shape {shape}")
    projection = split.inputs[0]
    if projection is None:
        raise FusionError(f"{place}: nothing is split")
    return projection, int(shape[2]), int(shape[3])  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Mask:
    """``safe (rows, 1, 1, keys)``: True where to attend, at least once per row; ``live (rows, 1, 1, 1)``."""

    safe: ir.Value
    live: ir.Value


def keep_masks_alive(model: ir.Model, layers: int) -> list[Attention]:
    """Rewrite the mask and the scale of every layer's attention, in place; return the attentions.

    Afterwards every row of the mask attends to at least one key. The scale multiplies the queries before the matmul,
    where no type overflows and where TensorRT expects it; in rows of padding only it is 0. The graph may compute in one
    type or two.

    Raises:
        FusionError: A layer's attention is not as in the canonical graph, or their number is not ``layers``.
    """
    graph = model.graph
    found = _find_attentions(graph, layers)
    masks: dict[ir.Value, _Mask] = {}
    for attention in found:
        masked = attention.masked
        if attention.bias is not None:
            raise FusionError(f"{attention.place}: its keys have a bias, which no plan can have")
        if attention.attend not in masks:
            masks[attention.attend] = _keep_alive(graph, attention)
        mask = masks[attention.attend]
        overwritten, kept = masked.inputs[1:3]
        for position, value in enumerate((mask.safe, kept, overwritten)):
            masked.replace_input_with(position, value)
        _scale(graph, attention, mask)
    RemoveUnusedNodesPass()(model)
    return found


def _keep_alive(graph: ir.Graph, attention: Attention) -> _Mask:
    rewriter, attend = Rewriter(graph), attention.attend
    counted = rewriter.op("Cast", attend, name="mask.int32", to=_INT32)
    most = rewriter.op("ReduceMax", counted, rewriter.int64([-1]), name="mask.most", keepdims=1)
    live = rewriter.op("Cast", most, name="mask.live", to=_BOOL)
    safe = rewriter.op("Or", attend, rewriter.op("Not", live, name="mask.dead"), name="mask.safe")
    safe.shape = attend.shape
    for value in (live, safe):
        value.type = ir.TensorType(ir.DataType.BOOL)
    rewriter.insert_before(producer(attention.masked.inputs[0], "Not", attention.place))
    return _Mask(safe, live)


def _scale(graph: ir.Graph, attention: Attention, mask: _Mask) -> None:
    scaled = attention.scaled
    result = scaled.outputs[0]
    shape, dtype = result.shape, result.dtype
    if shape is None or not isinstance(shape[-1], int) or dtype is None:
        raise FusionError(f"{attention.place}: the size of a head is not known, shape {shape}")
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


def to_attention(model: ir.Model, found: list[Attention]) -> tuple[int, dict[str, str]]:
    """Replace the attentions from :func:`keep_masks_alive` by opset 23's Attention, in place; TensorRT fuses it.

    It takes a bool mask ``(rows, 1, queries, keys)`` and scaled queries. A layer that computes its attention in two
    types, because its scores overflow half precision, stays unchanged.

    Returns:
        How many were replaced, and for each other layer the reason why not.
    """
    declined: dict[str, str] = {}
    full: dict[ir.Value, ir.Value] = {}
    for layer, attention in enumerate(found):
        try:
            _replace(model.graph, attention, f"encoder.layers.{layer}.attention", full)
        except FusionError as error:
            declined[f"layer {layer}"] = str(error)
    model.opset_imports[""] = ATTENTION_OPSET
    RemoveUnusedNodesPass()(model)
    return len(found) - len(declined), declined


def _replace(graph: ir.Graph, attention: Attention, name: str, full: dict[ir.Value, ir.Value]) -> None:
    mask, scores = attention.masked.inputs[:2]
    if scores is not attention.scores.outputs[0]:
        raise FusionError(f"{name}: it is computed in two types")
    swapped, context = producer(attention.scores.inputs[1], "Transpose", f"{name}, key"), attention.context
    query, value, result = attention.scores.inputs[0], context.inputs[1], context.outputs[0]
    if mask is None or query is None or value is None:
        raise FusionError(f"{name}: an input is missing")
    if len({one.dtype for one in (query, swapped.outputs[0], value, result)}) > 1:
        raise FusionError(f"{name}: it is computed in two types")
    if mask not in full:
        full[mask] = _per_query(graph, mask, attention.softmax)
    rewriter = Rewriter(graph)
    key = rewriter.op("Transpose", swapped.inputs[0], name=f"{name}.key", perm=[0, 2, 1, 3])
    key.type, key.shape = query.type, query.shape
    fused = rewriter.op("Attention", query, key, value, full[mask], name=name, scale=1.0)
    fused.type, fused.shape = result.type, result.shape
    rewriter.insert_before(context)
    ir.convenience.replace_all_uses_with(result, fused)


def _per_query(graph: ir.Graph, mask: ir.Value, before: ir.Node) -> ir.Value:
    """Broadcast ``(rows, 1, 1, keys)`` to ``(rows, 1, queries, keys)``, the only shape that both engines accept."""
    rewriter = Rewriter(graph)
    shape = rewriter.op("Shape", mask, name="mask.length", start=3, end=4)
    grid = rewriter.op("Concat", rewriter.int64([1, 1]), shape, rewriter.int64([1]), name="mask.grid", axis=0)
    expanded = rewriter.op("Expand", mask, grid, name="mask.per_query")
    expanded.type = ir.TensorType(ir.DataType.BOOL)
    rewriter.insert_before(before)
    return expanded
