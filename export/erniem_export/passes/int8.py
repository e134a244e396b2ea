"""int8 matmuls in the graph, for ONNX Runtime on a CPU, for OpenVINO and for TensorRT.

ONNX Runtime: QuantizeLinear, then MatMulIntegerToFloat with its bias. Activations are uint8 with a static scale and
zero point, weights int8 with a scale per column: on AVX2 onnxruntime's kernel for that pairing was about 1.3 times as
fast as the one for two unsigned operands. Without VNNI it adds two products in 16 bits; the weights were rounded to
avoid overflow. Outlier channels have int8 weights of zero, and a separate float32 matmul adds their part.

OpenVINO: QuantizeLinear and DequantizeLinear with zero points, and the outlier channels as above. It fuses the
quantization into the operation before if that is elementwise, has no other reader, and its values have three axes. So
the packed tokens get a leading axis of 1, and a norm whose result is quantized exists twice: once for the residual, and
once scaled to the steps of the matmul's input. It computes matmul, softmax, matmul and QuantizeLinear as one kernel,
but copies scattered and transposed tensors. So attention of packed tokens uses standard operators: one Gather takes
keys to their heads and slots, and one takes the quantized context back.

TensorRT: DequantizeLinear before each matmul. TensorRT for RTX supports int8 weights only. Full TensorRT multiplies in
int8 if QuantizeLinear and DequantizeLinear, with zero points of 0, precede both inputs. All operations between the
matmuls keep their types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import (
    CONTRIB,
    Rewriter,
    fused_attentions,
    matmul_of,
    producer,
    producer_if,
    single_use,
    store,
)
from erniem_export.quantization.products import Int8Product

_T = TypeVar("_T")
_WEIGHT = re.compile(r"(?P<name>(?:ernie_m\.)?encoder\.layers\.\d+\..+)\.weight\.T(\.float16|\.bfloat16)?$")
_STEPS = 127
_EMBEDDINGS, _CONTEXT = "packed.embeddings", ".context"
# The index of MultiHeadAttention's input that masks keys; the next input is added to the scores.
_MASK = 4
_FLOAT = ir.TensorType(ir.DataType.FLOAT)
# Added to the scores of masked keys: it outweighs any score, and bf16 can represent it.
_HIDDEN = -1e30


class _Entry(NamedTuple):
    """A matmul's input: quantized, for OpenVINO dequantized again, and its outlier channels in float32, if any."""

    values: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    exact: ir.Value | None


def to_int8(model: ir.Model, products: Mapping[str, Int8Product]) -> int:
    """Convert the matmuls of linear layers to int8 for ONNX Runtime on a CPU, in place; return how many.

    Matmuls that read the same value share one QuantizeLinear.

    Args:
        model: The canonical graph, or one derived from it by fusing attention and packing tokens.
        products: The int8 form of each linear layer, by its name.

    Raises:
        FusionError: A layer's matmul is not in the graph, or is not followed by its bias.
    """
    for node, entry, product in _entered(model.graph, products, _quantize):
        _replace(model.graph, node, entry, product, _multiply)
    model.opset_imports[CONTRIB] = 1
    RemoveUnusedNodesPass()(model)
    return len(products)


def _entered(
    graph: ir.Graph,
    products: Mapping[str, Int8Product],
    enter: Callable[[ir.Graph, ir.Node, ir.Value, Int8Product], _T],
) -> Iterator[tuple[ir.Node, _T, Int8Product]]:
    """Yield each product's matmul and its input after ``enter``, which is called once for matmuls that share it."""
    nodes = _matmuls(graph)
    entries: dict[tuple[ir.Value, int], _T] = {}
    for name, product in products.items():
        node, entering = _matmul(nodes, name)
        # Matmuls of one group share the object ``entering``.
        key = (entering, id(product.entering))
        if key not in entries:
            entries[key] = enter(graph, node, entering, product)
        yield node, entries[key], product


def _matmuls(graph: ir.Graph) -> dict[str, ir.Node]:
    """Return the matmuls of the encoder's linear layers, by the layer's name."""
    found = {}
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        match = None if weight is None else _WEIGHT.match(str(weight.name))
        if match:
            found[match["name"]] = node
    if not found:
        raise FusionError("found no matmul of a layer to put into int8")
    return found


def _matmul(nodes: Mapping[str, ir.Node], name: str) -> tuple[ir.Node, ir.Value]:
    """Return a layer's matmul and its input."""
    entering = nodes[name].inputs[0] if name in nodes else None
    if entering is None:
        raise FusionError(f"{name}: expected one matmul with its weight, found none")
    return nodes[name], entering


