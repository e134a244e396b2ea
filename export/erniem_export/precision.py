"""Converts a graph to its precision, and measures the ranges of its values by running it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from erniem_export.onnx_export import open_session, write
from erniem_export.passes.embedding import store_embedding
from erniem_export.passes.half import HALF_TYPES, to_half
from erniem_export.passes.rewriter import Rewriter, fused_attentions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from erniem_export.gate.cases import Case
    from erniem_export.options import Precision

__all__ = ["apply_precision", "measure_ranges"]


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
