"""Whether a loaded graph is the one that its manifest describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from erniem_rt.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_rt.manifest import Manifest, TensorSpec


# Dtypes that stand for one another where the engine converts.
_KINDS = {"int64": "int", "int32": "int", "bool": "int", "float32": "float", "float16": "float"}


class Signed(Protocol):
    """What declares inputs and outputs: an engine."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs as the graph itself declares them."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, likewise."""


def check_signature(path: Path, manifest: Manifest, engine: Signed, *, converted: bool = False) -> None:
    """Compare names, dtypes and shapes; :class:`ArtifactError` names the first that differs.

    With ``converted`` the engine converts on the way, between integers of any size or between floats.
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
    # A dynamic axis of the graph takes any size, and its name is the graph's own affair.
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
