"""What a user decides from the outputs: labels, choices, spans. The same decisions must come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from erniem_rt.manifest import Manifest

__all__ = ["Agreement", "compare_decisions"]


@dataclass(frozen=True)
class Agreement:
    """Decisions that were compared, and how many of them were the same."""

    compared: int = 0
    agreed: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.compared + other.compared, self.agreed + other.agreed)

    @property
    def share(self) -> float:
        """From 0 to 1; 1 when there was nothing to decide."""
        return self.agreed / self.compared if self.compared else 1.0


def compare_decisions(
    manifest: Manifest,
    found: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    attend: NDArray[np.bool_],
    tie: float,
) -> Agreement:
    """Compare the decisions of one batch.

    A decision that the reference itself makes by less than ``tie`` is none, and rows that are all padding have none.
    """
    live = attend.any(axis=-1)
    head, total = manifest.head, Agreement()
    if head in ("qa", "ie"):
        for name in ("start_logits", "end_logits"):
            a, b = found[name], expected[name]
            if head == "ie":
                total += _signs(a[attend], b[attend], tie)
            else:
                masked = [np.where(attend, logits, -np.inf)[live] for logits in (a, b)]
                total += _winners(masked[0], masked[1], tie)
    elif head == "ner":
        total += _winners(found["logits"][attend], expected["logits"][attend], tie)
    elif head == "mc":
        rows = live.all(axis=-1)
        total += _winners(found["logits"][rows], expected["logits"][rows], tie)
    elif head == "cls":
        compare = _signs if manifest.problem_type == "multi_label_classification" else _winners
        total += compare(found["logits"][live], expected["logits"][live], tie)
    return total


def _winners(found: NDArray[Any], expected: NDArray[Any], tie: float) -> Agreement:
    """Compare the argmax of the last axis; a single column (regression, one token) leaves nothing to decide."""
    if expected.shape[-1] < 2 or not expected.size:
        return Agreement()
    second, best = np.sort(expected, axis=-1)[..., -2:].reshape(-1, 2).T
    clear = (best - second > tie) & np.isfinite(second)  # one token that is not masked: no choice either
    same = (found.argmax(-1) == expected.argmax(-1)).ravel()
    return Agreement(int(clear.sum()), int((same & clear).sum()))


def _signs(found: NDArray[Any], expected: NDArray[Any], tie: float) -> Agreement:
    """Compare which values are above 0, the logit of probability 0.5."""
    clear = np.abs(expected) > tie
    same = (found > 0) == (expected > 0)
    return Agreement(int(clear.sum()), int((same & clear).sum()))
