"""Start and end probabilities to spans, and spans to answers.

Rules of PaddleNLP's ``utils/tools.py`` (``get_span``) and ``taskflow/information_extraction.py`` (``_auto_joiner``).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from erniem_rt.pipelines._uie_text import EncodedText

__all__ = ["Span", "choose_option", "cut_answers", "find_spans", "join_spans"]


class Span(NamedTuple):
    """First and last token, and the probability that an answer goes from one to the other."""

    first: int
    last: int
    probability: float


def find_spans(start: NDArray[np.float64], end: NDArray[np.float64], threshold: float) -> list[Span]:
    """Pair starts with ends, probabilities ``(tokens,)`` of one text, both strictly above ``threshold``.

    Each start takes the first end at or after it; of several starts that take the same end, the nearest has it. The
    probability of a span is the product of the two.
    """
    starts, ends = np.flatnonzero(start > threshold), np.flatnonzero(end > threshold)
    nearest = np.searchsorted(starts, ends, side="right") - 1
    ends = ends[nearest >= 0]
    firsts = starts[nearest[nearest >= 0]]
    # A start that is not after the previous end took that one.
    free = firsts > np.concatenate([[-1], ends[:-1]])
    return [Span(int(s), int(e), float(start[s] * end[e])) for s, e in zip(firsts[free], ends[free], strict=True)]


def join_spans(pieces: Sequence[range], found: Sequence[Sequence[Span]]) -> list[Span]:
    """Spans of a text from those ``found`` in each of its pieces, in order; all count the tokens of the text.

    What two pieces share is cut in the middle, or at the nearest place that no span of the two goes across: on the left
    the left piece counts, on the right the other one. So a span that one of them sees whole wins over a part of it at
    the other one's edge, and each is there once.
    """
    cuts = [_cut(*both, *spans) for both, spans in zip(pairwise(pieces), pairwise(found), strict=True)]
    joined: list[Span] = []
    for begin, stop, spans in zip([0, *cuts], [*cuts, pieces[-1].stop], found, strict=True):
        first_free = max(begin, joined[-1].last + 1) if joined else begin
        joined += [span for span in spans if first_free <= span.first < stop]
    return joined


def _cut(left: range, right: range, left_spans: Iterable[Span], right_spans: Iterable[Span]) -> int:
    """Where the left piece stops to count; the middle if every place is within a span, as where the two contradict."""
    middle = (right.start + left.stop) // 2
    places = set(range(right.start, left.stop + 1))
    for span in (*left_spans, *right_spans):
        places.difference_update(range(span.first + 1, span.last + 1))
    return min(places, key=lambda place: (abs(place - middle), place), default=middle)


def cut_answers(encoded: EncodedText, spans: Iterable[Span]) -> list[dict[str, Any]]:
    """Cut answers from the text, in its order; ``spans`` count its tokens.

    Whitespace at the ends of an answer is left out. Spans of the same characters (one character may be several
    tokens) are one answer, the most probable of them.
    """
    best: dict[tuple[int, int], float] = {}
    for span in spans:
        start, end = encoded.offsets[span.first][0], encoded.offsets[span.last][1]
        answer = encoded.text[start:end]
        start += len(answer) - len(answer.lstrip())
        end -= len(answer) - len(answer.rstrip())
        if start < end:
            best[start, end] = max(span.probability, best.get((start, end), 0.0))
    return [
        {"text": encoded.text[start:end], "start": start, "end": end, "probability": probability}
        for (start, end), probability in sorted(best.items())
    ]


def choose_option(
    prompt: EncodedText, options: Sequence[range], pieces: Iterable[Sequence[Span]]
) -> list[dict[str, Any]]:
    """Choose one option, or none: what most pieces of a text chose, with its mean probability there.

    Each piece votes for the option of its most probable span; ``spans`` count the prompt's tokens, and one that
    touches no option or several counts for nothing. Of equal votes, the sum of probabilities decides.
    """
    votes: dict[range, list[float]] = {}
    for spans in pieces:
        found = [(option, span.probability) for span in spans if (option := _touched(prompt, options, span))]
        if found:
            option, probability = max(found, key=lambda vote: vote[1])
            votes.setdefault(option, []).append(probability)
    if not votes:
        return []
    chosen, probabilities = max(votes.items(), key=lambda vote: (len(vote[1]), sum(vote[1])))
    text = prompt.text[chosen.start : chosen.stop]
    return [{"text": text, "probability": sum(probabilities) / len(probabilities)}]


def _touched(prompt: EncodedText, options: Sequence[range], span: Span) -> range | None:
    start, end = prompt.offsets[span.first][0], prompt.offsets[span.last][1]
    touched = [option for option in options if start < option.stop and option.start < end]
    return touched[0] if len(touched) == 1 else None
