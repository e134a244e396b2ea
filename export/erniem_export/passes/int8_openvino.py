"""int8 matmuls for OpenVINO: QuantizeLinear and DequantizeLinear with zero points, and outlier channels in float32.

OpenVINO computes such a matmul in int8. It fuses the quantization into the operation before if that is elementwise, has
no other reader, and its values have three axes. So the packed tokens get a leading axis of 1, and a norm whose result
is quantized exists twice: once for the residual, and once scaled to the steps of the matmul's input.

Attention of packed tokens uses standard operators. OpenVINO computes matmul, softmax, matmul and QuantizeLinear as one
kernel, but copies scattered and transposed tensors. So one Gather takes keys to their heads and slots, and one takes
the quantized context back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from erniem_export.errors import FusionError
from erniem_export.passes.int8 import _matmul, _matmuls
from erniem_export.passes.rewriter import Rewriter, fused_attentions, matmul_of, producer, single_use, store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from erniem_export.quantization.products import Int8Product

__all__ = ["to_int8_openvino"]

_EMBEDDINGS, _CONTEXT = "packed.embeddings", ".context"
# The index of MultiHeadAttention's input that masks keys; the next input is added to the scores.
_MASK = 4
_FLOAT = ir.TensorType(ir.DataType.FLOAT)
# Added to the scores of masked keys: it outweighs any score, and bf16 can represent it.
_HIDDEN = -1e30


class _Entry(NamedTuple):
    """A matmul's input after quantizing and dequantizing, and its outlier channels in float32, if any."""

    rounded: ir.Value
    exact: ir.Value | None


def to_int8_openvino(model: ir.Model, products: Mapping[str, Int8Product]) -> int:
    """Put the matmuls of linear layers between QuantizeLinear and DequantizeLinear, in place; return how many.

    Args:
        model: The canonical graph, or one derived from it by fusing attention and packing tokens.
        products: The int8 matmuls, by the name of the linear layer.

    Raises:
        FusionError: A layer's matmul is not in the graph, or is not followed by its bias.
    """
    graph = model.graph
    _unfuse_attention(graph)
    RemoveUnusedNodesPass()(model)
    nodes = _matmuls(graph)
    entries: dict[tuple[ir.Value, int], _Entry] = {}
    for name, product in products.items():
        node, entering = _matmul(nodes, name)
        key = (entering, id(product.entering))
        if key not in entries:
            entries[key] = _enter(graph, node, entering, product)
        _replace(graph, node, entries[key], product)
    _lead_with_one(graph)
    TopologicalSortPass()(model)
    RemoveUnusedNodesPass()(model)
    return len(products)


def _enter(graph: ir.Graph, node: ir.Node, entering: ir.Value, product: Int8Product) -> _Entry:
    rewriter, name, quantization = Rewriter(graph), product.name, product.entering
    step = np.array(quantization.scale, dtype=np.float32)
    factors = None if quantization.factors is None or product.fold else quantization.factors.numpy()
    scale = store(graph, f"{name}.input_scale", step)
    zero_point = store(graph, f"{name}.input_zero_point", np.array(quantization.zero_point, dtype=np.uint8))
    norm = entering.producer()
    values, unit = entering, scale
    if norm is not None and norm.op_type == "LayerNormalization":
        values = _norm_in_steps(graph, rewriter, norm, product, step if factors is None else step / factors)
        unit = store(graph, f"{name}.input_step", np.array(1.0, dtype=np.float32))
    elif factors is not None:
        smoothed = store(graph, f"{name}.input_factors", factors)
        values = rewriter.op("Mul", entering, smoothed, name=f"{name}.input_smoothed")
    context = None if len(quantization.exact) or factors is not None else _context_of(entering)
    values = values if context is None else context
    steps = rewriter.op("QuantizeLinear", values, unit, zero_point, name=f"{name}.input_uint8")
    steps.type = ir.TensorType(ir.DataType.UINT8)
    rounded = rewriter.op("DequantizeLinear", steps, scale, zero_point, name=f"{name}.input_dequantized")
    rounded.type = _FLOAT
    if context is not None:
        (reader,) = (use.node for use in context.uses() if use.node is not steps.producer())
        reader.replace_input_with(0, rounded)
        rewriter.insert_before(reader)
        return _Entry(entering, None)
    exact = None
    if len(quantization.exact):
        # The factors of these channels are 1.
        channels = store(graph, f"{name}.exact_channels", quantization.exact.numpy())
        exact = rewriter.op("Gather", entering, channels, name=f"{name}.input_exact", axis=-1)
    rewriter.insert_before(node)
    return _Entry(rounded, exact)


