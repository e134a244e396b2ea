"""ONNX Runtime on a graph as it is, with its own optimisations at load as they come."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from benchmarks.adapters.base import Array, PaddedAdapter


class OnnxRuntimeSession(PaddedAdapter):
    def __init__(self, artifact: Path, threads: int) -> None:
        self.versions = {"onnxruntime": onnxruntime.__version__}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        graph = str(artifact / "model.onnx")
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        found: Array = self._session.run([output], feeds)[0]
        return found


load = OnnxRuntimeSession
