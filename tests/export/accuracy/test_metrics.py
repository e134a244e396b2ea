"""The metrics, beside figures worked out by hand and plain definitions."""

from __future__ import annotations

import numpy as np
import pytest

from erniem_export.accuracy.metrics import figures


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1"),
    [
        ("The Eiffel-Tower!", ("eiffeltower",), 1, 1),
        ("Ann Lee of Rome", ("Ann Lee", "Lee"), 0, 2 * 2 / 6),
        ("Ann Ann", ("Ann",), 0, 2 * 1 / 3),
        ("", (), 1, 1),
        ("Ann", (), 0, 0),
        ("", ("Ann",), 0, 0),
        ("the", ("a",), 1, 1),
        ("上海市", ("上海",), 0, 2 * 2 / 5),
        ("«Вектор»", ("Вектор",), 1, 1),
    ],
)
def test_answers_to_questions(answer: str, wanted: tuple[str, ...], exact: float, f1: float) -> None:
    found = figures("exact_match", [answer, "x"], [wanted, ("x",)])
    assert found == pytest.approx({"exact_match": 50 * (exact + 1), "f1": 50 * (f1 + 1)})


def test_accuracy() -> None:
    assert figures("accuracy", ["a", "b", "c"], ["a", "b", "d"]) == pytest.approx({"accuracy": 200 / 3})


@pytest.mark.parametrize("metric", ["f1", "micro_f1"])
def test_spans_count_alike_and_must_be_right_as_a_whole(metric: str) -> None:
    answers = [frozenset([(0, 3, "PER"), (4, 6, "LOC")]), frozenset(), frozenset([(1, 2, "PER")])]
    wanted = [frozenset([(0, 3, "PER"), (4, 6, "ORG")]), frozenset([(0, 1, "LOC")]), frozenset()]
    precision, recall = 1 / 3, 1 / 3
    expected = 100 * 2 * precision * recall / (precision + recall)
    assert figures(metric, answers, wanted) == pytest.approx({metric: expected})
    assert figures(metric, [frozenset()], [frozenset()]) == {metric: 100}


def test_correlation() -> None:
    rng = np.random.default_rng(0)
    answers, wanted = rng.normal(size=(2, 50))
    expected = 100 * np.corrcoef(answers, wanted + answers)[0, 1]
    assert figures("pearson", list(answers), list(wanted + answers)) == pytest.approx({"pearson": expected})
    assert figures("pearson", [1.0, 1.0], [0.0, 2.0]) == {"pearson": 0.0}
