"""What an adapter offers to the worker, and padded batches, which is how most engines are fed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
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

    def hidden_states(self, rows: Rows, batch_size: int) -> list[Array]:
        """For a model without a head: per row the last hidden states, float32 ``(tokens, hidden)``."""
        raise NotImplementedError(f"{type(self).__name__} answers with logits only")


class PaddedAdapter(Adapter):
    """An engine that takes arrays: each batch padded to its longest row."""

    @abstractmethod
    def run_batch(self, input_ids: Array, attention_mask: Array, output: str) -> Array:
        """Answer int64 ids and mask ``(batch, sequence)`` with the named output of the model."""

    def run(self, rows: Rows, batch_size: int) -> Array:
        return np.concatenate([self.run_batch(*pad(batch), "logits") for batch in batches(rows, batch_size)])

    def hidden_states(self, rows: Rows, batch_size: int) -> list[Array]:
        found: list[Array] = []
        for batch in batches(rows, batch_size):
            states = self.run_batch(*pad(batch), "last_hidden_state")
            found += [state[: len(row)] for state, row in zip(states, batch, strict=True)]
        return found


def batches(rows: Rows, batch_size: int) -> Iterator[Rows]:
    """Cut rows into batches, in order."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


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