def _smoothed(rewriter: Rewriter, entering: ir.Value, product: Int8Product, dtype: ir.DataType) -> ir.Value:
    """Multiply the input by its smoothing factors, unless they are folded into the layer before."""
    factors = product.entering.factors
    if factors is None or product.fold:
        return entering
    stored = store(rewriter.graph, f"{product.name}.input_factors", factors.numpy().astype(dtype.numpy()))
    values = rewriter.op("Mul", entering, stored, name=f"{product.name}.input_smoothed")
    values.type = ir.TensorType(dtype)
    return values


def _quantize(graph: ir.Graph, node: ir.Node, entering: ir.Value, product: Int8Product) -> _Entry:
    rewriter, quantization = Rewriter(graph), product.entering
    values = _smoothed(rewriter, entering, product, ir.DataType.FLOAT)
    scale = store(graph, f"{product.name}.input_scale", np.array(quantization.scale, dtype=np.float32))
    zero_point = store(graph, f"{product.name}.input_zero_point", np.array(quantization.zero_point, dtype=np.uint8))
    result = rewriter.op("QuantizeLinear", values, scale, zero_point, name=f"{product.name}.input_uint8")
    result.type = ir.TensorType(ir.DataType.UINT8)
    exact = _exact_channels(rewriter, values, product)
    rewriter.insert_before(node)
    return _Entry(result, scale, zero_point, exact)


def _exact_channels(rewriter: Rewriter, values: ir.Value, product: Int8Product) -> ir.Value | None:
    """Return the outlier channels, which stay in float32; None if there are none."""
    exact, name = product.entering.exact, product.name
    if not len(exact):
        return None
    channels = store(rewriter.graph, f"{name}.exact_channels", exact.numpy())
    return rewriter.op("Gather", values, channels, name=f"{name}.input_exact", axis=-1)


def _multiply(rewriter: Rewriter, entry: _Entry, product: Int8Product) -> ir.Value:
    name, graph = product.name, rewriter.graph
    result = rewriter.op(
        "MatMulIntegerToFloat",
        entry.values,
        store(graph, f"{name}.weight.int8", product.weight.numpy()),
        entry.scale,
        store(graph, f"{name}.weight.scale", product.scales.numpy()),
        entry.zero_point,
        None,
        store(graph, f"{name}.bias.int8", product.bias.numpy()),
        name=f"{name}.int8",
        domain=CONTRIB,
    )
    result.type = _FLOAT
    return result


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    entry: _Entry,
    product: Int8Product,
    multiply: Callable[[Rewriter, _Entry, Int8Product], ir.Value],
) -> None:
    """Replace a matmul and its bias by ``multiply`` and, for outlier channels, a float32 matmul."""
    name, rewriter = product.name, Rewriter(graph)
    added = single_use(node.outputs[0], "Add", name)
    result = multiply(rewriter, entry, product)
    if entry.exact is not None:
        exact_weight = store(graph, f"{name}.weight.exact", product.exact_weight.numpy())
        exact = rewriter.op("MatMul", entry.exact, exact_weight, name=f"{name}.exact")
        result = rewriter.op("Add", result, exact, name=f"{name}.with_exact")
    replaced = added.outputs[0]
    result.shape, result.type = replaced.shape, _FLOAT
    rewriter.insert_before(added)
    ir.convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)


def int8_weights(model: ir.Model, parameters: Mapping[str, NDArray[np.float32]]) -> int:
    """Store the weights of the encoder's matmuls as int8, in place; return how many.

    ``parameters`` are the model's, by name: those in the graph may already be rounded.

    Raises:
        FusionError: The graph has no such matmul.
    """
    products = _matmuls(model.graph)
    for name, node in products.items():
        weight = parameters[f"{name}.weight"].T
        scales = _scales(np.abs(weight).max(axis=0) / _STEPS, _dtype(node, name))
        steps = np.clip(np.rint(weight / scales.astype(np.float32)), -_STEPS, _STEPS).astype(np.int8)
        _dequantize_weight(model.graph, node, name, steps, scales)
    RemoveUnusedNodesPass()(model)
    return len(products)


def int8_products(model: ir.Model, products: Mapping[str, Int8Product]) -> int:
    """Insert QuantizeLinear and DequantizeLinear before the encoder's matmuls, in place; return how many.

    ``products`` has the int8 form of each linear layer by name, with zero points of 0.

    Raises:
        FusionError: A layer's matmul is not in the graph, or is not followed by its bias.
    """
    for node, rounded, product in _entered(model.graph, products, _round_input):
        name, dtype = product.name, _dtype(node, product.name)
        added = single_use(node.outputs[0], "Add", name)
        node.replace_input_with(0, rounded)
        scales = _scales(product.scales.numpy(), dtype)
        _dequantize_weight(model.graph, node, name, product.weight.numpy(), scales)
        bias = store(model.graph, f"{name}.bias.int8", product.bias.numpy().astype(dtype.numpy()))
        position = next(i for i, value in enumerate(added.inputs) if value is not node.outputs[0])
        added.replace_input_with(position, bias)
    RemoveUnusedNodesPass()(model)
    return len(products)


