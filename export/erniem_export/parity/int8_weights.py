"""Are products in int8 the checkpoint's linear layers, as nearly as rounding leaves them?

Rounding lets one weight make up for the error of another (see :mod:`erniem_export.quantization.products`), so none
need be the nearest step to its parameter, and the few that would overflow beside their neighbour are further off. Rows
and columns as a whole are not: those of another matrix, and a scale that is another column's, are tens of steps off.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_export.passes.rewriter import uncast

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["compare_products", "int8_products"]

_WEIGHT = ".weight.int8"
# Root of the mean square distance along any row or column, in steps of int8; largest distance of one weight that was
# not rounded towards zero; and of a bias, in what one step of every input would add to it. All are well above
# the worst of nano, MiniLM and random models. The biases of trained models reach 3 to 70.
_MEAN_STEPS = 6.0
_WEIGHT_STEPS = 20.0
_BIAS_STEPS = 4.0
# Factors that even the inputs of the second may be in the scales of the first, whose results these are.
_VALUE, _OUT = "self_attn.self_attn.v_proj", "self_attn.out_proj"


@dataclasses.dataclass(frozen=True)
class _Product:
    """``weight (in, out)`` and ``bias (out,)`` as the graph computes with them; ``steps`` of int8, of the input too.

    Where the input is not rounded, the bias is untouched: None.
    """

    weight: NDArray[np.float32]
    steps: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    input_step: float

    def scaled(self, rows: NDArray[Any], columns: NDArray[Any]) -> _Product:
        """With channels of the input and of the result multiplied by some factors."""
        both = rows[:, None] * columns
        bias = None if self.bias is None else self.bias * columns
        return _Product(self.weight * both, self.steps * np.abs(both), bias, self.input_step)


def compare_products(graph: ir.Graph, parameters: Mapping[str, NDArray[np.float32]]) -> dict[str, bool]:
    """Return, for the weight and the bias of each product in int8, whether it is the parameter of that name."""
    nodes = _nodes(graph)
    same: dict[str, bool] = {}
    with np.errstate(all="ignore"):  # a damaged scale may be anything; what is not finite is not the same
        for name, node in nodes.items():
            weight, bias = (parameters.get(f"{name}.{part}") for part in ("weight", "bias"))
            product = _read(node)
            if weight is None or bias is None or product.weight.shape != weight.T.shape:
                same |= {f"{name}.weight": False, f"{name}.bias": False}
                continue
            product = _unmoved(name, product, nodes, parameters)
            same[f"{name}.weight"] = _as_rounded(product, weight.T)
            if product.bias is not None:  # else it is the parameter itself, and compared as such
                room = _BIAS_STEPS * product.input_step * np.linalg.norm(weight, axis=1)
                same[f"{name}.bias"] = bool((np.abs(product.bias - bias) <= room).all())
    return same


def int8_products(graph: ir.Graph) -> dict[str, _Product]:
    """Return the products in int8, with their weights and biases as the graph computes with them, by linear layer."""
    return {name: _read(node) for name, node in _nodes(graph).items()}


def _nodes(graph: ir.Graph) -> dict[str, ir.Node]:
    """The nodes that hold the int8 weights, by the name of their linear layer."""
    place = {"MatMulIntegerToFloat": 1, "DequantizeLinear": 0}
    found = {}
    for node in graph:
        weight = node.inputs[place[node.op_type]] if node.op_type in place else None
        if weight is not None and (node.op_type == "MatMulIntegerToFloat" or _is_weight(weight)):
            found[str(weight.name).removesuffix(_WEIGHT)] = node
    return found


def _as_rounded(product: _Product, expected: NDArray[Any]) -> bool:
    distance = np.abs(product.weight - expected) / product.steps
    squares = np.square(distance)
    means = np.concatenate([squares.mean(axis=0), squares.mean(axis=1)])
    towards_zero = (np.abs(product.weight) < np.abs(expected)) & (product.weight * expected >= 0)
    single = np.where(towards_zero, 0, distance) <= _WEIGHT_STEPS
    return bool((means <= _MEAN_STEPS**2).all() and single.all())


def _unmoved(
    name: str, product: _Product, nodes: Mapping[str, ir.Node], parameters: Mapping[str, NDArray[np.float32]]
) -> _Product:
    """The product without the factors that were moved from the attention's output to its values."""
    inputs, outputs = map(_ones, product.weight.shape)
    value = name.removesuffix(_OUT) + _VALUE
    if name.endswith(_VALUE):
        outputs = 1 / _factors(product, parameters[f"{name}.weight"].T)
    elif name.endswith(_OUT) and value in nodes:
        inputs = _factors(_read(nodes[value]), parameters[f"{value}.weight"].T)
    return product.scaled(inputs, outputs)


def _is_weight(value: ir.Value) -> bool:
    return str(value.name).endswith(_WEIGHT)


def _read(node: ir.Node) -> _Product:
    return _read_standard(node) if node.op_type == "DequantizeLinear" else _read_fused(node)


