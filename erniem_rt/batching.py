"""Rows of different lengths, run without paying for the longest: sorted, in small batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.manifest import HEADS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from erniem_rt.manifest import TensorSpec
    from erniem_rt.session import Session

__all__ = ["Outputs", "run_rows"]

Outputs = dict[str, "NDArray[Any]"]

# Where several batches run at once, most positions in each, padding counted: enough to be worth a run, and few enough
# that all lanes have work to the end.
_POSITIONS = 1024


def run_rows(session: Session, rows: Sequence[Sequence[int]], *, batch_size: int = 16) -> Iterator[tuple[int, Outputs]]:
    """Run rows of ids, each of its own length; yield what comes out as soon as it is there.

    Args:
        session: The model. With head ``mc`` each row is one choice, scored alone.
        rows: Ids with special tokens and without padding, at least one per row.
        batch_size: Most rows in one run of the engine. Fewer run together where several runs go on at once.

    Yields:
        ``(row, outputs)`` for each row once, the longest rows first: the index of the row and its outputs by name,
        without batch axis and padding: ``(sequence,)`` or ``(sequence, labels)`` for an output per token,
        ``(labels,)`` for one per row. They are views: keeping one keeps the outputs of its whole batch.
    """
    specs = session.manifest.outputs
    has_choices = "choices" in HEADS[session.manifest.head].axes
    groups = list(_groups(rows, batch_size, _POSITIONS if session.lanes > 1 else None))

    def batch(group: list[int]) -> dict[str, NDArray[np.int64]]:
        ids, mask = _padded([rows[i] for i in group], session.manifest.limits.pad_token_id)
        if has_choices:
            ids, mask = ids[:, None], mask[:, None]
        return {"input_ids": ids, "attention_mask": mask}

    for group, outputs in zip(groups, session.run_all(map(batch, groups)), strict=True):
        for position, row in enumerate(group):
            length = len(rows[row])
            yield row, {spec.name: _trimmed(spec, outputs[spec.name][position], length) for spec in specs}


def _groups(rows: Sequence[Sequence[int]], batch_size: int, positions: int | None) -> Iterator[list[int]]:
    """Yield indices of rows that run together, neighbours in length, the longest first.

    Longest first, so that a batch too large for the memory fails at once and not at the end.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        longest = len(rows[order[start]])
        count = batch_size if positions is None else min(batch_size, max(1, positions // longest))
        yield order[start : start + count]
        start += count


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def _trimmed(spec: TensorSpec, output: NDArray[Any], length: int) -> NDArray[Any]:
    cut: Mapping[str, slice] = {"sequence": slice(length)}
    return output[tuple(cut.get(str(axis), slice(None)) for axis in spec.shape[1:])]
