"""The precision of a graph: half precision with measured ranges, its emulation on a CPU, and smaller embeddings.

In the half type: each layer's matmuls with their biases, the attention between them, and Gelu. In float32: the residual
sums and the norms after them (rounding errors would accumulate over the layers), the embeddings, and all that follows
the encoder (cheap next to a layer, and it computes the answer). A node also stays in float32 if one of its inputs,
outputs or weights overflows the half type.

The word-embedding table, most of a multilingual model's file, may take fewer bits. The graph converts rows to float32
after the lookup, so only the rows of one batch are ever held in float32.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from erniem_export.errors import ExportError
from erniem_export.gate.cases import Case
from erniem_export.onnx_export import open_session, write
from erniem_export.options import HALVES, Precision
from erniem_export.passes.rewriter import Rewriter, cast_uses, fused_attentions, store


def apply_precision(
    model: ir.Model, precision: Precision, cases: Iterable[Case], scratch: Path, keep: Collection[str] = ()
) -> dict[str, str]:
    """Rewrite the canonical graph, in place; return the manifest's record of its precision.

    Args:
        model: The canonical graph, in float32.
        precision: The wanted precision.
        cases: Calibration data: operations whose values overflow the half type on it stay in float32.
        scratch: Folder for temporary files, with room for the weights.
        keep: Parts of the layers that always stay in float32, as for :func:`to_half`.
    """
    facts = precision.to_json()
    if precision.weights in HALF_TYPES:
        batches = [{"attention_mask": case.attend.astype("int64"), **case.feeds} for case in cases]
        kept = to_half(model, precision.weights, measure_ranges(model, batches, scratch), keep)
        if kept:
            facts["kept_in_fp32"] = ", ".join(kept)
    if any(value.name == "input_ids" for value in model.graph.inputs) or precision.embedding is not None:
        store_embedding(model, facts["embedding"])
    return facts


def measure_ranges(model: ir.Model, batches: Iterable[Mapping[str, NDArray[Any]]], scratch: Path) -> dict[str, float]:
    """Run a graph on ``batches`` (its inputs by name); return the largest magnitude of each float32 result by name.

    Masked scores have the range of the scores before masking. The scores of fused attention are not in the graph: their
    bound is the product of the longest query and the longest key of any head (Cauchy-Schwarz), which becomes the range
    of the attention's result.

    Args:
        model: A graph in float32; not changed.
        batches: The calibration data.
        scratch: Folder for temporary files, with room for the weights.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".ranges-") as folder:
        plain, observed = Path(folder) / "plain.onnx", Path(folder) / "observed.onnx"
        write(model, plain)
        copy = ir.load(plain)
        names = [
            str(value.name)
            for node in copy.graph
            for value in node.outputs
            if value.dtype == ir.DataType.FLOAT and node.op_type != "Where"
        ]
        _observe(copy.graph, names)
        hidden = _observe_lengths(copy.graph)
        ir.save(copy, observed)  # does not copy the weights
        largest = _run(observed, [*names, *(name for pair in hidden.values() for name in pair)], batches)
    for node in copy.graph:
        if node.op_type == "Where":
            sources = (largest.get(str(value.name), 0.0) for value in node.inputs if value is not None)
            largest[str(node.outputs[0].name)] = max(sources)
    for name, (query, key) in hidden.items():
        largest[name] = max(largest[name], largest.pop(query) * largest.pop(key))
    return largest


def _run(path: Path, names: list[str], batches: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    session = open_session(path)
    largest = dict.fromkeys(names, 0.0)
    for feeds in batches:
        for name, value in zip(names, session.run(list(map(_maximum, names)), dict(feeds)), strict=True):
            largest[name] = max(largest[name], float(value))
    return largest


def _observe(graph: ir.Graph, names: Iterable[str]) -> None:
    """Add the largest magnitude of each value to the graph's outputs."""
    values = {value.name: value for node in graph for value in node.outputs}
    for name in names:
        magnitude = ir.node("Abs", [values[name]])
        maximum = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0})
        output = maximum.outputs[0]
        output.name, output.type, output.shape = _maximum(name), ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        graph.extend([magnitude, maximum])
        graph.outputs.append(output)


def _observe_lengths(graph: ir.Graph) -> dict[str, tuple[str, str]]:
    """Add the largest norms of queries and keys of each fused attention, over all heads, to the graph's outputs.

    Returns the names of both by the name of the attention's result.
    """
    found = {}
    for node in fused_attentions(graph):
        name, lengths = str(node.outputs[0].name), []
        for role, value in zip(("query", "key"), node.inputs, strict=False):
            rewriter = Rewriter(graph)
            split = rewriter.int64([0, 0, node.attributes["num_heads"].as_int(), -1])
            heads = rewriter.op("Reshape", value, split, name=f"{name}.{role}.heads")
            length = rewriter.op("ReduceL2", heads, rewriter.int64([-1]), name=f"{name}.{role}.length", keepdims=0)
            rewriter.append()
            _observe(graph, [str(length.name)])
            lengths.append(str(length.name))
        found[name] = (lengths[0], lengths[1])
    return found


