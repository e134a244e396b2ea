"""The engines that are compared: which adapter runs which artifact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "fp16", "bf16", "int8"]

REFERENCE = "torch-eager"


@dataclass(frozen=True)
class EngineSpec:
    """One engine.

    ``adapter`` is a module of ``benchmarks.adapters``, ``artifact`` a step of ``benchmarks.prepare`` and the folder
    that it fills, ``options`` what the adapter's loader takes besides, ``sharing`` what it takes where several
    processes serve the same model. ``no_cold_start`` says why it has none.
    """

    name: str
    label: str
    precision: Precision
    adapter: str
    artifact: str
    options: dict[str, Any] = field(default_factory=dict)
    sharing: dict[str, Any] = field(default_factory=dict)
    no_cold_start: str | None = None


ENGINES: dict[str, EngineSpec] = {
    spec.name: spec
    for spec in (
        EngineSpec(REFERENCE, "PyTorch, eager", "fp32", "torch_reference", "checkpoint"),
        EngineSpec(
            "torch-compile",
            "PyTorch, torch.compile",
            "fp32",
            "torch_reference",
            "checkpoint",
            {"compiled": True},
            no_cold_start="compiles at the first answer, and takes its time from a cache at the next start",
        ),
        EngineSpec("ort-plain", "ONNX Runtime, plain export", "fp32", "onnxruntime_session", "onnx-plain"),
        EngineSpec("ort-optimized", "ONNX Runtime, stock optimiser", "fp32", "onnxruntime_session", "onnx-optimized"),
        EngineSpec("optimum", "optimum ORTModel", "fp32", "optimum_ortmodel", "onnx-plain"),
        EngineSpec("openvino", "OpenVINO", "fp32", "openvino_model", "openvino"),
        EngineSpec(
            "ctranslate2", "CTranslate2", "fp32", "ctranslate2_encoder", "ctranslate2", {"compute_type": "float32"}
        ),
        EngineSpec("erniem-rt", "erniem-rt", "fp32", "erniem_session", "erniem-rt", sharing={"share_weights": True}),
        EngineSpec("ort-int8", "ONNX Runtime, stock dynamic int8", "int8", "onnxruntime_session", "onnx-int8"),
        EngineSpec("openvino-int8", "OpenVINO, int8", "int8", "openvino_model", "openvino-int8"),
        EngineSpec(
            "ctranslate2-int8",
            "CTranslate2, int8",
            "int8",
            "ctranslate2_encoder",
            "ctranslate2-int8",
            {"compute_type": "int8"},
        ),
        EngineSpec(
            "erniem-rt-int8",
            "erniem-rt, int8",
            "int8",
            "erniem_session",
            "erniem-rt-int8",
            sharing={"share_weights": True},
        ),
    )
}

QUICK = (REFERENCE, "ort-plain", "ctranslate2", "erniem-rt", "ctranslate2-int8", "erniem-rt-int8")
