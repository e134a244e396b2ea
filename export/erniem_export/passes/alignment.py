"""The tokens of every row in the order of :mod:`key_lengths`, from the embeddings to the end of the encoder.

All shapes stay those of the batch, padding is computed as well, and every output is the canonical graph's, at padding
too. That is what a CUDA graph needs: it is captured for one shape, whatever the mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from erniem_export.errors import FusionError
from erniem_export.passes.key_lengths import attentions, mask_by_length, order_tokens
from erniem_export.passes.rewriter import Rewriter, producer

if TYPE_CHECKING:
    from collections.abc import Callable

    from erniem_export.passes.key_lengths import Order

__all__ = ["align_rows"]


def align_rows(model: ir.Model, *, pooled: bool) -> int:
    """Reorder the rows of a graph with fused attention and mask by length, in place; return the attentions masked.

    ``pooled``: nothing but the pooler reads the last layer, so all of it but keys and values is computed of the first
    token alone.

    Raises:
        FusionError: The graph is not as expected.
    """
    graph = model.graph
    found = attentions(graph)
    order = order_tokens(graph)
    norms = [node.outputs[0] for node in graph if node.op_type == "LayerNormalization"]
    for layer, attention in enumerate(found):  # two norms each, behind that of the embeddings
        if _product(attention, 0).inputs[0] is not norms[2 * layer]:
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
        _forget_shapes(graph)
    TopologicalSortPass()(model)
    RemoveUnusedNodesPass()(model)
    return count


def _forget_shapes(graph: ir.Graph) -> None:
    """Those that were inferred hold no more in the last layer."""
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape = None


def _product(attention: ir.Node, position: int) -> ir.Node:
    place = f"{attention.name}, projection {position}"
    biased = producer(attention.inputs[position], "Add", place)
    made = next((value.producer() for value in biased.inputs if value is not None and value.producer()), None)
    return producer(None if made is None else made.outputs[0], "MatMul", place)


def _move(graph: ir.Graph, value: ir.Value, index: ir.Value, name: str, where: Callable[[ir.Node], bool]) -> ir.Value:
    """Let the nodes that ``where`` picks read ``value (rows, sequence, hidden)`` with its slots taken by ``index``."""
    uses = [use for use in value.uses() if where(use.node)]
    node = value.producer()
    if node is None or value.shape is None or not isinstance(value.shape[-1], int):
        raise FusionError(f"alignment: the hidden size of {value.name} is not known")
    rewriter = Rewriter(graph)
    flat = rewriter.op("Reshape", value, rewriter.int64([-1, value.shape[-1]]), name=f"{name}.flat")
    taken = rewriter.op("Gather", flat, index, name=f"{name}.moved", axis=0)
    shape = rewriter.op("Shape", value, name=f"{name}.shape")
    moved = rewriter.op("Reshape", taken, shape, name=name)
    moved.shape = value.shape
    rewriter.insert_after(node)
    for use in uses:
        use.node.replace_input_with(use.idx, moved)
    return moved


def _restore(graph: ir.Graph, value: ir.Value, order: Order, where: Callable[[ir.Node], bool]) -> None:
    """The old order for an output of the graph, and for the nodes that ``where`` picks; under the value's name."""
    name = str(value.name)
    is_output = value.is_graph_output()
    restored = _move(graph, value, order.target, f"{name}.restored", where)
    if is_output:
        value.name, restored.name = f"{name}.aligned", name
        restored.type = value.type
        graph.outputs[list(graph.outputs).index(value)] = restored


def _keep_first(graph: ir.Graph, attention: ir.Node, order: Order) -> None:
    """In the last layer, compute queries and what follows of the rows' first tokens: ``(rows, 1, hidden)``."""
    product = _product(attention, 0)
    entering = product.inputs[0]
    residuals = [use for use in entering.uses() if use.node.op_type == "Add"] if entering is not None else []
    if entering is None or entering.is_graph_output() or len(residuals) != 1:
        raise FusionError(f"{attention.name}: expected one residual around it, found {len(residuals)}")
    if entering.shape is None or not isinstance(entering.shape[-1], int):
        raise FusionError(f"{attention.name}: the hidden size is not known")
    rewriter = Rewriter(graph)
    mask = attention.inputs[4]
    shape = rewriter.op("Shape", mask, name="first.shape")
    laid = rewriter.op("Reshape", order.target, shape, name="first.targets")
    index = rewriter.op("Gather", laid, rewriter.int64([0]), name="first.index", axis=1)
    flat = rewriter.op("Reshape", entering, rewriter.int64([-1, entering.shape[-1]]), name="first.flat")
    first = rewriter.op("Gather", flat, index, name="first.tokens", axis=0)
    rewriter.insert_before(product)
    product.replace_input_with(0, first)
    residuals[0].node.replace_input_with(residuals[0].idx, first)
