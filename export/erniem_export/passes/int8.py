"""Converts the encoder's matmuls to int8: ONNX Runtime's own operators for a CPU, standard operators for TensorRT.

For a CPU: QuantizeLinear, then MatMulIntegerToFloat with its bias. Activations are uint8 with a static scale and zero
point, weights int8 with a scale per column: on AVX2 onnxruntime's kernel for that pairing was about 1.3 times as fast
as the one for two unsigned operands. Without VNNI it adds two products in 16 bits; the weights were rounded to avoid
overflow. Outlier channels have int8 weights of zero, and a separate float32 matmul adds their part.

For TensorRT: DequantizeLinear before each matmul. TensorRT for RTX supports int8 weights only. Full TensorRT multiplies
in int8 if QuantizeLinear and DequantizeLinear, with zero points of 0, precede both inputs. All operations between the
matmuls keep their types.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from erniem_export.errors import FusionError
from erniem_export.passes.rewriter import CONTRIB, Rewriter, single_use, store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from erniem_export.quantization.products import Int8Product

__all__ = ["int8_products", "int8_weights", "to_int8"]

_WEIGHT = re.compile(r"(?P<name>(?:ernie_m\.)?encoder\.layers\.\d+\..+)\.weight\.T(\.float16|\.bfloat16)?$")
_STEPS = 127


class _Entry(NamedTuple):
    """A matmul's input: uint8 with scale and zero point, and the outlier channels in float32."""

    steps: ir.Value
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
    graph, nodes = model.graph, _matmuls(model.graph)
    entries: dict[tuple[ir.Value, int], _Entry] = {}
    for name, product in products.items():
        node, entering = _matmul(nodes, name)
        # Matmuls of one group share the object ``entering``.
        key = (entering, id(product.entering))
        if key not in entries:
            entries[key] = _quantize(graph, node, entering, product)
        _replace(graph, node, entries[key], product)
    model.opset_imports[CONTRIB] = 1
    RemoveUnusedNodesPass()(model)
    return len(products)


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
        exact = rewriter.op("MatMul", entry.exact, exact_weight, name=f"{place}.exact")
        result = rewriter.op("Add", result, exact, name=f"{place}.with_exact")
    replaced = added.outputs[0]
    result.shape, result.type = replaced.shape, ir.TensorType(ir.DataType.FLOAT)
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
    graph, nodes = model.graph, _matmuls(model.graph)
    entered: dict[tuple[ir.Value, int], ir.Value] = {}
    for name, product in products.items():
        node, entering = _matmul(nodes, name)
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
    stored = store(graph, f"{name}.weight.int8", steps)
    scale = store(graph, f"{name}.weight.scale", scales)
    weight = rewriter.op("DequantizeLinear", stored, scale, name=f"{name}.weight.dequantized", axis=1)
    weight.type, weight.shape = ir.TensorType(ir.DataType.from_numpy(scales.dtype)), ir.Shape(steps.shape)
    rewriter.insert_before(node)
    node.replace_input_with(1, weight)


def _round_input(
    graph: ir.Graph, node: ir.Node, entering: ir.Value, product: Int8Product, dtype: ir.DataType
) -> ir.Value:
    rewriter, name = Rewriter(graph), product.name
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
