"""What each sentencepiece piece becomes in ErnieM's vocabulary, worked out once and then looked up in bulk."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from erniem_rt._processes import renew_after_fork

from ._pieces import WORD_START, split_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from ._pieces import SentencePieceModel

_NOT_YET_KNOWN = -1


class RunTokens(NamedTuple):
    """The tokens of many runs of text, one run after the other.

    Attributes:
        ids: ``(tokens,)`` int64.
        spans: ``(tokens, 2)`` int64, half-open ranges in code points of the run as sentencepiece normalises it.
        bounds: ``(runs + 1,)``; run ``i`` has the tokens from ``bounds[i]`` to ``bounds[i + 1]``.
    """

    ids: NDArray[np.int64]
    spans: Callable[[], NDArray[np.int64]]
    bounds: NDArray[np.int64]


class PieceTable:
    """Tokens by piece id. Grows as pieces are met, so that loading a large vocabulary costs nothing here.

    The unknown piece has no tokens in it: its text is whatever the run held there.
    """

    def __init__(self, model: SentencePieceModel, ids_of: Callable[[Iterable[str]], list[int]]) -> None:
        self._model = model
        self._ids_of = ids_of
        self._mark = model.piece_id(WORD_START)
        self._lock = Lock()
        size = model.size
        self._tokens = np.empty((0, 3), dtype=np.int64)  # id, start and end in the piece; a piece's lie together
        self._first = np.zeros(size, dtype=np.int64)
        self._length = np.zeros(size, dtype=np.int64)
        self._begins_word = np.zeros(size, dtype=bool)
        self._count = np.full(size, _NOT_YET_KNOWN, dtype=np.int16)
        self._count[model.unknown_id] = 0
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A thread of the parent may have held the lock; what it was adding is added again."""
        self._lock = Lock()

    def look_up(self, pieces: NDArray[np.int64], ends: NDArray[np.int64]) -> RunTokens:
        """Tokens of runs of pieces.

        Args:
            pieces: ``(pieces,)`` the piece ids of all runs.
            ends: ``(runs,)`` where each run ends in ``pieces``.
        """
        self._learn(pieces)
        counts = self._count[pieces]
        counts[self._dropped_marks(pieces, ends)] = 0
        token_ends = np.cumsum(counts)
        rows = np.repeat(self._first[pieces] - (token_ends - counts), counts)
        rows += np.arange(len(rows))
        tokens = self._tokens

        def spans() -> NDArray[np.int64]:
            positions = np.cumsum(self._length[pieces]) - self._length[pieces]
            starts = np.concatenate([[0], ends[:-1]])
            sizes = ends - starts
            filled = sizes > 0
            positions -= np.repeat(positions[starts[filled]], sizes[filled])
            return tokens[rows, 1:] + np.repeat(positions, counts)[:, None]

        bounds = np.concatenate([[0], token_ends])[np.concatenate([[0], ends])]
        return RunTokens(tokens[rows, 0], spans, bounds)

    def _dropped_marks(self, pieces: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where a piece is only the word-start mark and opens its run, or the next piece brings a mark of its own."""
        is_bound = np.zeros(len(pieces) + 1, dtype=bool)
        is_bound[0] = True
        is_bound[ends] = True
        marks = np.flatnonzero(pieces == self._mark)
        following = pieces[np.minimum(marks + 1, len(pieces) - 1)] if len(marks) else marks
        return marks[is_bound[marks] | (self._begins_word[following] & ~is_bound[marks + 1])]

    def _learn(self, pieces: NDArray[np.int64]) -> None:
        unknown = pieces[self._count[pieces] == _NOT_YET_KNOWN]
        if not len(unknown):
            return
        with self._lock:
            learned = [int(i) for i in np.unique(unknown) if self._count[i] == _NOT_YET_KNOWN]
            splits = []
            for i in learned:
                piece = self._model.piece(i)
                splits.append(split_piece(piece))
                self._length[i] = len(piece)
                self._begins_word[i] = piece.startswith(WORD_START)
            spans = [span for split in splits for span in split]
            ids = self._ids_of(token for token, _, _ in spans)
            rows = [(index, start, end) for index, (_, start, end) in zip(ids, spans, strict=True)]
            counts = [len(split) for split in splits]
            known = len(self._tokens)
            self._tokens = np.concatenate([self._tokens, np.array(rows, dtype=np.int64).reshape(-1, 3)])
            self._first[learned] = known + np.cumsum(counts) - counts
            self._count[learned] = counts  # last: threads that do not hold the lock read the rest only after this
