"""A graph in lower precision without its rounding: in float32 it must be the PyTorch model with the stored weights.

So a wrong mask or a missing bias shows to the digit, whatever the precision may cost, and what is left is rounding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from erniem_export.parity.int8_weights import int8_products
from erniem_export.passes.emulation import emulate_half
from erniem_export.passes.half import HALF_TYPES
from erniem_export.passes.rewriter import Rewriter, store, uncast

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from erniem_export.modeling import ErnieMPreTrainedModel

__all__ = ["stored_parameters", "without_rounding"]

_HALVES = tuple(HALF_TYPES.values())


def stored_parameters(graph: ir.Graph, model: ErnieMPreTrainedModel) -> dict[str, Tensor]:
    """Return the parameters that a graph stores in fewer bits, as it stores them, in float32 and of the same shape."""
    found: dict[str, Tensor] = {}
    for name, product in int8_products(graph).items():
        found[f"{name}.weight"] = _tensor(product.weight.T)
        if product.bias is not None and np.isfinite(product.bias).all():
            found[f"{name}.bias"] = _tensor(product.bias)
    for name in dict(model.named_parameters()):
        for stored, transposed in ((name, False), (f"{name}.T", True)):
            value = graph.initializers.get(stored)
            if value is None or value.const_value is None or not value.uses():
                continue
            scale = graph.initializers.get(f"{stored}.scale")
            if value.dtype in _HALVES or (value.dtype == ir.DataType.INT8 and scale is not None):
                array = value.const_value.numpy().astype(np.float32)
                if scale is not None and scale.const_value is not None:
                    array *= scale.const_value.numpy()
                found[name] = _tensor(array.T if transposed else array)
    return found


def without_rounding(model: ir.Model, head_size: int) -> None:
    """Let a graph compute in float32 what it computed in half or int8, with the weights as they are stored, in place.

    Args:
        model: A graph in any precision.
        head_size: Of the attention: its root, a constant, is not taken as it was rounded.
    """
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype in _HALVES and value.const_value is not None and value.const_value.size == 1:
            _restore(value, head_size)
    emulate_half(model, rounding=False)
    for node in list(graph):
        if node.op_type == "MatMulIntegerToFloat":
            _multiply_in_float(graph, node)
        elif node.op_type == "DequantizeLinear":
            _keep_in_float(graph, node)


def _restore(value: ir.Value, head_size: int) -> None:
    assert value.const_value is not None
    rounded = value.const_value.numpy()
    for exact in (math.sqrt(head_size), 1 / math.sqrt(head_size)):
        if (np.full_like(rounded, exact) == rounded).all():
            array = np.full(rounded.shape, exact, dtype=np.float32)
            value.const_value, value.type = ir.tensor(array, name=value.name), ir.TensorType(ir.DataType.FLOAT)


def _multiply_in_float(graph: ir.Graph, node: ir.Node) -> None:
    entering, weight, _, scale, _, _, bias = node.inputs
    assert weight is not None
    assert scale is not None
    assert entering is not None
    quantize = entering.producer()
    assert quantize is not None
    array = _numbers(weight).astype(np.float32) * _numbers(scale)
    wide = ir.Value(name=f"{weight.name}.float32", const_value=ir.tensor(array, name=f"{weight.name}.float32"))
    wide.dtype, wide.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
    graph.register_initializer(wide)
    rewriter = Rewriter(graph)
    product = rewriter.op("MatMul", quantize.inputs[0], wide, name=f"{node.outputs[0].name}.product")
    result = product if bias is None else rewriter.op("Add", product, bias, name=f"{node.outputs[0].name}.float32")
    rewriter.insert_before(node)
    ir.convenience.replace_all_uses_with(node.outputs[0], result)
    graph.remove(node, safe=True)


def _keep_in_float(graph: ir.Graph, node: ir.Node) -> None:
    """What is quantized and dequantized stays as it is, but for what the two scales make of it.

    A stored weight becomes one in float32: OpenVINO would quantize what a weight in int8 is multiplied with.
    """
    steps, scale, *_ = node.inputs
    assert steps is not None
    assert scale is not None
    quantize, rewriter, name = steps.producer(), Rewriter(graph), f"{node.outputs[0].name}.float32"
    if quantize is None:
        result = store(graph, name, _numbers(steps).astype(np.float32) * _numbers(scale))
    else:
        entering, unit, *_ = quantize.inputs
        assert entering is not None
        assert unit is not None
        factor = store(graph, f"{name}.factor", np.asarray(_numbers(scale) / _numbers(unit), dtype=np.float32))
        result = rewriter.op("Mul", entering, factor, name=name)
        rewriter.insert_before(node)
    ir.convenience.replace_all_uses_with(node.outputs[0], result)
    graph.remove(node, safe=True)


def _numbers(value: ir.Value) -> NDArray[Any]:
    value = uncast(value) or value
    assert value.const_value is not None
    return value.const_value.numpy()


def _tensor(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
