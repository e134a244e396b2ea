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
            its positions, so it keeps exactly ``width``, unless no profile takes rows that short.
        width: Positions of the rows as they were given. At least one profile takes that many.
        profiles: Those of the plan.
        choices: For plans with three axes, the choices per question as they came. Choices are scored each for
            itself, so they may be laid out anew.
    """
    # Beside a row that must keep its width nothing is made wider.
    limit = width if not lengths.all() else max(profile.max[-1] for profile in profiles)
    rounded = np.where(lengths == 0, width, np.minimum(-(-lengths // BUCKET) * BUCKET, limit))
    runs = []
    for rows in _groups(rounded):
        needed = np.where(lengths[rows] == 0, width, lengths[rows]).max()
        group = _Group(int(needed), int(rounded[rows].max()), bool((lengths[rows] == 0).any()))
        runs += _divide(rows, group, profiles, choices)
    return runs


@dataclass(frozen=True)
class _Group:
    """Rows of like length: the positions that the longest needs, rounded, and whether that must not grow further."""

    needed: int
    rounded: int
    exact: bool


def _groups(lengths: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Rows by length, longest first; a shorter bucket joins a longer one where that pads less than a run costs."""
    groups: list[list[NDArray[np.intp]]] = []
    longest = padding = 0
    for length in np.unique(lengths)[::-1].tolist():
        rows = np.flatnonzero(lengths == length)
        padding += len(rows) * (longest - length)
        if groups and padding <= LAUNCH:
            groups[-1].append(rows)
        else:
            groups.append([rows])
            longest, padding = length, 0
    return [np.sort(np.concatenate(rows)) for rows in groups]


def _divide(rows: NDArray[np.intp], group: _Group, profiles: Sequence[Profile], choices: int | None) -> list[Run]:
    """Rows of one group as runs of one shape, in the profile that computes the fewest positions."""
    candidates = [
        _Layout.of(index, profile, len(rows), group, choices)
        for index, profile in enumerate(profiles)
        if profile.max[-1] >= group.needed
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
    cost: tuple[bool, float, float, int]

    @classmethod
    def of(cls, index: int, profile: Profile, rows: int, group: _Group, choices: int | None) -> _Layout:
        inner = 1 if choices is None else min(max(choices, profile.min[1]), profile.max[1])
        runs = -(-rows // (profile.max[0] * inner))
        # Even parts: they share their shape, and no run is left with a single row.
        batch = max(-(-rows // (runs * inner)), profile.min[0])
        length = min(max(group.rounded, profile.min[-1]), profile.max[-1])
        shape = (batch, *(() if choices is None else (inner,)), length)
        distance = sum(abs(math.log(size / best)) for size, best in zip(shape, profile.opt, strict=True))
        changed = group.exact and length != group.needed
        return cls(index, shape, (changed, runs * (math.prod(shape) + LAUNCH), distance, index))
