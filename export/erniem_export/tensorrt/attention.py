"""Which form of attention a library runs as one kernel: settled by building one attention and nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from erniem_export.errors import EngineBuildError
from erniem_export.passes.attention import ATTENTION_OPSET
from erniem_export.passes.rewriter import Rewriter
from erniem_export.tensorrt.builder import build, configure, make_builder
from erniem_export.tensorrt.network import parse
from erniem_rt.manifest import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from erniem_export.options import EngineOptions
    from erniem_export.progress import Progress
    from erniem_export.tensorrt.library import Library

__all__ = ["ATTENTION", "PRIMITIVES", "choose_attention"]

ATTENTION, PRIMITIVES = "Attention", "MatMul-Softmax-MatMul"
_IR_VERSION = 10
_QKV = ("query", "key", "value")


@dataclass(frozen=True)
class _Trial:
    """What is tried: ``heads`` are their number and their size, ``dtype`` is what attention is computed in."""

    library: Library
    options: EngineOptions
    profiles: Sequence[Profile]
    heads: tuple[int, int]
    dtype: ir.DataType
    progress: Progress


def choose_attention(
    library: Library,
    options: EngineOptions,
    profiles: Sequence[Profile],
    heads: tuple[int, int],
    dtype: ir.DataType,
    progress: Progress,
) -> dict[str, Any]:
    """Return the form to use, and why, for the manifest; key ``packed`` says whether rows could do without padding.

    Args:
        library: What will build.
        options: For the same GPUs as the plan.
        profiles: Of the plan.
        heads: Their number and their size.
        dtype: What attention is computed in.
        progress: Is told of the trial build.

    Raises:
        EngineBuildError: The library refuses the options.
    """
    configure(library, make_builder(library), options)  # what it refuses, it refuses the plan too
    trial = _Trial(library, options, profiles, heads, dtype, progress)
    what = f"{heads[0]} heads of {heads[1]} in {dtype.name.lower()}"
    refused = _refusal(trial, _padded(trial), [_padded_shapes(profile, heads) for profile in profiles])
    form, reason = ATTENTION, "a trial build of Attention, not to be decomposed, succeeded"
    if refused:
        form, reason = PRIMITIVES, f"a trial build of Attention failed: {refused}"
    return {"form": form, "trial": what, "reason": reason, "packed": _packed_attention(trial)}


def _packed_attention(trial: _Trial) -> dict[str, Any]:
    if not hasattr(trial.library.module, "AttentionIOForm"):
        return {"available": False, "reason": f"{trial.library} knows no attention over packed rows"}
    refused = _refusal(trial, _packed(trial), [_packed_shapes(profile, trial.heads) for profile in trial.profiles])
    reason = f"failed: {refused}" if refused else "succeeded; rows run in buckets of like length all the same"
    return {"available": not refused, "reason": f"a trial build of TRT_Attention on packed rows {reason}"}


def _padded(trial: _Trial) -> ir.Model:
    """Opset 23's ``Attention`` on ``(rows, heads, length, size)``, with a mask."""
    shape = ir.Shape(["rows", trial.heads[0], "length", trial.heads[1]])
    mask = _value("mask", ir.DataType.BOOL, ir.Shape(["rows", 1, "length", "length"]))
    return _model([*(_value(name, trial.dtype, shape) for name in _QKV), mask], [0, 1, 2, 3], "Attention", scale=1.0)


def _packed(trial: _Trial) -> ir.Model:
    """TensorRT's own ``TRT_Attention`` on ``(tokens, heads, size)`` of all rows, and where each row ends."""
    shape = ir.Shape(["tokens", *trial.heads])
    ends = _value("ends", ir.DataType.INT32, ir.Shape(["ends"]))
    inputs = [*(_value(name, trial.dtype, shape) for name in _QKV), ends]
    forms = {"query_form": "packed_nhd", "kv_form": "packed_nhd", "causal_kind": "none"}
    return _model(inputs, [0, 1, 2, None, 3, 3], "TRT_Attention", domain="trt", **forms)


def _model(
    inputs: Sequence[ir.Value], order: Sequence[int | None], op_type: str, domain: str = "", **attributes: Any
) -> ir.Model:
    """A graph of one node, which takes ``inputs`` in this order."""
    opsets = {"": ATTENTION_OPSET, **({domain: 1} if domain else {})}
    graph = ir.Graph(inputs, [], nodes=[], opset_imports=opsets, name="attention")
    rewriter = Rewriter(graph)
    taken = [None if i is None else inputs[i] for i in order]
    result = rewriter.op(op_type, *taken, name="attention", domain=domain, **attributes)
    result.type, result.shape = inputs[0].type, inputs[0].shape
    rewriter.append()
    graph.outputs.append(result)
    return ir.Model(graph, ir_version=_IR_VERSION)


def _value(name: str, dtype: ir.DataType, shape: ir.Shape) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)


# The shapes of each input at the smallest, best and largest of a profile.
_Ranges = dict[str, "Sequence[tuple[int, ...]]"]


def _padded_shapes(profile: Profile, heads: tuple[int, int]) -> _Ranges:
    sizes = [(_rows(shape), shape[-1]) for shape in (profile.min, profile.opt, profile.max)]
    states: Sequence[tuple[int, ...]] = [(rows, heads[0], length, heads[1]) for rows, length in sizes]
    return {**dict.fromkeys(_QKV, states), "mask": [(rows, 1, length, length) for rows, length in sizes]}


def _packed_shapes(profile: Profile, heads: tuple[int, int]) -> _Ranges:
    sizes = [(_rows(shape), shape[-1]) for shape in (profile.min, profile.opt, profile.max)]
    states: Sequence[tuple[int, ...]] = [(rows * length, *heads) for rows, length in sizes]
    return {**dict.fromkeys(_QKV, states), "ends": [(rows + 1,) for rows, _ in sizes]}


def _refusal(trial: _Trial, model: ir.Model, ranges: Sequence[_Ranges]) -> str | None:
    """Build ``model``; why the library does not, None if it does."""
    library, builder = trial.library, make_builder(trial.library)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attention.onnx"
        ir.save(model, path)
        try:
            network = parse(library, builder, path)
            config = configure(library, builder, trial.options)
            for shapes in ranges:
                added = builder.create_optimization_profile()
                for name, (low, best, high) in shapes.items():
                    added.set_shape(name, low, best, high)
                config.add_optimization_profile(added)
            with _quiet_stderr():
                build(library, builder, network, config, trial.options, trial.progress)
        except EngineBuildError as error:
            return str(error)
    return None


def _rows(shape: Sequence[int]) -> int:
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence the library's own writing to standard error, which goes past its logger and means nothing here."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
