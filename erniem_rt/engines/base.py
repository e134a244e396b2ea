"""The protocol of the engines, the devices, and the check of a graph against its manifest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from erniem_rt.errors import ArtifactError, InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from erniem_rt.manifest import Manifest, TensorSpec


__all__ = ["Device", "Engine", "GraphOptions", "PlanEngine", "PlanOptions"]

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


class Signed(Protocol):
    """Has declared inputs and outputs."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs as declared by the graph; axes without a size or a name are ``"?"``."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs as declared by the graph."""


class Engine(Signed, Protocol):
    """One loaded graph. ``run`` may be called from several threads at once."""

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """Compute ``outputs``, in that order, from C-contiguous arrays of the declared dtypes and shapes.

        Raises:
            EngineError: The engine failed, for example out of memory.
        """

    def close(self) -> None:
        """Free the graph after runs in other threads finish. May be called twice."""


class PlanEngine(Engine, Protocol):
    """An engine with ranges of shapes."""

    @property
    def max_length(self) -> int:
        """Number of positions in the longest possible row."""


@dataclass(frozen=True)
class GraphOptions:
    """The options for running a graph (see :class:`erniem_rt.Session`)."""

    threads: int = 1
    share_weights: bool = False
    cuda_graphs: bool = False
    spinning: bool | None = None
    shrink_memory: bool | None = None
    engine: str = "onnxruntime"
    precision: str = "auto"
    cache: str | os.PathLike[str] | bool | None = None
    verify: bool = True


@dataclass(frozen=True)
class PlanOptions:
    """The options for running a plan (see :class:`erniem_rt.Session`)."""

    trust: bool = False
    cuda_graphs: bool = True
    runtime_cache: str | os.PathLike[str] | None = None


# Dtypes that are interchangeable if the engine converts them.
_KINDS = {"int64": "int", "int32": "int", "bool": "int", "float32": "float", "float16": "float"}


def check_signature(path: Path, manifest: Manifest, engine: Signed, *, converted: bool = False) -> None:
    """Compare names, dtypes and shapes; :class:`ArtifactError` names the first difference.

    With ``converted`` the engine converts between integers of any size and between floats.
    """
    _compare(path, "input", manifest.inputs, engine.inputs, converted)
    _compare(path, "output", manifest.outputs, engine.outputs, converted)


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
