from __future__ import annotations

import numpy as np
import pytest

from benchmarks.correctness import compare

ROWS, LABELS = 8, 64
# Each label has a bias of its own, larger than what tells the rows apart.
BIASES = np.random.default_rng(2).normal(scale=3.0, size=LABELS)
EXPECTED = (BIASES + np.random.default_rng(0).normal(size=(ROWS, LABELS))).tolist()


def changed(by: float) -> list[list[float]]:
    """The expected logits with seeded noise of this size."""
    return (np.array(EXPECTED) + by * np.random.default_rng(1).normal(size=(ROWS, LABELS))).tolist()


@pytest.mark.parametrize(
    ("noise", "precision", "correct"),
    [
        (0.0, "fp32", True),
        (1e-4, "fp32", True),
        (1e-2, "fp32", False),
        (1e-2, "fp16", True),
        (1e-1, "fp16", False),
        (1e-1, "bf16", True),
        (1.0, "bf16", False),
        (1e-2, "int8", True),
        (1.0, "int8", True),
    ],
)
def test_verdicts(noise: float, precision: str, correct: bool) -> None:
    assert compare(changed(noise), EXPECTED, precision)["correct"] is correct


@pytest.mark.parametrize("seed", range(20))
def test_the_answers_to_other_rows_are_not_int8(seed: int) -> None:
    others = (BIASES + np.random.default_rng(10 + seed).normal(size=(ROWS, LABELS))).tolist()
    assert compare(others, EXPECTED, "int8")["correct"] is False


def test_the_same_answers_in_another_order_are_not_int8() -> None:
    assert compare(EXPECTED[::-1], EXPECTED, "int8")["correct"] is False


def test_answering_with_the_mean_of_each_label_is_not_int8() -> None:
    mean = np.tile(np.mean(EXPECTED, axis=0), (ROWS, 1)).tolist()
    verdict = compare(mean, EXPECTED, "int8")
    assert verdict["correct"] is False
    assert verdict["cosine"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("found", [EXPECTED[:5], [[*row[:2], float("nan")] for row in EXPECTED]])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_wrong_shapes_and_numbers_that_are_none_are_wrong(found: list[list[float]], precision: str) -> None:
    assert compare(found, EXPECTED, precision)["correct"] is False
