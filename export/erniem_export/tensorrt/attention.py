"""Which form of attention a library runs as one kernel: settled by building one attention and nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from erniem_export.errors import EngineBuildError
from erniem_export.passes.attention_op import ATTENTION_OPSET
from erniem_export.passes.rewriter import Rewriter
from erniem_export.tensorrt.builder import build, configure
from erniem_export.tensorrt.network import parse
from erniem_rt.manifest import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from erniem_export.progress import Progress
    from erniem_export.tensorrt.library import Library
    from erniem_export.tensorrt.options import EngineOptions

__all__ = ["ATTENTION", "PRIMITIVES", "choose_attention"]

ATTENTION, PRIMITIVES = "Attention", "MatMul-Softmax-MatMul"
_IR_VERSION = 10


def choose_attention(
    library: Library,
    options: EngineOptions,
    profiles: Sequence[Profile],
    heads: tuple[int, int],
    dtype: ir.DataType,
    progress: Progress,
) -> dict[str, Any]:
    """Return the form to use, and why, for the manifest.

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
    configure(library, library.module.Builder(library.logger), options)  # what it refuses, it refuses the plan too
    trial = f"{heads[0]} heads of {heads[1]} in {dtype.name.lower()}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attention.onnx"
        ir.save(_one_attention(heads, dtype), path)
        try:
            _try(library, options, profiles, path, heads, progress)
        except EngineBuildError as error:
            return {"form": PRIMITIVES, "trial": trial, "reason": f"a trial build of Attention failed: {error}"}
    return {"form": ATTENTION, "trial": trial, "reason": "a trial build of Attention, not to be decomposed, succeeded"}


def _one_attention(heads: tuple[int, int], dtype: ir.DataType) -> ir.Model:
    states = ir.Shape(["rows", heads[0], "length", heads[1]])
    inputs = [_value(name, dtype, states) for name in ("query", "key", "value")]
    inputs.append(_value("mask", ir.DataType.BOOL, ir.Shape(["rows", 1, "length", "length"])))
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": ATTENTION_OPSET}, name="attention")
    rewriter = Rewriter(graph)
    result = rewriter.op("Attention", *inputs, name="attention", scale=1.0)
    result.type, result.shape = ir.TensorType(dtype), states
    rewriter.append()
    graph.outputs.append(result)
    return ir.Model(graph, ir_version=_IR_VERSION)


def _value(name: str, dtype: ir.DataType, shape: ir.Shape) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)


def _try(
    library: Library,
    options: EngineOptions,
    profiles: Sequence[Profile],
    path: Path,
    heads: tuple[int, int],
    progress: Progress,
) -> None:
    builder = library.module.Builder(library.logger)
    network = parse(library, builder, path)
    config = configure(library, builder, options)
    for profile in profiles:
        added = builder.create_optimization_profile()
        sizes = [(_rows(shape), shape[-1]) for shape in (profile.min, profile.opt, profile.max)]
        for name in ("query", "key", "value"):
            added.set_shape(name, *((rows, heads[0], length, heads[1]) for rows, length in sizes))
        added.set_shape("mask", *((rows, 1, length, length) for rows, length in sizes))
        config.add_optimization_profile(added)
    with _quiet_stderr():
        build(library, builder, network, config, options, progress)


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
