"""In the last layer of ``cls`` and ``mc``, compute only what the pooler reads: the first token of each row.

Keys and values are still needed of every token; queries, the output projection, the feed-forward network and both
norms only of the first. The result is the same.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from erniem_export.errors import FusionError
from erniem_export.passes.packing import FIRST_TOKENS
from erniem_export.passes.rewriter import CONTRIB, Rewriter, producer

__all__ = ["keep_first_tokens"]

# By what packing lays tokens out, and which input has them.
_LAID = {"ScatterND": 2, "Gather": 0}


def keep_first_tokens(model: ir.Model) -> int:
    """Reduce the last layer of a packed graph that reads nothing but first tokens, in place.

    Returns how many products are computed of first tokens alone now.

    Raises:
        FusionError: The graph is not packed, or something else reads the last layer too.
    """
    graph = model.graph
    pick = next((node for node in graph if node.name == FIRST_TOKENS), None)
    if pick is None:
        raise FusionError("first tokens: the graph is not packed, or has no pooler")
    states, index = pick.inputs
    if states is None or len(list(states.uses())) != 1:
        raise FusionError("first tokens: more than the pooler reads the last layer")
    attention = [node for node in graph if node.op_type == "MultiHeadAttention" and node.domain == CONTRIB][-1]
    reader, query = _query(attention)
    product = next(value.producer() for value in query.inputs if value is not None and value.producer() is not None)
    if product is None or product.op_type != "MatMul":
        raise FusionError("first tokens: the last query is no product")
    entering = product.inputs[0]
    count = 1 + _products_between(graph, attention, states)

    rewriter = Rewriter(graph)
    first = rewriter.op("Gather", entering, index, name="packed.last_layer_first_tokens")
    rewriter.insert_before(product)
    product.replace_input_with(0, first)
    row = Rewriter(graph)
    reader.replace_input_with(0, row.op("Unsqueeze", query.outputs[0], row.int64([1]), name="packed.last_query"))
    row.insert_before(reader)
    _shorten_residual(attention, entering, first)
    ir.convenience.replace_all_uses_with(pick.outputs[0], states)
    TopologicalSortPass()(model)
    RemoveUnusedNodesPass()(model)
    return count


def _products_between(graph: ir.Graph, start: ir.Node, end: ir.Value) -> int:
    nodes = list(graph)
    last = end.producer()
    stop = len(nodes) if last is None else nodes.index(last)
    return sum(node.op_type == "MatMul" for node in nodes[nodes.index(start) : stop])


def _query(attention: ir.Node) -> tuple[ir.Node, ir.Node]:
    """The node that reads the laid out queries as its first input, and the one that makes them, still packed."""
    reader = attention
    scaled = attention.inputs[0].producer() if attention.inputs[0] is not None else None
    if scaled is not None and scaled.op_type == "Mul":  # masked by key lengths
        reader = scaled
    laid = producer(reader.inputs[0], "Reshape", "last query").inputs[0]
    node = laid.producer() if laid is not None else None
    if node is None or node.op_type not in _LAID:
        raise FusionError("first tokens: the last query is not laid out as packing does it")
    return reader, producer(node.inputs[_LAID[node.op_type]], "Add", "last query")


def _shorten_residual(attention: ir.Node, entering: ir.Value | None, first: ir.Value) -> None:
    """Behind the attention there is one token per row: drop the gather, and add what entered for that token."""
    flat = next(use.node for use in attention.outputs[0].uses())
    packed = next(use.node for use in flat.outputs[0].uses())
    ir.convenience.replace_all_uses_with(packed.outputs[0], flat.outputs[0])
    residuals = [
        use
        for use in (entering.uses() if entering is not None else ())
        if use.node.op_type == "Add" and _follows(flat.outputs[0], use.node)
    ]
    if len(residuals) != 1:
        raise FusionError(f"first tokens: expected one residual around the last attention, found {len(residuals)}")
    residuals[0].node.replace_input_with(residuals[0].idx, first)


def _follows(start: ir.Value, node: ir.Node) -> bool:
    """Does ``node`` read the projection of ``start``?"""
    values = {start}
    for _ in range(2):  # MatMul, Add
        values |= {output for value in values for use in value.uses() for output in use.node.outputs}
    return any(value in values for value in node.inputs)
