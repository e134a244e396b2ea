"""Products in int8 for ONNX Runtime on a CPU: QuantizeLinear, then MatMulIntegerToFloat with its bias.

Inputs are uint8 with a fixed scale and zero point, weights have a scale per column. On a CPU with VNNI weights are
int8, which its instruction takes. Without, onnxruntime's kernel for that pairing adds two products in 16 bits, which
overflow; its kernel for two unsigned operands should not, so there weights are uint8 about 128.
Products that read the same value share one QuantizeLinear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import CONTRIB, Rewriter, single_use

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from erniem_export.quantization.products import Int8Product, QuantizedInput

__all__ = ["to_int8"]


_MIDDLE = 128


def to_int8(model: ir.Model, products: Mapping[str, Int8Product], *, unsigned: bool) -> int:
    """Replace the products of linear layers by their int8 form, in place; return how many.

    Args:
        model: The canonical graph, or one derived from it by fusing attention and packing tokens.
        products: By the name of the linear layer.
        unsigned: Store weights as uint8, for a CPU without VNNI.

    Raises:
        FusionError: A layer's product is not in the graph, or is not followed by its bias.
    """
    graph = model.graph
    quantized: dict[tuple[ir.Value, int], ir.Value] = {}
    for name, product in products.items():
        node = _product(graph, name)
        entering = node.inputs[0]
        if entering is None:
            raise FusionError(f"{name}: the product has no input")
        # Folded or not, products of one group hold the same object.
        key = (entering, id(product.entering))
        if key not in quantized:
            quantized[key] = _quantize(graph, node, entering, product)
        _replace(graph, node, quantized[key], product, unsigned)
    model.opset_imports[CONTRIB] = 1
    RemoveUnusedNodesPass()(model)
    return len(products)


def _product(graph: ir.Graph, name: str) -> ir.Node:
    weight = graph.initializers.get(f"{name}.weight.T")
    nodes = [] if weight is None else [use.node for use in weight.uses() if use.node.op_type == "MatMul"]
    if len(nodes) != 1:
        raise FusionError(f"{name}: expected one product with its weight, found {len(nodes)}")
    return nodes[0]


def _quantize(graph: ir.Graph, node: ir.Node, entering: ir.Value, product: Int8Product) -> ir.Value:
    rewriter, quantization = Rewriter(graph), product.entering
    values = entering
    if quantization.factors is not None and not product.fold:
        factors = _stored(graph, f"{product.name}.input_factors", quantization.factors.numpy())
        values = rewriter.op("Mul", entering, factors, name=f"{product.name}.input_evened")
        values.type = ir.TensorType(ir.DataType.FLOAT)
    scale, zero_point = _input_scale(graph, product.name, quantization)
    result = rewriter.op("QuantizeLinear", values, scale, zero_point, name=f"{product.name}.input_uint8")
    result.type = ir.TensorType(ir.DataType.UINT8)
    rewriter.insert_before(node)
    return result


def _replace(graph: ir.Graph, node: ir.Node, entering: ir.Value, product: Int8Product, unsigned: bool) -> None:
    place = product.name
    added = single_use(node.outputs[0], "Add", place)
    source = entering.producer()
    if source is None:
        raise FusionError(f"{place}: its input is not quantized")
    weight, zero_point = product.weight.numpy(), None
    if unsigned:
        weight = (weight.astype(np.int16) + _MIDDLE).astype(np.uint8)
        middle = np.full(weight.shape[1], _MIDDLE, dtype=np.uint8)
        zero_point = _stored(graph, f"{place}.weight.zero_point", middle)
    rewriter = Rewriter(graph)
    result = rewriter.op(
        "MatMulIntegerToFloat",
        entering,
        _stored(graph, f"{place}.weight.int8", weight),
        source.inputs[1],
        _stored(graph, f"{place}.weight.scale", product.scales.numpy()),
        source.inputs[2],
        zero_point,
        _stored(graph, f"{place}.bias.int8", product.bias.numpy()),
        name=f"{place}.int8",
        domain=CONTRIB,
    )
    replaced = added.outputs[0]
    result.shape, result.type = replaced.shape, ir.TensorType(ir.DataType.FLOAT)
    rewriter.insert_before(added)
    ir.convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)


def _input_scale(graph: ir.Graph, name: str, entering: QuantizedInput) -> tuple[ir.Value, ir.Value]:
    return (
        _stored(graph, f"{name}.input_scale", np.array(entering.scale, dtype=np.float32)),
        _stored(graph, f"{name}.input_zero_point", np.array(entering.zero_point, dtype=np.uint8)),
    )


def _stored(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
