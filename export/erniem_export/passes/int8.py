"""Products in int8 for ONNX Runtime on a CPU: QuantizeLinear, then MatMulIntegerToFloat with its bias.

Inputs are uint8 with a fixed scale and zero point, weights int8 with a scale per column: on AVX2 onnxruntime's kernel
for that pairing was about 1.3 times as fast as the one for two unsigned operands. Without VNNI it adds two products in
16 bits; the weights were rounded for that.
Products that read the same value share one QuantizeLinear. Outlier channels, kept in float32, have weights of zero in
int8, and a matmul of their own that is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import CONTRIB, Rewriter, single_use, store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from erniem_export.quantization.products import Int8Product, QuantizedInput

__all__ = ["to_int8"]


class _Entry(NamedTuple):
    """What enters: in uint8 with its scale and zero point, and the outlier channels in float32."""

    steps: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    exact: ir.Value | None


def to_int8(model: ir.Model, products: Mapping[str, Int8Product]) -> int:
    """Replace the products of linear layers by their int8 form, in place; return how many.

    Args:
        model: The canonical graph, or one derived from it by fusing attention and packing tokens.
        products: By the name of the linear layer.

    Raises:
        FusionError: A layer's product is not in the graph, or is not followed by its bias.
    """
    graph = model.graph
    entries: dict[tuple[ir.Value, int], _Entry] = {}
    for name, product in products.items():
        node = _product(graph, name)
        entering = node.inputs[0]
        if entering is None:
            raise FusionError(f"{name}: the product has no input")
        # Folded or not, products of one group hold the same object.
        key = (entering, id(product.entering))
        if key not in entries:
            entries[key] = _quantize(graph, node, entering, product)
        _replace(graph, node, entries[key], product)
    model.opset_imports[CONTRIB] = 1
    RemoveUnusedNodesPass()(model)
    return len(products)


def _product(graph: ir.Graph, name: str) -> ir.Node:
    weight = graph.initializers.get(f"{name}.weight.T")
    nodes = [] if weight is None else [use.node for use in weight.uses() if use.node.op_type == "MatMul"]
    if len(nodes) != 1:
        raise FusionError(f"{name}: expected one product with its weight, found {len(nodes)}")
    return nodes[0]


def _quantize(graph: ir.Graph, node: ir.Node, entering: ir.Value, product: Int8Product) -> _Entry:
    rewriter, quantization = Rewriter(graph), product.entering
    values = entering
    if quantization.factors is not None and not product.fold:
        factors = store(graph, f"{product.name}.input_factors", quantization.factors.numpy())
        values = rewriter.op("Mul", entering, factors, name=f"{product.name}.input_smoothed")
        values.type = ir.TensorType(ir.DataType.FLOAT)
    scale, zero_point = _input_scale(graph, product.name, quantization)
    result = rewriter.op("QuantizeLinear", values, scale, zero_point, name=f"{product.name}.input_uint8")
    result.type = ir.TensorType(ir.DataType.UINT8)
    exact = None
    if len(quantization.exact):
        channels = store(graph, f"{product.name}.exact_channels", quantization.exact.numpy())
        exact = rewriter.op("Gather", values, channels, name=f"{product.name}.input_exact", axis=-1)
    rewriter.insert_before(node)
    return _Entry(result, scale, zero_point, exact)


def _replace(graph: ir.Graph, node: ir.Node, entry: _Entry, product: Int8Product) -> None:
    place = product.name
    added = single_use(node.outputs[0], "Add", place)
    rewriter = Rewriter(graph)
    result = rewriter.op(
        "MatMulIntegerToFloat",
        entry.steps,
        store(graph, f"{place}.weight.int8", product.weight.numpy()),
        entry.scale,
        store(graph, f"{place}.weight.scale", product.scales.numpy()),
        entry.zero_point,
        None,
        store(graph, f"{place}.bias.int8", product.bias.numpy()),
        name=f"{place}.int8",
        domain=CONTRIB,
    )
    result.type = ir.TensorType(ir.DataType.FLOAT)
    if entry.exact is not None:
        exact_weight = store(graph, f"{place}.weight.exact", product.exact_weight.numpy())
        result = _add_product(rewriter, place, entry.exact, exact_weight, result)
    replaced = added.outputs[0]
    result.shape, result.type = replaced.shape, ir.TensorType(ir.DataType.FLOAT)
    rewriter.insert_before(added)
    ir.convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)


def _add_product(rewriter: Rewriter, place: str, exact: ir.Value, weight: ir.Value, result: ir.Value) -> ir.Value:
    """``exact @ weight + result``."""
    product = rewriter.op("MatMul", exact, weight, name=f"{place}.exact")
    return rewriter.op("Add", result, product, name=f"{place}.with_exact")


def _input_scale(graph: ir.Graph, name: str, entering: QuantizedInput) -> tuple[ir.Value, ir.Value]:
    return (
        store(graph, f"{name}.input_scale", np.array(entering.scale, dtype=np.float32)),
        store(graph, f"{name}.input_zero_point", np.array(entering.zero_point, dtype=np.uint8)),
    )
