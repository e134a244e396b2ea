"""Tokens to ids and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from ._checks import checked_ids, checked_tokens
from ._decoding import decode
from ._special_tokens import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._settings import TokenizerSettings
    from ._vocabulary import Vocabulary


class TokenConversion(SpecialTokens):
    """The part of the tokenizer that knows the vocabulary.

    Attributes:
        settings: Special tokens, casing, limits and sides.
    """

    def __init__(self, vocabulary: Vocabulary, settings: TokenizerSettings) -> None:
        super().__init__(vocabulary, settings)
        self.settings = settings
        self._vocabulary = vocabulary

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Text from ids. Normalisation is not undone, and unknown ids read as the unknown token."""
        return decode(checked_ids(ids), self._vocabulary, self.settings, skip_special_tokens=skip_special_tokens)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """The id of a token, or those of several; the unknown token's where there is none."""
        if isinstance(tokens, str):
            return self._vocabulary.id_of(tokens)
        return self._vocabulary.ids_of(checked_tokens(tokens))

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...

    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]: ...

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | list[str]:
        """The token of an id, or those of several; the unknown token where there is none."""
        if isinstance(ids, (int, np.integer)):
            return self._vocabulary.token_of(int(ids))
        return [self._vocabulary.token_of(i) for i in checked_ids(ids)]

    @property
    def vocab_size(self) -> int:
        """The size of the base vocabulary, without added tokens. ``len(tokenizer)`` counts those too."""
        return self._vocabulary.base_size

    def __len__(self) -> int:
        return len(self._vocabulary)

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added tokens included."""
        return self._vocabulary.all()
