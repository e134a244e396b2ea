"""Removes the work for padding: packs a batch's tokens into one long row, and masks attention by key lengths.

**Packing.** All operations but attention treat each token alone. So the embeddings gather the kept tokens into
``(tokens, hidden)``, and only queries, keys and values are padded to ``(batch, sequence, hidden)`` again. Kept are:
attended tokens; the first token of each row, which the pooler reads even if it is padding (left padding); and all
tokens of a row that is all padding, whose attention weights are uniform. Outputs per token are zero elsewhere.

**Key lengths.** ONNX Runtime's CUDA provider uses its fast attention kernels only without a mask, or with the number of
valid keys at the start of each row. Attention does not depend on the order of its keys, so each row's tokens are
reordered: first the attended ones, then the masked ones, each group in its original order. Masked tokens are still
queries. In the canonical graph, a row that is all padding has uniform attention weights; here all its keys are valid,
and its queries are zeros.

**Both.** One Gather each pads the tokens in that order. The remaining slots hold an arbitrary token: their keys are
masked, and their queries are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from erniem_export.errors import FusionError
from erniem_export.mask_mode import cut_padding_key, uncut
from erniem_export.modeling import POSITION_OFFSET
from erniem_export.passes.rewriter import (
    Rewriter,
    forget_shapes,
    fused_attentions,
    matmul_of,
    producer,
    producer_if,
    residual_of,
    single_use,
    width_of,
)

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


# The value with the state of each row's first token.
_FIRST_TOKENS = "packed.first_tokens"
# The operators that pad packed tokens, and the index of their input with the tokens.
_LAID = {"ScatterND": 2, "Gather": 0}

_ROLES = ("query", "key", "value")


@dataclass(frozen=True)
class _Layout:
    """The kept tokens: ``index (tokens,)`` into the ``rows * sequence`` slots; ``kept (rows, sequence)`` bool."""

    rows: ir.Value
    sequence: ir.Value
    slots: ir.Value
    index: ir.Value
    column: ir.Value
    kept: ir.Value


def pack_tokens(model: ir.Model, *, by_length: bool = False) -> int:
    """Pack a graph with fused attention, in place; return the number of attentions.

    ``by_length``: mask by key lengths, for the fast attention kernels of a GPU.

    Raises:
        FusionError: The graph has no fused attention, or an input per position, which packing cannot move.
    """
    graph = model.graph
    attentions = fused_attentions(graph)
    inputs = {value.name: value for value in graph.inputs}
    if not attentions or set(inputs) != {"input_ids", "attention_mask"}:
        raise FusionError(f"packing needs fused attention and ids alone, found inputs {', '.join(map(str, inputs))}")
    last = [node for node in graph if node.op_type == "LayerNormalization"][-1].outputs[0]
    has_padding_key = uncut(graph)
    layout = _pack_embeddings(graph, attentions[0], inputs["input_ids"], has_padding_key)
    if by_length:
        order = order_tokens(graph)
        place, inverse = _ordered(graph, attentions[0], layout, order)
        for attention in attentions:
            _lay_in_order(graph, attention, layout, inverse)
            _gather_behind(graph, attention, place)
        mask_by_length(graph, order)
    else:
        for attention in attentions:
            _lay_around(graph, attention, layout)
            _gather_behind(graph, attention, layout.index)
    _read_first_tokens(graph, last, layout)
    _move_axes(last)
    for position, output in enumerate(list(graph.outputs)):
        if output.shape is not None and "sequence" in [str(getattr(size, "value", size)) for size in output.shape]:
            _unpack_output(graph, position, layout)
            if has_padding_key:
                cut_padding_key(graph, position)
    forget_shapes(graph)
    TopologicalSortPass()(model)
    RemoveUnusedNodesPass()(model)
    return len(attentions)


def _pack_embeddings(
    graph: ir.Graph, attention: ir.Node, input_ids: ir.Value, has_padding_key: bool = False
) -> _Layout:
    """Look up only the kept tokens; with a padding key (uie-m), use the ids and positions that the graph computes, and
    also its positions if they are not the columns, as in XLM-R.
    """
    words, places = (_lookup(graph, f"{table}_embeddings.weight") for table in ("word", "position"))
    added = single_use(words.outputs[0], "Add", "embeddings")
    rewriter = Rewriter(graph)
    mask = attention.inputs[4]
    if mask is None:
        raise FusionError("packing needs attention with a key padding mask")
    all_ids = words.inputs[1] if has_padding_key else input_ids
    # With a padding key, id 0 is masked as a key but still has outputs.
    hidden = rewriter.op("Equal", all_ids, rewriter.int64(0), name="packed.is_hidden") if has_padding_key else None
    layout = _layout(rewriter, mask, hidden)
    ids = rewriter.op("Reshape", all_ids, rewriter.int64([-1]), name="packed.all_ids")
    ids = rewriter.op("Gather", ids, layout.index, name="packed.input_ids")
    columns = places.inputs[1]
    if has_padding_key or (columns is not None and columns.shape is not None and columns.shape[0] != 1):
        positions = rewriter.op("Reshape", places.inputs[1], rewriter.int64([-1]), name="packed.all_positions")
        positions = rewriter.op("Gather", positions, layout.index, name="packed.position_ids")
    else:
        positions = rewriter.op("Mod", layout.index, layout.sequence, name="packed.columns")
        positions = rewriter.op("Add", positions, rewriter.int64(POSITION_OFFSET), name="packed.position_ids")
    word = rewriter.op("Gather", words.inputs[0], ids, name="packed.words")
    position = rewriter.op("Gather", places.inputs[0], positions, name="packed.positions")
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


def _layout(rewriter: Rewriter, mask: ir.Value, hidden: ir.Value | None = None) -> _Layout:
    """Build the layout from the key padding mask ``(rows, sequence)`` int32; ``hidden`` (bool) tokens are kept too."""
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
    if hidden is not None:
        kept = rewriter.op("Or", kept, hidden, name="packed.kept_with_hidden")
    flat = rewriter.op("Reshape", kept, rewriter.int64([-1]), name="packed.kept")
    index = rewriter.op("NonZero", flat, name="packed.nonzero")
    index = rewriter.op("Squeeze", index, rewriter.int64([0]), name="packed.index")
    column = rewriter.op("Unsqueeze", index, rewriter.int64([1]), name="packed.index_column")
    return _Layout(rows, sequence, slots, index, column, kept)


def _lay_around(graph: ir.Graph, attention: ir.Node, layout: _Layout) -> None:
    """Scatter queries, keys and values to the slots of their tokens."""
    rewriter = Rewriter(graph)
    hidden = width_of(attention.inputs[0], str(attention.name))
    empty = rewriter.zeros(
        rewriter.op("Concat", layout.slots, rewriter.int64([hidden]), name=f"{attention.name}.slots", axis=0),
        f"{attention.name}.empty",
    )
    grid = _grid(rewriter, attention, layout, hidden)
    for i, role in enumerate(_ROLES):
        laid = rewriter.op("ScatterND", empty, layout.column, attention.inputs[i], name=f"{attention.name}.{role}.laid")
        attention.replace_input_with(i, rewriter.op("Reshape", laid, grid, name=f"{attention.name}.{role}"))
    rewriter.insert_before(attention)


def _ordered(graph: ir.Graph, attention: ir.Node, layout: _Layout, order: Order) -> tuple[ir.Value, ir.Value]:
    """Return each token's slot in the order, and each slot's token (the first token where a slot has none)."""
    rewriter = Rewriter(graph)
    place = rewriter.op("Gather", order.target, layout.index, name="packed.place", axis=0)
    tokens = rewriter.op("Squeeze", rewriter.op("Shape", place, name="packed.tokens"), name="packed.token_count")
    numbers = rewriter.op("Range", rewriter.int64(0), tokens, rewriter.int64(1), name="packed.token_numbers")
    nothing = rewriter.op("Sub", order.slot, order.slot, name="packed.no_token")
    inverse = rewriter.op("ScatterElements", nothing, place, numbers, name="packed.token_of_slot", axis=0)
    rewriter.insert_before(attention)
    return place, inverse


def _lay_in_order(graph: ir.Graph, attention: ir.Node, layout: _Layout, inverse: ir.Value) -> None:
    rewriter = Rewriter(graph)
    grid = _grid(rewriter, attention, layout, width_of(attention.inputs[0], str(attention.name)))
    for i, role in enumerate(_ROLES):
        laid = rewriter.op("Gather", attention.inputs[i], inverse, name=f"{attention.name}.{role}.laid", axis=0)
        attention.replace_input_with(i, rewriter.op("Reshape", laid, grid, name=f"{attention.name}.{role}"))
    rewriter.insert_before(attention)


def _grid(rewriter: Rewriter, attention: ir.Node, layout: _Layout, hidden: int) -> ir.Value:
    return rewriter.op(
        "Concat", layout.rows, layout.sequence, rewriter.int64([hidden]), name=f"{attention.name}.grid", axis=0
    )


def _gather_behind(graph: ir.Graph, attention: ir.Node, index: ir.Value) -> None:
    """Gather the packed tokens from their slots after the attention."""
    rewriter = Rewriter(graph)
    hidden = width_of(attention.outputs[0], str(attention.name))
    readers = list(attention.outputs[0].uses())
    flat = rewriter.op("Reshape", attention.outputs[0], rewriter.int64([-1, hidden]), name=f"{attention.name}.flat")
    packed = rewriter.op("Gather", flat, index, name=f"{attention.name}.packed")
    rewriter.insert_before(readers[0].node)
    for use in readers:
        use.node.replace_input_with(use.idx, packed)


def _read_first_tokens(graph: ir.Graph, states: ir.Value, layout: _Layout) -> None:
    """Replace the pooler's selection of column 0 by the rows' first tokens among the packed ones."""
    picks = [use.node for use in states.uses() if use.node.op_type == "Gather" and use.idx == 0]
    for pick in picks:
        rewriter = Rewriter(graph)
        counted = rewriter.op("Cast", layout.kept, name="packed.kept_int64", to=_INT64)
        counts = rewriter.op("ReduceSum", counted, rewriter.int64([1]), name="packed.kept_in_row", keepdims=0)
        firsts = rewriter.op("CumSum", counts, rewriter.int64(0), name="packed.first_index", exclusive=1)
        first = rewriter.op("Gather", states, firsts, name=_FIRST_TOKENS)
        rewriter.insert_before(pick)
        ir.convenience.replace_all_uses_with(pick.outputs[0], first, replace_graph_outputs=True)


def _move_axes(states: ir.Value) -> None:
    """After the encoder, let nodes that use the third axis of ``(batch, sequence, labels)`` use the last one."""
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
    """Pad an output per token to ``(batch, sequence, ...)``, with zeros where no token is kept."""
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


def keep_first_tokens(model: ir.Model) -> int:
    """Reduce the last layer of a packed ``cls`` or ``mc`` to the tokens that the pooler reads, in place.

    Only keys and values need every token; queries, the output projection, the feed-forward network and both norms need
    the first of each row. The result is the same. Returns the number of reduced matmuls.

    Raises:
        FusionError: The graph is not packed, or another node reads the last layer too.
    """
    graph = model.graph
    pick = next((node for node in graph if node.name == _FIRST_TOKENS), None)
    if pick is None:
        raise FusionError("first tokens: the graph is not packed, or has no pooler")
    states, index = pick.inputs
    if states is None or len(list(states.uses())) != 1:
        raise FusionError("first tokens: more than the pooler reads the last layer")
    attention = fused_attentions(graph)[-1]
    reader, query = _query(attention)
    product = matmul_of(query, "last query")
    entering = product.inputs[0]
    if entering is None:
        raise FusionError("first tokens: the last query has no input")
    count = 1 + _products_between(graph, attention, states)
    residual, position = residual_of(entering, str(attention.name))

    first, row = Rewriter(graph), Rewriter(graph)
    tokens = first.op("Gather", entering, index, name="packed.last_layer_first_tokens")
    first.insert_before(product)
    product.replace_input_with(0, tokens)
    reader.replace_input_with(0, row.op("Unsqueeze", query, row.int64([1]), name="packed.last_query"))
    row.insert_before(reader)
    # The attention now gives one token per row: skip the Gather, and add that token's residual.
    flat = next(use.node for use in attention.outputs[0].uses())
    packed = next(use.node for use in flat.outputs[0].uses())
    ir.convenience.replace_all_uses_with(packed.outputs[0], flat.outputs[0])
    residual.replace_input_with(position, tokens)
    ir.convenience.replace_all_uses_with(pick.outputs[0], states)
    TopologicalSortPass()(model)
    RemoveUnusedNodesPass()(model)
    return count


def _products_between(graph: ir.Graph, start: ir.Node, end: ir.Value) -> int:
    nodes = list(graph)
    last = end.producer()
    stop = len(nodes) if last is None else nodes.index(last)
    return sum(node.op_type == "MatMul" for node in nodes[nodes.index(start) : stop])


def _query(attention: ir.Node) -> tuple[ir.Node, ir.Value]:
    """Return the node that reads the padded queries as its first input, and the packed queries."""
    reader = producer_if(attention.inputs[0], "Mul") or attention  # multiplied if masked by key lengths
    laid = producer(reader.inputs[0], "Reshape", "last query").inputs[0]
    node = laid.producer() if laid is not None else None
    query = node.inputs[_LAID[node.op_type]] if node is not None and node.op_type in _LAID else None
    if query is None:
        raise FusionError("first tokens: the last query is not laid out as packing does it")
    return reader, query
