"""One row of ids, what truncation leaves of its texts, and how long padded rows get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from erniem_rt._lazy import lazy
from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._settings import Side

Truncation = Literal["longest_first", "only_first", "only_second"]
Padding = Literal["longest", "max_length"]


class TokenizedText:
    """The tokens of one text, before special tokens. Where they stand in it is worked out when it is asked for."""

    def __init__(self, ids: list[int], locate: Callable[[], list[tuple[int, int]]]) -> None:
        self.ids = ids
        self._locate = locate

    @lazy
    def offsets(self) -> list[tuple[int, int]]:
        """The character range of each token."""
        return self._locate()

    def part(self, kept: slice) -> TokenizedText:
        """Some of the tokens."""
        return TokenizedText(self.ids[kept], lambda: self.offsets[kept])


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


def kept_tokens(
    length: int, other: int | None, *, excess: int, strategy: Truncation | None, side: Side
) -> tuple[slice, slice]:
    """What is left of a text and of the second one when a row is ``excess`` tokens too long.

    ``longest_first`` shortens the longer text to the other's length, then both alike (the second loses the odd one).

    Args:
        length: Tokens of the first text.
        other: Tokens of the second, None where there is none.
        excess: How many to remove; nothing is removed where it is not above 0.
        strategy: What may be shortened. None if nothing has to be.
        side: Which end is cut off.

    Raises:
        InvalidInputError: The text that ``only_first`` or ``only_second`` may shorten is too short for it.
    """
    if excess <= 0:
        return slice(0, length), slice(0, other or 0)
    if strategy == "only_first" or (strategy == "longest_first" and other is None):
        removed = excess, 0
    elif strategy == "only_second":
        removed = 0, excess
    else:
        level = min(abs(length - (other or 0)), excess)
        from_first = (excess - level) // 2 + (level if length > (other or 0) else 0)
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
    """The length that all rows of a batch get.

    Raises:
        InvalidInputError: A row is longer, rows differ while no padding is asked for, or the length is unknown.
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
