"""Adding nodes to a graph, in front of a place, with their types and the constants they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from erniem_export.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Rewriter", "producer", "single_use"]

CONTRIB = "com.microsoft"

# Results that are not of the type of the first input.
_RESULTS: dict[str, ir.DataType] = {
    **dict.fromkeys(("Equal", "Not", "Or", "GreaterOrEqual"), ir.DataType.BOOL),
    **dict.fromkeys(("Shape", "NonZero"), ir.DataType.INT64),
}


class Rewriter:
    """Collects new nodes; :meth:`insert_before` puts them into the graph. Names of values are names of nodes."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
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
        """A constant; equal ones are stored once."""
        array = np.array(values, dtype=np.int64)
        name = f"int64.{'_'.join(map(str, array.ravel()))}.{array.ndim}d"
        return self._constant(name, array)

    def scalar(self, value: float, dtype: ir.DataType) -> ir.Value:
        """A constant number of some floating type; equal ones are stored once."""
        return self._constant(f"{dtype.name.lower()}.{value!r}", np.array(value, dtype=dtype.numpy()))

    def zeros(self, shape: ir.Value, name: str) -> ir.Value:
        """A float32 tensor of zeros."""
        return self.op("ConstantOfShape", shape, name=name, value=ir.tensor(np.zeros(1, dtype=np.float32)))

    def insert_before(self, anchor: ir.Node) -> None:
        """Put what was added in front of ``anchor``."""
        self._graph.insert_before(anchor, self._nodes)
        self._nodes = []

    def insert_after(self, anchor: ir.Node) -> None:
        """Put what was added right behind ``anchor``."""
        self._graph.insert_after(anchor, self._nodes)
        self._nodes = []

    def append(self) -> None:
        """Put what was added at the end of the graph."""
        self._graph.extend(self._nodes)
        self._nodes = []

    def _constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, const_value=tensor)
            value.dtype, value.shape = tensor.dtype, ir.Shape(array.shape)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]


def _result_type(op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any]) -> ir.DataType | None:
    """The type of a node's result, None if it is not known: passes after this one go by it."""
    if op_type == "Cast":
        return ir.DataType(attributes["to"])
    if op_type == "ConstantOfShape":
        return ir.DataType(attributes["value"].dtype)
    source = inputs[1 if op_type == "Where" else 0]
    return _RESULTS.get(op_type) or (source.dtype if source is not None else None)


def producer(value: ir.Value | None, op_type: str, place: str) -> ir.Node:
    """The node that makes ``value``; :class:`FusionError`, with the place, unless it is of this type."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != op_type:
        found = "an input or a constant" if node is None else node.op_type
        raise FusionError(f"{place}: expected {op_type}, found {found}")
    return node


def single_use(value: ir.Value, op_type: str, place: str) -> ir.Node:
    """The only node that reads ``value``; :class:`FusionError` unless there is one, of this type."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op_type:
        readers = ", ".join(use.node.op_type for use in uses) or "nothing"
        raise FusionError(f"{place}: expected {op_type} alone to read it, found {readers}")
    return uses[0].node
