"""Ours: one batch through Session.run, more than one through batching.run_rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import erniem_rt
from benchmarks.adapters.base import Adapter, Array, Rows, batches, pad
from erniem_rt.batching import run_rows


class ErnieMSession(Adapter):
    def __init__(self, artifact: Path, threads: int, *, share_weights: bool = False) -> None:
        (graph,) = artifact.glob("*.onnx")
        self._session = erniem_rt.Session(graph, threads=threads, share_weights=share_weights)
        import onnxruntime  # not before: the session imports it while it checks its files

        self.versions = {"erniem_rt": erniem_rt.__version__, "onnxruntime": onnxruntime.__version__}

    def run(self, rows: Rows, batch_size: int) -> Array:
        if batch_size == 1:
            return np.concatenate([self._run_batch([row]) for row in rows])
        if len(rows) <= batch_size:
            return self._run_batch(rows)
        logits = dict(run_rows(self._session, rows))
        return np.stack([logits[i]["logits"] for i in range(len(rows))])

    def hidden_states(self, rows: Rows, batch_size: int) -> list[Array]:
        found: list[Array] = []
        for batch in batches(rows, batch_size):
            states = dict(run_rows(self._session, batch, batch_size=batch_size))
            found += [states[i]["last_hidden_state"] for i in range(len(batch))]
        return found

    def _run_batch(self, rows: Rows) -> Array:
        input_ids, attention_mask = pad(rows)
        return self._session.run(input_ids=input_ids, attention_mask=attention_mask)["logits"]


load = ErnieMSession
