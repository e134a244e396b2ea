"""Products in int8 for OpenVINO: QuantizeLinear and DequantizeLinear with zero points, and outlier channels in float32.

OpenVINO computes such a product in int8, and quantizes inside the operation before it where that is an elementwise one
that nothing else reads, on values with three axes. Hence the packed tokens get a leading axis of 1, and a norm whose
result is quantized stands twice: once for the residual, and once in steps of the product's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from erniem_export.errors import FusionError
from erniem_export.passes.int8 import _matmul, _matmuls
from erniem_export.passes.rewriter import Rewriter, single_use, store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from erniem_export.quantization.products import Int8Product

__all__ = ["to_int8_openvino"]

_EMBEDDINGS = "packed.embeddings"
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
    graph, nodes = model.graph, _matmuls(model.graph)
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
    steps = rewriter.op("QuantizeLinear", values, unit, zero_point, name=f"{name}.input_uint8")
    steps.type = ir.TensorType(ir.DataType.UINT8)
    rounded = rewriter.op("DequantizeLinear", steps, scale, zero_point, name=f"{name}.input_dequantized")
    rounded.type = _FLOAT
    exact = None
    if len(quantization.exact):
        # Factors of these channels are 1.
        channels = store(graph, f"{name}.exact_channels", quantization.exact.numpy())
        exact = rewriter.op("Gather", entering, channels, name=f"{name}.input_exact", axis=-1)
    rewriter.insert_before(node)
    return _Entry(rounded, exact)


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
