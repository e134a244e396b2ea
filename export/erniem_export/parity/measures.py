"""How far two arrays are apart, and how far apart they may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["THRESHOLDS", "Difference", "Thresholds", "measure"]


@dataclass(frozen=True)
class Thresholds:
    """What a precision may cost.

    ``largest`` bounds the largest absolute difference, in units of the reference's largest value where that is
    above 1; ``relative_l2`` and ``cosine`` are over all values of an output; ``agreement`` is the share of
    decisions (labels, spans) that must not change.
    """

    largest: float
    relative_l2: float
    cosine: float
    agreement: float


THRESHOLDS = {"fp32": Thresholds(largest=1e-4, relative_l2=2e-5, cosine=0.999999, agreement=1.0)}


@dataclass(frozen=True)
class Difference:
    """One output on one case, against the reference. ``scale`` is the reference's largest magnitude, at least 1."""

    values: int
    max_abs: float
    mean_abs: float
    p99_abs: float
    relative_l2: float
    cosine: float
    nonfinite: int
    scale: float

    def excess(self, limits: Thresholds) -> float:
        """How often the worst measure exceeds its threshold; up to 1 is within."""
        if self.nonfinite or not self.values:
            return float("inf")
        return max(
            self.max_abs / self.scale / limits.largest,
            self.relative_l2 / limits.relative_l2,
            (1.0 - self.cosine) / (1.0 - limits.cosine),
        )


def measure(found: NDArray[Any], expected: NDArray[Any]) -> Difference:
    """Compare two arrays of the same shape, any float dtype, in float64. Values that are not finite only count."""
    found, expected = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    nonfinite = int(found.size - np.isfinite(found).sum())
    if nonfinite or not found.size:
        return Difference(found.size, 0.0, 0.0, 0.0, 0.0, 0.0, nonfinite, 1.0)
    gap = np.abs(found - expected)
    norms = float(np.linalg.norm(found)), float(np.linalg.norm(expected))
    return Difference(
        values=found.size,
        max_abs=float(gap.max()),
        mean_abs=float(gap.mean()),
        p99_abs=float(np.percentile(gap, 99)),
        relative_l2=float(np.linalg.norm(gap)) / max(norms[1], 1e-30),
        cosine=float(found @ expected) / max(norms[0] * norms[1], 1e-30),
        nonfinite=0,
        scale=max(1.0, float(np.abs(expected).max())),
    )
