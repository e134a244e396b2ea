"""Engines run artifacts. The suffix decides between graph and plan; options or a table choose a graph's engine."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from erniem_rt.engines.base import Device
from erniem_rt.errors import ArtifactError, InvalidInputError
from erniem_rt.machine import cpu_class
from erniem_rt.processes import check_gpu, note_gpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from erniem_rt.engines.base import Engine, GraphOptions, PlanEngine, PlanOptions
    from erniem_rt.manifest import Manifest

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "check_suffix",
    "choose_engine",
    "device_for",
    "is_plan",
    "open_engine",
    "open_plan",
]

ENGINES = ("auto", "onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("auto", "fp32", "bf16")

# CPU classes and weight precisions for which OpenVINO's speed outweighs its memory, as measured (docs/engines.md).
_OPENVINO_IS_FASTER = {("avx512-vnni-bf16", "int8")}
# Bytes of a graph and its weights: below this, OpenVINO's work for each new shape costs more than its speed gains.
_SMALL = 64 << 20


def choose_engine(path: Path, manifest: Manifest, device: Device, wanted: str, options: GraphOptions) -> str:
    """Return the engine for a graph, ``"onnxruntime"`` or ``"openvino"``: ``wanted`` or, for ``"auto"``, the faster.

    Raises:
        InvalidInputError: The options contradict each other.
    """
    if wanted == "tensorrt":
        raise InvalidInputError(f"engine='tensorrt' runs a plan, and {path} is a graph: open {path.stem}.plan.")
    engine = _fastest(manifest, device, options) if wanted == "auto" else wanted
    if engine == "openvino":
        _check_for_openvino(device, options)
    elif options.precision == "bf16":
        raise InvalidInputError(
            "precision='bf16' needs engine='openvino' on a CPU: ONNX Runtime computes a graph in the precision that it "
            "was exported in."
        )
    if options.precision == "fp32" and engine != "openvino" and (half := _half(manifest)):
        raise InvalidInputError(
            f"precision='fp32' of {path}, a graph in {half}, needs engine='openvino' on a CPU: ONNX Runtime computes a "
            "graph in the precision that it was exported in. Leave precision out, or export in float32."
        )
    if options.precision == "bf16" and (half := _half(manifest)):
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


def _fastest(manifest: Manifest, device: Device, options: GraphOptions) -> str:
    if device.kind != "cpu" or options.share_weights or options.spinning:
        return "onnxruntime"
    if options.precision == "bf16" or (options.precision == "fp32" and _half(manifest)):
        return "openvino"
    size = sum(record.size for name, record in manifest.files.items() if name.startswith(manifest.artifact))
    weights = manifest.precision.get("weights")
    better = size > _SMALL and (cpu_class(), weights) in _OPENVINO_IS_FASTER
    made_for_it = manifest.target == "openvino" or "bf16" in manifest.precision.values()
    better = better or made_for_it or not _installed("onnxruntime")
    return "openvino" if better and _installed("openvino") else "onnxruntime"


def _half(manifest: Manifest) -> str | None:
    """Return the half type that a graph was exported in, if any."""
    facts = manifest.precision
    kind = facts.get("products", facts.get("weights"))
    return kind if kind in ("fp16", "bf16") else None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a fake module without __spec__
        return sys.modules.get(package) is not None


def _check_for_openvino(device: Device, options: GraphOptions) -> None:
    if device.kind != "cpu":
        raise InvalidInputError(f"engine='openvino' is for device='cpu', got device={str(device)!r}.")
    for name, why in (
        ("share_weights", "OpenVINO copies weights into the layout that it computes in"),
        ("spinning", "OpenVINO has no such setting"),
    ):
        if getattr(options, name):
            raise InvalidInputError(f"{name}=True needs engine='onnxruntime': {why}.")


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


def open_engine(
    path: Path, manifest: Manifest, *, device: Device, options: GraphOptions, checked: Callable[[], object]
) -> Engine:
    """Load a graph in the engine of ``options``; ``checked`` waits until its files are verified."""
    if options.engine == "openvino":
        from erniem_rt.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(path, options=options, manifest=manifest, checked=checked)
    from erniem_rt.engines.onnxruntime import OrtEngine

    check_gpu(device)
    engine = OrtEngine(path, device=device, options=options, least=manifest.onnxruntime)
    if device.kind == "cuda":
        note_gpu()
    return engine


def open_plan(path: Path, manifest: Manifest, *, device: Device, options: PlanOptions) -> PlanEngine:
    """Check a TensorRT plan, then load it on ``device``."""
    from erniem_rt.engines.tensorrt import TensorRTEngine

    check_gpu(device)
    engine = TensorRTEngine(path, manifest, device=device, options=options)
    note_gpu()
    return engine
