"""The decoder against a slow and obvious one, and what becomes of spans."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniem_rt.pipelines._uie_spans import Span, choose_option, cut_answers, find_spans, join_spans
from erniem_rt.pipelines._uie_text import EncodedText, split
from erniem_rt.pipelines._windows import shared_tokens

# Few values, so that many are equal, and equal to the threshold.
PROBABILITIES = st.sampled_from([0.0, 0.1, 0.499, 0.5, 0.501, 0.7, 0.9, 1.0])
ROWS = st.lists(st.tuples(PROBABILITIES, PROBABILITIES), max_size=24)
THRESHOLDS = st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95])


def plain_spans(start: list[float], end: list[float], threshold: float) -> set[Span]:
    """Every start takes the first end at or after it; the nearest of those that took the same end has it."""
    taken: dict[int, list[int]] = {}
    for first, probability in enumerate(start):
        if not probability > threshold:
            continue
        for last in range(first, len(end)):
            if end[last] > threshold:
                taken.setdefault(last, []).append(first)
                break
    return {Span(max(firsts), last, start[max(firsts)] * end[last]) for last, firsts in taken.items()}


def two_pointers(start: list[float], end: list[float], threshold: float) -> set[Span]:
    """The same rule as PaddleNLP walks it."""
    starts = [i for i, probability in enumerate(start) if probability > threshold]
    ends = [i for i, probability in enumerate(end) if probability > threshold]
    pairs = {}
    while starts and ends:
        if starts[0] > ends[0]:
            ends.pop(0)
            continue
        pairs[ends[0]] = starts[0]
        if starts.pop(0) == ends[0]:
            ends.pop(0)
    return {Span(first, last, start[first] * end[last]) for last, first in pairs.items()}


@given(ROWS, THRESHOLDS)
def test_spans_are_those_of_the_plain_decoders(row: list[tuple[float, float]], threshold: float) -> None:
    start, end = [s for s, _ in row], [e for _, e in row]
    found = find_spans(np.array(start), np.array(end), threshold)
    assert set(found) == plain_spans(start, end, threshold) == two_pointers(start, end, threshold)
    assert found == sorted(found)


@given(ROWS.filter(lambda row: len(row) >= 6), st.data())
def test_a_part_of_a_row_by_itself_is_the_row_without_what_straddles(
    row: list[tuple[float, float]], data: st.DataObject
) -> None:
    """Why it is enough to decode the prompt and the text apart, though the rule pairs over the whole row."""
    begin = data.draw(st.integers(0, len(row) - 1))
    stop = data.draw(st.integers(begin, len(row)))
    start, end = [s for s, _ in row], [e for _, e in row]
    inside = {span for span in plain_spans(start, end, 0.5) if begin <= span.first and span.last < stop}
    part = find_spans(np.array(start[begin:stop]), np.array(end[begin:stop]), 0.5)
    assert {Span(begin + first, begin + last, p) for first, last, p in part} == inside


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ([0.9, 0, 0], [0, 0, 0.8], [(0, 2)]),
        ([0.9, 0.9, 0], [0, 0, 0.8], [(1, 2)]),
        ([0.9, 0, 0], [0.9, 0.9, 0.9], [(0, 0)]),
        ([0.9, 0.9, 0.9], [0.9, 0.9, 0.9], [(0, 0), (1, 1), (2, 2)]),
        ([0, 0.9, 0], [0.9, 0, 0], []),
        ([0.5, 0, 0], [0, 0, 0.9], []),
        ([], [], []),
    ],
)
def test_the_pairing_rule(start: list[float], end: list[float], expected: list[tuple[int, int]]) -> None:
    spans = find_spans(np.array(start, float), np.array(end, float), 0.5)
    assert [(span.first, span.last) for span in spans] == expected
    assert all(span.probability == start[span.first] * end[span.last] for span in spans)


@st.composite
def marked_texts(draw: st.DrawFn) -> tuple[EncodedText, list[tuple[int, int]], int]:
    """A text of one token per character, disjoint names in it (first and last token), and the room of a piece.

    No name is longer than what two pieces share, or goes over the end of a sentence.
    """
    room = draw(st.integers(2, 40))
    text, names = "", []
    for kind, size in draw(st.lists(st.tuples(st.sampled_from("aN。"), st.integers(1, 2 * room)), max_size=30)):
        size = 1 if kind == "。" else min(size, shared_tokens(room)) if kind == "N" else size
        if kind == "N":
            names.append((len(text), len(text) + size - 1))
        text += kind * size
    return EncodedText(text, [7] * len(text), [(i, i + 1) for i in range(len(text))]), names, room


@given(marked_texts(), st.booleans())
def test_what_a_piece_shows_whole_is_found_once(
    marked: tuple[EncodedText, list[tuple[int, int]], int], marks_parts: bool
) -> None:
    """The model marks names that a piece holds whole and, if so drawn, what an edge of the piece leaves of others."""
    text, names, room = marked
    pieces = split(text, room)
    found = []
    for piece in pieces:
        seen = [(max(first, piece.start), min(last, piece.stop - 1)) for first, last in names]
        shown = [part for part, name in zip(seen, names, strict=True) if part == name or marks_parts]
        found.append([Span(first, last, 0.9) for first, last in shown if first <= last])
    assert [(span.first, span.last) for span in join_spans(pieces, found)] == names


NOISY = st.lists(st.tuples(PROBABILITIES, PROBABILITIES), min_size=10, max_size=60)


@given(NOISY, st.integers(2, 30), st.randoms(use_true_random=False))
def test_joined_spans_are_some_of_those_found_in_order_and_apart(
    row: list[tuple[float, float]], room: int, random: Random
) -> None:
    """Whatever a model marks, which may be something else in each piece."""
    pieces = split(EncodedText("a" * len(row), [7] * len(row), [(i, i + 1) for i in range(len(row))]), room)
    found = []
    for piece in pieces:
        start, end = zip(*random.sample(row, len(piece)), strict=True)
        spans = find_spans(np.array(start), np.array(end), 0.5)
        found.append([Span(piece.start + first, piece.start + last, p) for first, last, p in spans])
    joined = join_spans(pieces, found)
    assert set(joined) <= {span for spans in found for span in spans}
    assert all(left.last < right.first for left, right in pairwise(joined))
    # Where pieces share nothing, nothing is left out.
    if len(pieces) == 1:
        assert joined == found[0]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([(0, 1), (12, 13)], [(12, 13), (18, 19)], [(0, 1), (12, 13), (18, 19)]),
        ([(14, 15)], [(14, 17)], [(14, 17)]),  # the left one sees a part
        ([(8, 11)], [(10, 11)], [(8, 11)]),  # the right one does
        ([(11, 13)], [(12, 14)], [(12, 14)]),  # over the middle, each another one
        ([(12, 13)], [], []),  # what the right one shows better, and does not mark
        ([(12, 15)], [(10, 12)], [(10, 12)]),  # the places to cut are as near as one another
        ([(6, 13)], [(13, 18)], [(6, 13)]),  # no place to cut
    ],
)
def test_what_two_pieces_share(left: list[Any], right: list[Any], expected: list[Any]) -> None:
    """Tokens 10 to 15 are in both."""
    spans = [[Span(*place, 0.9) for place in places] for places in (left, right)]
    joined = join_spans([range(16), range(10, 26)], spans)
    assert [(span.first, span.last) for span in joined] == expected


def test_answers_are_cut_from_the_text_in_its_order() -> None:
    text = EncodedText("Ｓteve met ㍿", [1] * 5, [(0, 5), (5, 6), (6, 9), (10, 11), (10, 11)])
    spans = [Span(3, 3, 0.6), Span(4, 4, 0.8), Span(1, 2, 0.9), Span(0, 0, 0.7), Span(1, 1, 0.99)]
    assert cut_answers(text, spans) == [
        {"text": "Ｓteve", "start": 0, "end": 5, "probability": 0.7},
        {"text": "met", "start": 6, "end": 9, "probability": 0.9},
        {"text": "㍿", "start": 10, "end": 11, "probability": 0.8},
    ]


PROMPT = EncodedText("mood[good,bad]", [1] * 6, [(0, 4), (4, 5), (5, 9), (9, 10), (10, 13), (13, 14)])
OPTIONS = [range(5, 9), range(10, 13)]
GOOD, BAD = 2, 4


def votes(*pieces: list[tuple[int, float]]) -> list[tuple[str, float]]:
    spans = [[Span(token, token, probability) for token, probability in piece] for piece in pieces]
    return [(answer["text"], answer["probability"]) for answer in choose_option(PROMPT, OPTIONS, spans)]


def test_one_option_is_chosen() -> None:
    assert votes([(GOOD, 0.75)]) == [("good", 0.75)]
    assert votes([(GOOD, 0.75), (BAD, 0.875)]) == [("bad", 0.875)]
    assert votes([], []) == []


def test_most_pieces_decide_then_the_sum_and_the_mean_is_reported() -> None:
    assert votes([(GOOD, 0.625)], [(BAD, 0.99)], [], [(GOOD, 0.875)]) == [("good", 0.75)]
    assert votes([(GOOD, 0.25)], [(BAD, 0.99)], [(GOOD, 0.25)]) == [("good", 0.25)]
    assert votes([(GOOD, 0.75)], [(BAD, 0.875)]) == [("bad", 0.875)]
    assert votes([(GOOD, 0.75)], [(BAD, 0.75)]) == [("good", 0.75)]


# Tokens of "mood[good,bad,odd]", as above, and of the third option.
THREE = EncodedText("mood[good,bad,odd]", [1] * 8, [*PROMPT.offsets[:5], (13, 14), (14, 17), (17, 18)])
SPANS = st.builds(
    lambda first, more, probability: Span(first, min(first + more, 7), probability),
    st.integers(0, 7),
    st.integers(0, 3),
    st.sampled_from([0.125, 0.25, 0.625, 0.75, 0.99]),
)
PIECES = st.lists(st.lists(SPANS, max_size=4, unique_by=lambda span: span.probability), max_size=6)


def plain_votes(pieces: list[list[Span]]) -> set[tuple[str, float]]:
    """Letter by letter and piece by piece; all options that share the first place, each with its mean probability."""
    won: dict[str, list[float]] = {"good": [], "bad": [], "odd": []}
    for spans in pieces:
        best, choice = 0.0, ""
        for span in spans:
            letters = range(THREE.offsets[span.first][0], THREE.offsets[span.last][1])
            touched = {option for option in won for i in letters if i - THREE.text.index(option) in range(len(option))}
            if len(touched) == 1 and span.probability > best:
                best, choice = span.probability, *touched
        if choice:
            won[choice].append(best)
    most = max((len(votes), sum(votes)) for votes in won.values())
    return {(option, sum(v) / len(v)) for option, v in won.items() if v and (len(v), sum(v)) == most}


@given(PIECES)
def test_votes_are_those_of_the_plain_count(pieces: list[list[Span]]) -> None:
    found = choose_option(THREE, [*OPTIONS, range(14, 17)], pieces)
    expected = plain_votes(pieces)
    assert {(answer["text"], answer["probability"]) for answer in found} <= expected
    assert len(found) == min(len(expected), 1)


def test_a_span_that_is_not_of_one_option_counts_for_nothing() -> None:
    label, both = Span(0, 1, 0.9), Span(GOOD, BAD, 0.9)
    assert choose_option(PROMPT, OPTIONS, [[label, both]]) == []
    assert choose_option(PROMPT, OPTIONS, [[Span(BAD, BAD + 1, 0.9)]]) == [{"text": "bad", "probability": 0.9}]