def _maximum(name: str) -> str:
    return f"{name}.largest"


HALF_TYPES = {name: ir.DataType[title.upper()] for name, title in HALVES.items()}

# The largest finite value of each type.
LARGEST = {
    ir.DataType.FLOAT16: torch.finfo(torch.float16).max,
    ir.DataType.BFLOAT16: torch.finfo(torch.bfloat16).max,
}

# Margin for text outside the calibration set: values may be this many times larger.
_HEADROOM = 4.0
_NORM = "LayerNormalization"

# In encoder.layers.3.self_attn.out_proj.weight.T the module ends before .weight, and the layer is encoder.layers.3.
_PARAMETER = re.compile(r"(?P<module>(?P<layer>encoder\.layers\.\d+)\.[\w.]+?)\.(weight|bias)(\.T)?$")
# encoder.layers.3.self_attn or encoder.layers.3.linear
_PART = re.compile(r"encoder\.layers\.\d+\.(?:self_attn|linear|norm)")
_TRIVIAL = frozenset({"Reshape", "Transpose", "Where"})


def to_half(
    model: ir.Model, precision: str, ranges: Mapping[str, float], keep: Collection[str] = ()
) -> tuple[str, ...]:
    """Rewrite the encoder's layers to ``fp16`` or ``bf16``, in place; inputs and outputs stay float32.

    The mask's constant becomes the lowest finite value of the type. It overwrites scores (Where) instead of being added
    to them, so it cannot overflow, and a row that is all padding keeps its uniform attention.

    Args:
        model: The canonical graph, or one derived from it.
        precision: A key of :data:`HALF_TYPES`.
        ranges: Largest magnitude of the graph's float32 values by name, measured on calibration data; values that are
            not listed count as in range.
        keep: Parts that stay in float32 as a whole: the attention of a layer (``encoder.layers.3.self_attn``) or its
            feed-forward part (``encoder.layers.3.linear``).

    Returns:
        The matmuls and operations kept in float32 by ``ranges`` and ``keep``, in the order of computation: the names of
        linear layers (``encoder.layers.3.linear1``), or layer and operation (``encoder.layers.3 Softmax``).
    """
    dtype = HALF_TYPES[precision]
    largest = LARGEST[dtype]
    candidates = _layer_nodes(model.graph)
    parts = _parts(model.graph) if keep else {}
    kept = [node for node in candidates if parts.get(node) in keep or _overflows(node, ranges, largest)]
    half = set(candidates) - set(kept)
    _store_halves(model.graph, half, dtype, largest)
    _convert_values(model.graph, half, dtype)
    return _described(model.graph, kept)


def _layer_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes with float results between two norms, except norms and the residual sums that they read."""
    after = _reach(graph, forward=True)
    before = _reach(reversed(graph), forward=False)
    return [
        node
        for node in graph
        if node in after and node in before and node.op_type != _NORM and not _feeds_norm(node) and _is_float(node)
    ]


def _reach(nodes: Iterable[ir.Node], *, forward: bool) -> set[ir.Node]:
    """Return the nodes after a norm (``forward``) or before one; ``nodes`` come in the order to visit them."""
    reached: set[ir.Node] = set()
    for node in nodes:
        neighbours = node.predecessors() if forward else node.successors()
        if any(other in reached or other.op_type == _NORM for other in neighbours):
            reached.add(node)
    return reached


def _feeds_norm(node: ir.Node) -> bool:
    return any(use.node.op_type == _NORM and use.idx == 0 for use in node.outputs[0].uses())


def _is_float(node: ir.Node) -> bool:
    return any(value.dtype == ir.DataType.FLOAT for value in node.outputs)


def _overflows(node: ir.Node, ranges: Mapping[str, float], largest: float) -> bool:
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != ir.DataType.FLOAT or _is_constant(value):
            continue
        if value.const_value is not None:
            if _magnitude(value.const_value.numpy()) > largest:
                return True
        elif ranges.get(str(value.name), 0.0) * _HEADROOM > largest:
            return True
    return False


def _parts(graph: ir.Graph) -> dict[ir.Node, str]:
    """Return each node's part of the encoder: that of the last parameter read up to the node."""
    parts, part = {}, ""
    for node in graph:
        names = (str(value.name) for value in node.inputs if value is not None and value.is_initializer())
        part = next((match[0] for name in names if (match := _PART.search(name))), part)
        parts[node] = part
    return parts


def _described(graph: ir.Graph, kept: list[ir.Node]) -> tuple[str, ...]:
    """Name nodes by their parameter's module, or by the current layer and their operation if they have none."""
    names: dict[str, None] = {}
    chosen, layer = set(kept), "embeddings"
    for node in graph:
        parameters = [value for value in node.inputs if value is not None and value.is_initializer()]
        found = [match for value in parameters if (match := _PARAMETER.search(str(value.name)))]
        layer = found[0]["layer"] if found else layer
        if node in chosen and node.op_type not in _TRIVIAL:
            names[found[0]["module"] if found else f"{layer} {node.op_type}"] = None
    return tuple(names)


