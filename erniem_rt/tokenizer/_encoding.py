"""Rows of ids: special tokens around one or two texts, truncation, padding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np

from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ._settings import Side

Truncation = Literal["longest_first", "only_first", "only_second"]
Padding = Literal["longest", "max_length"]
_Value = TypeVar("_Value")


class TokenizedText(NamedTuple):
    """The tokens of one text, before special tokens: ids and character ranges of equal length."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def without(self, count: int, side: Side) -> TokenizedText:
        """A copy that lost ``count`` tokens on one side."""
        kept = slice(count, None) if side == "left" else slice(0, len(self.ids) - count)
        return TokenizedText(self.ids[kept], self.offsets[kept])


@dataclass(frozen=True)
class Encoding:
    """One row for the model; all lists have the row's length.

    Attributes:
        input_ids: Token ids.
        attention_mask: 1 for a token, 0 for padding.
        offsets: Half-open ``(start, end)`` in code points of the token's own text. (0, 0) for inserted tokens.
        special_tokens_mask: 1 for inserted tokens ([CLS], [SEP], padding), 0 for what came from a text, even if a
            special token was written there.
        sequence_ids: 0 for the first text, 1 for the second, None for inserted tokens.
    """

    input_ids: list[int]
    attention_mask: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]
    sequence_ids: list[int | None]

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class BatchEncoding:
    """Rows of one length, as arrays and one by one.

    Attributes:
        encodings: The padded rows.
        input_ids: ``(batch, sequence)`` int64.
        attention_mask: ``(batch, sequence)`` int64, 1 for a token and 0 for padding.
    """

    encodings: tuple[Encoding, ...]
    input_ids: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    attention_mask: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("input_ids", "attention_mask"):
            rows = np.array([getattr(row, name) for row in self.encodings], dtype=np.int64)
            object.__setattr__(self, name, rows.reshape(len(self.encodings), -1))

    def __len__(self) -> int:
        return len(self.encodings)


def truncate(
    first: TokenizedText, second: TokenizedText | None, *, excess: int, strategy: Truncation, side: Side
) -> tuple[TokenizedText, TokenizedText | None]:
    """Remove ``excess`` tokens from the texts.

    ``longest_first`` shortens the longer text to the other's length, then both alike (the second loses the odd one).

    Raises:
        InvalidInputError: The text that ``only_first`` or ``only_second`` may shorten is too short for it.
    """
    length, other = len(first.ids), len(second.ids) if second else 0
    if strategy == "only_first" or (strategy == "longest_first" and second is None):
        from_first, from_second = excess, 0
    elif strategy == "only_second":
        from_first, from_second = 0, excess
    else:
        level = min(abs(length - other), excess)
        from_first = (excess - level) // 2 + (level if length > other else 0)
        from_second = excess - from_first
    for name, available, removed in (("first", length, from_first), ("second", other, from_second)):
        if removed > available:
            raise InvalidInputError(
                f"truncation={strategy!r} would have to remove {removed} tokens, but the {name} text has {available}. "
                "Use a larger max_length or truncation='longest_first'."
            )
    return first.without(from_first, side), second and second.without(from_second, side)


def pad(row: Encoding, length: int, *, pad_id: int, side: Side) -> Encoding:
    """The row with padding up to ``length`` tokens on one side."""
    count = length - len(row)
    if count == 0:
        return row

    def padded(values: list[_Value], filler: _Value) -> list[_Value]:
        padding = [filler] * count
        return padding + values if side == "left" else values + padding

    return Encoding(
        input_ids=padded(row.input_ids, pad_id),
        attention_mask=padded(row.attention_mask, 0),
        offsets=padded(row.offsets, (0, 0)),
        special_tokens_mask=padded(row.special_tokens_mask, 1),
        sequence_ids=padded(row.sequence_ids, None),
    )


def padded_length(
    rows: Sequence[Encoding], padding: Padding | None, max_length: int | None, multiple_of: int | None
) -> int:
    """The length that all rows of a batch get.

    Raises:
        InvalidInputError: A row is longer, rows differ while no padding is asked for, or the length is unknown.
    """
    longest = max(len(row) for row in rows)
    if padding is None:
        if multiple_of is not None:
            raise InvalidInputError("pad_to_multiple_of needs padding='longest' or padding='max_length'.")
        if min(len(row) for row in rows) != longest:
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
