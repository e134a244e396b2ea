"""From samples to figures. A sample is the time of one workload in one round, in seconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def turn_order(names: Sequence[str], round_number: int) -> list[str]:
    """Who runs when: every other round runs the one before backwards, and each pair starts one engine later.

    So each engine comes first and last, follows each neighbour, and a machine that drifts does so for all of them.
    """
    if not names:
        return []
    start = round_number // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if round_number % 2 else order


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Return the median with the lowest and highest sample."""
    return {"median": statistics.median(samples), "lowest": min(samples), "highest": max(samples)}


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times the speed of theirs ours has: the median over rounds of the ratio within a round."""
    return statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
