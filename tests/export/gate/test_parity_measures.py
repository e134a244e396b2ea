"""The gate's measures against plain loops, and what the thresholds make of them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from erniem_export.gate.measures import THRESHOLDS, Agreement, compare_decisions, measure
from erniem_rt.manifest import HEADS

LIMITS = THRESHOLDS["fp32"]
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)
VALUES = st.floats(-100, 100, width=32)


@st.composite
def pairs(draw):
    shape, dtype = draw(SHAPES), draw(st.sampled_from(["float32", "float16"]))
    found, expected = (draw(hnp.arrays(np.float32, shape, elements=VALUES)) for _ in range(2))
    return found.astype(dtype), expected


@given(pairs())
def test_measures_are_what_their_names_say(pair):
    found, expected = pair
    a, b = [float(x) for x in found.flat], [float(x) for x in expected.flat]
    gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
    size = len(a)
    root = math.sqrt(sum(y * y for y in b) / size)
    got = measure(found, expected)
    assert got.values == size
    assert got.nonfinite == 0
    assert got.max_abs == max(gaps)
    assert got.mean_abs == pytest.approx(sum(gaps) / size)
    place = 0.99 * (size - 1)
    below, above = sorted(gaps)[math.floor(place)], sorted(gaps)[math.ceil(place)]
    assert got.p99_abs == pytest.approx(below + (above - below) * (place - math.floor(place)))
    assert got.rms == pytest.approx(root)
    assert got.scale == max(1.0, *(abs(y) for y in b))
    assert got.relative_l2 == pytest.approx(math.sqrt(sum(gap * gap for gap in gaps) / size) / max(1.0, root))
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    assume(norms == 0 or norms > 1e-200)
    if norms:
        assert got.cosine == pytest.approx(sum(x * y for x, y in zip(a, b, strict=True)) / norms, abs=1e-9)
    else:
        assert got.cosine == float(not any(a) and not any(b))


@given(pairs())
def test_equal_arrays_have_no_excess(pair):
    _, expected = pair
    assert measure(expected, expected).excess(LIMITS) < 1e-3


@given(hnp.arrays(np.float32, SHAPES, elements=VALUES), st.data())
def test_one_value_over_the_limit_is_over(expected, data):
    index = data.draw(st.integers(0, expected.size - 1))
    scale = max(1.0, float(np.abs(expected).max()))
    found = expected.astype(np.float64)
    found.flat[index] += 1.01 * LIMITS.largest * scale
    assert measure(found, expected).excess(LIMITS) > 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_never_pass(bad):
    expected = np.ones((2, 3), dtype=np.float32)
    found = expected.copy()
    found[0, 1] = found[1, 2] = bad
    difference = measure(found, expected)
    assert (difference.nonfinite, difference.values) == (2, 6)
    assert difference.excess(LIMITS) == math.inf


def test_nothing_compared_never_passes():
    assert measure(np.zeros((0, 3)), np.zeros((0, 3))).excess(LIMITS) == math.inf


def test_a_logit_near_zero_is_not_held_to_relative_digits():
    """Rounding may even turn its sign; one value, or values that are all next to 0, have no direction."""
    for count in (1, 5):
        expected = np.full(count, 1e-6, dtype=np.float32)
        assert measure(-expected, expected).excess(LIMITS) < 0.2
    assert measure(np.zeros(4), np.zeros(4)).excess(LIMITS) == 0


def test_small_outputs_are_still_held_to_absolute_digits():
    expected = np.full(5, 1e-3, dtype=np.float32)
    assert measure(expected + 1.1e-4, expected).excess(LIMITS) > 1


def test_each_measure_can_fail_alone():
    rng = np.random.default_rng(0)
    expected = rng.standard_normal(100_000)
    spread = expected + 3e-5 * rng.standard_normal(expected.size)
    assert measure(spread, expected).max_abs / measure(spread, expected).scale < LIMITS.largest / 2
    assert measure(spread, expected).excess(LIMITS) > 1
    single = expected.copy()
    single[7] += 1e-3
    assert measure(single, expected).relative_l2 < LIMITS.relative_l2
    assert measure(single, expected).excess(LIMITS) > 1


# Decisions, against plain loops over rows and tokens.

TIE = 0.05


def manifest(head, problem_type=None):
    return SimpleNamespace(head=head, problem_type=problem_type)


def winner(found, expected):
    """One choice between two or more."""
    if len(expected) < 2:
        return Agreement()
    best = max(range(len(expected)), key=lambda i: expected[i])
    if any(expected[best] - value <= TIE for i, value in enumerate(expected) if i != best):
        return Agreement()
    return Agreement(1, int(max(range(len(found)), key=lambda i: found[i]) == best))


def sign(found, expected):
    """One yes or no."""
    return Agreement(1, int((found > 0) == (expected > 0))) if abs(expected) > TIE else Agreement()


def add_up(agreements):
    return sum(agreements, Agreement())


def of_row(head, multi, found, expected, tokens):
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


def oracle(head, multi, found, expected, attend):
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
def test_decisions_match_plain_loops(head, multi, seed, sizes, noise):
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


def test_ties_are_no_decisions():
    logits = {"logits": np.array([[0.0, 0.04, -1.0], [0.0, 0.06, -1.0]])}
    other = {"logits": np.array([[0.04, 0.0, -1.0], [0.06, 0.0, -1.0]])}
    attend = np.ones((2, 3), dtype=bool)
    assert compare_decisions(manifest("cls"), other, logits, attend, TIE) == Agreement(1, 0)


def test_a_single_token_is_no_choice_of_a_span():
    logits = np.array([[1.0, 5.0, 2.0]])
    outputs = {"start_logits": logits, "end_logits": logits}
    attend = np.array([[True, False, False]])
    assert compare_decisions(manifest("qa"), outputs, outputs, attend, TIE) == Agreement()


def test_nan_is_a_wrong_decision():
    expected = {"logits": np.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])}
    found = {"logits": np.array([[2.0, np.nan, 1.0], [np.nan, 2.0, 1.0]])}
    attend = np.ones((2, 3), dtype=bool)
    assert compare_decisions(manifest("cls"), found, expected, attend, TIE) == Agreement(2, 0)


def test_share():
    assert Agreement(4, 3).share == 0.75
    assert Agreement().share == 1.0
    assert Agreement(1, 1) + Agreement(2, 0) == Agreement(3, 1)
