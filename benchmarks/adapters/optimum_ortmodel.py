"""optimum's ORTModel on the plain export; optimum has no export of its own for ErnieM."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForSequenceClassification

from benchmarks.adapters.base import Array, PaddedAdapter


class OptimumModel(PaddedAdapter):
    def __init__(self, artifact: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.versions = {name: version(name) for name in ("optimum", "optimum-onnx", "onnxruntime", "transformers")}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._model = ORTModelForSequenceClassification.from_pretrained(
            artifact, file_name="model.onnx", session_options=options, provider="CPUExecutionProvider"
        )

    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        found = self._model(input_ids=torch.from_numpy(input_ids), attention_mask=torch.from_numpy(attention_mask))
        logits: Array = found[output].numpy()
        return logits


load = OptimumModel
