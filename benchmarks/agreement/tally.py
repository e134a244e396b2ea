"""How often two sides say the same, and how far apart their scores are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Scores may differ by as much; so may those whose order is undecided.
TOLERANCE = 1e-4

Artifact = Callable[[str], Path]  # a head to its exported ``HEAD.onnx``
HeldOut = Callable[..., "list[Any]"]  # (task, seed, count in each language, long_share=0.0) to examples


class Answer(NamedTuple):
    """What one side says of an input, and how sure it is."""

    what: Any
    scores: Any


@dataclass
class Tally:
    """Inputs that were compared.

    Attributes:
        inputs: How many.
        languages: In which languages.
        same: To how many of them both sides say the same.
        scores: How many pairs of scores were compared.
        largest: The largest difference between two scores of the same.
        differing: What both sides say where it is not the same.
    """

    inputs: int = 0
    languages: set[str] = field(default_factory=set)
    same: int = 0
    scores: int = 0
    largest: float = 0.0
    differing: list[tuple[Any, Any]] = field(default_factory=list)

    def add(self, language: str | None, ours: Answer, theirs: Answer) -> None:
        """Count an input; ``language`` is None where it is in several."""
        self.inputs += 1
        if language:
            self.languages.add(language)
        if ours.what != theirs.what:
            self.differing.append((ours.what, theirs.what))
            return
        self.same += 1
        differences = np.abs(np.subtract(ours.scores, theirs.scores, dtype=np.float64))
        self.scores += differences.size
        # maximum() keeps NaN, which max() may lose.
        self.largest = float(np.maximum(self.largest, differences.max(initial=0.0)))


def ranked(ours: Sequence[tuple[str, float]], theirs: Sequence[tuple[str, float]]) -> tuple[Answer, Answer]:
    """Labels with scores, best first, as answers; theirs in our order if that is right by their scores too."""
    by_label = dict(theirs)
    if sorted(by_label) == sorted(label for label, _ in ours):
        reordered = [(label, by_label[label]) for label, _ in ours]
        if (np.diff([score for _, score in reordered]) <= TOLERANCE).all():
            theirs = reordered
    return listed(ours), listed(theirs)


def listed(pairs: Sequence[tuple[Any, float]]) -> Answer:
    """An answer of several, each with a score."""
    return Answer([what for what, _ in pairs], [score for _, score in pairs])
