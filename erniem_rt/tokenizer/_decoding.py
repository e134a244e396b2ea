"""Ids to readable text."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from ._pieces import WORD_START

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._settings import TokenizerSettings
    from ._vocabulary import Vocabulary

# transformers' clean_up_tokenization, in its order.
_CLEAN_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


def decode(
    ids: Iterable[int], vocabulary: Vocabulary, settings: TokenizerSettings, *, skip_special_tokens: bool
) -> str:
    """Join tokens at their word-start marks; added tokens that are not special stand apart, between spaces."""
    special = {token.content for token in settings.all_special_tokens}
    extra = {token.content for token in settings.additional_special_tokens}
    base_size = vocabulary.base_size
    apart = (vocabulary.added_ids.keys() - special) | {t for t in extra if vocabulary.id_of(t) >= base_size}
    tokens = [vocabulary.token_of(i) for i in ids]
    if skip_special_tokens:
        tokens = [token for token in tokens if token not in special]
    parts: list[str] = []
    for stands_apart, run in groupby(tokens, apart.__contains__):
        words = list(run)
        parts += words if stands_apart else [tokens_to_text(words)]
    text = " ".join(filter(None, parts))
    if settings.clean_up_tokenization_spaces:
        for found, replacement in _CLEAN_UP:
            text = text.replace(found, replacement)
    return text


def tokens_to_text(tokens: Iterable[str]) -> str:
    """Sub-words as text: word-start marks become spaces."""
    return "".join(tokens).replace(WORD_START, " ").strip()
