"""Texts as rows of ids, encoded together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erniem_rt.tokenizer import Tokenizer

__all__ = ["encode_rows"]


def encode_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int,
    add_special_tokens: bool = True,
) -> list[list[int]]:
    """Rows without padding, each what encoding its text, or pair, alone gives; cut to ``max_length`` tokens."""
    encoded = tokenizer.batch(
        texts,
        pairs,
        padding_side="right",
        truncation="longest_first",
        max_length=max_length,
        add_special_tokens=add_special_tokens,
    )
    lengths = encoded.attention_mask.sum(axis=1).tolist()
    return [row[:length] for row, length in zip(encoded.input_ids.tolist(), lengths, strict=True)]
