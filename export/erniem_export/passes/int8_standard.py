"""Products in int8 in standard operators, for TensorRT: DequantizeLinear in front of them, per column of the weight.

TensorRT for RTX takes int8 weights only. Full TensorRT multiplies in int8 what has QuantizeLinear and DequantizeLinear
on both sides, about zero, which is all that it takes. Everything between the products stays in the type that it has.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import Rewriter, single_use, store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from erniem_export.quantization.products import Int8Product

__all__ = ["int8_products", "int8_weights"]

_WEIGHT = re.compile(r"(?P<name>(?:ernie_m\.)?encoder\.layers\.\d+\..+)\.weight\.T(\.float16|\.bfloat16)?$")
_STEPS = 127


def int8_weights(model: ir.Model, parameters: Mapping[str, NDArray[np.float32]]) -> int:
    """Store the weights of the encoder's products as int8, in place; return how many.

    ``parameters`` are the model's, by name: the graph may hold them rounded already.

    Raises:
        FusionError: There are none.
    """
    products = _products(model.graph)
    for name, node in products.items():
        weight = parameters[f"{name}.weight"].T
        scales = _scales(np.abs(weight).max(axis=0) / _STEPS, _dtype(node, name))
        steps = np.clip(np.rint(weight / scales.astype(np.float32)), -_STEPS, _STEPS).astype(np.int8)
        _dequantize_weight(model.graph, node, name, steps, scales)
    RemoveUnusedNodesPass()(model)
    return len(products)


def int8_products(model: ir.Model, products: Mapping[str, Int8Product]) -> int:
    """Put the encoder's products between QuantizeLinear and DequantizeLinear, in place; return how many.

    ``products`` are symmetric, by the name of the linear layer.

    Raises:
        FusionError: A layer's product is not in the graph, or is not followed by its bias.
    """
    graph, nodes = model.graph, _products(model.graph)
    entered: dict[tuple[ir.Value, int], ir.Value] = {}
    for name, product in products.items():
        if name not in nodes or nodes[name].inputs[0] is None:
            raise FusionError(f"{name}: expected one product with its weight, found none")
        node, entering = nodes[name], nodes[name].inputs[0]
        assert entering is not None
        dtype = _dtype(node, name)
        added = single_use(node.outputs[0], "Add", name)
        key = (entering, id(product.entering))
        if key not in entered:
            entered[key] = _round_input(graph, node, entering, product, dtype)
        node.replace_input_with(0, entered[key])
        scales = _scales(product.scales.numpy(), dtype)
        _dequantize_weight(graph, node, name, product.weight.numpy(), scales)
        bias = store(graph, f"{name}.bias.int8", product.bias.numpy().astype(dtype.numpy()))
        position = next(i for i, value in enumerate(added.inputs) if value is not node.outputs[0])
        added.replace_input_with(position, bias)
    RemoveUnusedNodesPass()(model)
    return len(products)


def _products(graph: ir.Graph) -> dict[str, ir.Node]:
    found = {}
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        match = None if weight is None else _WEIGHT.match(str(weight.name))
        if match:
            found[match["name"]] = node
    if not found:
        raise FusionError("found no product of a layer to put into int8")
    return found


def _dtype(node: ir.Node, name: str) -> ir.DataType:
    dtype = node.outputs[0].dtype
    if dtype is None:
        raise FusionError(f"{name}: the type of the product is not known")
    return dtype


def _scales(scales: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    """In the type of the products; none may round to zero."""
    smallest = np.float32(np.finfo(np.float16).smallest_subnormal)
    rounded: NDArray[Any] = np.maximum(scales, smallest).astype(dtype.numpy())
    return rounded


def _dequantize_weight(
    graph: ir.Graph, node: ir.Node, name: str, steps: NDArray[np.int8], scales: NDArray[Any]
) -> None:
    rewriter = Rewriter(graph)
    stored = store(graph, f"{name}.weight.int8", steps)
    scale = store(graph, f"{name}.weight.scale", scales)
    weight = rewriter.op("DequantizeLinear", stored, scale, name=f"{name}.weight.dequantized", axis=1)
    weight.type, weight.shape = ir.TensorType(ir.DataType.from_numpy(scales.dtype)), ir.Shape(steps.shape)
    rewriter.insert_before(node)
    node.replace_input_with(1, weight)


def _round_input(
    graph: ir.Graph, node: ir.Node, entering: ir.Value, product: Int8Product, dtype: ir.DataType
) -> ir.Value:
    rewriter, name, values = Rewriter(graph), product.name, entering
    factors = product.entering.factors
    if factors is not None and not product.fold:
        smoothed = store(graph, f"{name}.input_factors", factors.numpy().astype(dtype.numpy()))
        values = rewriter.op("Mul", entering, smoothed, name=f"{name}.input_smoothed")
        values.type, values.shape = ir.TensorType(dtype), entering.shape
    scale = store(graph, f"{name}.input_scale", _scales(np.array(product.entering.scale), dtype))
    zero = store(graph, f"{name}.input_zero_point", np.array(0, dtype=np.int8))
    steps = rewriter.op("QuantizeLinear", values, scale, zero, name=f"{name}.input_int8")
    steps.type, steps.shape = ir.TensorType(ir.DataType.INT8), entering.shape
    result = rewriter.op("DequantizeLinear", steps, scale, zero, name=f"{name}.input_dequantized")
    result.type, result.shape = ir.TensorType(dtype), entering.shape
    rewriter.insert_before(node)
    return result
