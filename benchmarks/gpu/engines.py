"""The engines that are compared on a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.engines import EngineSpec, Precision
from benchmarks.gpu.steps import PLAIN, PLAIN_FP16

REFERENCE, EAGER = "torch-fp32", "torch-eager-fp16"
OURS, OURS_GRAPHS = "erniem-rt-fp16", "erniem-rt-graphs-fp16"
_TENSORRT = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
}


def _spec(
    name: str, label: str, adapter: str, artifact: str, precision: Precision = "fp16", **options: Any
) -> EngineSpec:
    return EngineSpec(name, label, precision, f"gpu_{adapter}", artifact, options, no_cold_start="not measured here")


def _plans() -> list[EngineSpec]:
    return [
        _spec(
            f"erniem-rt-{flavour}{'-graphs' if graphs else ''}-fp16",
            f"erniem-rt, {title}, fp16{', CUDA graphs' if graphs else ''}",
            "erniem_session",
            f"gpu-erniem-rt-{flavour}-fp16",
            suffix=".plan",
            cuda_graphs=graphs,
        )
        for flavour, title in _TENSORRT.items()
        for graphs in (False, True)
    ]


_ARTIFACT, _PACKED = "gpu-erniem-rt-fp16", "gpu-erniem-rt-packed-fp16"
ENGINES: dict[str, EngineSpec] = {
    spec.name: spec
    for spec in (
        _spec(REFERENCE, "PyTorch, fp32", "torch_model", "checkpoint", "fp32", kind="sdpa"),
        _spec(EAGER, "PyTorch, eager, fp16", "torch_model", "checkpoint", kind="eager"),
        _spec("torch-sdpa-fp16", "PyTorch, SDPA, fp16", "torch_model", "checkpoint", kind="sdpa"),
        _spec("torch-compile-fp16", "PyTorch, torch.compile, fp16", "torch_model", "checkpoint", kind="compile"),
        _spec("ort-plain-fp32", "ONNX Runtime, plain export, fp32", "onnxruntime_session", PLAIN, "fp32"),
        _spec("ort-plain-fp16", "ONNX Runtime, plain export, fp16", "onnxruntime_session", PLAIN_FP16),
        _spec(OURS, "erniem-rt, ONNX Runtime, fp16", "erniem_session", _ARTIFACT),
        _spec(
            OURS_GRAPHS,
            "erniem-rt, ONNX Runtime, fp16, CUDA graphs",
            "erniem_session",
            _ARTIFACT,
            cuda_graphs=True,
        ),
        _spec("erniem-rt-packed-fp16", "erniem-rt, ONNX Runtime, packed, fp16", "erniem_session", _PACKED),
        *_plans(),
    )
}


def on_device(spec: EngineSpec, device: str) -> EngineSpec:
    """The same engine on ``device``; its adapter is told the precision too."""
    return dataclasses.replace(spec, options={**spec.options, "device": device, "precision": spec.precision})
