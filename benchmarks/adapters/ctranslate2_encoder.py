"""CTranslate2's encoder with the weights as XLM-R's; it has no classifier, so that one product is numpy's."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import numpy as np

from benchmarks.adapters.base import Adapter, Array, Rows


class CTranslate2Encoder(Adapter):
    def __init__(self, artifact: Path, threads: int, compute_type: str) -> None:
        self.versions = {"ctranslate2": ctranslate2.__version__}
        self._encoder = ctranslate2.Encoder(
            str(artifact), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
        )
        head = np.load(artifact / "classifier.npz")
        self._weight, self._bias = head["weight"].T.copy(), head["bias"]

    def run(self, rows: Rows, batch_size: int) -> Array:
        batches = (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))
        return np.concatenate([self._run_batch(batch) for batch in batches])

    def _run_batch(self, rows: Rows) -> Array:
        # Lists, not arrays: CTranslate2 pads them itself and knows where the padding is.
        output = self._encoder.forward_batch([list(row) for row in rows])
        logits: Array = np.asarray(output.pooler_output) @ self._weight + self._bias
        return logits


load = CTranslate2Encoder
