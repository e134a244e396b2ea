"""No work for padding: the tokens of a batch as one long row, except around attention.

Every layer but attention treats each token by itself. So the tokens that count are gathered into ``(tokens, hidden)``
right where they are embedded, and only queries, keys and values are laid out as ``(batch, sequence, hidden)`` again.

What counts: tokens that are attended to; the first of each row, which the pooler reads even where it is padding (left
padding); and all tokens of a row that attends to nothing, whose weights are uniform. Outputs per token are zero at
the positions left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from erniem_export.encoder import POSITION_OFFSET
from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import CONTRIB, Rewriter, single_use

__all__ = ["FIRST_TOKENS", "pack_tokens"]

# The value with the state of each row's first token, for the pass that needs nothing else of the last layer.
FIRST_TOKENS = "packed.first_tokens"

_BOOL, _INT32, _INT64 = int(ir.DataType.BOOL), int(ir.DataType.INT32), int(ir.DataType.INT64)


@dataclass(frozen=True)
class _Layout:
    """Where the tokens are: ``index (tokens,)`` into the ``rows * sequence`` slots, and ``kept (slots,)`` bool."""

    rows: ir.Value
    sequence: ir.Value
    slots: ir.Value
    index: ir.Value
    column: ir.Value
    kept: ir.Value


def pack_tokens(model: ir.Model) -> int:
    """Pack a graph with fused attention, in place; return the number of attentions that were wrapped.

    Raises:
        FusionError: The graph has no fused attention, or an input that belongs to positions, which packing moves.
    """
    graph = model.graph
    attentions = [node for node in graph if node.op_type == "MultiHeadAttention" and node.domain == CONTRIB]
    inputs = {value.name: value for value in graph.inputs}
    if not attentions or set(inputs) != {"input_ids", "attention_mask"}:
        raise FusionError(f"packing needs fused attention and ids alone, found inputs {', '.join(map(str, inputs))}")
    last = [node for node in graph if node.op_type == "LayerNormalization"][-1].outputs[0]
    layout = _pack_embeddings(graph, attentions[0], inputs["input_ids"])
    for attention in attentions:
        _unpack_around(graph, attention, layout)
    _read_first_tokens(graph, last, layout)
    _move_axes(last)
    for position, output in enumerate(list(graph.outputs)):
        if output.shape is not None and "sequence" in [str(getattr(size, "value", size)) for size in output.shape]:
            _unpack_output(graph, position, layout)
    _forget_shapes(graph)
    TopologicalSortPass()(model)
    RemoveUnusedNodesPass()(model)
    return len(attentions)


def _pack_embeddings(graph: ir.Graph, attention: ir.Node, input_ids: ir.Value) -> _Layout:
    """Look up only the tokens that count."""
    words = _lookup(graph, "word_embeddings.weight")
    added = single_use(words.outputs[0], "Add", "embeddings")
    rewriter = Rewriter(graph)
    mask = attention.inputs[4]
    if mask is None:
        raise FusionError("packing needs attention with a key padding mask")
    layout = _layout(rewriter, mask)
    ids = rewriter.op("Reshape", input_ids, rewriter.int64([-1]), name="packed.all_ids")
    ids = rewriter.op("Gather", ids, layout.index, name="packed.input_ids")
    positions = rewriter.op("Mod", layout.index, layout.sequence, name="packed.columns")
    positions = rewriter.op("Add", positions, rewriter.int64(POSITION_OFFSET), name="packed.position_ids")
    word = rewriter.op("Gather", words.inputs[0], ids, name="packed.words")
    place = _lookup(graph, "position_embeddings.weight").inputs[0]
    position = rewriter.op("Gather", place, positions, name="packed.positions")
    embeddings = rewriter.op("Add", word, position, name="packed.embeddings")
    rewriter.insert_before(added)
    ir.convenience.replace_all_uses_with(added.outputs[0], embeddings)
    return layout


def _lookup(graph: ir.Graph, table: str) -> ir.Node:
    found = [
        node
        for node in graph
        if node.op_type == "Gather" and node.inputs[0] is not None and str(node.inputs[0].name).endswith(table)
    ]
    if len(found) != 1:
        raise FusionError(f"embeddings: expected one lookup in {table}, found {len(found)}")
    return found[0]


def _layout(rewriter: Rewriter, mask: ir.Value) -> _Layout:
    """From the key padding mask ``(rows, sequence)`` int32."""
    shape = rewriter.op("Shape", mask, name="packed.shape")
    rows = rewriter.op("Gather", shape, rewriter.int64([0]), name="packed.rows")
    sequence = rewriter.op("Gather", shape, rewriter.int64([1]), name="packed.sequence")
    slots = rewriter.op("Mul", rows, sequence, name="packed.slots")
    attended = rewriter.op("Cast", mask, name="packed.attended", to=_BOOL)
    live = rewriter.op("ReduceMax", mask, rewriter.int64([1]), name="packed.live", keepdims=1)
    empty = rewriter.op("Not", rewriter.op("Cast", live, name="packed.is_live", to=_BOOL), name="packed.empty")
    length = rewriter.op("Squeeze", sequence, rewriter.int64([0]), name="packed.length")
    columns = rewriter.op("Range", rewriter.int64(0), length, rewriter.int64(1), name="packed.range")
    first = rewriter.op("Equal", columns, rewriter.int64(0), name="packed.is_first")
    kept = rewriter.op("Or", attended, empty, name="packed.attended_or_empty")
    kept = rewriter.op("Or", kept, first, name="packed.kept_slots")
    kept = rewriter.op("Reshape", kept, rewriter.int64([-1]), name="packed.kept")
    index = rewriter.op("NonZero", kept, name="packed.nonzero")
    index = rewriter.op("Squeeze", index, rewriter.int64([0]), name="packed.index")
    column = rewriter.op("Unsqueeze", index, rewriter.int64([1]), name="packed.index_column")
    return _Layout(rows, sequence, slots, index, column, kept)


def _unpack_around(graph: ir.Graph, attention: ir.Node, layout: _Layout) -> None:
    rewriter = Rewriter(graph)
    hidden = _width(attention.inputs[0])
    empty = rewriter.zeros(
        rewriter.op("Concat", layout.slots, rewriter.int64([hidden]), name=f"{attention.name}.slots", axis=0),
        f"{attention.name}.empty",
    )
    grid = rewriter.op(
        "Concat", layout.rows, layout.sequence, rewriter.int64([hidden]), name=f"{attention.name}.grid", axis=0
    )
    for i, role in enumerate(("query", "key", "value")):
        laid = rewriter.op("ScatterND", empty, layout.column, attention.inputs[i], name=f"{attention.name}.{role}.laid")
        attention.replace_input_with(i, rewriter.op("Reshape", laid, grid, name=f"{attention.name}.{role}"))
    rewriter.insert_before(attention)
    readers = list(attention.outputs[0].uses())
    flat = rewriter.op("Reshape", attention.outputs[0], rewriter.int64([-1, hidden]), name=f"{attention.name}.flat")
    packed = rewriter.op("Gather", flat, layout.index, name=f"{attention.name}.packed")
    rewriter.insert_before(readers[0].node)
    for use in readers:
        use.node.replace_input_with(use.idx, packed)


def _width(value: ir.Value | None) -> int:
    size = None if value is None or value.shape is None else value.shape[-1]
    if not isinstance(size, int):
        raise FusionError(f"attention: the hidden size is not known, {value}")
    return size


def _read_first_tokens(graph: ir.Graph, states: ir.Value, layout: _Layout) -> None:
    """Where the pooler picks column 0 of every row, pick the rows' first tokens from the packed ones."""
    picks = [use.node for use in states.uses() if use.node.op_type == "Gather" and use.idx == 0]
    for pick in picks:
        rewriter = Rewriter(graph)
        rows = rewriter.op("Squeeze", layout.rows, rewriter.int64([0]), name="packed.row_count")
        starts = rewriter.op("Range", rewriter.int64(0), rows, rewriter.int64(1), name="packed.row_numbers")
        starts = rewriter.op("Mul", starts, layout.sequence, name="packed.row_starts")
        counted = rewriter.op("Cast", layout.kept, name="packed.kept_int64", to=_INT64)
        before = rewriter.op("CumSum", counted, rewriter.int64(0), name="packed.kept_before", exclusive=1)
        firsts = rewriter.op("Gather", before, starts, name="packed.first_index")
        first = rewriter.op("Gather", states, firsts, name=FIRST_TOKENS)
        rewriter.insert_before(pick)
        ir.convenience.replace_all_uses_with(pick.outputs[0], first, replace_graph_outputs=True)


