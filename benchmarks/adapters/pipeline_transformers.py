"""From text with transformers: its text-classification pipeline, the reference's class and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.deprecated.ernie_m import ErnieMForSequenceClassification, ErnieMTokenizer

from benchmarks.adapters.base import Adapter, Array, scores_by_label


class TransformersPipeline(Adapter):
    def __init__(self, artifact: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        model = ErnieMForSequenceClassification.from_pretrained(artifact, torch_dtype=torch.float32).eval()
        tokenizer = ErnieMTokenizer.from_pretrained(artifact)
        self._pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)

    def run(self, rows: Any, batch_size: int) -> Array:
        return scores_by_label(self._pipeline(list(rows), batch_size=batch_size, top_k=None))


load = TransformersPipeline
