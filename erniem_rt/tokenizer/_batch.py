"""Tokens of many texts at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._piece_table import PieceTable
from ._pieces import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from ._added_tokens import TextSplitter
    from ._encoding import TokenizedText
    from ._piece_table import RunTokens
    from ._pieces import SentencePieceModel


class TokenizedTexts:
    """The tokens of many texts, before special tokens.

    Attributes:
        ids: ``(tokens,)`` int64, those of each text side by side.
        starts: ``(texts,)`` where in ``ids`` each text's tokens start.
        sizes: ``(texts,)`` how many tokens each text has.
    """

    def __init__(
        self, runs: Sequence[str], tokens: RunTokens, others: dict[int, TokenizedText], model: SentencePieceModel
    ) -> None:
        self._runs = runs
        self._tokens = tokens
        self._others = others
        self._model = model
        self.starts = tokens.bounds[:-1].copy()
        self.sizes = np.diff(tokens.bounds)
        self.ids = tokens.ids
        if others:
            places, sizes = list(others), [len(other.ids) for other in others.values()]
            self.starts[places] = len(self.ids) + np.cumsum(sizes) - sizes
            self.sizes[places] = sizes
            self.ids = np.concatenate([self.ids, *(np.array(other.ids, np.int64) for other in others.values())])

    def __getstate__(self) -> dict[str, NDArray[np.int64]]:
        """Without the model, which only :meth:`offsets` needs."""
        return {"ids": self.ids, "starts": self.starts, "sizes": self.sizes}

    def offsets(self) -> NDArray[np.int64]:
        """``(tokens, 2)`` int64: each token's half-open range of code points of its text."""
        normalized = self._tokens.spans()
        # sentencepiece puts one mark before the run; where it changes nothing else, positions differ by that alone.
        offsets = np.maximum(normalized - 1, 0)
        bounds = self._tokens.bounds.tolist()
        for i, run in enumerate(self._runs):
            if i not in self._others and not self._model.only_marks_spaces(run):
                tokens = slice(bounds[i], bounds[i + 1])
                offsets[tokens] = _pairs(self._model.source_spans(run, normalized[tokens].tolist()))
        return np.concatenate([offsets, *(_pairs(other.offsets) for other in self._others.values())])


class BatchTokenizer:
    """Tokenizes many texts with one call of sentencepiece and a table of its pieces.

    Texts with added tokens in them, or with characters that the model does not know, are left to the caller.
    """

    def __init__(
        self,
        model: SentencePieceModel,
        splitter: TextSplitter,
        ids_of: Callable[[Iterable[str]], list[int]],
    ) -> None:
        self._model = model
        self._splitter = splitter
        self._table = PieceTable(model, ids_of)

    def __call__(
        self, texts: Sequence[str], threads: int, one_by_one: Callable[[Sequence[str]], list[TokenizedText]]
    ) -> TokenizedTexts:
        """Tokenize ``texts`` on that many threads; ``one_by_one`` takes those that are left."""
        whole = self._splitter.whole(texts)
        runs = readable([run or "" for run in whole])
        pieces, ends = self._model.encode(runs, threads)
        others = {i for i, run in enumerate(whole) if run is None}
        unknown = np.flatnonzero(pieces == self._model.unknown_id)
        others.update(np.searchsorted(ends, unknown, side="right").tolist())
        tokens = self._table.look_up(pieces, ends)
        found = one_by_one([texts[i] for i in others])
        return TokenizedTexts(runs, tokens, dict(zip(others, found, strict=True)), self._model)


def _pairs(spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(spans, dtype=np.int64).reshape(-1, 2)
