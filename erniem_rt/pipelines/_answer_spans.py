"""Start and end logits of windows over a context to the best spans of characters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from erniem_rt.pipelines._scores import softmax

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

__all__ = ["Reading", "Span", "Tokens", "best_spans", "read"]


class Span(NamedTuple):
    """A range of characters, half-open, and the probability that the answer is there."""

    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text, and where an answer from one to another lies in it.

    Attributes:
        ids: The tokens.
        starts: int64 ``(tokens,)``, the character at which an answer starts that begins with this token.
        ends: int64 ``(tokens,)``, the character before which an answer ends that ends with this token.
    """

    ids: list[int]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, window: range) -> Tokens:
        part = slice(window.start, window.stop)
        return Tokens(self.ids[part], self.starts[part], self.ends[part])


@dataclass(frozen=True)
class Reading:
    """What the model says of one window; arrays ``(tokens,)``, float64.

    Attributes:
        start: Probability that the answer begins with this token.
        end: Probability that the answer ends with this token.
        null: Probability that there is no answer: that it begins and ends with ``[CLS]``.
        tokens: The window's tokens.
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    null: float
    tokens: Tokens


def read(start_logits: NDArray[np.float32], end_logits: NDArray[np.float32], first: int, tokens: Tokens) -> Reading:
    """Turn one row's logits ``(sequence,)`` into probabilities over ``[CLS]`` and the context, which is at ``first``.

    The question and the separators have no part in the softmax, as in transformers'
    ``pipelines/question_answering.py``.
    """
    context = slice(first, first + len(tokens))
    start, end = (
        softmax(np.append(logits[:1], logits[context]).astype(np.float64)) for logits in (start_logits, end_logits)
    )
    return Reading(start[1:], end[1:], float(start[0] * end[0]), tokens)


def best_spans(readings: Iterable[Reading], count: int, max_tokens: int) -> list[Span]:
    """Return the ``count`` most probable spans of at most ``max_tokens`` tokens, best first, over all windows.

    A span that several pairs of tokens or several windows stand for is returned once, with its best score. Of equal
    scores the one read first comes first: in the earlier window, at the earlier first token, at the earlier last one.
    """
    best: dict[tuple[int, int], Span] = {}
    found = [span for reading in readings for span in _best_in_window(reading, count, max_tokens)]
    for span in sorted(found, key=lambda span: -span.score):
        best.setdefault((span.start, span.end), span)
    return list(best.values())[:count]


def _best_in_window(reading: Reading, count: int, max_tokens: int) -> Iterator[Span]:
    """Yield up to ``count`` spans: the best pair of tokens, then the best that means another span, and so on."""
    length = len(reading.tokens)
    if not length:
        return
    reach = min(max_tokens, length)
    # Row i, column j: the answer of tokens i to i + j.
    last = np.arange(length)[:, None] + np.arange(reach)
    is_inside = last < length
    last = np.minimum(last, length - 1)
    starts, ends = reading.tokens.starts[:, None], reading.tokens.ends[last]
    scores = np.where(is_inside & (starts < ends), reading.start[:, None] * reading.end[last], -1.0)
    for _ in range(count):
        row, column = divmod(int(scores.argmax()), reach)
        if scores[row, column] < 0:
            return
        span = Span(int(starts[row, 0]), int(ends[row, column]), float(scores[row, column]))
        yield span
        scores[(starts == span.start) & (ends == span.end)] = -1.0
