from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.summary import median_ratio, spread, turn_order

NAMES = ["a", "b", "c", "d"]


def test_every_engine_has_one_turn_in_every_round() -> None:
    for number in range(8):
        assert sorted(turn_order(NAMES, number)) == NAMES


def test_every_engine_comes_first_and_last_and_on_both_sides_of_its_neighbours() -> None:
    orders = [turn_order(NAMES, number) for number in range(8)]
    assert {order[0] for order in orders} == {order[-1] for order in orders} == set(NAMES)
    neighbours = Counter(pair for order in orders for pair in pairwise(order))
    assert all((b, a) in neighbours for a, b in neighbours)


def test_no_engines_no_turns() -> None:
    assert turn_order([], 3) == []


def test_spread_is_the_median_and_the_extremes() -> None:
    assert spread([3.0, 1.0, 9.0]) == {"median": 3.0, "lowest": 1.0, "highest": 9.0}


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine was ten times slower in the second round; theirs takes twice as long in each.
    assert median_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="longer"):
        median_ratio([1.0], [2.0, 3.0])
