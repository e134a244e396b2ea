"""Values that more than one type of arithmetic reads: one Cast for all who need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cast_uses", "uncast"]


def cast_uses(
    graph: ir.Graph, value: ir.Value, dtype: ir.DataType, *, where: Callable[[ir.Node], bool], name: str
) -> ir.Value | None:
    """Let the consumers of ``value`` that ``where`` picks read it as ``dtype``; returns the cast value, if any do.

    The Cast stands right behind the node that makes ``value``, or at the start of the graph.
    """
    uses = [use for use in value.uses() if where(use.node)]
    if not uses:
        return None
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"{name}.cast")
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, ir.TensorType(dtype), value.shape
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
    return cast.outputs[0]


def uncast(value: ir.Value | None) -> ir.Value | None:
    """The value before the Casts that made ``value``."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Cast":
        value = node.inputs[0]
    return value