def _context_of(value: ir.Value) -> ir.Value | None:
    """Return the attention's context by head, if ``value`` has its tokens."""
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Gather") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value if node is not None and str(node.name).endswith(_CONTEXT) else None


def _norm_in_steps(
    graph: ir.Graph, rewriter: Rewriter, norm: ir.Node, product: Int8Product, step: np.ndarray
) -> ir.Value:
    """Add a second norm whose results are divided by ``step``, one number or one per channel."""
    parts = []
    for value, part in zip(norm.inputs[1:3], ("weight", "bias"), strict=True):
        if value is None or value.const_value is None:
            raise FusionError(f"{product.name}: the norm before it has no stored {part}")
        numbers = (value.const_value.numpy() / step).astype(np.float32)
        parts.append(store(graph, f"{product.name}.input_norm.{part}", numbers))
    attributes = {name: attribute.value for name, attribute in norm.attributes.items()}
    return rewriter.op("LayerNormalization", norm.inputs[0], *parts, name=f"{product.name}.input_norm", **attributes)


def _replace(graph: ir.Graph, node: ir.Node, entry: _Entry, product: Int8Product) -> None:
    name, rewriter = product.name, Rewriter(graph)
    added = single_use(node.outputs[0], "Add", name)
    weight = rewriter.op(
        "DequantizeLinear",
        store(graph, f"{name}.weight.int8", product.weight.numpy()),
        store(graph, f"{name}.weight.scale", product.scales.numpy()),
        name=f"{name}.weight.dequantized",
        axis=1,
    )
    weight.type = _FLOAT
    result = rewriter.op("MatMul", entry.rounded, weight, name=f"{name}.int8")
    bias = store(graph, f"{name}.bias.int8", product.bias.numpy())
    result = rewriter.op("Add", result, bias, name=f"{name}.with_bias")
    if entry.exact is not None:
        exact_weight = store(graph, f"{name}.weight.exact", product.exact_weight.numpy())
        exact = rewriter.op("MatMul", entry.exact, exact_weight, name=f"{name}.exact")
        result = rewriter.op("Add", result, exact, name=f"{name}.with_exact")
    replaced = added.outputs[0]
    result.shape, result.type = replaced.shape, _FLOAT
    rewriter.insert_before(added)
    ir.convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)


def _lead_with_one(graph: ir.Graph) -> None:
    """Give the states of packed tokens the shape ``(1, tokens, hidden)``, from the embeddings on, except in attention
    and where rows or outputs are selected.
    """
    nodes = list(graph)
    embeddings = next((node.outputs[0] for node in nodes if node.name == _EMBEDDINGS), None)
    if embeddings is None:
        return
    led = {_led(graph, embeddings)}
    for node in nodes:
        if node.name is not None and node.name.endswith(".attention.packed"):
            led.add(_led(graph, node.outputs[0]))
    graph.sort()
    for node in list(graph):
        _carry(graph, node, led)


def _led(graph: ir.Graph, value: ir.Value) -> ir.Value:
    rewriter, node = Rewriter(graph), value.producer()
    assert node is not None
    uses = list(value.uses())
    result = rewriter.op("Unsqueeze", value, rewriter.int64([0]), name=f"{value.name}.led")
    rewriter.insert_after(node)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    return result


def _carry(graph: ir.Graph, node: ir.Node, led: set[ir.Value]) -> None:
    """Mark the outputs of ``node`` as having the leading axis, or remove the axis from inputs that it reads by rows."""
    reads = [i for i, value in enumerate(node.inputs) if value in led]
    if not reads:
        return
    by_row = node.op_type == "ScatterND" or (node.op_type == "Gather" and "axis" not in node.attributes)
    if not by_row:
        led.update(node.outputs)
        return
    for i in reads:
        rewriter, value = Rewriter(graph), node.inputs[i]
        assert value is not None
        plain = rewriter.op("Squeeze", value, rewriter.int64([0]), name=f"{node.name}.rows.{i}")
        rewriter.insert_before(node)
        node.replace_input_with(i, plain)


