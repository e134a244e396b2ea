"""Windows: nothing is left out, and each token belongs to the window that shows most around it."""

from hypothesis import given
from hypothesis import strategies as st

from erniem_rt.pipelines.rows import best_parts, windows

LAYOUTS = st.tuples(st.integers(1, 90), st.integers(1, 30), st.integers(1, 30)).map(
    lambda sizes: (sizes[0], sizes[1], min(sizes[1:]))
)


def context_of(token: int, window: range, length: int) -> float:
    """Count the tokens up to the nearer edge of the window; where the text itself ends is no edge."""
    left = token - window.start if window.start else float("inf")
    right = window.stop - 1 - token if window.stop < length else float("inf")
    return min(left, right)


def test_a_text_that_fits_is_one_window():
    assert windows(10, 10, 3) == [range(10)]
    assert windows(0, 10, 3) == [range(0)]


def test_windows_start_every_step_until_one_reaches_the_end():
    assert windows(11, 10, 3) == [range(10), range(3, 11)]
    assert windows(13, 10, 3) == [range(10), range(3, 13)]
    assert windows(14, 10, 3) == [range(10), range(3, 13), range(6, 14)]


@given(LAYOUTS)
def test_windows_cover_the_text_and_none_is_needless(layout):
    length, size, step = layout
    spans = windows(length, size, step)
    assert {token for span in spans for token in span} == set(range(length))
    assert all(len(span) == size for span in spans[:-1])
    assert 0 < len(spans[-1]) <= size
    assert all(span.stop < length for span in spans[:-1])


@given(LAYOUTS)
def test_parts_are_disjoint_and_cover_the_text(layout):
    length = layout[0]
    assert [token for part in best_parts(windows(*layout)) for token in part] == list(range(length))


@given(LAYOUTS)
def test_no_other_window_shows_more_around_a_token(layout):
    length = layout[0]
    spans = windows(*layout)
    for span, part in zip(spans, best_parts(spans), strict=True):
        for token in part:
            others = [context_of(token, other, length) for other in spans if token in other]
            assert context_of(token, span, length) == max(others)
