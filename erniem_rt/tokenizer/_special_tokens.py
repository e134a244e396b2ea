"""The special tokens of a row and where they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._settings import TokenizerSettings
    from ._vocabulary import Vocabulary

_Value = TypeVar("_Value")


def laid_out(
    first: Sequence[_Value], second: Sequence[_Value] | None, *, cls: Sequence[_Value], sep: Sequence[_Value]
) -> list[_Value]:
    """``[CLS] A [SEP]``, or ``[CLS] A [SEP] [SEP] B [SEP]``, of whatever the row is made of."""
    if second is None:
        return [*cls, *first, *sep]
    return [*cls, *first, *sep, *sep, *second, *sep]


class SpecialTokens:
    """The part of the tokenizer that knows special tokens and the layout of a row."""

    def __init__(self, vocabulary: Vocabulary, settings: TokenizerSettings) -> None:
        self._named = {name: token.content for name, token in settings.special_tokens.items()}
        self._named_ids = {name: vocabulary.id_of(token) for name, token in self._named.items()}

    @property
    def cls_token(self) -> str:
        """The token that opens a row."""
        return self._named["cls_token"]

    @property
    def sep_token(self) -> str:
        """The token that closes a text."""
        return self._named["sep_token"]

    @property
    def pad_token(self) -> str:
        """The token that fills rows up."""
        return self._named["pad_token"]

    @property
    def unk_token(self) -> str:
        """The token for what the vocabulary lacks."""
        return self._named["unk_token"]

    @property
    def mask_token(self) -> str:
        """The token for a masked word."""
        return self._named["mask_token"]

    @property
    def cls_token_id(self) -> int:
        """The id of ``cls_token``."""
        return self._named_ids["cls_token"]

    @property
    def sep_token_id(self) -> int:
        """The id of ``sep_token``."""
        return self._named_ids["sep_token"]

    @property
    def pad_token_id(self) -> int:
        """The id of ``pad_token``."""
        return self._named_ids["pad_token"]

    @property
    def unk_token_id(self) -> int:
        """The id of ``unk_token``."""
        return self._named_ids["unk_token"]

    @property
    def mask_token_id(self) -> int:
        """The id of ``mask_token``."""
        return self._named_ids["mask_token"]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens a row has beside those of its texts: 2, or 4 for a pair."""
        return 4 if pair else 2

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Ids of one or two texts as a row: ``[CLS] A [SEP]`` or ``[CLS] A [SEP] [SEP] B [SEP]``."""
        return laid_out(token_ids_0, token_ids_1, cls=[self.cls_token_id], sep=[self.sep_token_id])

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for each special token of the row that these ids make, 0 for the ids themselves.

        With ``already_has_special_tokens``, ``token_ids_0`` is a whole row, in which [CLS] and [SEP] count as special.

        Raises:
            InvalidInputError: A second sequence beside a whole row.
        """
        if not already_has_special_tokens:
            second = None if token_ids_1 is None else [0] * len(token_ids_1)
            return laid_out([0] * len(token_ids_0), second, cls=[1], sep=[1])
        if token_ids_1 is not None:
            raise InvalidInputError(
                "A row that already has special tokens comes as token_ids_0 alone; leave token_ids_1 out."
            )
        return [int(i in (self.cls_token_id, self.sep_token_id)) for i in token_ids_0]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Token types of the row that these ids make: 0 up to the first text's end, then 1.

        ErnieM itself has no token types. As in the reference, the first text's [SEP] counts with the second text.
        """
        if token_ids_1 is None:
            return [0] * (len(token_ids_0) + 2)
        return [0] * (len(token_ids_0) + 1) + [1] * (len(token_ids_1) + 3)
