"""The fast decoder of answers beside the obvious one: every start, every end, in order of score."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt.pipelines._answer_spans import Reading, Tokens, best_spans, read

# Few different values make ties; many make an order.
PROBABILITIES = st.sampled_from([0.0, 0.25, 0.5]) | st.floats(0, 1)


def oracle(readings, count, max_tokens):
    found = []
    for reading in readings:
        length = len(reading.tokens)
        for first in range(length):
            for last in range(first, length):
                start, end = reading.tokens.starts[first], reading.tokens.ends[last]
                if last - first < max_tokens and start < end:
                    found.append((start, end, reading.start[first] * reading.end[last]))
    distinct = {}
    for start, end, score in sorted(found, key=lambda span: -span[2]):
        distinct.setdefault((start, end), (start, end, score))
    return list(distinct.values())[:count]


@st.composite
def texts(draw):
    """Tokens in the order of a text, some sharing characters, some (whitespace) with nothing between start and end."""
    steps = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20))
    starts = np.cumsum([0, *(start + end for start, end in steps)])[:-1].astype(np.int64)
    ends = starts + np.array([end for _, end in steps], np.int64)
    return Tokens(list(range(len(steps))), starts, ends)


@st.composite
def readings(draw):
    text = draw(texts())
    cuts = [
        sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        for _ in range(draw(st.integers(1, 3)))
    ]
    result = []
    for start, stop in cuts:
        values = st.lists(PROBABILITIES, min_size=stop - start, max_size=stop - start).map(np.array)
        result.append(Reading(draw(values), draw(values), 0.0, text[range(start, stop)]))
    return result


@settings(max_examples=300, deadline=None)
@given(readings(), st.integers(1, 8), st.integers(1, 25))
def test_the_fast_decoder_is_the_obvious_one(windows, count, max_tokens):
    assert best_spans(windows, count, max_tokens) == oracle(windows, count, max_tokens)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 20), st.sampled_from([1, 5]))
def test_on_random_logits_of_a_whole_row(seed, length, max_tokens, question):
    rng = np.random.default_rng(seed)
    first = question + 3
    start, end = rng.normal(0, 4, (2, first + length + 1)).astype(np.float32)
    places = np.arange(length)
    reading = read(start, end, first, Tokens(list(places), places // 2, places // 2 + 1))
    spans = best_spans([reading], 5, max_tokens)
    np.testing.assert_allclose(spans, oracle([reading], 5, max_tokens), rtol=1e-12)
    assert len({span[:2] for span in spans}) == len(spans)


def test_the_question_and_separators_have_no_part_in_the_probabilities():
    logits = np.array([1, 50, 60, 70, 2, 3, 80], np.float32)  # CLS, question, SEP, SEP, two tokens, SEP
    reading = read(logits, logits, 4, Tokens([7, 8], np.array([0, 1]), np.array([1, 2])))
    powers = np.exp([1, 2, 3])
    np.testing.assert_allclose(reading.start, powers[1:] / powers.sum())
    np.testing.assert_allclose(reading.null, (powers[0] / powers.sum()) ** 2)
