"""OpenVINO with the hint for latency; fp32 stays fp32 on CPUs where its default would be bf16."""

from __future__ import annotations

from pathlib import Path

import openvino

from benchmarks.adapters.base import Array, PaddedAdapter


class OpenVinoModel(PaddedAdapter):
    def __init__(self, artifact: Path, threads: int) -> None:
        self.versions = {"openvino": openvino.__version__.split("-")[0]}
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._model = openvino.Core().compile_model(artifact / "model.xml", "CPU", settings)

    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        outputs = self._model({"input_ids": input_ids, "attention_mask": attention_mask})
        found: Array = outputs[output].copy()  # a view of memory that the next run overwrites
        return found


load = OpenVinoModel
