"""How rows are divided: no row is lost, each run fits a profile, each row gets what it needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt.batching import BUCKET, LAUNCH, plan_runs
from erniem_rt.manifest import Profile


@st.composite
def profile_lists(draw, axes):
    """One to three profiles, the first of which takes rows of any length up to its maximum."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        high = [draw(st.integers(1, 9)) for _ in range(axes - 1)] + [draw(st.integers(1, 300))]
        low = [draw(st.integers(1, size)) for size in high]
        if number == 0:
            low[-1] = 1
        best = [draw(st.integers(a, b)) for a, b in zip(low, high, strict=True)]
        found.append(Profile(tuple(low), tuple(best), tuple(high)))
    return found


@st.composite
def problems(draw):
    choices = draw(st.none() | st.integers(1, 6))
    profiles = draw(profile_lists(2 if choices is None else 3))
    width = draw(st.integers(1, max(profile.max[-1] for profile in profiles)))
    rows = draw(st.integers(1, 40)) * (choices or 1)
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    return np.array(lengths), width, profiles, choices


@settings(max_examples=200, deadline=None)
@given(problems())
def test_every_row_runs_once_in_a_shape_that_holds_it(problem):
    lengths, width, profiles, choices = problem
    runs = plan_runs(lengths, width, profiles, choices=choices)
    assert sorted(np.concatenate([run.rows for run in runs]).tolist()) == list(range(len(lengths)))
    for run in runs:
        assert profiles[run.profile].holds(run.shape)
        assert 0 < len(run.rows) <= math.prod(run.shape[:-1])
        assert (lengths[run.rows] <= run.length).all()
        if (lengths[run.rows] == 0).any():  # unless no profile takes rows that short
            shorter = [p for p in profiles if p.min[-1] <= width <= p.max[-1]]
            assert run.length == width or not shorter


def lengths_of(runs):
    return [(len(run.rows), run.shape) for run in runs]


WIDE = [Profile((1, 1), (8, 64), (32, 512))]


@pytest.mark.parametrize(
    ("lengths", "width", "expected"),
    [
        ([5], 5, [(1, (1, 16))]),
        ([5, 0], 5, [(2, (2, 5))]),
        ([512, 16], 512, [(2, (2, 512))]),
        ([512, 16, 16, 16], 512, [(1, (1, 512)), (3, (3, 16))]),
        ([17] * 33, 17, [(17, (17, 32)), (16, (17, 32))]),
        ([100] * 4 + [90] * 4, 100, [(8, (8, 112))]),
    ],
)
def test_examples(lengths, width, expected):
    assert lengths_of(plan_runs(np.array(lengths), width, WIDE)) == expected
    assert (BUCKET, LAUNCH) == (16, 1024)


def test_the_cheapest_profile_is_taken_and_the_nearest_of_equals():
    profiles = [
        Profile((1, 1), (32, 512), (32, 512)),
        Profile((1, 1), (1, 32), (4, 64)),
        Profile((1, 1), (4, 64), (4, 64)),
        Profile((8, 128), (8, 128), (8, 128)),
    ]
    chosen = [plan_runs(np.array(lengths), max(lengths), profiles)[0].profile for lengths in ([9], [64] * 4, [65] * 8)]
    assert chosen == [1, 2, 0]


def test_choices_are_laid_out_anew_where_a_profile_wants_it():
    fixed = [Profile((1, 4, 1), (2, 4, 16), (2, 4, 16))]
    runs = plan_runs(np.full(6, 9), 9, fixed, choices=3)
    assert lengths_of(runs) == [(6, (2, 4, 16))]
    assert lengths_of(plan_runs(np.full(10, 9), 9, fixed, choices=5)) == [(8, (2, 4, 16)), (2, (2, 4, 16))]
