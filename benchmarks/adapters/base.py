"""What an adapter offers to the worker, and padded batches, which is how most engines are fed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD = 1

Rows = Sequence[Sequence[int]]
Array = NDArray[Any]


class Adapter(ABC):
    """An engine, loaded."""

    versions: dict[str, str]

    @abstractmethod
    def run(self, rows: Rows, batch_size: int) -> Array:
        """Answer rows in order of arrival: logits, float32 ``(rows, labels)``."""


class PaddedAdapter(Adapter):
    """An engine that takes arrays: each batch padded to its longest row."""

    @abstractmethod
    def run_batch(self, input_ids: Array, attention_mask: Array) -> Array:
        """Answer int64 ids and mask ``(batch, sequence)``: logits, float32 ``(batch, labels)``."""

    def run(self, rows: Rows, batch_size: int) -> Array:
        batches = (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))
        return np.concatenate([self.run_batch(*pad(batch)) for batch in batches])


def pad(rows: Rows) -> tuple[Array, Array]:
    """Return ids and mask of a batch, padded on the right."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), PAD, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def scores_by_label(answers: Sequence[Sequence[dict[str, Any]]]) -> Array:
    """Scores ``(texts, labels)`` from what pipelines return, the labels in alphabetical order."""
    return np.array([[item["score"] for item in sorted(answer, key=lambda item: item["label"])] for answer in answers])
