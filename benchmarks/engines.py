"""The compared engines on a CPU and on a GPU: which adapter runs which artifact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Precision = Literal["fp32", "fp16", "bf16", "int8"]

REFERENCE = "torch-eager"
GPU_REFERENCE, GPU_EAGER = "torch-fp32", "torch-eager-fp16"
GPU_OURS, GPU_OURS_GRAPHS = "erniem-rt-fp16", "erniem-rt-graphs-fp16"


@dataclass(frozen=True)
class EngineSpec:
    """One engine.

    ``adapter`` is a class of ``benchmarks.adapters``, ``artifact`` a step of ``benchmarks.artifacts`` and its folder,
    ``options`` are the adapter's, ``sharing`` its options if several processes serve the same model. ``no_cold_start``
    is the reason for a missing cold start. ``bf16``: it needs a CPU with bf16 arithmetic.
    """

    name: str
    label: str
    precision: Precision
    adapter: str
    artifact: str
    options: dict[str, Any] = field(default_factory=dict)
    sharing: dict[str, Any] = field(default_factory=dict)
    no_cold_start: str | None = None
    bf16: bool = False

    def on(self, device: str) -> EngineSpec:
        """Return the same engine on ``device``, with the precision as another option of its adapter."""
        return replace(self, options={**self.options, "device": device, "precision": self.precision})


def _by_name(specs: Iterable[EngineSpec]) -> dict[str, EngineSpec]:
    return {spec.name: spec for spec in specs}


def _ours(name: str, label: str, precision: Precision, artifact: str, *, bf16: bool = False) -> EngineSpec:
    """Our artifact in OpenVINO."""
    options = {"engine": "openvino", "compute": "bf16" if bf16 else "fp32"}
    return EngineSpec(name, label, precision, "ErnieM", artifact, options, bf16=bf16)


_INT8, _INT8_FOR_OPENVINO = "erniem-rt-int8", "erniem-rt-target-openvino-int8"
_FOR_OPENVINO = "erniem-rt, --target openvino"
ENGINES = _by_name(
    (
        EngineSpec(REFERENCE, "PyTorch, eager", "fp32", "TransformersModel", "checkpoint"),
        EngineSpec(
            "torch-compile",
            "PyTorch, torch.compile",
            "fp32",
            "TransformersModel",
            "checkpoint",
            {"compiled": True},
            no_cold_start="compiles at the first answer, and takes its time from a cache at the next start",
        ),
        EngineSpec(
            "torch-bf16",
            "PyTorch, autocast bf16",
            "bf16",
            "TransformersModel",
            "checkpoint",
            {"autocast": True},
            bf16=True,
        ),
        EngineSpec("ort-plain", "ONNX Runtime, plain export", "fp32", "OnnxRuntime", "onnx-plain"),
        EngineSpec("ort-optimized", "ONNX Runtime, stock optimiser", "fp32", "OnnxRuntime", "onnx-optimized"),
        EngineSpec("optimum", "optimum ORTModel", "fp32", "Optimum", "onnx-plain"),
        EngineSpec("openvino", "OpenVINO", "fp32", "OpenVino", "openvino"),
        EngineSpec("openvino-bf16", "OpenVINO, bf16", "bf16", "OpenVino", "openvino", {"hint": "bf16"}, bf16=True),
        EngineSpec("ctranslate2", "CTranslate2", "fp32", "CTranslate2", "ctranslate2", {"compute_type": "float32"}),
        EngineSpec("erniem-rt", "erniem-rt", "fp32", "ErnieM", "erniem-rt", sharing={"share_weights": True}),
        _ours("erniem-rt-openvino", "erniem-rt, OpenVINO", "fp32", "erniem-rt"),
        _ours("erniem-rt-openvino-bf16", "erniem-rt, OpenVINO, bf16", "bf16", "erniem-rt", bf16=True),
        EngineSpec("ort-int8", "ONNX Runtime, stock dynamic int8", "int8", "OnnxRuntime", "onnx-int8"),
        EngineSpec("openvino-int8", "OpenVINO, int8", "int8", "OpenVino", "openvino-int8"),
        EngineSpec(
            "openvino-int8-bf16",
            "OpenVINO, int8 and bf16",
            "int8",
            "OpenVino",
            "openvino-int8",
            {"hint": "bf16"},
            bf16=True,
        ),
        EngineSpec(
            "ctranslate2-int8", "CTranslate2, int8", "int8", "CTranslate2", "ctranslate2-int8", {"compute_type": "int8"}
        ),
        EngineSpec(
            "erniem-rt-int8", "erniem-rt, int8", "int8", "ErnieM", "erniem-rt-int8", sharing={"share_weights": True}
        ),
        _ours("erniem-rt-openvino-int8", "erniem-rt, OpenVINO, int8", "int8", _INT8),
        _ours("erniem-rt-openvino-int8-bf16", "erniem-rt, OpenVINO, int8 and bf16", "int8", _INT8, bf16=True),
        _ours("erniem-rt-target-openvino-int8", f"{_FOR_OPENVINO}, int8", "int8", _INT8_FOR_OPENVINO),
        _ours(
            "erniem-rt-target-openvino-int8-bf16",
            f"{_FOR_OPENVINO}, int8 and bf16",
            "int8",
            _INT8_FOR_OPENVINO,
            bf16=True,
        ),
    )
)

QUICK = (REFERENCE, "ort-plain", "ctranslate2", "erniem-rt", "ctranslate2-int8", "erniem-rt-int8")


def _gpu(
    name: str, label: str, adapter: str, artifact: str, precision: Precision = "fp16", **options: Any
) -> EngineSpec:
    return EngineSpec(name, label, precision, adapter, artifact, options, no_cold_start="not measured on a GPU")


def _plan(flavour: str, title: str, *, cuda_graphs: bool) -> EngineSpec:
    return _gpu(
        f"erniem-rt-{flavour}{'-graphs' if cuda_graphs else ''}-fp16",
        f"erniem-rt, {title}, fp16{', CUDA graphs' if cuda_graphs else ''}",
        "ErnieM",
        f"gpu-erniem-rt-{flavour}-fp16",
        suffix=".plan",
        cuda_graphs=cuda_graphs,
    )


_GRAPH, _PACKED, _PLAIN = "gpu-erniem-rt-fp16", "gpu-erniem-rt-packed-fp16", "gpu-onnx-plain"
_ORT = "erniem-rt, ONNX Runtime"
# By priority, if time is short: the reference, the engines of the bars, plans, then the other rivals.
GPU_ENGINES = _by_name(
    (
        _gpu(GPU_REFERENCE, "PyTorch, fp32", "TorchModel", "checkpoint", "fp32", kind="sdpa"),
        _gpu(GPU_EAGER, "PyTorch, eager, fp16", "TorchModel", "checkpoint", kind="eager"),
        _gpu(GPU_OURS, f"{_ORT}, fp16", "ErnieM", _GRAPH),
        _gpu(GPU_OURS_GRAPHS, f"{_ORT}, fp16, CUDA graphs", "ErnieM", _GRAPH, cuda_graphs=True),
        _plan("tensorrt-rtx", "TensorRT for RTX", cuda_graphs=False),
        _plan("tensorrt-rtx", "TensorRT for RTX", cuda_graphs=True),
        _plan("tensorrt", "TensorRT", cuda_graphs=False),
        _plan("tensorrt", "TensorRT", cuda_graphs=True),
        _gpu("torch-sdpa-fp16", "PyTorch, SDPA, fp16", "TorchModel", "checkpoint", kind="sdpa"),
        _gpu("erniem-rt-packed-fp16", f"{_ORT}, packed, fp16", "ErnieM", _PACKED),
        _gpu("ort-plain-fp16", "ONNX Runtime, plain export, fp16", "OnnxRuntime", f"{_PLAIN}-fp16"),
        _gpu("ort-plain-fp32", "ONNX Runtime, plain export, fp32", "OnnxRuntime", _PLAIN, "fp32"),
        _gpu("torch-compile-fp16", "PyTorch, torch.compile, fp16", "TorchModel", "checkpoint", kind="compile"),
    )
)
