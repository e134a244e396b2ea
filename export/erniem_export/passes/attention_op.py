"""Attention as one standard node per layer: ``Attention`` of opset 23, which TensorRT runs as one kernel.

It takes a bool mask of the full size, ``(rows, 1, queries, keys)``, and queries that are scaled already. A layer that
computes its attention in two types, because half precision could not hold its scores, is left as it is.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import Rewriter, producer, single_use

__all__ = ["ATTENTION_OPSET", "to_attention"]

ATTENTION_OPSET = 23


def to_attention(model: ir.Model) -> tuple[int, dict[str, str]]:
    """Replace the products and the softmax between them, in place.

    The graph must have gone through :func:`erniem_export.passes.live_mask.keep_masks_alive`.

    Returns:
        How many were replaced, and why others were not, by the layer.
    """
    graph = model.graph
    declined: dict[str, str] = {}
    full: dict[ir.Value, ir.Value] = {}
    anchors = [node for node in graph if node.op_type == "Softmax"]
    for layer, softmax in enumerate(anchors):
        try:
            _replace(graph, softmax, f"encoder.layers.{layer}.attention", full)
        except FusionError as error:
            declined[f"layer {layer}"] = str(error)
    model.opset_imports[""] = ATTENTION_OPSET
    RemoveUnusedNodesPass()(model)
    return len(anchors) - len(declined), declined


def _replace(graph: ir.Graph, softmax: ir.Node, name: str, full: dict[ir.Value, ir.Value]) -> None:
    masked = producer(softmax.inputs[0], "Where", f"{name}, mask")
    mask, scores = masked.inputs[:2]
    product = producer(scores, "MatMul", f"{name}, scores")
    swapped = producer(product.inputs[1], "Transpose", f"{name}, key")
    context = single_use(softmax.outputs[0], "MatMul", f"{name}, weights")
    query, value = product.inputs[0], context.inputs[1]
    if mask is None or query is None or value is None:
        raise FusionError(f"{name}: an input is missing")
    result = context.outputs[0]
    if len({one.dtype for one in (query, swapped.outputs[0], value, result)}) > 1:
        raise FusionError(f"{name}: it is computed in two types")
    if mask not in full:
        full[mask] = _per_query(graph, mask, softmax)
    rewriter = Rewriter(graph)
    key = rewriter.op("Transpose", swapped.inputs[0], name=f"{name}.key", perm=[0, 2, 1, 3])
    key.type, key.shape = query.type, query.shape
    fused = rewriter.op("Attention", query, key, value, full[mask], name=name, scale=1.0)
    fused.type, fused.shape = result.type, result.shape
    rewriter.insert_before(context)
    ir.convenience.replace_all_uses_with(result, fused)


def _per_query(graph: ir.Graph, mask: ir.Value, before: ir.Node) -> ir.Value:
    """``(rows, 1, 1, keys)`` to ``(rows, 1, queries, keys)``: all that onnxruntime takes and TensorRT documents."""
    rewriter = Rewriter(graph)
    shape = rewriter.op("Shape", mask, name="mask.length", start=3, end=4)
    grid = rewriter.op("Concat", rewriter.int64([1, 1]), shape, rewriter.int64([1]), name="mask.grid", axis=0)
    expanded = rewriter.op("Expand", mask, grid, name="mask.per_query")
    expanded.type = ir.TensorType(ir.DataType.BOOL)
    rewriter.insert_before(before)
    return expanded
