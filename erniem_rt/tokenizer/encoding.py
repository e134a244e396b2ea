"""Rows of ids, one by one and as padded arrays, and their truncation and padding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from erniem_rt.errors import InvalidInputError
from erniem_rt.processes import lazy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from erniem_rt.tokenizer.pieces import RunTokens, SentencePieceModel
    from erniem_rt.tokenizer.settings import Side

Truncation = Literal["longest_first", "only_first", "only_second"]
Padding = Literal["longest", "max_length"]

_SEQUENCES = (0, 1, None)  # a row's names for the sequences 0, 1 and -1


class TokenizedText:
    """The tokens of one text, before special tokens. Offsets are computed on first use."""

    def __init__(self, ids: list[int], locate: Callable[[], list[tuple[int, int]]]) -> None:
        self.ids = ids
        self._locate = locate

    @lazy
    def offsets(self) -> list[tuple[int, int]]:
        """Each token's range of characters."""
        return self._locate()

    def part(self, kept: slice) -> TokenizedText:
        """Return some of the tokens."""
        return TokenizedText(self.ids[kept], lambda: self.offsets[kept])


@dataclass(frozen=True)
class Encoding:
    """One row for the model; all lists have the row's length.

    Attributes:
        input_ids: Token ids.
        attention_mask: 1 for a token, 0 for padding.
        offsets: Half-open ``(start, end)`` in code points of the token's own text. (0, 0) for inserted tokens.
        special_tokens_mask: 1 for inserted tokens ([CLS], [SEP], padding), 0 for tokens of a text, even special tokens
            written there.
        sequence_ids: 0 for the first text, 1 for the second, None for inserted tokens.
    """

    input_ids: list[int]
    attention_mask: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]
    sequence_ids: list[int | None]

    def __len__(self) -> int:
        return len(self.input_ids)


class TokenizedTexts:
    """The tokens of many texts, before special tokens.

    Attributes:
        ids: ``(tokens,)`` int64, text after text.
        starts: ``(texts,)``, the index in ``ids`` of each text's first token.
        sizes: ``(texts,)``, the number of tokens of each text.
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
        """Return the state without the model, which only :meth:`offsets` needs."""
        return {"ids": self.ids, "starts": self.starts, "sizes": self.sizes}

    def offsets(self) -> NDArray[np.int64]:
        """Return ``(tokens, 2)`` int64: each token's half-open range of code points in its text."""
        normalized = self._tokens.spans()
        # sentencepiece inserts one mark before the run; if nothing else changes, positions differ by one.
        offsets = np.maximum(normalized - 1, 0)
        bounds = self._tokens.bounds.tolist()
        for i, run in enumerate(self._runs):
            if i not in self._others and not self._model.only_marks_spaces(run):
                tokens = slice(bounds[i], bounds[i + 1])
                offsets[tokens] = _pairs(self._model.source_spans(run, normalized[tokens].tolist()))
        return np.concatenate([offsets, *(_pairs(other.offsets) for other in self._others.values())])


