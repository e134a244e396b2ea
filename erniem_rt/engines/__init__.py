"""Engines: what computes an artifact. The file's suffix decides which one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erniem_rt._processes import check_gpu, note_gpu
from erniem_rt.engines.base import Device
from erniem_rt.errors import ArtifactError, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_rt.engines.base import Engine, GraphOptions, PlanEngine, PlanOptions
    from erniem_rt.manifest import Manifest

__all__ = ["check_suffix", "device_for", "is_plan", "open_engine", "open_plan"]


def is_plan(path: Path) -> bool:
    """Whether ``path`` is named as a TensorRT plan."""
    return path.suffix == ".plan"


def check_suffix(path: Path) -> None:
    """Raise unless an engine for files like ``path`` exists; the file itself is not touched."""
    if path.suffix not in {".onnx", ".plan"}:
        raise ArtifactError(
            f"{path}: expected a file HEAD.onnx or HEAD.plan (or the manifest HEAD.json), for example qa.onnx."
        )


def device_for(path: Path, wanted: Device | None) -> Device:
    """The device that was asked for, or else the one that the file is for; a plan has no other than a GPU."""
    if not is_plan(path):
        return wanted or Device("cpu")
    if wanted is not None and wanted.kind == "cpu":
        raise InvalidInputError(
            f"{path} is a TensorRT plan, which runs on a GPU alone, and device is 'cpu': leave device out, give "
            f"'cuda' or 'cuda:N', or open {path.stem}.onnx."
        )
    return wanted or Device("cuda")


def open_engine(path: Path, *, device: Device, options: GraphOptions, least: str | None = None) -> Engine:
    """Load a graph on ``device``, which needs onnxruntime ``least`` or newer."""
    from erniem_rt.engines.ort import OrtEngine

    check_gpu(device)
    engine = OrtEngine(path, device=device, options=options, least=least)
    if device.kind == "cuda":
        note_gpu()
    return engine


def open_plan(path: Path, manifest: Manifest, *, device: Device, options: PlanOptions) -> PlanEngine:
    """Check a TensorRT plan, then load it on ``device``."""
    from erniem_rt.engines.trt import TensorRTEngine

    check_gpu(device)
    engine = TensorRTEngine(path, manifest, device=device, options=options)
    note_gpu()
    return engine