def _read_standard(node: ir.Node) -> _Product:
    steps, scales = _constant(node.inputs[0]), _constant(node.inputs[1])
    product = _Product(steps * scales, np.broadcast_to(scales, steps.shape), None, np.nan)
    multiplied = _reader(node.outputs[0], "MatMul")
    entering = None if multiplied is None else uncast(multiplied.inputs[0])
    rounded = None if entering is None else entering.producer()
    if multiplied is None or rounded is None or rounded.op_type != "DequantizeLinear":
        return product
    added = _reader(multiplied.outputs[0], "Add")
    biases = [value for value in map(uncast, () if added is None else added.inputs) if value and value.const_value]
    whole = product.weight if added is None else _with_exact(added, product.weight)
    product = dataclasses.replace(product, weight=whole, bias=_constant(biases[0] if biases else None))
    product = _with_input(product, rounded.inputs[0], scales)
    return _with_norm(product, rounded, scales)


def _reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node of this type that reads ``value``, if need be through Casts: those of an emulation, for one."""
    for use in value.uses():
        if use.node.op_type == op_type:
            return use.node
        found = _reader(use.node.outputs[0], op_type) if use.node.op_type == "Cast" else None
        if found is not None:
            return found
    return None


def _read_fused(node: ir.Node) -> _Product:
    entering, weight, _, scale, _, _, bias = node.inputs
    steps, scales = _constant(weight), _constant(scale)
    whole = _with_exact(node, steps * scales)
    product = _Product(whole, np.broadcast_to(scales, steps.shape), _constant(bias), np.nan)
    return _with_input(product, entering, scales)


def _with_input(product: _Product, entering: ir.Value | None, scales: NDArray[Any]) -> _Product:
    """With what QuantizeLinear, and the factors before it, do to the input."""
    steps = product.steps
    quantize = None if entering is None else entering.producer()
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return product
    product = dataclasses.replace(product, input_step=float(_constant(quantize.inputs[1])))
    entered = uncast(quantize.inputs[0])
    smoothed = None if entered is None else entered.producer()
    for value in map(uncast, () if smoothed is None or smoothed.op_type != "Mul" else smoothed.inputs):
        if value is not None and value.const_value is not None and value.const_value.size == len(steps):
            product = product.scaled(_constant(value), np.ones_like(scales))
    return product


def _with_norm(product: _Product, rounded: ir.Node, scales: NDArray[Any]) -> _Product:
    """With what a norm does to the input that gives it in steps, beside the model's own norm of the same states."""
    quantize = rounded.inputs[0].producer() if rounded.inputs[0] is not None else None
    norm = quantize.inputs[0].producer() if quantize is not None and quantize.inputs[0] is not None else None
    if norm is None or norm.op_type != "LayerNormalization" or norm.inputs[0] is None:
        return product
    step = float(_constant(rounded.inputs[1]))
    readers = [use.node for use in norm.inputs[0].uses() if use.node.op_type == "LayerNormalization"]
    own = next((node for node in readers if ".input_norm." not in str(node.inputs[1] and node.inputs[1].name)), norm)
    (weight, bias), (given, shift) = ([_constant(value) for value in node.inputs[1:3]] for node in (own, norm))
    factors = np.where(weight == 0, 1, given * step / np.where(weight == 0, 1, weight))
    same = np.isclose(shift * step, bias * factors, rtol=1e-4, atol=1e-6)
    product = dataclasses.replace(product, input_step=step)
    return product.scaled(np.where(same, factors, np.nan), np.ones_like(scales))


def _with_exact(node: ir.Node, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weight, with the rows of outlier channels kept in float32, by a product that is added."""
    for use in node.outputs[0].uses():
        addends = (
            [value.producer() for value in use.node.inputs if value is not None] if use.node.op_type == "Add" else []
        )
        for product in addends:
            if product is None or product.op_type != "MatMul" or product.inputs[0] is None:
                continue
            picked = product.inputs[0].producer()
            if picked is not None and picked.op_type == "Gather":
                weight = weight.copy()
                weight[_constant(picked.inputs[1]).astype(np.int64)] += _constant(product.inputs[1])
    return weight


def _constant(value: ir.Value | None) -> NDArray[Any]:
    """An initializer in float32; NaN, which equals nothing, where there is none."""
    value = uncast(value)
    if value is None or value.const_value is None:
        return np.full((), np.nan, dtype=np.float32)
    return value.const_value.numpy().astype(np.float32)


def _ones(size: int) -> NDArray[Any]:
    return np.ones(size, dtype=np.float32)


def _factors(product: _Product, weight: NDArray[np.float32]) -> NDArray[Any]:
    """By what the columns of ``weight (in, out)`` must be multiplied to be those of the product."""
    squares = (weight * weight).sum(axis=0)
    return np.where(squares > 0, (product.weight * weight).sum(axis=0) / np.where(squares > 0, squares, 1), 1)
