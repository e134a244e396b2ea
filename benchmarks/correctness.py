"""Whether an engine computed what PyTorch computes. A wrong engine has no time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.engines import Precision

# fp32, fp16, bf16: the largest difference of a logit, relative to the largest logit; those of the halves are what the
# parity gate allows. int8: the cosine over all logits after the reference's mean of each label was taken off both;
# without that the biases alone would make any engine look right. Random weights magnify coarse rounding, most over long
# rows: to a cosine of 0.34 for an int8 that is right on trained weights. Unrelated answers reach 0.05 or so (8 rows of
# 64 logits). How good an int8 is shows on trained weights (accuracy.py).
MAX_RELATIVE_DIFFERENCE = {"fp32": 5e-4, "fp16": 2e-2, "bf16": 1.5e-1}
MIN_COSINE = 0.3

Logits = Sequence[Sequence[float]]


def compare(found: Logits, expected: Logits, precision: Precision) -> dict[str, Any]:
    """Judge logits ``(rows, labels)`` against the reference's."""
    ours, theirs = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return {"correct": False, "max_relative_difference": None, "cosine": None}
    difference = float(np.abs(ours - theirs).max() / max(1e-9, np.abs(theirs).max()))
    cosine = _centred_cosine(ours, theirs)
    limit = MAX_RELATIVE_DIFFERENCE.get(precision)
    correct = cosine >= MIN_COSINE if limit is None else difference <= limit
    return {"correct": bool(correct), "max_relative_difference": difference, "cosine": cosine}


def _centred_cosine(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    center = theirs.mean(axis=0)
    a, b = (ours - center).ravel(), (theirs - center).ravel()
    return float(a @ b / max(1e-30, np.linalg.norm(a) * np.linalg.norm(b)))
