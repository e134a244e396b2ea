"""A float32 graph that computes what a graph in a half type computes: each result rounded to that type.

ONNX Runtime on a CPU has no bfloat16 arithmetic at all, and runs float16 by casting to float32 and back around each
node, leaving out the pairs of casts that meet: there, values neither round nor overflow as they do on a GPU. A GPU
computes a product of halves in float32 and rounds its result; so does this graph, on any machine.
"""

from __future__ import annotations

import onnx_ir as ir

from erniem_export.passes.rewriter import cast_uses

__all__ = ["emulate_half"]

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# They round nothing: their results are their inputs', elsewhere.
_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather", "Where"})


def emulate_half(model: ir.Model, *, rounding: bool = True) -> int:
    """Rewrite every half-type operation, in place; returns how many results are rounded. Weights stay as stored.

    Without ``rounding`` nothing but the weights is rounded, and what is left of the graph can be compared to the digit.
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
    """A lookup in a stored table, which is done in the table's own type: it is large."""
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