def _dtype(node: ir.Node, name: str) -> ir.DataType:
    dtype = node.outputs[0].dtype
    if dtype is None:
        raise FusionError(f"{name}: the type of the matmul is not known")
    return dtype


def _scales(scales: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    """Return the scales in the matmul's type, none rounded to zero."""
    smallest = np.float32(np.finfo(np.float16).smallest_subnormal)
    rounded: NDArray[Any] = np.maximum(scales, smallest).astype(dtype.numpy())
    return rounded


def _dequantize_weight(
    graph: ir.Graph, node: ir.Node, name: str, steps: NDArray[np.int8], scales: NDArray[Any]
) -> None:
    rewriter = Rewriter(graph)
    weight = _dequantized(rewriter, name, steps, scales)
    weight.shape = ir.Shape(steps.shape)
    rewriter.insert_before(node)
    node.replace_input_with(1, weight)


def _dequantized(rewriter: Rewriter, name: str, steps: NDArray[np.int8], scales: NDArray[Any]) -> ir.Value:
    stored = store(rewriter.graph, f"{name}.weight.int8", steps)
    scale = store(rewriter.graph, f"{name}.weight.scale", scales)
    weight = rewriter.op("DequantizeLinear", stored, scale, name=f"{name}.weight.dequantized", axis=1)
    weight.type = ir.TensorType(ir.DataType.from_numpy(scales.dtype))
    return weight


def _round_input(graph: ir.Graph, node: ir.Node, entering: ir.Value, product: Int8Product) -> ir.Value:
    rewriter, name, dtype = Rewriter(graph), product.name, _dtype(node, product.name)
    values = _smoothed(rewriter, entering, product, dtype)
    values.shape = entering.shape
    scale = store(graph, f"{name}.input_scale", _scales(np.array(product.entering.scale), dtype))
    zero = store(graph, f"{name}.input_zero_point", np.array(0, dtype=np.int8))
    steps = rewriter.op("QuantizeLinear", values, scale, zero, name=f"{name}.input_int8")
    steps.type, steps.shape = ir.TensorType(ir.DataType.INT8), entering.shape
    result = rewriter.op("DequantizeLinear", steps, scale, zero, name=f"{name}.input_dequantized")
    result.type, result.shape = ir.TensorType(dtype), entering.shape
    rewriter.insert_before(node)
    return result


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
    for node, entry, product in _entered(graph, products, _round_for_openvino):
        _replace(graph, node, entry, product, _multiply_in_openvino)
    _lead_with_one(graph)
    TopologicalSortPass()(model)
    RemoveUnusedNodesPass()(model)
    return len(products)


def _round_for_openvino(graph: ir.Graph, node: ir.Node, entering: ir.Value, product: Int8Product) -> _Entry:
    rewriter, name, quantization = Rewriter(graph), product.name, product.entering
    step = np.array(quantization.scale, dtype=np.float32)
    factors = None if quantization.factors is None or product.fold else quantization.factors.numpy()
    scale = store(graph, f"{name}.input_scale", step)
    zero_point = store(graph, f"{name}.input_zero_point", np.array(quantization.zero_point, dtype=np.uint8))
    norm = entering.producer()
    if norm is not None and norm.op_type == "LayerNormalization":
        values = _norm_in_steps(graph, rewriter, norm, product, step if factors is None else step / factors)
        unit = store(graph, f"{name}.input_step", np.array(1.0, dtype=np.float32))
    else:
        values, unit = _smoothed(rewriter, entering, product, ir.DataType.FLOAT), scale
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
        return _Entry(entering, scale, zero_point, None)
    exact = _exact_channels(rewriter, entering, product)  # their smoothing factors are 1
    rewriter.insert_before(node)
    return _Entry(rounded, scale, zero_point, exact)


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


def _multiply_in_openvino(rewriter: Rewriter, entry: _Entry, product: Int8Product) -> ir.Value:
    name, graph = product.name, rewriter.graph
    weight = _dequantized(rewriter, name, product.weight.numpy(), product.scales.numpy())
    result = rewriter.op("MatMul", entry.values, weight, name=f"{name}.int8")
    bias = store(graph, f"{name}.bias.int8", product.bias.numpy())
    return rewriter.op("Add", result, bias, name=f"{name}.with_bias")


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
    if (first := producer_if(value, "Unsqueeze")) is not None:
        packed = first.inputs[0]
    else:
        packed = producer(producer(value, "Reshape", place).inputs[0], "ScatterND", place).inputs[2]
    if packed is None:
        raise FusionError(f"{place}: its inputs are not laid out as packing does it")
    return packed


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
    of_first = producer_if(attention.inputs[0], "Unsqueeze") is not None

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
