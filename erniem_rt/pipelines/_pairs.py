"""One first text with many second ones, each encoded once; only the first is ever cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines._rows import require_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erniem_rt.tokenizer import Tokenizer

__all__ = ["SecondText", "encode_seconds", "pair_rows"]


@dataclass(frozen=True)
class SecondText:
    """The ids of a text that is kept whole, without special tokens, and how many tokens a first text may take."""

    ids: list[int]
    room: int


def encode_seconds(
    tokenizer: Tokenizer, texts: Sequence[str], *, names: Sequence[str], max_length: int
) -> list[SecondText]:
    """Encode texts that stand second in a row of at most ``max_length`` tokens.

    Raises:
        InvalidInputError: One has no tokens, or leaves no room for a first text; it is called by its name in
            ``names``.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    seconds = []
    for text, name in zip(texts, names, strict=True):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        require_tokens(name, len(ids))
        room = max_length - special - len(ids)
        if room < 1:
            raise InvalidInputError(
                f"{name} alone takes {len(ids)} tokens; the limit is {max_length}, of which {special} are special "
                "tokens and at least one is the other text's. Shorten it."
            )
        seconds.append(SecondText(ids, room))
    return seconds


def pair_rows(tokenizer: Tokenizer, first: list[int], seconds: Sequence[SecondText]) -> list[list[int]]:
    """Rows ``[CLS] first [SEP] [SEP] second [SEP]``.

    ``first``, the ids of a text without special tokens, is cut where the tokenizer cuts: at its end by default.
    """
    from_left = tokenizer.settings.truncation_side == "left"
    return [
        tokenizer.build_inputs_with_special_tokens(
            first[-second.room :] if from_left else first[: second.room], second.ids
        )
        for second in seconds
    ]
