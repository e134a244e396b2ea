"""The artifacts of the GPU's engines: what ``erniem-export`` is told, by the name of the step."""

from __future__ import annotations

PLAIN, PLAIN_FP16 = "gpu-onnx-plain", "gpu-onnx-plain-fp16"

# One for few rows and one for up to 128 at once. The default profiles end at 32, so 128 rows would be four runs.
_PROFILES = ("--profile", "1x1,1x128,4x512", "--profile", "1x1,128x128,128x512")

EXPORTS: dict[str, tuple[str, ...]] = {
    "gpu-erniem-rt-fp16": ("--target", "onnxruntime-cuda", "--fp16"),
    "gpu-erniem-rt-packed-fp16": ("--target", "onnxruntime-cuda-packed", "--fp16"),
    "gpu-erniem-rt-tensorrt-fp16": ("--engine", "tensorrt", "--fp16", *_PROFILES),
    "gpu-erniem-rt-tensorrt-rtx-fp16": ("--engine", "tensorrt-rtx", "--fp16", *_PROFILES),
}

STEPS = (PLAIN, PLAIN_FP16, *EXPORTS)
