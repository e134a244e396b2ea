"""Attention as one node per layer: ONNX Runtime's MultiHeadAttention.

From the canonical graph's MatMul, Where, Softmax, MatMul between split and merged heads, to
``com.microsoft.MultiHeadAttention`` with a key padding mask. Its mask value is the lowest float, as in the canonical
graph, so that a row of padding only keeps its uniform weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import CONTRIB, Rewriter, producer, single_use

__all__ = ["fuse_attention"]

_MASK_NAME = "key_padding_mask"
_INT32 = int(ir.DataType.INT32)


@dataclass(frozen=True)
class _Attention:
    """The attention of one layer: ``(batch, sequence, hidden)`` projections, the bool mask, and the merged heads."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    attend: ir.Value
    heads: int
    head_size: int
    merged: ir.Node


def fuse_attention(model: ir.Model, layers: int) -> int:
    """Fuse the attention of every layer, in place; return how many.

    Raises:
        FusionError: A layer's attention is not as in the canonical graph, or there are not as many as ``layers``.
            Names the layer and the reason; the model must not be used then.
    """
    graph = model.graph
    anchors = [node for node in graph if node.op_type == "Softmax"]
    if len(anchors) != layers:
        raise FusionError(f"found {len(anchors)} attentions in a model of {layers} layers")
    for layer, softmax in enumerate(anchors):
        _replace(graph, layer, _match(softmax, f"attention of layer {layer}"))
    model.opset_imports[CONTRIB] = 1
    RemoveUnusedNodesPass()(model)
    return layers


def _match(softmax: ir.Node, place: str) -> _Attention:
    masked = producer(softmax.inputs[0], "Where", f"{place}, mask")
    hidden = producer(masked.inputs[0], "Not", f"{place}, mask")
    attend = producer(hidden.inputs[0], "Unsqueeze", f"{place}, mask").inputs[0]
    scores = producer(masked.inputs[2], "MatMul", f"{place}, scores")
    scaled = producer(scores.inputs[0], "Div", f"{place}, scaled query")
    context = single_use(softmax.outputs[0], "MatMul", f"{place}, weights")
    query, heads, head_size = _split(scaled.inputs[0], f"{place}, query")
    swapped = single_use(context.outputs[0], "Transpose", f"{place}, context")
    if attend is None:
        raise FusionError(f"{place}: the mask is missing")
    return _Attention(
        query=query,
        key=_split(scores.inputs[1], f"{place}, key")[0],
        value=_split(context.inputs[1], f"{place}, value")[0],
        attend=attend,
        heads=heads,
        head_size=head_size,
        merged=single_use(swapped.outputs[0], "Reshape", f"{place}, context"),
    )


def _split(value: ir.Value | None, place: str) -> tuple[ir.Value, int, int]:
    """The projection before its heads were split, their number and their size."""
    swapped = producer(value, "Transpose", place)
    split = producer(swapped.inputs[0], "Reshape", place)
    shape = split.outputs[0].shape
    if shape is None or len(shape) != 4 or not all(isinstance(size, int) for size in shape[2:]):
        raise FusionError(f"{place}: the number of heads is not known, shape {shape}")
    projection = split.inputs[0]
    if projection is None:
        raise FusionError(f"{place}: nothing is split")
    return projection, int(shape[2]), int(shape[3])  # type: ignore[arg-type]


def _replace(graph: ir.Graph, layer: int, found: _Attention) -> None:
    rewriter = Rewriter(graph)
    mask = next((use.node.outputs[0] for use in found.attend.uses() if use.node.name == _MASK_NAME), None)
    if mask is None:
        mask = rewriter.op("Cast", found.attend, name=_MASK_NAME, to=_INT32)
    fused = rewriter.op(
        "MultiHeadAttention",
        found.query,
        found.key,
        found.value,
        None,
        mask,
        name=f"encoder.layers.{layer}.attention",
        domain=CONTRIB,
        num_heads=found.heads,
        scale=float(1 / np.sqrt(found.head_size)),
        mask_filter_value=float(np.finfo(np.float32).min),
    )
    merged = found.merged.outputs[0]
    fused.shape = merged.shape
    rewriter.insert_before(found.merged)
    ir.convenience.replace_all_uses_with(merged, fused, replace_graph_outputs=True)
