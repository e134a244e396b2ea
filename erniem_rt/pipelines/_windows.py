"""Texts over the model's limit: overlapping windows of tokens, and which of them knows a token best."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["best_parts", "shared_tokens", "windows"]

_SHARED = 128


def shared_tokens(size: int) -> int:
    """How many tokens neighbouring windows of ``size`` tokens share: 128, or half a window if that is less."""
    return min(_SHARED, size // 2)


def windows(length: int, size: int, step: int) -> list[range]:
    """Windows over ``length`` tokens: one every ``step`` tokens, each of ``size``, until one reaches the end.

    The last may be shorter. ``step`` is between 1 and ``size``, so that no token is left out; no tokens make one
    empty window.
    """
    return [range(start, min(start + size, length)) for start in range(0, max(length - size, 0) + step, step)]


def best_parts(spans: Sequence[range]) -> list[range]:
    """Part of each window that sees more text around it there than in any other window.

    Neighbours are cut in the middle of what they share. The parts are disjoint and cover all tokens, in order.
    """
    cuts = [spans[0].start, *((right.start + left.stop) // 2 for left, right in pairwise(spans)), spans[-1].stop]
    return [range(start, stop) for start, stop in pairwise(cuts)]
