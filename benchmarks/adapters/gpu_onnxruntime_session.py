"""ONNX Runtime on a GPU with a graph as it is, as its users call it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from benchmarks.adapters.base import Array, PaddedAdapter


class OnnxRuntimeOnGpu(PaddedAdapter):
    def __init__(self, artifact: Path, threads: int, device: str, precision: str) -> None:
        del precision  # the graph's own
        self.versions = {"onnxruntime": onnxruntime.__version__}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        kind, _, index = device.partition(":")
        provider, settings = (
            ("CUDAExecutionProvider", {"device_id": index or "0"}) if kind == "cuda" else ("CPUExecutionProvider", {})
        )
        graph = str(artifact / "model.onnx")
        self._session = onnxruntime.InferenceSession(graph, options, providers=[(provider, settings)])
        if provider not in self._session.get_providers():
            raise RuntimeError(f"onnxruntime offers no {provider} and would have run on the CPU")

    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        found: Array = self._session.run([output], {"input_ids": input_ids, "attention_mask": attention_mask})[0]
        return found


load = OnnxRuntimeOnGpu
