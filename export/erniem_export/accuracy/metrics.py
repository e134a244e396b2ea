"""The tasks' metrics, in points of 100, each by its field's usual definition."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from string import punctuation
from typing import Any

__all__ = ["figures"]

_ARTICLES = ("a", "an", "the")


def figures(metric: str, answers: Sequence[Any], wanted: Sequence[Any]) -> dict[str, float]:
    """What the answers to a task set are worth.

    Args:
        metric: ``Task.metric``; ``exact_match`` comes with the ``f1`` of SQuAD.
        answers: Those of a pipeline.
        wanted: ``Example.wanted`` of each, of which there is at least one.
    """
    measure: dict[str, Callable[..., float]] = {
        "accuracy": _accuracy,
        "micro_f1": _span_f1,
        "f1": _span_f1,
        "pearson": _pearson,
    }
    if metric == "exact_match":
        return {"exact_match": _best(_same, answers, wanted), "f1": _best(_overlap, answers, wanted)}
    return {metric: 100 * measure[metric](answers, wanted)}


def _accuracy(answers: Sequence[Any], wanted: Sequence[Any]) -> float:
    return sum(bool(a == b) for a, b in zip(answers, wanted, strict=True)) / len(wanted)


def _span_f1(answers: Sequence[AbstractSet[Any]], wanted: Sequence[AbstractSet[Any]]) -> float:
    """Micro-averaged: every span, entity or label counts alike, and must be right as a whole."""
    right = sum(len(a & b) for a, b in zip(answers, wanted, strict=True))
    total = sum(map(len, answers)) + sum(map(len, wanted))
    return 2 * right / total if total else 1.0


def _pearson(answers: Sequence[float], wanted: Sequence[float]) -> float:
    """The correlation coefficient; 0 where either side says the same of all."""
    means = math.fsum(answers) / len(answers), math.fsum(wanted) / len(wanted)
    a, b = [value - means[0] for value in answers], [value - means[1] for value in wanted]
    norm = math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def _best(
    score: Callable[[list[str], list[str]], float], answers: Sequence[str], wanted: Sequence[Sequence[str]]
) -> float:
    """The mean over all questions, each answer compared with the right one that is nearest to it."""
    best = [
        max(score(_words(answer), _words(right)) for right in rights or ("",))
        for answer, rights in zip(answers, wanted, strict=True)
    ]
    return 100 * math.fsum(best) / len(best)


def _same(answer: list[str], right: list[str]) -> float:
    return float(answer == right)


def _overlap(answer: list[str], right: list[str]) -> float:
    if not answer or not right:
        return float(answer == right)
    return 2 * sum((Counter(answer) & Counter(right)).values()) / (len(answer) + len(right))


def _words(text: str) -> list[str]:
    """Words as SQuAD compares them: small letters, no punctuation, no English articles.

    As MLQA does for Chinese, each wide character (Chinese, Japanese, Korean) is a word.
    """
    kept = (char for char in text.lower() if char not in punctuation and not unicodedata.category(char).startswith("P"))
    spaced = "".join(f" {char} " if unicodedata.east_asian_width(char) == "W" else char for char in kept)
    return [word for word in spaced.split() if word not in _ARTICLES]
