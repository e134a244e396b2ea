"""Engines run artifacts. The suffix decides between graph and plan; options or a table choose a graph's engine."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from erniem_rt.errors import ArtifactError, InvalidInputError
from erniem_rt.machine import cpu_class
from erniem_rt.processes import check_gpu, note_gpu

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from erniem_rt.engines.tensorrt import TensorRTEngine
    from erniem_rt.manifest import Manifest, TensorSpec

EngineName = Literal["auto", "onnxruntime", "openvino", "tensorrt"]
PrecisionName = Literal["auto", "fp32", "bf16"]

# CPU classes and weight precisions for which OpenVINO's speed outweighs its memory, as measured (docs/engines.md).
_OPENVINO_IS_FASTER = {("avx512-vnni-bf16", "int8")}
# Bytes of a graph and its weights: below this, OpenVINO's work for each new shape costs more than its speed gains.
_SMALL = 64 << 20
_CUDA = re.compile(r"cuda(?::([0-9]{1,3}))?")


@dataclass(frozen=True)
class Device:
    """A processor by kind, ``cpu`` or ``cuda``, and its index among those of that kind."""

    kind: str
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Parse ``cpu``, ``cuda`` or ``cuda:N``; :class:`InvalidInputError` for anything else."""
        if text == "cpu":
            return cls("cpu")
        match = _CUDA.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise InvalidInputError(f"device must be 'cpu', 'cuda' or 'cuda:N' (N a device index), got {text!r}.")
        return cls("cuda", int(match[1] or 0))

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


class Engine(Protocol):
    """One loaded graph. ``run`` may be called from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs as declared by the graph; axes without a size or a name are ``"?"``."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs as declared by the graph."""

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """Compute ``outputs``, in that order, from C-contiguous arrays of the declared dtypes and shapes.

        Raises:
            EngineError: The engine failed, for example out of memory.
        """

    def close(self) -> None:
        """Free the graph after runs in other threads finish. May be called twice."""


@dataclass(frozen=True)
class GraphOptions:
    """The options for running a graph (see :class:`erniem_rt.Session`)."""

    device: Device = Device("cpu")
    engine: str = "onnxruntime"
    precision: str = "auto"
    threads: int = 1
    spinning: bool | None = None
    shrink_memory: bool | None = None
    share_weights: bool = False
    cache: str | os.PathLike[str] | bool | None = None
    cuda_graphs: bool = False
    verify: bool = True


@dataclass(frozen=True)
class PlanOptions:
    """The options for running a plan (see :class:`erniem_rt.Session`)."""

    device: Device = Device("cuda")
    cuda_graphs: bool = True
    verify: bool = True
    trust: bool = False
    runtime_cache: str | os.PathLike[str] | None = None


def is_plan(path: Path) -> bool:
    """Return whether ``path`` has the suffix of a TensorRT plan."""
    return path.suffix == ".plan"


def check_suffix(path: Path) -> None:
    """Raise unless an engine for the suffix of ``path`` exists; does not touch the file."""
    if path.suffix not in {".onnx", ".plan"}:
        raise ArtifactError(
            f"{path}: expected a file HEAD.onnx or HEAD.plan (or the manifest HEAD.json), for example qa.onnx."
        )


def device_for(path: Path, wanted: Device | None) -> Device:
    """Return ``wanted``, or by default the file's device; a plan runs on a GPU only."""
    if not is_plan(path):
        return wanted or Device("cpu")
    if wanted is not None and wanted.kind == "cpu":
        raise InvalidInputError(
            f"{path} is a TensorRT plan and needs a GPU, but device is 'cpu': leave device out, give "
            f"'cuda' or 'cuda:N', or open {path.stem}.onnx."
        )
    return wanted or Device("cuda")


def choose_engine(path: Path, manifest: Manifest, options: GraphOptions) -> str:
    """Return the engine of a graph, ``"onnxruntime"`` or ``"openvino"``: the given one or, for ``"auto"``, the faster.

    Raises:
        ArtifactError: The graph cannot run as CUDA graphs.
        InvalidInputError: The options contradict each other.
    """
    if options.cuda_graphs:
        _check_capture(path, manifest, options.device)
    if options.engine == "tensorrt":
        raise InvalidInputError(f"engine='tensorrt' runs a plan, and {path} is a graph: open {path.stem}.plan.")
    engine = _fastest(manifest, options) if options.engine == "auto" else options.engine
    if engine == "openvino":
        _check_for_openvino(options)
    else:
        _check_for_onnxruntime(path, manifest, options)
    if options.precision == "bf16" and (half := half_of(manifest.precision)):
        raise InvalidInputError(
            f"precision='bf16' is for graphs in fp32 and int8, and {path} is in {half}. Leave precision out, or export "
            "in float32."
        )
    if options.precision == "bf16" and "bf16" not in manifest.proven:
        held = ", ".join(manifest.proven) or "nothing"
        raise InvalidInputError(
            f"{path} did not pass the gate in bf16; its manifest lists {held} as proven. Leave precision out, or "
            "export again: the export tries bf16 and reports the result."
        )
    return engine


def half_of(precision: Mapping[str, str]) -> str | None:
    """Return the half type that a graph or plan computes in, if any; ``precision`` is its record in the manifest."""
    kind = precision.get("products", precision.get("weights"))
    return kind if kind in ("fp16", "bf16") else None