@dataclass(frozen=True)
class Kept:
    """Truncated texts: ``sizes[i]`` tokens of text ``i``, from its token ``starts[i]`` on.

    The first texts of all rows come first, then the second texts of pairs.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rows: int

    @classmethod
    def of(
        cls,
        sizes: NDArray[np.int64],
        rows: int,
        room: int | None,
        cut: Callable[[int, int | None], tuple[slice, slice]],
    ) -> Kept:
        """Truncate texts of these sizes, by ``cut`` in rows of more than ``room`` tokens."""
        kept = cls(np.zeros_like(sizes), sizes.copy(), rows)
        by_row = sizes.reshape(-1, rows)
        for row in [] if room is None else np.flatnonzero(by_row.sum(0) > room):
            length, *other = by_row[:, row].tolist()
            parts = cut(length, other[0] if other else None)
            for text, part in zip(range(row, len(sizes), rows), parts, strict=False):
                kept.starts[text], kept.sizes[text] = part.start, part.stop - part.start
        return kept

    def lengths(self, specials: int) -> NDArray[np.int64]:
        """Return ``(rows,)``: the number of tokens of each row, including ``specials`` special tokens."""
        lengths: NDArray[np.int64] = self.sizes.reshape(-1, self.rows).sum(0) + specials
        return lengths


class Layout:
    """Rows of special tokens and texts in an array of ``length`` columns, padded on ``side``.

    Attributes:
        shape: Rows and columns.
        starts: ``(rows,)``, the column of each row's first token.
        stops: ``(rows,)``, the column after each row's last token.
    """

    def __init__(self, kept: Kept, *, length: int, with_special_tokens: bool, side: Side) -> None:
        pairs = len(kept.sizes) > kept.rows
        around, between = (1, 2) if with_special_tokens else (0, 0)
        totals = kept.lengths(2 * around + (between if pairs else 0))
        self.shape = (kept.rows, length)
        self.starts = length - totals if side == "left" else np.zeros_like(totals)
        self.stops = self.starts + totals
        columns = self.starts + around
        if pairs:
            columns = np.concatenate([columns, columns + kept.sizes[: kept.rows] + between])
        self._kept = kept
        self._columns = columns

    def fill(self, target: NDArray[np.int64], texts: TokenizedTexts, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Write the values of the texts' tokens to the tokens' positions in ``target``."""
        _, sources, targets = self._token_indices(texts)
        target.reshape(-1, *target.shape[2:])[targets] = values[sources]
        return target

    def sequence_ids(self, texts: TokenizedTexts) -> NDArray[np.int64]:
        """Return an array of the layout's shape: 0 and 1 for tokens of the first and second text, -1 elsewhere."""
        owners, _, targets = self._token_indices(texts)
        target = np.full(self.shape, -1, dtype=np.int64)
        target.reshape(-1)[targets] = owners // self.shape[0]
        return target

    def _token_indices(self, texts: TokenizedTexts) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return for each kept token its text, its index among all texts' tokens, and its index in the flat array."""
        sizes = self._kept.sizes
        owners = np.repeat(np.arange(len(sizes)), sizes)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        sources = np.repeat(texts.starts + self._kept.starts, sizes) + within
        rows, length = self.shape
        targets = np.repeat(np.arange(len(sizes)) % rows * length + self._columns, sizes) + within
        return owners, sources, targets


@dataclass(frozen=True, eq=False)
class BatchEncoding:
    """Rows of one length, as arrays and one by one. Offsets and single rows are computed on first use.

    Attributes:
        input_ids: ``(batch, sequence)`` int64.
        attention_mask: ``(batch, sequence)`` int64, 1 for a token and 0 for padding.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    _texts: TokenizedTexts = field(repr=False)
    _layout: Layout = field(repr=False)

    @classmethod
    def of(cls, texts: TokenizedTexts, layout: Layout, *, cls_id: int, sep_id: int, pad_id: int) -> BatchEncoding:
        """Fill a layout with texts."""
        columns = np.arange(layout.shape[1])
        mask = (columns >= layout.starts[:, None]) & (columns < layout.stops[:, None])
        ids = np.where(mask, sep_id, pad_id)  # [CLS] and the texts overwrite it
        opened = np.flatnonzero(layout.stops > layout.starts)
        ids[opened, layout.starts[opened]] = cls_id
        return cls(layout.fill(ids, texts, texts.ids), mask.astype(np.int64), texts, layout)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the offsets, which need the tokenizer."""
        return {**vars(self), "offsets": self.offsets}

    @property
    def text_sizes(self) -> NDArray[np.int64]:
        """``(texts,)`` int64: each text's number of tokens before truncation; second texts come last."""
        return self._texts.sizes

    @lazy
    def offsets(self) -> NDArray[np.int64]:
        """``(batch, sequence, 2)`` int64: each token's half-open range in its text; (0, 0) for inserted tokens."""
        empty = np.zeros((*self._layout.shape, 2), dtype=np.int64)
        return self._layout.fill(empty, self._texts, self._texts.offsets())

    @lazy
    def encodings(self) -> tuple[Encoding, ...]:
        """The padded rows, one by one."""
        sequences = self._layout.sequence_ids(self._texts)
        spans = zip(self.offsets[..., 0].tolist(), self.offsets[..., 1].tolist(), strict=True)
        lists = (
            self.input_ids.tolist(),
            self.attention_mask.tolist(),
            [list(zip(starts, ends, strict=True)) for starts, ends in spans],
            (sequences < 0).astype(np.int64).tolist(),
            [[_SEQUENCES[sequence] for sequence in row] for row in sequences.tolist()],
        )
        return tuple(Encoding(*row) for row in zip(*lists, strict=True))

    def __len__(self) -> int:
        return len(self.input_ids)