def _is_constant(value: ir.Value) -> bool:
    """Return whether the value is a constant such as a divisor or the mask's value, not a weight."""
    return value.const_value is not None and value.const_value.size == 1


def _store_halves(graph: ir.Graph, half: set[ir.Node], dtype: ir.DataType, largest: float) -> None:
    """Store the initializers that nodes in ``half`` read in ``dtype``, as a copy if other nodes read them too."""
    for value in list(graph.initializers.values()):
        uses = [use for use in value.uses() if use.node in half]
        if not uses or value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        numbers = np.clip(value.const_value.numpy(), -largest, largest).astype(dtype.numpy())
        name = str(value.name)
        if len(uses) == len(value.uses()):
            value.const_value, value.type = ir.tensor(numbers, name=name), ir.TensorType(dtype)
            continue
        copy = ir.Value(
            name=f"{name}.{dtype.name.lower()}",
            type=ir.TensorType(dtype),
            shape=value.shape,
            const_value=ir.tensor(numbers, name=f"{name}.{dtype.name.lower()}"),
        )
        graph.register_initializer(copy)
        for use in uses:
            use.node.replace_input_with(use.idx, copy)


def _convert_values(graph: ir.Graph, half: set[ir.Node], dtype: ir.DataType) -> None:
    """Set the type of the outputs of ``half``, and insert Casts where values cross between the two types."""
    suffix = dtype.name.lower()
    computed = [value for node in graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    for value in [*computed, *(value for value in graph.inputs if value.dtype == ir.DataType.FLOAT)]:
        producer = value.producer()
        if producer is None or producer not in half:
            cast_uses(graph, value, dtype, where=half.__contains__, name=f"{value.name}.{suffix}")
            continue
        value.type = ir.TensorType(dtype)
        if value.is_graph_output():
            _output_in_float32(graph, producer, value, suffix)
        cast_uses(
            graph,
            value,
            ir.DataType.FLOAT,
            where=lambda node: node not in half and node.op_type != "Cast",
            name=f"{value.name}.float32",
        )


def _output_in_float32(graph: ir.Graph, producer: ir.Node, value: ir.Value, suffix: str) -> None:
    """Cast the value to float32 for the graph's output of its name."""
    name = str(value.name)
    value.name = f"{name}.{suffix}"
    rewriter = Rewriter(graph)
    output = rewriter.op("Cast", value, name=f"{name}.cast", to=ir.DataType.FLOAT)
    output.name, output.shape = name, value.shape
    rewriter.insert_after(producer)
    graph.outputs[list(graph.outputs).index(value)] = output


def _magnitude(array: NDArray[Any]) -> float:
    return float(max(array.max(), -array.min())) if array.size else 0.0


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
    rewriter = Rewriter(graph)
    rows = rewriter.op("Cast", words, name=f"{words.name}.float32", to=ir.DataType.FLOAT)
    rows.shape = axes
    if dtype == ir.DataType.INT8:
        stored, scales = quantize_rows(numbers)
        scale = store(graph, f"{table.name}.scale", scales)
        picked = rewriter.op("Gather", scale, lookup.inputs[1], name=f"{words.name}.scale", axis=0)
        rows = rewriter.op("Mul", rows, picked, name=f"{words.name}.scaled")
        rows.shape = axes
    else:
        stored = _rounded(numbers, dtype)
    table.const_value, table.type = ir.tensor(stored, name=table.name), ir.TensorType(dtype)
    rewriter.insert_after(lookup)
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


# Operators that only move values, and so need no rounding.
_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather", "Where"})


def emulate_half(model: ir.Model, *, rounding: bool = True) -> int:
    """Emulate half precision in float32: round each result to the half type, in place; return how many are rounded.

    ONNX Runtime on a CPU has no bfloat16 arithmetic. It runs float16 with casts to float32 and back around each node,
    and removes adjacent pairs of casts, so values there neither round nor overflow as on a GPU. A GPU computes a matmul
    of halves in float32 and rounds its result; so does this graph, on any machine. Weights stay as stored.

    Without ``rounding`` only the weights are rounded, and the graph can be compared at the thresholds of fp32.
    """
    graph, rounded = model.graph, 0
    stored = [value for value in graph.initializers.values() if value.dtype in HALF_TYPES.values()]
    nodes = list(graph)
    for value in stored:
        cast_uses(
            graph, value, ir.DataType.FLOAT, where=lambda node: not _reads_table(node), name=f"{value.name}.widened"
        )
    for node in nodes:
        for value in node.outputs:
            if value.dtype is None or value.dtype not in HALF_TYPES.values():
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
    return table is not None and table.is_initializer() and table.dtype in HALF_TYPES.values()


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    cast_uses(graph, value, ir.DataType.FLOAT, where=lambda _: True, name=f"{value.name}.widened")


def _round(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> int:
    short = cast_uses(graph, value, dtype, where=lambda _: True, name=f"{value.name}.rounded")
    if short is None:
        return 0
    _widen(graph, short)
    return 1
