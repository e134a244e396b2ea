"""Products in int8 for OpenVINO: QuantizeLinear and DequantizeLinear with zero points, and outlier channels in float32.

OpenVINO computes such a product in int8, and quantizes inside the operation before it where that is an elementwise one
that nothing else reads, on values with three axes. Hence the packed tokens get a leading axis of 1, and a norm whose
result is quantized stands twice: once for the residual, and once in steps of the product's input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from erniem_export.errors import FusionError
from erniem_export.passes.int8 import _WEIGHT, _matmul, _matmuls
from erniem_export.passes.rewriter import Rewriter, fused_attentions, matmul_of, producer, single_use, store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from erniem_export.quantization.products import Int8Product

__all__ = ["to_int8_openvino"]

_EMBEDDINGS, _CONTEXT = "packed.embeddings", ".context"
_FLOAT = ir.TensorType(ir.DataType.FLOAT)


class _Entry(NamedTuple):
    """What enters a product: rounded to its steps, and the outlier channels as they were, if there are any."""

    rounded: ir.Value
    exact: ir.Value | None


def to_int8_openvino(model: ir.Model, products: Mapping[str, Int8Product]) -> int:
    """Put the products of linear layers between QuantizeLinear and DequantizeLinear, in place; return how many.

    Args:
        model: The canonical graph, or one derived from it by fusing attention and packing tokens.
        products: By the name of the linear layer.

    Raises:
        FusionError: A layer's product is not in the graph, or is not followed by its bias.
    """
    graph = model.graph
    scales = _unfuse_attention(graph)
    RemoveUnusedNodesPass()(model)
    nodes = _matmuls(graph)
    entries: dict[tuple[ir.Value, int], _Entry] = {}
    for name, product in products.items():
        if name in scales:
            product = _scaled(product, scales[name])
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
    if context is not None:
        values = context
    steps = rewriter.op("QuantizeLinear", values, unit, zero_point, name=f"{name}.input_uint8")
    steps.type = ir.TensorType(ir.DataType.UINT8)
    rounded = rewriter.op("DequantizeLinear", steps, scale, zero_point, name=f"{name}.input_dequantized")
    rounded.type = _FLOAT
    if context is not None:
        (reader,) = [use.node for use in context.uses() if use.node is not steps.producer()]
        reader.replace_input_with(0, rounded)
        rewriter.insert_before(reader)
        return _Entry(entering, None)
    exact = None
    if len(quantization.exact):
        # Factors of these channels are 1.
        channels = store(graph, f"{name}.exact_channels", quantization.exact.numpy())
        exact = rewriter.op("Gather", entering, channels, name=f"{name}.input_exact", axis=-1)
    rewriter.insert_before(node)
    return _Entry(rounded, exact)


def _context_of(value: ir.Value) -> ir.Value | None:
    """What attention gives, as one row per head, if ``value`` is that as tokens."""
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Gather"):
        value = node.inputs[0]
        node = value.producer()
    return value if node is not None and str(node.name).endswith(_CONTEXT) else None


def _norm_in_steps(
    graph: ir.Graph, rewriter: Rewriter, norm: ir.Node, product: Int8Product, step: np.ndarray
) -> ir.Value:
    """The norm again, its results divided by ``step``, one number or one per channel."""
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
    """Where tokens are packed, make their states ``(1, tokens, hidden)``: from the embeddings on, but around attention
    and where rows or outputs are picked from them.
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
    """Mark what ``node`` gives as led by one, or take the axis off what it reads by rows."""
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


def _scaled(product: Int8Product, scale: float) -> Int8Product:
    """The product with its results multiplied by ``scale``, in its scales and its bias."""
    return replace(
        product,
        scales=product.scales * scale,
        bias=product.bias * scale,
        exact_weight=product.exact_weight * scale,
    )


class _Index(NamedTuple):
    """Which packed token is in each slot of the grid, as rows of tokens and as rows of heads, and back.

    ``tokens (rows, sequence)``, ``heads (rows, heads, sequence)``, ``slots (tokens, heads)``.
    """

    tokens: ir.Value
    heads: ir.Value
    slots: ir.Value


# What is added to the scores of hidden keys: nothing is left of a score beside it, and bf16 has it.
_HIDDEN = -1e30


def _unfuse_attention(graph: ir.Graph) -> dict[str, float]:
    """Attention of packed tokens in standard operators, in place; return what queries are still to be multiplied by.

    OpenVINO computes matmul, softmax and matmul as one kernel, and quantizes the result inside it. It reads heads, not
    rows: one Gather takes the packed keys of each head to their slots, and one takes the context of each head back.
    """
    attentions = fused_attentions(graph)
    scales: dict[str, float] = {}
    index: _Index | None = None
    biases: dict[tuple[ir.Value, ir.Value | None], ir.Value] = {}
    for attention in attentions:
        heads = attention.attributes["num_heads"].as_int()
        if index is None:
            index = _index(graph, attention, heads)
        _unfuse(graph, attention, heads, index, biases)
        query = producer(_packed(attention.inputs[0]), "Add", str(attention.name))
        name = _WEIGHT.match(str(matmul_of(query.outputs[0], str(attention.name)).inputs[1].name))["name"]
        scales[name] = attention.attributes["scale"].as_float()
    return scales


def _packed(value: ir.Value | None) -> ir.Value:
    """Queries, keys or values before they were laid out."""
    laid = value.producer()
    node = laid.inputs[0].producer() if laid.op_type == "Reshape" else laid
    return node.inputs[2] if node.op_type == "ScatterND" else node.inputs[0]


