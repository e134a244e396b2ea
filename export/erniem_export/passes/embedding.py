"""Stores the word-embedding table, most of a multilingual model's file, in fewer bits.

The graph converts rows to float32 after the lookup, so only the rows of one batch are ever held in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from erniem_export.errors import ExportError
from erniem_export.passes.half import HALF_TYPES, LARGEST
from erniem_export.passes.rewriter import store

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EMBEDDING_TYPES", "bytes_of_row", "quantize_rows", "store_embedding"]

EMBEDDING_TYPES = {
    "fp32": ir.DataType.FLOAT,
    **HALF_TYPES,
    "int8": ir.DataType.INT8,
}

_TABLE = "word_embeddings.weight"
_STEPS = 127
_ROWS_AT_ONCE = 8192


def store_embedding(model: ir.Model, precision: str) -> int:
    """Store the word-embedding table as ``precision`` (a key of :data:`EMBEDDING_TYPES`), in place.

    Returns the number of nodes that read the looked-up rows, now converted to float32; 0 if nothing changed.

    ``int8`` has one float32 scale per row, in ``NAME.scale`` of shape ``(vocabulary, 1)``.

    Raises:
        ExportError: The graph has no such table, or its values overflow.
    """
    graph, dtype = model.graph, EMBEDDING_TYPES[precision]
    if dtype == ir.DataType.FLOAT:
        return 0
    lookup, table, numbers = _lookup(graph)
    words = lookup.outputs[0]
    uses, axes = list(words.uses()), words.shape
    words.name, words.type = f"{words.name}.{precision}", ir.TensorType(dtype)
    cast = _node(graph, lookup, "Cast", [words], axes, f"{words.name}.float32", to=ir.DataType.FLOAT)
    rows = cast.outputs[0]
    if dtype == ir.DataType.INT8:
        stored, scales = quantize_rows(numbers)
        scale = store(graph, f"{table.name}.scale", scales)
        picked = _node(graph, lookup, "Gather", [scale, lookup.inputs[1]], None, f"{words.name}.scale", axis=0)
        rows = _node(graph, cast, "Mul", [rows, picked.outputs[0]], axes, f"{words.name}.scaled").outputs[0]
    else:
        stored = _rounded(numbers, dtype)
    table.const_value, table.type = ir.tensor(stored, name=table.name), ir.TensorType(dtype)
    for use in uses:
        use.node.replace_input_with(use.idx, rows)
    return len(uses)


def bytes_of_row(precision: str, columns: int) -> int:
    """Return the size in bytes of one row of the table, stored as ``precision``."""
    dtype = EMBEDDING_TYPES[precision]
    scale = ir.DataType.FLOAT.itemsize if dtype == ir.DataType.INT8 else 0
    return int(columns * dtype.itemsize + scale)


def quantize_rows(table: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize each row to symmetric int8: ``(rows, columns)`` to integers and float32 scales ``(rows, 1)``.

    The largest magnitude of a row becomes 127; a row of zeros has scale 1. The error is at most half a scale.
    """
    scales = np.empty((len(table), 1), dtype=np.float32)
    integers = np.empty(table.shape, dtype=np.int8)
    for start in range(0, len(table), _ROWS_AT_ONCE):  # never holds a table of 250002 rows twice in float32
        rows = table[start : start + _ROWS_AT_ONCE]
        largest = np.abs(rows).max(axis=1, keepdims=True)
        scale = np.where(largest > 0, largest / _STEPS, 1.0).astype(np.float32)
        scales[start : start + _ROWS_AT_ONCE] = scale
        integers[start : start + _ROWS_AT_ONCE] = np.clip(np.rint(rows / scale), -_STEPS, _STEPS)
    return integers, scales


def _lookup(graph: ir.Graph) -> tuple[ir.Node, ir.Value, NDArray[Any]]:
    """Return the node that looks words up, the table and its values."""
    for node in graph:
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is not None and table.const_value is not None and str(table.name).endswith(_TABLE):
            return node, table, table.const_value.numpy()
    raise ExportError("the graph takes inputs_embeds and has no word embeddings: leave out --embedding")


def _rounded(numbers: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    if float(max(numbers.max(), -numbers.min())) > LARGEST[dtype]:
        raise ExportError(
            f"{_TABLE} holds values above {LARGEST[dtype]:.6g}, too large for {dtype.name}: try --embedding int8"
        )
    return numbers.astype(dtype.numpy())


def _node(
    graph: ir.Graph,
    after: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    shape: ir.Shape | None,
    name: str,
    **attributes: Any,
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes, name=name)
    node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = shape
    graph.insert_after(after, node)
    return node
