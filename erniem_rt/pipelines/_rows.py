"""Texts as rows of ids, encoded together; a text that gives no ids is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erniem_rt.tokenizer import Tokenizer

__all__ = ["encode_rows", "require_tokens"]


def encode_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int,
    threads: int,
    add_special_tokens: bool = True,
) -> list[list[int]]:
    """Rows without padding, each what encoding its text, or pair, alone gives; cut to ``max_length`` tokens.

    Raises:
        InvalidInputError: Nothing of a text is left as tokens.
    """
    encoded = tokenizer.batch(
        texts,
        pairs,
        padding_side="right",
        truncation="longest_first",
        max_length=max_length,
        add_special_tokens=add_special_tokens,
        threads=threads,
    )
    for i, size in enumerate(encoded.text_sizes.tolist()):
        require_tokens("text" if i < len(texts) else "text_pair", size)
    lengths = encoded.attention_mask.sum(axis=1).tolist()
    return [row[:length] for row, length in zip(encoded.input_ids.tolist(), lengths, strict=True)]


def require_tokens(name: str, count: int) -> None:
    """Raise :class:`InvalidInputError` where a text has no tokens: the model would answer about special ones alone."""
    if not count:
        raise InvalidInputError(f"{name} has no tokens left after normalization: expected text.")