def kept_tokens(
    length: int,
    other: int | None,
    *,
    excess: int,
    strategy: Truncation | None,
    side: Side,
    odd_to_longer: bool = False,
) -> tuple[slice, slice]:
    """Return the ranges of tokens to keep of both texts of a row that is ``excess`` tokens too long.

    ``longest_first`` shortens the longer text to the other's length, then both equally.

    Args:
        length: Number of tokens of the first text.
        other: Number of tokens of the second text; None if there is none.
        excess: How many tokens to remove; none if it is not above 0.
        strategy: Which text to shorten; None only if ``excess`` is not above 0.
        side: Which end to cut off.
        odd_to_longer: If both are shortened, leave the odd token to the longer text (the second of two equal ones), as
            transformers' fast tokenizers do; otherwise to the first, as its other tokenizers do.

    Raises:
        InvalidInputError: The text that ``only_first`` or ``only_second`` shortens is too short.
    """
    if excess <= 0:
        return slice(0, length), slice(0, other or 0)
    if strategy == "only_first" or (strategy == "longest_first" and other is None):
        removed = excess, 0
    elif strategy == "only_second":
        removed = 0, excess
    else:
        level = min(abs(length - (other or 0)), excess)
        both = excess - level + (odd_to_longer and length <= (other or 0))
        from_first = both // 2 + (level if length > (other or 0) else 0)
        removed = from_first, excess - from_first
    for name, available, count in zip(("first", "second"), (length, other or 0), removed, strict=True):
        if count > available:
            raise InvalidInputError(
                f"truncation={strategy!r} would have to remove {count} tokens, but the {name} text has {available}. "
                "Use a larger max_length or truncation='longest_first'."
            )
    return _shortened(length, removed[0], side), _shortened(other or 0, removed[1], side)


def _shortened(length: int, count: int, side: Side) -> slice:
    return slice(count, length) if side == "left" else slice(0, length - count)


def padded_length(
    lengths: Sequence[int], padding: Padding | None, max_length: int | None, multiple_of: int | None
) -> int:
    """Return the padded length of a batch's rows.

    Raises:
        InvalidInputError: A row is longer, rows differ without padding, or the length is unknown.
    """
    longest = max(lengths)
    if padding is None:
        if multiple_of is not None:
            raise InvalidInputError("pad_to_multiple_of needs padding='longest' or padding='max_length'.")
        if min(lengths) != longest:
            raise InvalidInputError(
                "Rows of different lengths make no array without padding. Pass padding='longest', or call the "
                "tokenizer on each text."
            )
        return longest
    if padding == "longest":
        length = longest
    elif max_length is None:
        raise InvalidInputError("padding='max_length' needs max_length: the tokenizer's files name no limit.")
    else:
        length = max_length
    return -(-length // multiple_of) * multiple_of if multiple_of else length


def _pairs(spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(spans, dtype=np.int64).reshape(-1, 2)
