"""Rows of one length, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt._lazy import lazy

from ._encoding import Encoding

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ._batch import TokenizedTexts
    from ._settings import Side

_SEQUENCES = (0, 1, None)  # what a row calls the sequences 0, 1 and -1


@dataclass(frozen=True)
class Kept:
    """What truncation leaves of texts: ``sizes[i]`` tokens of text ``i``, from its token ``starts[i]`` on.

    The texts of all rows come first, then, if rows are pairs, the second texts.
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
        """Texts of these sizes, with ``cut`` deciding for the rows of more than ``room`` tokens."""
        kept = cls(np.zeros_like(sizes), sizes.copy(), rows)
        by_row = sizes.reshape(-1, rows)
        for row in [] if room is None else np.flatnonzero(by_row.sum(0) > room):
            length, *other = by_row[:, row].tolist()
            parts = cut(length, other[0] if other else None)
            for text, part in zip(range(row, len(sizes), rows), parts, strict=False):
                kept.starts[text], kept.sizes[text] = part.start, part.stop - part.start
        return kept

    def lengths(self, specials: int) -> NDArray[np.int64]:
        """``(rows,)`` the tokens of each row, with so many special ones among them."""
        lengths: NDArray[np.int64] = self.sizes.reshape(-1, self.rows).sum(0) + specials
        return lengths


class Layout:
    """Rows of special tokens and texts in an array of ``length`` columns, padded on ``side``.

    Attributes:
        shape: Rows and columns.
        starts: ``(rows,)`` the column of each row's first token.
        stops: ``(rows,)`` the column after its last one.
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
        """Write the values that belong to the texts' tokens to where those stand."""
        _, sources, targets = self._token_indices(texts)
        target.reshape(-1, *target.shape[2:])[targets] = values[sources]
        return target

    def sequence_ids(self, texts: TokenizedTexts) -> NDArray[np.int64]:
        """Of the layout's shape: 0 and 1 for tokens of the first and second text, -1 elsewhere."""
        owners, _, targets = self._token_indices(texts)
        target = np.full(self.shape, -1, dtype=np.int64)
        target.reshape(-1)[targets] = owners // self.shape[0]
        return target

    def _token_indices(self, texts: TokenizedTexts) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """For each token that is kept: its text, its index among the texts' tokens, its index in the flat array."""
        sizes = self._kept.sizes
        owners = np.repeat(np.arange(len(sizes)), sizes)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        sources = np.repeat(texts.starts + self._kept.starts, sizes) + within
        rows, length = self.shape
        targets = np.repeat(np.arange(len(sizes)) % rows * length + self._columns, sizes) + within
        return owners, sources, targets


@dataclass(frozen=True, eq=False)
class BatchEncoding:
    """Rows of one length, as arrays and one by one. Offsets and single rows are made when they are asked for.

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
        """Fill a layout with the texts."""
        columns = np.arange(layout.shape[1])
        mask = (columns >= layout.starts[:, None]) & (columns < layout.stops[:, None])
        ids = np.where(mask, sep_id, pad_id)  # what the texts and [CLS] leave of a row is [SEP]
        opened = np.flatnonzero(layout.stops > layout.starts)
        ids[opened, layout.starts[opened]] = cls_id
        return cls(layout.fill(ids, texts, texts.ids), mask.astype(np.int64), texts, layout)

    def __getstate__(self) -> dict[str, Any]:
        """All that can be asked for, worked out: the pickle has no tokenizer to ask."""
        return {**vars(self), "offsets": self.offsets}

    @property
    def text_sizes(self) -> NDArray[np.int64]:
        """``(texts,)`` int64: how many tokens each text had before it was cut; those of second texts come last."""
        return self._texts.sizes

    @lazy
    def offsets(self) -> NDArray[np.int64]:
        """``(batch, sequence, 2)`` int64: each token's half-open range of its text; (0, 0) for inserted tokens."""
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
