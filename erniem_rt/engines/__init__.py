"""Engines: what computes an artifact. The file's suffix decides which one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erniem_rt.errors import ArtifactError, EngineUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_rt.engines.base import Device, Engine

__all__ = ["check_suffix", "open_engine"]


def check_suffix(path: Path) -> None:
    """Raise unless an engine for files like ``path`` exists; the file itself is not touched."""
    if path.suffix == ".plan":
        raise EngineUnavailableError(
            f"{path}: TensorRT plans are not supported by this version; open {path.stem}.onnx instead."
        )
    if path.suffix != ".onnx":
        raise ArtifactError(f"{path}: expected a file HEAD.onnx (or its manifest HEAD.json), for example qa.onnx.")


def open_engine(path: Path, *, device: Device, threads: int | None, cuda_graphs: bool = False) -> Engine:
    """Load ``path`` on ``device``; ``threads`` are those of one run, None leaves them to the engine."""
    check_suffix(path)
    from erniem_rt.engines.ort import OrtEngine

    return OrtEngine(path, device=device, threads=threads, cuda_graphs=cuda_graphs)
