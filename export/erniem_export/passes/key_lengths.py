"""Turns any mask into one key length per row, for the attention kernels of a GPU.

ONNX Runtime's CUDA provider uses its fast attention kernels only without a mask, or with the number of valid keys at
the start of each row. Attention does not depend on the order of its keys, so each row's tokens are reordered: first the
attended ones, then the masked ones, each group in its original order. Masked tokens are still queries: in a row padded
on the left, the pooler reads a masked first token.

In the canonical graph, a row that is all padding has uniform attention weights. Here all its keys are valid, and its
queries are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import Rewriter, forget_shapes, fused_attentions, matmul_of, residual_of, width_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Order", "align_rows", "mask_by_length", "order_tokens"]

_BOOL, _FLOAT = int(ir.DataType.BOOL), int(ir.DataType.FLOAT)
_INT32, _INT64 = int(ir.DataType.INT32), int(ir.DataType.INT64)


@dataclass(frozen=True)
class Order:
    """The order of tokens; index tensors are int64 over the ``rows * sequence`` slots of a batch, row by row.

    ``slot`` is 0, 1, 2, ...; ``target`` maps an old slot to its new one in the same row, ``source`` a new slot to its
    old one. ``lengths (rows,)`` int32: the valid keys. ``live (rows, 1, 1)`` float32: 0 for a row that is all padding,
    else 1.
    """

    slot: ir.Value
    target: ir.Value
    source: ir.Value
    lengths: ir.Value
    live: ir.Value


def order_tokens(graph: ir.Graph) -> Order:
    """Add nodes that compute the order from the mask of the fused attention.

    A CUDA graph can capture them: no shape depends on the mask's values, and nothing is copied from the CPU.

    Raises:
        FusionError: There is no fused attention, or none with a key padding mask.
    """
    found = fused_attentions(graph)
    if not found:
        raise FusionError("key lengths: the graph has no fused attention")
    first, mask = found[0], found[0].inputs[4]
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
    """Mask every fused attention by ``order.lengths``; return how many. The keys must be in that order."""
    found = fused_attentions(graph)
    for attention in found:
        rewriter = Rewriter(graph)
        query = rewriter.op("Mul", attention.inputs[0], order.live, name=f"{attention.name}.live_query")
        rewriter.insert_before(attention)
        attention.replace_input_with(0, query)
        attention.replace_input_with(4, order.lengths)
    return len(found)


def _numbers(rewriter: Rewriter, count: ir.Value, name: str) -> ir.Value:
    """Return 0, 1, 2, ... below ``count (1,)``. Not with CumSum, which is quadratic on CUDA."""
    stop = rewriter.op("Squeeze", count, rewriter.int64([0]), name=f"{name}.count")
    return rewriter.op("Range", rewriter.int64(0), stop, rewriter.int64(1), name=name)


def _lengths(rewriter: Rewriter, column: ir.Value, count: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return the key lengths and the live rows from the columns and ``count (rows, 1)``.

    The width comes from the last column, not from a shape, which would be copied from the CPU.
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


def align_rows(model: ir.Model, *, pooled: bool) -> int:
    """Reorder every row's tokens from the embeddings to the end of the encoder, and mask by length, in place.

    All shapes stay those of the batch, and all outputs, also at padding, those of the canonical graph. So a captured
    CUDA graph serves every mask of one shape. Returns how many attentions were masked.

    ``pooled``: only the pooler reads the last layer, which then computes just keys and values for all tokens, and the
    rest for the first token.

    Raises:
        FusionError: The graph is not as expected.
    """
    graph = model.graph
    order = order_tokens(graph)
    found = fused_attentions(graph)
    norms = [node.outputs[0] for node in graph if node.op_type == "LayerNormalization"]
    for layer, attention in enumerate(found):  # two norms per layer, after that of the embeddings
        if matmul_of(attention.inputs[0], f"{attention.name}, query").inputs[0] is not norms[2 * layer]:
            raise FusionError(f"alignment: layer {layer} does not read the norm before it")
    embedded, last = norms[0], norms[-1]
    if pooled:
        _keep_first(graph, found[-1], order)
    else:
        _restore(graph, last, order, lambda _: True)
    for value in norms[1:-1]:
        if value.is_graph_output():
            _restore(graph, value, order, lambda _: False)
    _move(graph, embedded, order.source, "aligned.embeddings", lambda _: True)
    count = mask_by_length(graph, order)
    if pooled:
        forget_shapes(graph)
    TopologicalSortPass()(model)
    RemoveUnusedNodesPass()(model)
    return count


def _move(graph: ir.Graph, value: ir.Value, index: ir.Value, name: str, where: Callable[[ir.Node], bool]) -> ir.Value:
    """Let the nodes that ``where`` selects read ``value (rows, sequence, hidden)`` with slots in ``index`` order."""
    uses = [use for use in value.uses() if where(use.node)]
    node = value.producer()
    if node is None:
        raise FusionError(f"alignment: nothing makes {value.name}")
    rewriter = Rewriter(graph)
    flat = rewriter.op("Reshape", value, rewriter.int64([-1, width_of(value, "alignment")]), name=f"{name}.flat")
    taken = rewriter.op("Gather", flat, index, name=f"{name}.moved", axis=0)
    shape = rewriter.op("Shape", value, name=f"{name}.shape")
    moved = rewriter.op("Reshape", taken, shape, name=name)
    moved.shape = value.shape
    rewriter.insert_after(node)
    for use in uses:
        use.node.replace_input_with(use.idx, moved)
    return moved


def _restore(graph: ir.Graph, value: ir.Value, order: Order, where: Callable[[ir.Node], bool]) -> None:
    """Restore the original order for a graph output, which keeps its name, and for the nodes that ``where`` selects."""
    name = str(value.name)
    is_output = value.is_graph_output()
    restored = _move(graph, value, order.target, f"{name}.restored", where)
    if is_output:
        value.name, restored.name = f"{name}.aligned", name
        restored.type = value.type
        graph.outputs[list(graph.outputs).index(value)] = restored


def _keep_first(graph: ir.Graph, attention: ir.Node, order: Order) -> None:
    """In the last layer, compute the queries and all that follows for first tokens only: ``(rows, 1, hidden)``."""
    place = str(attention.name)
    product = matmul_of(attention.inputs[0], f"{place}, query")
    entering = product.inputs[0]
    if entering is None or entering.is_graph_output():
        raise FusionError(f"{place}: the input of the last layer is an output of the graph too")
    residual, position = residual_of(entering, place)
    rewriter = Rewriter(graph)
    shape = rewriter.op("Shape", attention.inputs[4], name="first.shape")
    laid = rewriter.op("Reshape", order.target, shape, name="first.targets")
    index = rewriter.op("Gather", laid, rewriter.int64([0]), name="first.index", axis=1)
    flat = rewriter.op("Reshape", entering, rewriter.int64([-1, width_of(entering, place)]), name="first.flat")
    first = rewriter.op("Gather", flat, index, name="first.tokens", axis=0)
    rewriter.insert_before(product)
    product.replace_input_with(0, first)
    residual.replace_input_with(position, first)
