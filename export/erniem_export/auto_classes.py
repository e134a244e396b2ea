"""ErnieM's auto classes and a tokenizer for training on transformers 5, which has no ErnieM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import transformers
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer

from erniem_export import modeling
from erniem_export.configuration import ErnieMConfig
from erniem_rt.tokenizer import AddedToken as OurToken
from erniem_rt.tokenizer import Tokenizer, TokenizerSettings

_NAMED = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NOWHERE = (0, 0)
_MODELS = {
    "AutoModel": modeling.ErnieMModel,
    "AutoModelForSequenceClassification": modeling.ErnieMForSequenceClassification,
    "AutoModelForMultipleChoice": modeling.ErnieMForMultipleChoice,
    "AutoModelForTokenClassification": modeling.ErnieMForTokenClassification,
    "AutoModelForQuestionAnswering": modeling.ErnieMForQuestionAnswering,
}


def register() -> None:
    """Register ErnieM with the auto classes of transformers, unless it has its own ErnieM, like 4.57."""
    if ErnieMConfig.model_type in transformers.CONFIG_MAPPING:
        return
    transformers.AutoConfig.register(ErnieMConfig.model_type, ErnieMConfig)
    for name, model in _MODELS.items():
        getattr(transformers, name).register(ErnieMConfig, model)
    transformers.AutoTokenizer.register(ErnieMConfig, tokenizer_class=ErnieMTokenizer)


class ErnieMTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """The reference's tokenizer on transformers 5, in its Python ("slow") form, with the reference's ids.

    Unlike the reference it returns an ``attention_mask``, and ``return_offsets_mapping`` works: half-open ranges of
    characters of the text (of the word, if texts are split into words), ``(0, 0)`` for special tokens and padding.

    Args:
        sentencepiece_model_ckpt: Path of the sentencepiece model.
        vocab_file: Path of the vocabulary, a token per line; None for the model's own.
        do_lower_case: Lower-case everything but special tokens.
        encoding: Not used; the reference's argument.
        unk_token, sep_token, pad_token, cls_token, mask_token: The special tokens.
        sp_model_kwargs: Options of sentencepiece; must be empty.
        drop_lone_marks: Drop word-start marks without text, as PaddleNLP's tokenizer does.
        **kwargs: Options of :class:`transformers.PreTrainedTokenizer`.

    Raises:
        ArtifactError: A file is missing or damaged.
        ValueError: ``sp_model_kwargs`` is not empty.
    """

    vocab_files_names = {"vocab_file": "vocab.txt", "sentencepiece_model_ckpt": "sentencepiece.bpe.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        sentencepiece_model_ckpt: str,
        vocab_file: str | None = None,
        do_lower_case: bool = False,
        encoding: str = "utf8",
        unk_token: str = "[UNK]",
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
        cls_token: str = "[CLS]",
        mask_token: str = "[MASK]",
        sp_model_kwargs: dict[str, Any] | None = None,
        drop_lone_marks: bool = False,
        **kwargs: Any,
    ) -> None:
        if sp_model_kwargs:
            raise ValueError(f"sp_model_kwargs={sp_model_kwargs!r} is not supported; leave it out")
        self.do_lower_case, self.drop_lone_marks = do_lower_case, drop_lone_marks
        self._files = (sentencepiece_model_ckpt, vocab_file)
        self._plain = Tokenizer(*self._files)
        self._made: Tokenizer | None = None
        self.vocab = {token: i for token, i in self._plain.get_vocab().items() if i < self._plain.vocab_size}
        super().__init__(
            do_lower_case=do_lower_case,
            drop_lone_marks=drop_lone_marks,
            vocab_file=vocab_file,
            encoding=encoding,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """The size of the base vocabulary; ``len(tokenizer)`` counts added tokens too."""
        return len(self.vocab)

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id, added tokens included."""
        return {**self.vocab, **self._added_tokens_encoder}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Return the tokens of a text, without special tokens around them."""
        return self._text_tokenizer(kwargs.get("split_special_tokens")).tokenize(text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Return ``[CLS] A [SEP]`` or ``[CLS] A [SEP] [SEP] B [SEP]``."""
        cls, sep = [self.cls_token_id], [self.sep_token_id]
        row = [*cls, *token_ids_0, *sep]
        return row if token_ids_1 is None else [*row, *sep, *token_ids_1, *sep]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """See :meth:`Tokenizer.get_special_tokens_mask`."""
        return self._plain.get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens)

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """See :meth:`Tokenizer.create_token_type_ids_from_sequences`."""
        return self._plain.create_token_type_ids_from_sequences(token_ids_0, token_ids_1)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of tokens, which stays normalized."""
        return "".join(tokens).replace("▁", " ").strip()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write ``vocab.txt`` and ``sentencepiece.bpe.model``; return their paths."""
        return self._plain.save_vocabulary(save_directory, filename_prefix)

    def _convert_token_to_id(self, token: str) -> int:
        return self.vocab.get(token, self.vocab.get(str(self.unk_token), 0))

    def _convert_id_to_token(self, index: int) -> str:
        return self._plain.convert_ids_to_tokens(index) if index < self.vocab_size else str(self.unk_token)

    def _text_tokenizer(self, split_special_tokens: bool | None = None) -> Tokenizer:
        """Return our tokenizer with the current tokens and options, which may change during training."""
        split = bool(self.split_special_tokens if split_special_tokens is None else split_special_tokens)
        added = {index: _our_token(token) for index, token in self._added_tokens_decoder.items()}
        by_content = {token.content: token for token in added.values()}
        special = [by_content.get(content, OurToken(content)) for content in map(str, self.all_special_tokens)]
        named = {name: str(getattr(self, name)) for name in _NAMED}
        settings = TokenizerSettings(
            special_tokens={name: by_content.get(token, OurToken(token)) for name, token in named.items()},
            additional_special_tokens=tuple(token for token in special if token.content not in named.values()),
            added_tokens=added,
            do_lower_case=self.do_lower_case,
            split_special_tokens=split,
            drop_lone_marks=self.drop_lone_marks,
        )
        if self._made is None or self._made.settings != settings:
            self._made = self._plain.with_settings(settings)
        return self._made

    def _encode_plus(
        self, text: Any, text_pair: Any = None, *, return_offsets_mapping: bool = False, **kwargs: Any
    ) -> BatchEncoding:
        batch = isinstance(text, (list, tuple)) and not (kwargs.get("is_split_into_words") and _are_words(text))
        if not return_offsets_mapping:
            return super()._encode_plus(text, text_pair, **kwargs)
        if batch:  # the base class calls this method again for each row
            return super()._encode_plus(text, text_pair, return_offsets_mapping=True, **kwargs)
        return self._with_offsets(text, text_pair, **kwargs)

    def _with_offsets(self, text: Any, text_pair: Any, **kwargs: Any) -> BatchEncoding:
        """Encode one row, with a unique negative number in place of each token during truncation and padding."""
        split = kwargs.pop("split_special_tokens", None)
        kwargs.pop("is_split_into_words", None)
        tensors = kwargs.pop("return_tensors", None)
        first = self._located(text, split)
        second = None if text_pair is None else self._located(text_pair, split)
        tokens = [*first, *(second or [])]
        encoded = self.prepare_for_model(
            [-1 - i for i in range(len(first))],
            pair_ids=None if second is None else [-1 - i for i in range(len(first), len(tokens))],
            padding=kwargs.pop("padding_strategy"),
            truncation=kwargs.pop("truncation_strategy"),
            **kwargs,
        )
        found = dict(encoded)
        found["offset_mapping"] = [tokens[-1 - i][1] if i < 0 else _NOWHERE for i in found["input_ids"]]
        for key in {"input_ids", "overflowing_tokens"} & found.keys():
            found[key] = [tokens[-1 - i][0] if i < 0 else i for i in found[key]]
        return BatchEncoding(found, tensor_type=tensors, prepend_batch_axis=True)

    def _located(self, text: Any, split: bool | None) -> list[tuple[int, tuple[int, int]]]:
        """Return the id and the range of characters of every token of a text, or of words."""
        reader = self._text_tokenizer(split)
        found = []
        for part in [text] if isinstance(text, str) else text:
            row = reader(part, add_special_tokens=False)
            found += list(zip(row.input_ids, row.offsets, strict=True))
        return found

    def _pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> Any:
        padded = super()._pad(encoded_inputs, *args, **kwargs)
        if "offset_mapping" in padded:
            offsets = list(padded["offset_mapping"])
            missing = [_NOWHERE] * (len(padded["input_ids"]) - len(offsets))
            left = (kwargs.get("padding_side") or self.padding_side) == "left"
            padded["offset_mapping"] = [*missing, *offsets] if left else [*offsets, *missing]
        return padded


def _are_words(text: Sequence[Any]) -> bool:
    return all(isinstance(word, str) for word in text)


def _our_token(token: AddedToken) -> OurToken:
    fields = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    return OurToken(**cast("dict[str, Any]", {name: getattr(token, name) for name in fields}))
