"""Whether a loaded graph is the one that its manifest describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erniem_rt.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_rt.engines.base import Engine
    from erniem_rt.manifest import Manifest, TensorSpec


def check_signature(path: Path, manifest: Manifest, engine: Engine) -> None:
    """Compare names, dtypes and shapes; :class:`ArtifactError` names the first that differs."""
    _compare(path, "input", manifest.inputs, engine.inputs)
    _compare(path, "output", manifest.outputs, engine.outputs)


def _compare(path: Path, kind: str, said: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]) -> None:
    graph = {spec.name: spec for spec in found}
    names = [spec.name for spec in said]
    if set(names) != set(graph):
        raise _mismatch(path, f"{kind}s {', '.join(names)}", ", ".join(graph))
    for spec in said:
        other = graph[spec.name]
        if spec.dtype != other.dtype:
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
