"""The artifacts of the GPU's engines: what ``erniem-export`` is told, by the name of the step."""

from __future__ import annotations

PLAIN, PLAIN_FP16 = "gpu-onnx-plain", "gpu-onnx-plain-fp16"

EXPORTS: dict[str, tuple[str, ...]] = {
    "gpu-erniem-rt-fp16": ("--target", "onnxruntime-cuda", "--fp16"),
    "gpu-erniem-rt-packed-fp16": ("--target", "onnxruntime-cuda-packed", "--fp16"),
    "gpu-erniem-rt-tensorrt-fp16": ("--engine", "tensorrt", "--fp16"),
    "gpu-erniem-rt-tensorrt-rtx-fp16": ("--engine", "tensorrt-rtx", "--fp16"),
}

STEPS = (PLAIN, PLAIN_FP16, *EXPORTS)
