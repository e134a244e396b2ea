"""The reference: transformers' own class, eager or compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.deprecated import ernie_m

from benchmarks.adapters.base import Array, PaddedAdapter


class TorchReference(PaddedAdapter):
    def __init__(self, artifact: Path, threads: int, compiled: bool = False) -> None:
        torch.set_num_threads(threads)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        (architecture,) = ernie_m.ErnieMConfig.from_pretrained(artifact).architectures
        model = getattr(ernie_m, architecture).from_pretrained(artifact).eval()
        self._model: Any = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        inputs = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
        found: Array = self._model(**inputs)[output].numpy()
        return found


load = TorchReference
