"""CTranslate2's encoder with the weights as XLM-R's; it has no classifier, so that one product is numpy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from benchmarks.adapters.base import Adapter, Array, Rows, batches


class CTranslate2Encoder(Adapter):
    def __init__(self, artifact: Path, threads: int, compute_type: str) -> None:
        self.versions = {"ctranslate2": ctranslate2.__version__}
        self._encoder = ctranslate2.Encoder(
            str(artifact), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
        )
        classifier = artifact / "classifier.npz"
        if classifier.exists():
            head = np.load(classifier)
            self._weight, self._bias = head["weight"].T.copy(), head["bias"]

    def run(self, rows: Rows, batch_size: int) -> Array:
        pooled = [np.asarray(self._forward(batch).pooler_output) for batch in batches(rows, batch_size)]
        logits: Array = np.concatenate(pooled) @ self._weight + self._bias
        return logits

    def hidden_states(self, rows: Rows, batch_size: int) -> list[Array]:
        found: list[Array] = []
        for batch in batches(rows, batch_size):
            states = np.asarray(self._forward(batch).last_hidden_state)
            found += [state[: len(row)] for state, row in zip(states, batch, strict=True)]
        return found

    def _forward(self, rows: Rows) -> Any:
        # Lists, not arrays: CTranslate2 pads them itself and knows where the padding is.
        return self._encoder.forward_batch([list(row) for row in rows])


load = CTranslate2Encoder
