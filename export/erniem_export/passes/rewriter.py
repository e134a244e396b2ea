"""Helpers of all passes: finding nodes in a graph, and adding nodes, constants and Casts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from erniem_export.errors import FusionError

# The domain of ONNX Runtime's contrib operators.
CONTRIB = "com.microsoft"

# Result types that differ from the type of the first input.
_RESULTS: dict[str, ir.DataType] = {
    **dict.fromkeys(("Equal", "Not", "Or", "GreaterOrEqual"), ir.DataType.BOOL),
    **dict.fromkeys(("Shape", "NonZero"), ir.DataType.INT64),
}


class Rewriter:
    """Collects new nodes; :meth:`insert_before` adds them to the graph. Each value has the name of its node."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._nodes: list[ir.Node] = []

    def op(self, op_type: str, *inputs: ir.Value | None, name: str, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output called ``name``."""
        node = ir.node(op_type, list(inputs), attributes, domain=domain, name=name, num_outputs=1)
        node.outputs[0].name = name
        dtype = _result_type(op_type, inputs, attributes)
        if dtype is not None:
            node.outputs[0].dtype = dtype
        self._nodes.append(node)
        return node.outputs[0]

    def int64(self, values: int | Sequence[int]) -> ir.Value:
        """Return an int64 constant; equal ones are stored once."""
        array = np.array(values, dtype=np.int64)
        name = f"int64.{'_'.join(map(str, array.ravel()))}.{array.ndim}d"
        return self._constant(name, array)

    def scalar(self, value: float, dtype: ir.DataType) -> ir.Value:
        """Return a float scalar of type ``dtype``; equal ones are stored once."""
        return self._constant(f"{dtype.name.lower()}.{value!r}", np.array(value, dtype=dtype.numpy()))

    def zeros(self, shape: ir.Value, name: str) -> ir.Value:
        """Return a float32 tensor of zeros."""
        return self.op("ConstantOfShape", shape, name=name, value=ir.tensor(np.zeros(1, dtype=np.float32)))

    def insert_before(self, anchor: ir.Node) -> None:
        """Insert the collected nodes before ``anchor``."""
        self.graph.insert_before(anchor, self._nodes)
        self._nodes = []

    def insert_after(self, anchor: ir.Node) -> None:
        """Insert the collected nodes after ``anchor``."""
        self.graph.insert_after(anchor, self._nodes)
        self._nodes = []

    def append(self) -> None:
        """Append the collected nodes to the graph."""
        self.graph.extend(self._nodes)
        self._nodes = []

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        found = self.graph.initializers.get(name)
        return store(self.graph, name, array) if found is None else found


def _result_type(op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any]) -> ir.DataType | None:
    """Return the type of a node's result, which later passes rely on; None if unknown."""
    if op_type == "Cast":
        return ir.DataType(attributes["to"])
    if op_type == "ConstantOfShape":
        return ir.DataType(attributes["value"].dtype)
    source = inputs[1 if op_type == "Where" else 0]
    return _RESULTS.get(op_type) or (source.dtype if source is not None else None)


def store(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add an initializer and return it."""
    tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def cast_uses(
    graph: ir.Graph, value: ir.Value, dtype: ir.DataType, *, where: Callable[[ir.Node], bool], name: str
) -> ir.Value | None:
    """Let the consumers of ``value`` that ``where`` selects read it as ``dtype``; return the cast value, if any.

    The Cast follows the producer of ``value``, or starts the graph.
    """
    uses = [use for use in value.uses() if where(use.node)]
    if not uses:
        return None
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"{name}.cast")
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, ir.TensorType(dtype), value.shape
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])
    made_by = value.producer()
    if made_by is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(made_by, cast)
    return cast.outputs[0]


def uncast(value: ir.Value | None) -> ir.Value | None:
    """Return the value before the Casts that produce ``value``."""
    while (node := producer_if(value, "Cast")) is not None:
        value = node.inputs[0]
    return value


def forget_shapes(graph: ir.Graph) -> None:
    """Drop the inferred shapes, which packing makes wrong; the outputs keep theirs."""
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape = None


def producer_if(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the producer of ``value``; None unless it is of this type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def producer(value: ir.Value | None, op_type: str, place: str) -> ir.Node:
    """Return the producer of ``value``; :class:`FusionError`, with the place, unless it is of this type."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != op_type:
        found = "an input or a constant" if node is None else node.op_type
        raise FusionError(f"{place}: expected {op_type}, found {found}")
    return node


def single_use(value: ir.Value, op_type: str, place: str) -> ir.Node:
    """Return the only node that reads ``value``; :class:`FusionError` unless there is exactly one, of this type."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op_type:
        readers = ", ".join(use.node.op_type for use in uses) or "nothing"
        raise FusionError(f"{place}: expected {op_type} alone to read it, found {readers}")
    return uses[0].node


def fused_attentions(graph: ir.Graph) -> list[ir.Node]:
    """Return ONNX Runtime's MultiHeadAttention nodes, layer by layer; none in a graph of standard operators."""
    return [node for node in graph if node.op_type == "MultiHeadAttention" and node.domain == CONTRIB]


def matmul_of(value: ir.Value | None, place: str) -> ir.Node:
    """Return the MatMul of the linear layer (MatMul, then Add) that produces ``value``."""
    biased = producer(value, "Add", place)
    product = next((value for value in biased.inputs if value is not None and value.producer() is not None), None)
    return producer(product, "MatMul", place)


def residual_of(value: ir.Value, place: str) -> tuple[ir.Node, int]:
    """Return the Add that reads ``value`` (the residual sum after the attention) and the index of that input."""
    found = [use for use in value.uses() if use.node.op_type == "Add"]
    if len(found) != 1:
        raise FusionError(f"{place}: expected one residual around the attention, found {len(found)}")
    return found[0].node, found[0].idx


def width_of(value: ir.Value | None, place: str) -> int:
    """Return the size of the last axis of ``value``, the hidden size; :class:`FusionError` if unknown."""
    size = None if value is None or value.shape is None else value.shape[-1]
    if not isinstance(size, int):
        raise FusionError(f"{place}: the hidden size of {None if value is None else value.name} is not known")
    return size


# In encoder.layers.0.linear1.weight.T.float16 the module ends before .weight.
_WEIGHT = re.compile(r"(?:ernie_m\.)?(?P<module>.+)\.weight(\.(T|int8|float16|bfloat16))*$")
_CARRIERS = frozenset({"Cast", "DequantizeLinear"})


def name_products(model: ir.Model) -> dict[str, ir.Node]:
    """Name each matmul after its linear layer, such as ``encoder.layers.0.linear1``, in place; return them by name.

    Error messages and the proof of a plan's precision use these names.
    """
    products: dict[str, ir.Node] = {}
    for node in model.graph:
        source = node.inputs[1] if node.op_type == "MatMul" else None
        while source is not None and (maker := source.producer()) is not None and maker.op_type in _CARRIERS:
            source = maker.inputs[0]
        found = None if source is None else _WEIGHT.match(str(source.name))
        if found:
            node.name = found["module"]
            products[node.name] = node
    return products