def _move_axes(states: ir.Value) -> None:
    """Behind the encoder, what addressed the third axis of ``(batch, sequence, labels)`` addresses the second now."""
    pending, seen = [states], set()
    while pending:
        for use in pending.pop().uses():
            if use.node in seen:
                continue
            seen.add(use.node)
            axes_input = {"Slice": 3, "Squeeze": 1}.get(use.node.op_type)
            if axes_input is not None and use.node.graph is not None:
                use.node.replace_input_with(axes_input, Rewriter(use.node.graph).int64([-1]))
            pending += use.node.outputs


def _unpack_output(graph: ir.Graph, position: int, layout: _Layout) -> None:
    """Lay an output per token out as ``(batch, sequence, ...)``, zero where nothing counts."""
    packed = graph.outputs[position]
    name, shape, dtype = str(packed.name), packed.shape, packed.dtype
    trailing = [int(size) for size in shape[2:] if isinstance(size, int)] if shape is not None else []
    packed.name = f"{name}.packed"
    rewriter = Rewriter(graph)
    tail = [rewriter.int64(trailing)] if trailing else []
    slots = rewriter.op("Concat", layout.slots, *tail, name=f"{name}.slots", axis=0)
    laid = rewriter.op("ScatterND", rewriter.zeros(slots, f"{name}.empty"), layout.column, packed, name=f"{name}.laid")
    grid = rewriter.op("Concat", layout.rows, layout.sequence, *tail, name=f"{name}.grid", axis=0)
    output = rewriter.op("Reshape", laid, grid, name=name)
    output.shape, output.type = shape, ir.TensorType(dtype or ir.DataType.FLOAT)
    rewriter.append()
    graph.outputs[position] = output


def _forget_shapes(graph: ir.Graph) -> None:
    """The shapes that were inferred for padded batches hold no more; those of outputs do."""
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape = None