def _fastest(manifest: Manifest, options: GraphOptions) -> str:
    if options.device.kind != "cpu" or options.share_weights or options.spinning:
        return "onnxruntime"
    if options.precision == "bf16" or (options.precision == "fp32" and half_of(manifest.precision)):
        return "openvino"
    size = sum(record.size for name, record in manifest.files.items() if name.startswith(manifest.artifact))
    weights = manifest.precision.get("weights")
    better = size > _SMALL and (cpu_class(), weights) in _OPENVINO_IS_FASTER
    made_for_it = manifest.target == "openvino" or "bf16" in manifest.precision.values()
    better = better or made_for_it or not _installed("onnxruntime")
    return "openvino" if better and _installed("openvino") else "onnxruntime"


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a fake module without __spec__
        return sys.modules.get(package) is not None


def _check_capture(path: Path, manifest: Manifest, device: Device) -> None:
    if device.kind != "cuda":
        raise InvalidInputError(f"cuda_graphs=True needs device='cuda', got device={str(device)!r}.")
    if manifest.packed:
        raise ArtifactError(
            f"{path} was exported with --target {manifest.target}, and the work of a packed graph depends on the mask: "
            "leave out cuda_graphs, or export with --target onnxruntime-cuda."
        )


def _check_for_openvino(options: GraphOptions) -> None:
    if options.device.kind != "cpu":
        raise InvalidInputError(f"engine='openvino' is for device='cpu', got device={str(options.device)!r}.")
    for name, why in (
        ("share_weights", "OpenVINO copies weights into the layout that it computes in"),
        ("spinning", "OpenVINO has no such setting"),
    ):
        if getattr(options, name):
            raise InvalidInputError(f"{name}=True needs engine='onnxruntime': {why}.")


def _check_for_onnxruntime(path: Path, manifest: Manifest, options: GraphOptions) -> None:
    if options.precision == "bf16":
        raise InvalidInputError(
            "precision='bf16' needs engine='openvino' on a CPU, without share_weights and spinning: ONNX Runtime "
            "computes a graph in the precision that it was exported in."
        )
    if options.precision == "fp32" and (half := half_of(manifest.precision)):
        raise InvalidInputError(
            f"precision='fp32' of {path}, a graph in {half}, needs engine='openvino' on a CPU: ONNX Runtime computes a "
            "graph in the precision that it was exported in. Leave precision out, or export in float32."
        )
    for name in ("share_weights", "shrink_memory"):
        if getattr(options, name) and options.device.kind != "cpu":
            raise InvalidInputError(f"{name}=True needs device='cpu', got device={str(options.device)!r}.")


def open_engine(path: Path, manifest: Manifest, options: GraphOptions, checked: Callable[[], object]) -> Engine:
    """Load a graph in the engine of ``options``; ``checked`` waits until its files are verified."""
    if options.engine == "openvino":
        from erniem_rt.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(path, options=options, manifest=manifest, checked=checked)
    from erniem_rt.engines.onnxruntime import OrtEngine

    check_gpu(options.device)
    engine = OrtEngine(path, options, least=manifest.onnxruntime)
    if options.device.kind == "cuda":
        note_gpu()
    return engine


def open_plan(path: Path, manifest: Manifest, options: PlanOptions) -> TensorRTEngine:
    """Check a TensorRT plan, then load it on its device."""
    from erniem_rt.engines.tensorrt import TensorRTEngine

    check_gpu(options.device)
    engine = TensorRTEngine(path, manifest, options)
    note_gpu()
    return engine


# Dtypes that are interchangeable if the engine converts them.
_KINDS = {"int64": "int", "int32": "int", "bool": "int", "float32": "float", "float16": "float"}


def check_signature(
    path: Path,
    manifest: Manifest,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    converted: bool = False,
) -> None:
    """Compare names, dtypes and shapes; :class:`ArtifactError` names the first difference.

    With ``converted`` the engine converts between integers of any size and between floats.
    """
    _compare(path, "input", manifest.inputs, inputs, converted)
    _compare(path, "output", manifest.outputs, outputs, converted)


def _compare(
    path: Path, kind: str, said: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...], converted: bool
) -> None:
    graph = {spec.name: spec for spec in found}
    names = [spec.name for spec in said]
    if set(names) != set(graph):
        raise _mismatch(path, f"{kind}s {', '.join(names)}", ", ".join(graph))
    for spec in said:
        other = graph[spec.name]
        alike = converted and _KINDS.get(spec.dtype) == _KINDS.get(other.dtype, other.dtype)
        if spec.dtype != other.dtype and not alike:
            raise _mismatch(path, f"{kind} {spec.name} of {spec.dtype}", other.dtype)
        if not _same_shape(spec.shape, other.shape):
            raise _mismatch(path, f"{kind} {spec.name} of shape {_shown(spec.shape)}", _shown(other.shape))


def _same_shape(said: tuple[int | str, ...], found: tuple[int | str, ...]) -> bool:
    # A dynamic axis of the graph matches any size; its name does not matter.
    return len(said) == len(found) and all(
        isinstance(axis, str) or axis == expected for expected, axis in zip(said, found, strict=True)
    )


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _mismatch(path: Path, said: str, found: str) -> ArtifactError:
    return ArtifactError(
        f"{path} does not fit its manifest {path.with_suffix('.json').name}: the manifest says {said}, "
        f"the graph has {found}. They come from different exports; export again."
    )
