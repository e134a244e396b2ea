"""Emulates half precision in a float32 graph: rounds each result to the half type.

ONNX Runtime on a CPU has no bfloat16 arithmetic. It runs float16 with casts to float32 and back around each node, and
removes adjacent pairs of casts, so values there neither round nor overflow as on a GPU. A GPU computes a matmul of
halves in float32 and rounds its result; so does this graph, on any machine.
"""

from __future__ import annotations

import onnx_ir as ir

from erniem_export.passes.rewriter import cast_uses

__all__ = ["emulate_half"]

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Operators that only move values, and so need no rounding.
_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather", "Where"})


def emulate_half(model: ir.Model, *, rounding: bool = True) -> int:
    """Rewrite every half-type operation, in place; return how many results are rounded. Weights stay as stored.

    Without ``rounding`` only the weights are rounded, and the graph can be compared at the thresholds of fp32.
    """
    graph, rounded = model.graph, 0
    stored = [value for value in graph.initializers.values() if value.dtype in _HALVES]
    nodes = list(graph)
    for value in stored:
        cast_uses(
            graph, value, ir.DataType.FLOAT, where=lambda node: not _reads_table(node), name=f"{value.name}.widened"
        )
    for node in nodes:
        for value in node.outputs:
            if value.dtype is None or value.dtype not in _HALVES:
                continue
            if _reads_table(node) or (node.op_type == "Cast" and rounding):
                _widen(graph, value)
                continue
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            elif rounding and node.op_type not in _MOVING:
                rounded += _round(graph, value, value.dtype)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    return rounded


def _reads_table(node: ir.Node) -> bool:
    """Return whether the node looks up a stored table; the large table keeps its type."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return table is not None and table.is_initializer() and table.dtype in _HALVES


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    cast_uses(graph, value, ir.DataType.FLOAT, where=lambda _: True, name=f"{value.name}.widened")


def _round(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> int:
    short = cast_uses(graph, value, dtype, where=lambda _: True, name=f"{value.name}.rounded")
    if short is None:
        return 0
    _widen(graph, short)
    return 1