class _Grid(NamedTuple):
    """The indices between packed tokens and the slots of a batch.

    ``tokens (rows, sequence)`` is the index of the token in each slot, 0 in an empty one, and ``keys (rows, heads,
    sequence)`` the same among rows of one token and head. ``contexts (tokens, heads)`` are the indices of the way back,
    among rows of one batch row, head and slot. ``hidden (rows, 1, 1, sequence)`` is added to the scores.
    """

    tokens: ir.Value
    keys: ir.Value
    contexts: ir.Value
    hidden: ir.Value


def _unfuse_attention(graph: ir.Graph) -> None:
    """Replace the fused attention of packed tokens by standard operators, in place.

    Raises:
        FusionError: A layer's attention does not have the form that packing writes.
    """
    grid: _Grid | None = None
    for attention in fused_attentions(graph):
        name, heads = str(attention.name), attention.attributes["num_heads"].as_int()
        if grid is None:
            grid = _with_bias(graph, attention, _grid(graph, attention, heads))
        packed = [_packed(value, name) for value in attention.inputs[:3]]
        weight = matmul_of(packed[1], name).inputs[1]
        if weight is None or weight.const_value is None:
            raise FusionError(f"{name}: the weight of its keys is not stored")
        _unfuse(graph, attention, packed, (heads, weight.const_value.numpy().shape[1] // heads), grid)


def _packed(value: ir.Value | None, place: str) -> ir.Value:
    """Return queries, keys or values before the scatter into slots; queries of first tokens alone have no scatter."""
    if _is_of_first(value):
        packed = producer(value, "Unsqueeze", place).inputs[0]
    else:
        packed = producer(producer(value, "Reshape", place).inputs[0], "ScatterND", place).inputs[2]
    if packed is None:
        raise FusionError(f"{place}: its inputs are not laid out as packing does it")
    return packed


def _is_of_first(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "Unsqueeze"


def _grid(graph: ir.Graph, attention: ir.Node, heads: int) -> _Grid:
    mask = attention.inputs[_MASK]
    laid = producer(producer(attention.inputs[1], "Reshape", "keys").inputs[0], "ScatterND", "keys")
    column = laid.inputs[1]
    index = producer(column, "Unsqueeze", "keys").inputs[0]
    rewriter = Rewriter(graph)
    each = rewriter.int64(list(range(heads)))
    shape = rewriter.op("Shape", mask, name="grid.shape")

    count = rewriter.op("Squeeze", rewriter.op("Shape", index, name="grid.tokens_1d"), name="grid.token_count")
    numbers = rewriter.op("Range", rewriter.int64(0), count, rewriter.int64(1), name="grid.numbers")
    slots = rewriter.op("ReduceProd", shape, name="grid.slot_count", keepdims=1)
    first = rewriter.op("ConstantOfShape", slots, name="grid.first", value=ir.tensor(np.zeros(1, dtype=np.int64)))
    tokens = rewriter.op("ScatterND", first, column, numbers, name="grid.token_of_slot")
    tokens = rewriter.op("Reshape", tokens, shape, name="grid.tokens")

    keys = rewriter.op("Mul", tokens, rewriter.int64(heads), name="grid.first_keys")
    keys = rewriter.op("Unsqueeze", keys, rewriter.int64([1]), name="grid.first_keys.by_head")
    keys = rewriter.op("Add", keys, rewriter.op("Unsqueeze", each, rewriter.int64([1]), name="heads"), name="grid.keys")

    # Slot s of row r is r * sequence + s. Its context of head h is at (r * heads + h) * sequence + s.
    sequence = rewriter.op("Gather", shape, rewriter.int64([1]), name="grid.sequence")
    row = rewriter.op("Div", index, sequence, name="grid.row")
    skipped = rewriter.op("Mul", sequence, rewriter.int64(heads - 1), name="grid.skipped_per_row")
    skipped = rewriter.op("Mul", row, skipped, name="grid.skipped")
    contexts = rewriter.op("Add", index, skipped, name="grid.first_contexts")
    contexts = rewriter.op("Unsqueeze", contexts, rewriter.int64([1]), name="grid.first_contexts.by_head")
    of_head = rewriter.op("Mul", each, sequence, name="grid.contexts_of_head")
    contexts = rewriter.op("Add", contexts, of_head, name="grid.contexts")

    zero, low = (rewriter.scalar(value, ir.DataType.FLOAT) for value in (0.0, _HIDDEN))
    attended = rewriter.op("Cast", mask, name="grid.attended", to=int(ir.DataType.BOOL))
    hidden = rewriter.op("Where", attended, zero, low, name="grid.hidden.2d")
    hidden = rewriter.op("Unsqueeze", hidden, rewriter.int64([1, 2]), name="grid.hidden")
    rewriter.insert_before(laid)
    return _Grid(tokens, keys, contexts, hidden)


def _with_bias(graph: ir.Graph, attention: ir.Node, grid: _Grid) -> _Grid:
    """Add the bias of the keys, which all layers share, to what is added to the scores."""
    if len(attention.inputs) <= _MASK + 1:
        return grid
    rewriter, bias = Rewriter(graph), producer(attention.inputs[_MASK + 1], "Expand", str(attention.name)).inputs[0]
    hidden = rewriter.op("Add", grid.hidden, bias, name="grid.hidden.biased")
    rewriter.insert_before(attention)
    return grid._replace(hidden=hidden)


def _unfuse(graph: ir.Graph, attention: ir.Node, packed: list[ir.Value], sizes: tuple[int, int], grid: _Grid) -> None:
    """Replace one attention; ``packed``: queries, keys, values; ``sizes``: the number of heads and the size of each."""
    rewriter, name, (heads, size) = Rewriter(graph), str(attention.name), sizes
    of_first = _is_of_first(attention.inputs[0])

    def by_head(rows: ir.Value | None, role: str) -> ir.Value:
        split = rewriter.op("Reshape", rows, rewriter.int64([0, 0, heads, size]), name=f"{name}.{role}.split")
        return rewriter.op("Transpose", split, name=f"{name}.{role}.heads", perm=[0, 2, 1, 3])

    query, key, value = packed
    # Here, OpenVINO fuses the multiplication into the matmul before.
    scale = rewriter.scalar(attention.attributes["scale"].as_float(), ir.DataType.FLOAT)
    query = rewriter.op("Mul", query, scale, name=f"{name}.query.scaled")
    if of_first:
        rows = rewriter.op("Unsqueeze", query, rewriter.int64([1]), name=f"{name}.query.rows")
    else:
        rows = rewriter.op("Gather", query, grid.tokens, name=f"{name}.query.rows")
    queries = by_head(rows, "query")
    keys = rewriter.op("Reshape", key, rewriter.int64([-1, size]), name=f"{name}.key.split")
    keys = rewriter.op("Gather", keys, grid.keys, name=f"{name}.key.heads", axis=0)
    keys = rewriter.op("Transpose", keys, name=f"{name}.key.columns", perm=[0, 1, 3, 2])
    values = by_head(rewriter.op("Gather", value, grid.tokens, name=f"{name}.value.rows"), "value")
    scores = rewriter.op("MatMul", queries, keys, name=f"{name}.scores")
    scores = rewriter.op("Add", scores, grid.hidden, name=f"{name}.masked")
    weights = rewriter.op("Softmax", scores, name=f"{name}.weights", axis=-1)
    result = rewriter.op("MatMul", weights, values, name=f"{name}{_CONTEXT}")

    flat = next(use.node for use in attention.outputs[0].uses())
    width = rewriter.int64([-1, heads * size])
    if of_first:
        result, replaced = rewriter.op("Reshape", result, width, name=f"{name}.first_tokens"), flat.outputs[0]
    else:
        result = rewriter.op("Reshape", result, rewriter.int64([-1, size]), name=f"{name}.context.rows")
        result = rewriter.op("Gather", result, grid.contexts, name=f"{name}.context.tokens", axis=0)
        result = rewriter.op("Reshape", result, width, name=f"{name}.packed")
        replaced = next(use.node for use in flat.outputs[0].uses()).outputs[0]
    rewriter.insert_before(attention)
    ir.convenience.replace_all_uses_with(replaced, result)
