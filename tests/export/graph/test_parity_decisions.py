"""The comparison of decisions against plain loops over rows and tokens."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniem_export.parity.decisions import Agreement, compare_decisions
from erniem_rt.manifest import HEADS

TIE = 0.05


def manifest(head: str, problem_type: str | None = None) -> Any:
    return SimpleNamespace(head=head, problem_type=problem_type)


def winner(found: list[float], expected: list[float]) -> Agreement:
    """One choice between two or more."""
    if len(expected) < 2:
        return Agreement()
    best = max(range(len(expected)), key=lambda i: expected[i])
    if any(expected[best] - value <= TIE for i, value in enumerate(expected) if i != best):
        return Agreement()
    return Agreement(1, int(max(range(len(found)), key=lambda i: found[i]) == best))


def sign(found: float, expected: float) -> Agreement:
    """One yes or no."""
    return Agreement(1, int((found > 0) == (expected > 0))) if abs(expected) > TIE else Agreement()


def add_up(agreements: Iterable[Agreement]) -> Agreement:
    return sum(agreements, Agreement())


def of_row(head: str, multi: bool, found: Any, expected: Any, tokens: list[int]) -> Agreement:
    """The decisions of one row with some tokens; values are the row's outputs by name."""
    if head == "cls":
        a, b = list(found["logits"]), list(expected["logits"])
        return add_up(map(sign, a, b)) if multi else winner(a, b)
    if head == "ner":
        return add_up(winner(list(found["logits"][token]), list(expected["logits"][token])) for token in tokens)
    total = Agreement()
    for name in ("start_logits", "end_logits") if head in ("qa", "ie") else ():
        a, b = ([float(values[name][token]) for token in tokens] for values in (found, expected))
        total += winner(a, b) if head == "qa" else add_up(map(sign, a, b))
    return total


def oracle(head: str, multi: bool, found: Any, expected: Any, attend: Any) -> Agreement:
    total = Agreement()
    for row in range(len(attend)):
        a, b = ({name: array[row] for name, array in values.items()} for values in (found, expected))
        if head == "mc":
            if all(choice.any() for choice in attend[row]):
                total += winner(list(a["logits"]), list(b["logits"]))
        elif attend[row].any():
            total += of_row(head, multi, a, b, [token for token, live in enumerate(attend[row]) if live])
    return total


@pytest.mark.parametrize(
    ("head", "multi"),
    [("base", False), ("cls", False), ("cls", True), ("ner", False), ("mc", False), ("qa", False), ("ie", False)],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    noise=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_decisions_match_plain_loops(
    head: str, multi: bool, seed: int, sizes: tuple[int, int, int, int], noise: float
) -> None:
    rng = np.random.default_rng(seed)
    known = dict(zip(("batch", "choices", "sequence", "labels"), sizes, strict=True)) | {"hidden": 4}
    expected = {
        name: rng.standard_normal([known[axis] for axis in axes]).round(1) for name, axes in HEADS[head].outputs.items()
    }
    found = {name: values + noise * rng.standard_normal(values.shape) for name, values in expected.items()}
    attend = rng.random([known[axis] for axis in HEADS[head].axes]) < 0.6
    kind = "multi_label_classification" if multi else None
    got = compare_decisions(manifest(head, kind), found, expected, attend, TIE)
    assert got == oracle(head, multi, found, expected, attend)
    if noise == 0:
        assert got.agreed == got.compared


def test_ties_are_no_decisions() -> None:
    logits = {"logits": np.array([[0.0, 0.04, -1.0], [0.0, 0.06, -1.0]])}
    other = {"logits": np.array([[0.04, 0.0, -1.0], [0.06, 0.0, -1.0]])}
    attend = np.ones((2, 3), dtype=bool)
    assert compare_decisions(manifest("cls"), other, logits, attend, TIE) == Agreement(1, 0)


def test_a_single_token_is_no_choice_of_a_span() -> None:
    logits = np.array([[1.0, 5.0, 2.0]])
    outputs = {"start_logits": logits, "end_logits": logits}
    attend = np.array([[True, False, False]])
    assert compare_decisions(manifest("qa"), outputs, outputs, attend, TIE) == Agreement()


def test_nan_is_a_wrong_decision() -> None:
    expected = {"logits": np.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])}
    found = {"logits": np.array([[2.0, np.nan, 1.0], [np.nan, 2.0, 1.0]])}
    attend = np.ones((2, 3), dtype=bool)
    assert compare_decisions(manifest("cls"), found, expected, attend, TIE) == Agreement(2, 0)


def test_share() -> None:
    assert Agreement(4, 3).share == 0.75
    assert Agreement().share == 1.0
    assert Agreement(1, 1) + Agreement(2, 0) == Agreement(3, 1)
