"""Compares every weight in the graph with the checkpoint's: equal bits, or the nearest value of its type.

Running the graph cannot show this: a batch looks up a few thousand of 250002 embeddings, and some parameters, such as
the keys' biases, cancel out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from erniem_export.gate.measures import Weights
from erniem_export.modeling import ErnieMForInformationExtraction, ErnieMPreTrainedModel
from erniem_export.onnx_export import read
from erniem_export.options import arithmetic_of
from erniem_export.passes.precision import HALF_TYPES
from erniem_export.passes.rewriter import producer_if, uncast

WORDS = "word_embeddings.weight"
# A parameter that is read in both half and full precision is stored in both.
_COPIES = ("", ".float16", ".bfloat16")
_ROWS_AT_ONCE = 8192
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
_HALF_STEP = 0.5001  # with room for the rounding of the multiplication itself

_WEIGHT = ".weight.int8"
# The bounds of int8 matmuls. Rounding lets one weight compensate the error of another (quantization/products.py), so a
# weight need not be the nearest step to its parameter, and the few that would overflow beside their neighbour are
# further off. Whole rows and columns stay close: those of another matrix, or with another column's scale, are tens of
# steps off.
# In order: root mean square distance along any row or column, in steps of int8; largest distance of one weight that was
# not rounded towards zero; largest distance of a bias, in units of the change from one step of every input. All are
# well above the worst of nano, MiniLM and random models. The biases of trained models are 3 to 70 such units.
_MEAN_STEPS = 6.0
_WEIGHT_STEPS = 20.0
_BIAS_STEPS = 4.0
# What moves values between tokens, slots and heads, and changes none.
_MOVES = frozenset({"Cast", "Gather", "Reshape", "Squeeze", "Unsqueeze"})
# The factors that smooth the second layer's inputs may be folded into the scales of the first, which computes them.
_VALUE, _OUT = "self_attn.self_attn.v_proj", "self_attn.out_proj"


def compare_weights(artifact: Path, model: ErnieMPreTrainedModel, precision: Mapping[str, str]) -> Weights:
    """Compare the weights that a graph reads with the parameters of the same name (``.T``: transposed).

    A weight is stored in float32 or in ``precision`` (the manifest's). In half precision it must be the rounded
    parameter; an int8 row of the embedding table must be within half of its scale (``NAME.scale``); int8 matmuls have
    the bounds above. All parameters must be there, except those that the graph does not use, biases of zeros, and those
    that share the initializer of a parameter with the same values.
    """
    graph = read(artifact).graph
    stored = _weights_read(graph)
    takes_embeddings = any(value.name == "inputs_embeds" for value in graph.inputs)
    parameters = model.state_dict()
    found = _compare_products(graph, {name: parameter.numpy() for name, parameter in parameters.items()})
    for name, parameter in parameters.items():
        kind = precision["embedding"] if name.endswith(WORDS) else arithmetic_of(precision)
        results = _compare(name, parameter.contiguous().numpy(), stored, kind)
        if results:
            found[name] = all(results) and found.get(name, True)
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in found
        and not _is_unused(name, model, takes_embeddings)
        # The tracer drops additions of zeros.
        and not (name.endswith(".bias") and not parameter.any())
        and not any(torch.equal(parameter, parameters[other]) for other in found)
    ]
    return Weights(len(found), tuple(name for name, same in found.items() if not same), tuple(missing))


def _weights_read(graph: ir.Graph) -> dict[str, NDArray[Any]]:
    return {
        name: value.const_value.numpy()
        for name, value in graph.initializers.items()
        if value.const_value is not None and (value.uses() or value.is_graph_output())
    }


def _compare(name: str, expected: NDArray[Any], stored: Mapping[str, NDArray[Any]], kind: str) -> list[bool]:
    """Return, for each stored form of a parameter, whether it has the right values."""
    return [
        _is_same(stored[f"{base}{copy}"], values, kind, stored.get(f"{base}.scale"))
        for base, values in ((name, expected), (f"{name}.T", expected.T))
        for copy in _COPIES
        if f"{base}{copy}" in stored
    ]


def _is_unused(name: str, model: ErnieMPreTrainedModel, takes_embeddings: bool) -> bool:
    if name.endswith(WORDS):
        return takes_embeddings
    # UIE's class has a pooler, as its checkpoints do, but does not use it.
    return isinstance(model, ErnieMForInformationExtraction) and name.startswith("ernie_m.pooler.")


def _is_same(stored: NDArray[Any], expected: NDArray[np.float32], kind: str, scale: NDArray[np.float32] | None) -> bool:
    if stored.shape != expected.shape or str(stored.dtype) not in ("float32", _DTYPES[kind]):
        return False
    if stored.dtype == np.int8:
        return scale is not None and all(_is_within(stored, scale, expected, rows) for rows in _slices(len(stored)))
    # Compared as bits, NaN equals itself.
    bits = f"u{stored.dtype.itemsize}"
    return np.array_equal(stored.view(bits), expected.astype(stored.dtype).view(bits))


def _is_within(stored: NDArray[Any], scale: NDArray[Any], expected: NDArray[Any], rows: slice) -> bool:
    error = np.abs(stored[rows] * scale[rows] - expected[rows])
    return bool((error <= scale[rows] * _HALF_STEP).all())


def _slices(length: int) -> list[slice]:
    """Split the rows so that a table of 250002 is never copied whole."""
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, length, _ROWS_AT_ONCE)]


def stored_parameters(graph: ir.Graph, model: ErnieMPreTrainedModel) -> dict[str, Tensor]:
    """Return the stored values, in float32 and the same shape, of the parameters that a graph keeps in fewer bits."""
    found: dict[str, Tensor] = {}
    for name, node in _nodes(graph).items():
        product = _read(node)
        found[f"{name}.weight"] = _tensor(product.weight.T)
        if product.bias is not None and np.isfinite(product.bias).all():
            found[f"{name}.bias"] = _tensor(product.bias)
    for name in dict(model.named_parameters()):
        for stored, transposed in ((name, False), (f"{name}.T", True)):
            value = graph.initializers.get(stored)
            if value is None or value.const_value is None or not value.uses():
                continue
            scale = graph.initializers.get(f"{stored}.scale")
            if value.dtype in HALF_TYPES.values() or (value.dtype == ir.DataType.INT8 and scale is not None):
                array = value.const_value.numpy().astype(np.float32)
                if scale is not None and scale.const_value is not None:
                    array *= scale.const_value.numpy()
                found[name] = _tensor(array.T if transposed else array)
    return found


def _tensor(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


@dataclass(frozen=True)
class _Product:
    """``weight (in, out)`` and ``bias (out,)`` as the graph uses them, and the ``steps`` of int8 of weight and input.

    Where the input is not quantized, the bias is unchanged and None here.
    """

    weight: NDArray[np.float32]
    steps: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    input_step: float

    def scaled(self, rows: NDArray[Any], columns: NDArray[Any]) -> _Product:
        """Return the product with its input channels (rows) and output channels (columns) multiplied by factors."""
        both = rows[:, None] * columns
        bias = None if self.bias is None else self.bias * columns
        return _Product(self.weight * both, self.steps * np.abs(both), bias, self.input_step)


def _compare_products(graph: ir.Graph, parameters: Mapping[str, NDArray[np.float32]]) -> dict[str, bool]:
    """Return, for the weight and the bias of each int8 matmul, whether it matches the parameter of that name."""
    nodes = _nodes(graph)
    same: dict[str, bool] = {}
    with np.errstate(all="ignore"):  # a damaged scale may be anything; non-finite values never match
        for name, node in nodes.items():
            weight, bias = (parameters.get(f"{name}.{part}") for part in ("weight", "bias"))
            product = _read(node)
            if weight is None or bias is None or product.weight.shape != weight.T.shape:
                same |= {f"{name}.weight": False, f"{name}.bias": False}
                continue
            product = _unmoved(name, product, nodes, parameters)
            same[f"{name}.weight"] = _as_rounded(product, weight.T)
            if product.bias is not None:  # else it is the unchanged parameter, and compared as one
                room = _BIAS_STEPS * product.input_step * np.linalg.norm(weight, axis=1)
                same[f"{name}.bias"] = bool((np.abs(product.bias - bias) <= room).all())
    return same


def _nodes(graph: ir.Graph) -> dict[str, ir.Node]:
    """Return the nodes that read the int8 weights, by the name of their linear layer."""
    place = {"MatMulIntegerToFloat": 1, "DequantizeLinear": 0}
    found = {}
    for node in graph:
        weight = node.inputs[place[node.op_type]] if node.op_type in place else None
        if weight is not None and (node.op_type == "MatMulIntegerToFloat" or str(weight.name).endswith(_WEIGHT)):
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
    """Undo the factors that were moved from the attention's output to its values."""
    inputs: NDArray[Any]
    outputs: NDArray[Any]
    inputs, outputs = (np.ones(size, dtype=np.float32) for size in product.weight.shape)
    value = name.removesuffix(_OUT) + _VALUE
    if name.endswith(_VALUE):
        outputs = 1 / _factors(product, parameters[f"{name}.weight"].T)
    elif name.endswith(_OUT) and value in nodes:
        inputs = _factors(_read(nodes[value]), parameters[f"{value}.weight"].T)
    return product.scaled(inputs, outputs)


def _read(node: ir.Node) -> _Product:
    return _read_standard(node) if node.op_type == "DequantizeLinear" else _read_fused(node)


def _read_standard(node: ir.Node) -> _Product:
    steps, scales = _constant(node.inputs[0]), _constant(node.inputs[1])
    product = _Product(steps * scales, np.broadcast_to(scales, steps.shape), None, np.nan)
    multiplied = _reader(node.outputs[0], "MatMul")
    rounded = None if multiplied is None else _moved_from(multiplied.inputs[0])
    if multiplied is None or rounded is None or rounded.op_type != "DequantizeLinear":
        return product
    added = _reader(multiplied.outputs[0], "Add")
    biases = [value for value in map(uncast, () if added is None else added.inputs) if value and value.const_value]
    whole = product.weight if added is None else _with_exact(added, product.weight)
    product = dataclasses.replace(product, weight=whole, bias=_constant(biases[0] if biases else None))
    product = _with_input(product, rounded.inputs[0], scales)
    return _with_norm(product, rounded, scales)


def _moved_from(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes ``value``, before it was moved from heads or slots to tokens."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the node of this type that reads ``value``, directly or through Casts, as in an emulated graph."""
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
    """Return the product with the effect of QuantizeLinear, and of the factors before it, on the input."""
    steps = product.steps
    quantize = producer_if(entering, "QuantizeLinear")
    if quantize is None:
        return product
    product = dataclasses.replace(product, input_step=float(_constant(quantize.inputs[1])))
    smoothed = producer_if(uncast(quantize.inputs[0]), "Mul")
    for value in map(uncast, () if smoothed is None else smoothed.inputs):
        if value is not None and value.const_value is not None and value.const_value.size == len(steps):
            product = product.scaled(_constant(value), np.ones_like(scales))
    return product


def _with_norm(product: _Product, rounded: ir.Node, scales: NDArray[Any]) -> _Product:
    """Return the product with the factors that a norm, duplicated to feed QuantizeLinear, applies to the input."""
    quantize = producer_if(rounded.inputs[0], "QuantizeLinear")
    norm = None if quantize is None else producer_if(quantize.inputs[0], "LayerNormalization")
    if norm is None or norm.inputs[0] is None:
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
    """Return the weight with the rows of the outlier channels, which a separate float32 matmul adds."""
    for use in node.outputs[0].uses():
        for value in use.node.inputs if use.node.op_type == "Add" else ():
            product = producer_if(value, "MatMul")
            picked = None if product is None else producer_if(product.inputs[0], "Gather")
            if product is not None and picked is not None:
                weight = weight.copy()
                weight[_constant(picked.inputs[1]).astype(np.int64)] += _constant(product.inputs[1])
    return weight


def _constant(value: ir.Value | None) -> NDArray[Any]:
    """Return an initializer in float32; NaN, which equals nothing, if there is none."""
    value = uncast(value)
    if value is None or value.const_value is None:
        return np.full((), np.nan, dtype=np.float32)
    return value.const_value.numpy().astype(np.float32)


def _factors(product: _Product, weight: NDArray[np.float32]) -> NDArray[Any]:
    """Return the factors that turn the columns of ``weight (in, out)`` into those of the product."""
    squares = (weight * weight).sum(axis=0)
    return np.where(squares > 0, (product.weight * weight).sum(axis=0) / np.where(squares > 0, squares, 1), 1)
