"""Any mask as one number per row, for the attention kernels of a GPU.

ONNX Runtime's CUDA provider takes its fast attention kernels only without a mask, or with one that says how many keys
at the beginning of each row count. Attention does not care for the order of its keys, so every row's tokens are put
into another one: those that are attended to first, then the others, both in the order they had. The others are still
queries: the first token of a row padded on the left is one that the pooler reads.

A row that attends to nothing has uniform weights over all its keys, in the canonical graph: here all its keys count,
and its queries are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import CONTRIB, Rewriter

__all__ = ["Order", "attentions", "mask_by_length", "order_tokens"]

_BOOL, _FLOAT = int(ir.DataType.BOOL), int(ir.DataType.FLOAT)
_INT32, _INT64 = int(ir.DataType.INT32), int(ir.DataType.INT64)


@dataclass(frozen=True)
class Order:
    """Where each token goes. All int64 over the ``rows * sequence`` slots of a batch, laid out row by row.

    ``slot`` counts them; ``target`` is the slot that a token moves to, in its row; ``source`` the slot that it came
    from, seen from where it went. ``lengths (rows,)`` int32: how many keys count. ``live (rows, 1, 1)`` float32: 0 for
    a row that attends to nothing, else 1.
    """

    slot: ir.Value
    target: ir.Value
    source: ir.Value
    lengths: ir.Value
    live: ir.Value


def attentions(graph: ir.Graph) -> list[ir.Node]:
    """The fused attentions, layer by layer.

    Raises:
        FusionError: There are none.
    """
    found = [node for node in graph if node.op_type == "MultiHeadAttention" and node.domain == CONTRIB]
    if not found:
        raise FusionError("key lengths: the graph has no fused attention")
    return found


def order_tokens(graph: ir.Graph) -> Order:
    """Add to the graph what finds the order, from the mask of its fused attention.

    Nothing in it depends on how many tokens there are, and no number goes from the CPU to the device: it can be
    captured in a CUDA graph.

    Raises:
        FusionError: There is no fused attention, or none with a key padding mask.
    """
    first = attentions(graph)[0]
    mask = first.inputs[4]
    if mask is None:
        raise FusionError("key lengths: the attention of layer 0 has no key padding mask")
    rewriter = Rewriter(graph)
    every = rewriter.op("Reshape", mask, rewriter.int64([-1]), name="order.every")
    slot = _numbers(rewriter, rewriter.op("Shape", every, name="order.slots"), "order.slot")
    column = _numbers(rewriter, rewriter.op("Shape", mask, name="order.width", start=1), "order.column")
    attended = rewriter.op("Cast", mask, name="order.attended", to=_INT64)
    before = rewriter.op("CumSum", attended, rewriter.int64(1), name="order.attended_before", exclusive=1)
    count = rewriter.op("ReduceSum", attended, rewriter.int64([1]), name="order.count", keepdims=1)
    behind = rewriter.op(
        "Add", count, rewriter.op("Sub", column, before, name="order.others_before"), name="order.tail"
    )
    attends = rewriter.op("Cast", mask, name="order.attends", to=_BOOL)
    moved = rewriter.op(
        "Sub", rewriter.op("Where", attends, before, behind, name="order.rank"), column, name="order.by"
    )
    moved = rewriter.op("Reshape", moved, rewriter.int64([-1]), name="order.moved")
    target = rewriter.op("Add", slot, moved, name="order.target")
    source = rewriter.op("ScatterElements", slot, target, slot, name="order.source", axis=0)
    lengths, live = _lengths(rewriter, column, count)
    rewriter.insert_before(first)
    return Order(slot, target, source, lengths, live)


def mask_by_length(graph: ir.Graph, order: Order) -> int:
    """Mask every fused attention by ``order.lengths``; returns how many. Its keys must be in that order."""
    found = attentions(graph)
    for attention in found:
        rewriter = Rewriter(graph)
        query = rewriter.op("Mul", attention.inputs[0], order.live, name=f"{attention.name}.live_query")
        rewriter.insert_before(attention)
        attention.replace_input_with(0, query)
        attention.replace_input_with(4, order.lengths)
    return len(found)


def _numbers(rewriter: Rewriter, count: ir.Value, name: str) -> ir.Value:
    """0, 1, 2 ... as many as ``count (1,)`` says. Not by CumSum, which is quadratic on CUDA."""
    stop = rewriter.op("Squeeze", count, rewriter.int64([0]), name=f"{name}.count")
    return rewriter.op("Range", rewriter.int64(0), stop, rewriter.int64(1), name=name)


def _lengths(rewriter: Rewriter, column: ir.Value, count: ir.Value) -> tuple[ir.Value, ir.Value]:
    """From the columns and ``count (rows, 1)``: the lengths, and which rows are live.

    The width comes from the last column and not from a shape: that is on the CPU, and would have to be copied over.
    """
    last = rewriter.op("Gather", column, rewriter.int64([-1]), name="order.last_column", axis=0)
    width = rewriter.op("Add", last, rewriter.int64(1), name="order.width_on_device")
    is_live = rewriter.op("Cast", count, name="order.is_live", to=_BOOL)
    length = rewriter.op("Where", is_live, count, width, name="order.length")
    length = rewriter.op("Squeeze", length, rewriter.int64([1]), name="order.row_length")
    live = rewriter.op("Unsqueeze", is_live, rewriter.int64([2]), name="order.live_rows")
    return (
        rewriter.op("Cast", length, name="key_lengths", to=_INT32),
        rewriter.op("Cast", live, name="live_rows", to=_FLOAT),
    )