def _index(graph: ir.Graph, attention: ir.Node, heads: int) -> _Index:
    rewriter = Rewriter(graph)
    node = producer(producer(attention.inputs[1], "Reshape", "key").inputs[0], "ScatterND", "key")
    empty = node.inputs[0].producer()
    slots = empty.inputs[0].producer().inputs[0]
    column = node.inputs[1]
    index = column.producer().inputs[0]
    mask = attention.inputs[4]
    count = rewriter.op("Shape", index, name="packed.token_count")
    count = rewriter.op("Squeeze", count, name="packed.token_count_scalar")
    numbers = rewriter.op("Range", rewriter.int64(0), count, rewriter.int64(1), name="packed.token_numbers")
    nothing = rewriter.op(
        "ConstantOfShape", slots, name="packed.no_token", value=ir.tensor(np.zeros(1, dtype=np.int64))
    )
    inverse = rewriter.op("ScatterND", nothing, column, numbers, name="packed.token_of_slot")
    shape = rewriter.op("Shape", mask, name="packed.grid")
    tokens = rewriter.op("Reshape", inverse, shape, name="packed.tokens")
    each = rewriter.int64(list(range(heads)))
    by_head = rewriter.op("Mul", tokens, rewriter.int64(heads), name="packed.first_heads")
    by_head = rewriter.op("Unsqueeze", by_head, rewriter.int64([1]), name="packed.first_heads.4d")
    by_head = rewriter.op(
        "Add", by_head, rewriter.op("Unsqueeze", each, rewriter.int64([1]), name="packed.heads"), name="packed.by_head"
    )
    sequence = rewriter.op("Gather", shape, rewriter.int64([1]), name="packed.width")
    row = rewriter.op("Div", index, sequence, name="packed.row")
    skipped = rewriter.op("Mul", sequence, rewriter.int64(heads - 1), name="packed.skipped")
    back = rewriter.op("Add", index, rewriter.op("Mul", row, skipped, name="packed.skipped_rows"), name="packed.first")
    back = rewriter.op("Unsqueeze", back, rewriter.int64([1]), name="packed.first_column")
    back = rewriter.op("Add", back, rewriter.op("Mul", each, sequence, name="packed.head_slots"), name="packed.back")
    rewriter.insert_before(node)
    return _Index(tokens, by_head, back)


def _unfuse(
    graph: ir.Graph,
    attention: ir.Node,
    heads: int,
    index: _Index,
    biases: dict[tuple[ir.Value, ir.Value | None], ir.Value],
) -> None:
    rewriter, name = Rewriter(graph), str(attention.name)
    packed = [_packed(value) for value in attention.inputs[:3]]
    size = int(matmul_of(packed[1], name).inputs[1].shape[1]) // heads
    first_tokens = attention.inputs[0].producer().op_type == "Unsqueeze"
    split = rewriter.int64([0, 0, heads, size])
    query = attention.inputs[0]
    if not first_tokens:
        query = rewriter.op("Gather", packed[0], index.tokens, name=f"{name}.query.rows")
    query = rewriter.op("Reshape", query, split, name=f"{name}.query.split")
    query = rewriter.op("Transpose", query, name=f"{name}.query.heads", perm=[0, 2, 1, 3])
    key = rewriter.op("Reshape", packed[1], rewriter.int64([-1, size]), name=f"{name}.key.split")
    key = rewriter.op("Gather", key, index.heads, name=f"{name}.key.heads", axis=0)
    key = rewriter.op("Transpose", key, name=f"{name}.key.transposed", perm=[0, 1, 3, 2])
    value = rewriter.op("Gather", packed[2], index.tokens, name=f"{name}.value.rows")
    value = rewriter.op("Reshape", value, split, name=f"{name}.value.split")
    value = rewriter.op("Transpose", value, name=f"{name}.value.heads", perm=[0, 2, 1, 3])
    scores = rewriter.op("MatMul", query, key, name=f"{name}.scores")
    mask, bias = attention.inputs[4], attention.inputs[5] if len(attention.inputs) > 5 else None
    if (mask, bias) not in biases:
        zero, hidden = (rewriter.scalar(number, ir.DataType.FLOAT) for number in (0.0, _HIDDEN))
        attend = rewriter.op("Cast", mask, name="hidden_keys.bool", to=int(ir.DataType.BOOL))
        added = rewriter.op("Where", attend, zero, hidden, name="hidden_keys")
        added.type = ir.TensorType(ir.DataType.FLOAT)
        added = rewriter.op("Unsqueeze", added, rewriter.int64([1, 2]), name="hidden_keys.4d")
        if bias is not None:
            added = rewriter.op("Add", added, bias, name="hidden_keys.with_bias")
        biases[mask, bias] = added
    scores = rewriter.op("Add", scores, biases[mask, bias], name=f"{name}.masked")
    weights = rewriter.op("Softmax", scores, name=f"{name}.weights", axis=-1)
    context = rewriter.op("MatMul", weights, value, name=f"{name}{_CONTEXT}")
    flat = next(use.node for use in attention.outputs[0].uses())
    width = rewriter.int64([-1, heads * size])
    if first_tokens:
        result, replaced = rewriter.op("Reshape", context, width, name=f"{name}.first"), flat.outputs[0]
    else:
        back = rewriter.op("Reshape", context, rewriter.int64([-1, size]), name=f"{name}.rows")
        back = rewriter.op("Gather", back, index.slots, name=f"{name}.back", axis=0)
        result = rewriter.op("Reshape", back, width, name=f"{name}.packed")
        replaced = next(use.node for use in flat.outputs[0].uses()).outputs[0]
    rewriter.insert_before(attention)
    ir.convenience.replace_all_uses_with(replaced, result)
