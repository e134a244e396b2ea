"""Which rows run together, in which profile of a plan and at which shape: lengths in buckets, batches in parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from erniem_rt.plan import Profile

__all__ = ["Run", "plan_runs"]

# Lengths are rounded up to a multiple of this: fewer shapes, so that CUDA graphs are found again.
BUCKET = 16
# What one more run costs, in positions: below that, padding is the cheaper way. An estimate, not measured.
LAUNCH = 1024


@dataclass(frozen=True)
class Run:
    """One run of the engine.

    ``rows`` are the indices of the rows that it answers; ``shape`` is that of the ids, whose leading axes hold at
    least so many rows (what is over is filled up), and ``profile`` the index of the profile that takes it.
    """

    rows: NDArray[np.intp]
    profile: int
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """Positions in each row."""
        return self.shape[-1]


def plan_runs(
    lengths: NDArray[np.intp], width: int, profiles: Sequence[Profile], *, choices: int | None = None
) -> list[Run]:
    """Divide rows into runs, the longest rows first, so that a run too large for the memory fails at once.

    Args:
        lengths: ``(rows,)``, the positions that each row needs. 0 for a row of padding alone: it attends to all
            its positions, so it keeps exactly ``width``.
        width: Positions of the rows as they were given. At least one profile takes that many.
        profiles: Those of the plan.
        choices: For plans with three axes, the choices per question as they came. Choices are scored each for
            itself, so they may be laid out anew.
    """
    longest = max(profile.max[-1] for profile in profiles)
    # Beside a row that must keep its width nothing is made wider.
    limit = width if not lengths.all() else longest
    rounded = np.minimum(-(-lengths // BUCKET) * BUCKET, limit)
    rounded[lengths == 0] = width
    runs = []
    for length, rows in _groups(rounded):
        runs += _divide(rows, length, profiles, choices)
    return runs


def _groups(lengths: NDArray[np.intp]) -> list[tuple[int, NDArray[np.intp]]]:
    """Rows by length, longest first; a shorter bucket joins a longer one where that pads less than a run costs."""
    groups: list[tuple[int, list[NDArray[np.intp]]]] = []
    padding = 0
    for length in np.unique(lengths)[::-1].tolist():
        rows = np.flatnonzero(lengths == length)
        wasted = padding + len(rows) * (groups[-1][0] - length) if groups else 0
        if groups and wasted <= LAUNCH:
            groups[-1][1].append(rows)
            padding = wasted
        else:
            groups.append((length, [rows]))
            padding = 0
    return [(length, np.sort(np.concatenate(rows))) for length, rows in groups]


def _divide(rows: NDArray[np.intp], length: int, profiles: Sequence[Profile], choices: int | None) -> list[Run]:
    """Rows of one length as runs of one shape, in the profile that computes the fewest positions."""
    candidates = [
        _Layout.of(index, profile, len(rows), length, choices)
        for index, profile in enumerate(profiles)
        if profile.max[-1] >= length
    ]
    layout = min(candidates, key=lambda layout: layout.cost)
    held = math.prod(layout.shape[:-1])
    parts = [rows[start : start + held] for start in range(0, len(rows), held)]
    return [Run(part, layout.profile, layout.shape) for part in parts]


@dataclass(frozen=True)
class _Layout:
    """A way to run rows in a profile; ``cost`` orders the ways, the best first."""

    profile: int
    shape: tuple[int, ...]
    cost: tuple[float, float, int]

    @classmethod
    def of(cls, index: int, profile: Profile, rows: int, length: int, choices: int | None) -> _Layout:
        inner = 1 if choices is None else min(max(choices, profile.min[1]), profile.max[1])
        runs = -(-rows // (profile.max[0] * inner))
        # Even parts: they share their shape, and no run is left with a single row.
        batch = max(-(-rows // (runs * inner)), profile.min[0])
        shape = (batch, *(() if choices is None else (inner,)), max(length, profile.min[-1]))
        distance = sum(abs(math.log(size / best)) for size, best in zip(shape, profile.opt, strict=True))
        return cls(index, shape, (runs * (math.prod(shape) + LAUNCH), distance, index))
