"""The public tokenizer."""

from __future__ import annotations

import operator
from copy import copy
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from erniem_rt.checks import require_choice, require_count
from erniem_rt.errors import ArtifactError, InvalidInputError
from erniem_rt.files import as_path
from erniem_rt.locations import find_folder
from erniem_rt.machine import threads_or_default
from erniem_rt.processes import Workers
from erniem_rt.tokenizer.encoding import (
    BatchEncoding,
    Encoding,
    Kept,
    Layout,
    Padding,
    TokenizedText,
    TokenizedTexts,
    Truncation,
    kept_tokens,
    padded_length,
)
from erniem_rt.tokenizer.pieces import (
    XLM_ROBERTA_FIRST,
    XLM_ROBERTA_LAST,
    PieceTable,
    SentencePieceModel,
    TextSplitter,
    readable,
)
from erniem_rt.tokenizer.settings import (
    FAST_FILE,
    MODEL_FILE,
    SORTED_FILE,
    VOCABULARY_FILE,
    Side,
    TokenizerSettings,
    check_exported,
    exported_files,
    read_settings,
)
from erniem_rt.tokenizer.vocabulary import TokenList, Vocabulary, decode, read_vocabulary

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from erniem_rt.tokenizer.pieces import Segment

# The number of sentencepiece's first pieces, <unk>, <s> and </s>, which fairseq replaces.
_SENTENCEPIECE_FIRST = 3

_Value = TypeVar("_Value")


class Tokenizer:
    """Text to rows of ids and back, with the ids of the reference ``ErnieMTokenizer``.

    With ``settings.family = "xlm-roberta"`` the ids are those of ``XLMRobertaTokenizer``, and the special tokens are
    ``<s>``, ``</s>``, ``<pad>``, ``<unk>`` and ``<mask>``.

    A row is ``[CLS] A [SEP]`` or ``[CLS] A [SEP] [SEP] B [SEP]``. A tokenizer is immutable, and threads may share it.

    Offsets are half-open ranges of code points in the given text. Their starts and ends never decrease along a row.
    They cover the characters that the model's normalization turned into the token, without the whitespace before a word
    and without dropped characters. Tokens from one character's expansion (``㍻`` gives ``平`` and ``成``) share that
    character's range. A token that is only the word-start mark ``▁`` has the range of the first whitespace character in
    its run; in XLM-R, of the next character. Lone surrogates are read as U+FFFD.

    Args:
        sentencepiece_model: The sentencepiece model.
        vocab_file: A token per line, in the order of the ids. By default the model's own pieces and ids. XLM-R has
            none: its ids follow from the model's.
        settings: Special tokens, casing, limits and sides; by default the reference's. Also an attribute.

    Raises:
        ArtifactError: A file is missing or damaged; the message names it.
        EngineUnavailableError: sentencepiece is not installed.
    """

    def __init__(
        self,
        sentencepiece_model: str | os.PathLike[str],
        vocab_file: str | os.PathLike[str] | None = None,
        *,
        settings: TokenizerSettings | None = None,
    ) -> None:
        self.settings = settings or TokenizerSettings()
        self._model, self._vocabulary = _load(
            as_path("sentencepiece_model", sentencepiece_model),
            None if vocab_file is None else as_path("vocab_file", vocab_file),
            self.settings,
        )
        self._name_tokens()
        self._make_tools()

    def with_settings(self, settings: TokenizerSettings) -> Tokenizer:
        """Return a tokenizer with other settings, without reading the files again."""
        made = copy(self)
        made.settings, made._vocabulary = settings, self._vocabulary.with_settings(settings)
        made._name_tokens()
        made._make_tools()
        return made

    def _name_tokens(self) -> None:
        self._named = {name: token.content for name, token in self.settings.special_tokens.items()}
        self._named_ids = {name: self._vocabulary.id_of(token) for name, token in self._named.items()}

    def _make_tools(self) -> None:
        self._splitter = TextSplitter(
            self._vocabulary.added.values(),
            [token.content for token in self.settings.all_special_tokens],
            do_lower_case=self.settings.do_lower_case,
            split_special_tokens=self.settings.split_special_tokens,
            covers_stripped=self._is_xlm_roberta,
        )
        self._table = PieceTable(
            self._model,
            self._vocabulary.ids_of,
            drop_lone_marks=self.settings.drop_lone_marks,
            whole_pieces=self._is_xlm_roberta,
        )

    @property
    def _is_xlm_roberta(self) -> bool:
        return self.settings.family == "xlm-roberta"

    def __getstate__(self) -> dict[str, Any]:
        """Return the content of the model and the vocabulary, so that unpickling needs no files."""
        return {name: value for name, value in vars(self).items() if name not in ("_splitter", "_table")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_tools()

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Tokenizer:
        """Load from an exported folder or a checkpoint's.

        Reads ``sentencepiece.bpe.model`` (in an exported folder, its copy that loads faster) and, where present,
        ``vocab.txt``, ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``. An XLM-R
        checkpoint may have ``tokenizer.json`` in place of the first; ``tokenizer_config.json`` or ``config.json`` names
        the tokenizer's class.

        Args:
            path: The folder, an artifact in it, or its hub id (with ``pip install "erniem-rt[hub]"``).
            verify: In an exported folder, compare these files' sizes and hashes with its manifests.

        Raises:
            ArtifactError: A file is missing or damaged.
            EngineUnavailableError: sentencepiece is not installed.
        """
        folder = find_folder(path)
        if not folder.is_dir():
            raise ArtifactError(f"Expected a folder with {MODEL_FILE} at {folder}, but there is no such folder.")
        listed = exported_files(folder)
        if verify and listed:
            check_exported(folder, listed)
        if not (folder / MODEL_FILE).exists() and listed is not None and MODEL_FILE not in listed:
            raise ArtifactError(
                f"{folder} has no {MODEL_FILE}: its checkpoint had no tokenizer files when it was exported. Put them "
                "into the checkpoint's folder and export again, or give ids to a Session."
            )
        vocab_file, settings = folder / VOCABULARY_FILE, read_settings(folder)
        if settings.family == "xlm-roberta":
            has_model = (folder / MODEL_FILE).exists() or not (folder / FAST_FILE).exists()
            return cls(folder / (MODEL_FILE if has_model else FAST_FILE), settings=settings)
        model = folder / MODEL_FILE
        if not vocab_file.exists():
            return cls(model, settings=settings)
        faster = SORTED_FILE in (listed or ())
        made = cls(folder / SORTED_FILE if faster else model, vocab_file, settings=settings)
        made._model.original = model.absolute() if faster else None
        return made

    def __call__(
        self,
        text: str,
        pair: str | None = None,
        *,
        truncation: Truncation | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> Encoding:
        """Encode one text, or a pair, as one row.

        Args:
            text: The first text.
            pair: The second text.
            truncation: Which text to shorten. None: neither; a row longer than ``max_length`` is an error.
            max_length: Longest row in tokens, special tokens included. With ``truncation`` it defaults to the
                checkpoint's ``model_max_length``.
            add_special_tokens: Put [CLS] and [SEP] around the texts.

        Raises:
            InvalidInputError: A text is not str, or the row cannot be shortened to ``max_length``.
        """
        require_choice("truncation", truncation, Truncation, optional=True)
        _check_text("text", text)
        if pair is not None:
            _check_text("pair", pair)
        added = self.num_special_tokens_to_add(pair is not None) if add_special_tokens else 0
        limit = self._limit(max_length, truncation, added)
        first = self._tokenized(text)
        second = None if pair is None else self._tokenized(pair)
        kept = self._kept(len(first.ids), None if second is None else len(second.ids), added, limit, truncation)
        return self._row(first.part(kept[0]), second and second.part(kept[1]), add_special_tokens)

    def batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        padding: Padding | None = "longest",
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        truncation: Truncation | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        threads: int | None = None,
    ) -> BatchEncoding:
        """Encode many texts, or pairs, as rows of one length. Much faster than one by one.

        Args:
            texts: The first texts.
            pairs: The second texts, as many.
            padding: Pad to the longest row, or to ``max_length``. None: all rows must have the same length.
            pad_to_multiple_of: Round the length up to a multiple of this.
            padding_side: "right" or "left"; by default the checkpoint's side.
            truncation: As for one text.
            max_length: As for one text. It defaults to ``model_max_length`` with ``padding="max_length"`` too.
            add_special_tokens: As for one text.
            threads: Threads for sentencepiece, which does most of the work; None: as for a session.

        Returns:
            int64 arrays ``(batch, sequence)``; offsets and padded rows are computed on first use.

        Raises:
            InvalidInputError: As for one text; also for an empty batch, or if the numbers of texts and pairs differ.
        """
        require_choice("padding", padding, Padding, optional=True)
        require_choice("padding_side", padding_side, Side, optional=True)
        require_choice("truncation", truncation, Truncation, optional=True)
        _check_batch(texts, pairs)
        limit = max_length
        if padding == "max_length" and limit is None:
            limit = self.settings.model_max_length
        _check_multiple(pad_to_multiple_of, limit if truncation and padding else None)
        added = self.num_special_tokens_to_add(pairs is not None) if add_special_tokens else 0
        limit = self._limit(limit, truncation, added)
        tokenized = self._tokenized_together([*texts, *(pairs or ())], threads_or_default(threads))

        def cut(length: int, other: int | None) -> tuple[slice, slice]:
            return self._kept(length, other, added, limit, truncation)

        kept = Kept.of(tokenized.sizes, len(texts), None if limit is None else limit - added, cut)
        lengths = kept.lengths(added).tolist()
        layout = Layout(
            kept,
            length=padded_length(lengths, padding, limit, pad_to_multiple_of),
            with_special_tokens=add_special_tokens,
            side=padding_side or self.settings.padding_side,
        )
        return BatchEncoding.of(
            tokenized, layout, cls_id=self.cls_token_id, sep_id=self.sep_token_id, pad_id=self.pad_token_id
        )

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of one text, without special tokens around them."""
        _check_text("text", text)
        return [token for segment in self._splitter.split(text) for token in self._tokens(segment)[0]]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids. It stays normalized, and unknown ids become the unknown token."""
        return decode(_checked_ids(ids), self._vocabulary, self.settings, skip_special_tokens=skip_special_tokens)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """Return the id of a token, or the ids of several; unknown tokens give the id of ``unk_token``."""
        if isinstance(tokens, str):
            return self._vocabulary.id_of(tokens)
        return self._vocabulary.ids_of(_checked_tokens(tokens))

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...

    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]: ...

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | list[str]:
        """Return the token of an id, or the tokens of several; unknown ids give ``unk_token``."""
        if isinstance(ids, (int, np.integer)):
            return self._vocabulary.token_of(int(ids))
        return [self._vocabulary.token_of(i) for i in _checked_ids(ids)]

    @property
    def vocab_size(self) -> int:
        """The size of the base vocabulary, without added tokens, which ``len(tokenizer)`` includes."""
        return self._vocabulary.base_size

    def __len__(self) -> int:
        return len(self._vocabulary)

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id, added tokens included."""
        return self._vocabulary.all()

    @property
    def cls_token(self) -> str:
        """The token at the start of a row."""
        return self._named["cls_token"]

    @property
    def sep_token(self) -> str:
        """The token at the end of a text."""
        return self._named["sep_token"]

    @property
    def pad_token(self) -> str:
        """The token for padding."""
        return self._named["pad_token"]

    @property
    def unk_token(self) -> str:
        """The token for text that the vocabulary lacks."""
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
        """Return the number of special tokens in a row: 2, or 4 for a pair."""
        return 4 if pair else 2

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Return the row of one or two texts' ids: ``[CLS] A [SEP]`` or ``[CLS] A [SEP] [SEP] B [SEP]``."""
        return _laid_out(token_ids_0, token_ids_1, cls=[self.cls_token_id], sep=[self.sep_token_id])

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for each special token of the row of these ids, 0 for the ids themselves.

        With ``already_has_special_tokens``, ``token_ids_0`` is a whole row, in which [CLS] and [SEP] are special.

        Raises:
            InvalidInputError: A second sequence beside a whole row.
        """
        if not already_has_special_tokens:
            second = None if token_ids_1 is None else [0] * len(token_ids_1)
            return _laid_out([0] * len(token_ids_0), second, cls=[1], sep=[1])
        if token_ids_1 is not None:
            raise InvalidInputError(
                "A row that already has special tokens comes as token_ids_0 alone; leave token_ids_1 out."
            )
        return [int(i in (self.cls_token_id, self.sep_token_id)) for i in token_ids_0]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Return the token types of the row of these ids: 0 up to the first text's end, then 1.

        Neither model has token types. As in the reference, the first text's [SEP] has type 1; in XLM-R all types are 0.
        """
        if self._is_xlm_roberta:
            return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))
        if token_ids_1 is None:
            return [0] * (len(token_ids_0) + 2)
        return [0] * (len(token_ids_0) + 1) + [1] * (len(token_ids_1) + 3)

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write ``vocab.txt`` (the base vocabulary) and ``sentencepiece.bpe.model`` into an existing folder.

        XLM-R has no ``vocab.txt``.

        Args:
            save_directory: The folder.
            filename_prefix: Prefix of the vocabulary's name, before a hyphen; the model's name has none.

        Returns:
            The paths of these files.

        Raises:
            InvalidInputError: The folder does not exist.
        """
        folder = as_path("save_directory", save_directory)
        if not folder.is_dir():
            raise InvalidInputError(f"save_directory must be an existing folder, got {folder}.")
        model_file = folder / MODEL_FILE
        model_file.write_bytes(self._model.serialized())
        if self._is_xlm_roberta:
            return (str(model_file),)
        vocab_file = folder / (f"{filename_prefix}-{VOCABULARY_FILE}" if filename_prefix else VOCABULARY_FILE)
        vocab_file.write_text(self._vocabulary.text(), encoding="utf-8", newline="\n")
        return str(vocab_file), str(model_file)

    def _tokenized_together(self, texts: Sequence[str], threads: int) -> TokenizedTexts:
        """Tokenize with one call of sentencepiece and a table of its pieces.

        Texts with added tokens or with unknown characters are tokenized one by one.
        """
        whole = self._splitter.whole(texts)
        runs = readable([run or "" for run in whole])
        pieces, ends = self._model.encode(runs, threads)
        others = {i for i, run in enumerate(whole) if run is None}
        unknown = np.flatnonzero(pieces == self._model.unknown_id)
        others.update(np.searchsorted(ends, unknown, side="right").tolist())
        tokens = self._table.look_up(pieces, ends)
        found = self._tokenized_all([texts[i] for i in others])
        return TokenizedTexts(runs, tokens, dict(zip(others, found, strict=True)), self._model)

    def _tokenized(self, text: str) -> TokenizedText:
        return self._tokenized_all([text])[0]

    def _tokenized_all(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize each text alone, and look up all ids together, which is faster."""
        segments = [self._splitter.split(text) for text in texts]
        tokens = [[self._tokens(segment) for segment in row] for row in segments]
        ids = iter(self._vocabulary.ids_of(token for row in tokens for found, _ in row for token in found))
        return [
            TokenizedText(
                list(islice(ids, sum(len(found) for found, _ in row))),
                partial(self._located, parts, [spans for _, spans in row]),
            )
            for parts, row in zip(segments, tokens, strict=True)
        ]

    def _tokens(self, segment: Segment) -> tuple[list[str], list[tuple[int, int]]]:
        if self._splitter.is_added(segment.text):
            return [segment.text], [(0, len(segment.text))]
        return self._model.tokenize(
            segment.text, drop_lone_marks=self.settings.drop_lone_marks, whole_pieces=self._is_xlm_roberta
        )

    def _located(self, segments: list[Segment], spans: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
        """Return the ranges of the segments' tokens in the text."""
        offsets: list[tuple[int, int]] = []
        for segment, ranges in zip(segments, spans, strict=True):
            if not self._splitter.is_added(segment.text):
                ranges = self._model.source_spans(segment.text, ranges)
            origins = segment.origins
            moved = origins != range(len(origins))
            offsets += [(origins[start], origins[end - 1] + 1) for start, end in ranges] if moved else ranges
        return offsets

    def _kept(
        self, length: int, other: int | None, added: int, limit: int | None, truncation: Truncation | None
    ) -> tuple[slice, slice]:
        total = length + (other or 0) + added
        excess = 0 if limit is None else total - limit
        if excess > 0 and truncation is None:
            raise InvalidInputError(
                f"The row has {total} tokens, more than max_length={limit}. Pass truncation='longest_first' "
                "(or 'only_first', 'only_second') to cut it, or a larger max_length."
            )
        return kept_tokens(
            length,
            other,
            excess=excess,
            strategy=truncation,
            side=self.settings.truncation_side,
            odd_to_longer=self._is_xlm_roberta,
        )

    def _limit(self, max_length: int | None, truncation: Truncation | None, added: int) -> int | None:
        if max_length is None:
            if truncation is None:
                return None
            max_length = self.settings.model_max_length
            if max_length is None:
                raise InvalidInputError("truncation needs max_length: the tokenizer's files name no model_max_length.")
        max_length = require_count("max_length", max_length)
        if max_length < added:
            raise InvalidInputError(f"max_length={max_length} is less than the {added} special tokens of the row.")
        return max_length

    def _row(self, first: TokenizedText, second: TokenizedText | None, add_special_tokens: bool) -> Encoding:
        def row(one: list[Any], two: list[Any], cls: Any, sep: Any) -> list[Any]:
            inserted = ([cls], [sep]) if add_special_tokens else ([], [])
            return _laid_out(one, None if second is None else two, cls=inserted[0], sep=inserted[1])

        other = second or TokenizedText([], list)
        count, other_count = len(first.ids), len(other.ids)
        ids = row(first.ids, other.ids, self.cls_token_id, self.sep_token_id)
        return Encoding(
            input_ids=ids,
            attention_mask=[1] * len(ids),
            offsets=row(first.offsets, other.offsets, (0, 0), (0, 0)),
            special_tokens_mask=row([0] * count, [0] * other_count, 1, 1),
            sequence_ids=row([0] * count, [1] * other_count, None, None),
        )


def _load(model: Path, vocab_file: Path | None, settings: TokenizerSettings) -> tuple[SentencePieceModel, Vocabulary]:
    """Load both files in parallel: sentencepiece releases the GIL while it builds its tables."""
    if vocab_file is None or settings.family == "xlm-roberta":
        loaded = SentencePieceModel(model)
        pieces = loaded.pieces()
        if settings.family == "xlm-roberta":
            pieces = [*XLM_ROBERTA_FIRST, *pieces[_SENTENCEPIECE_FIRST:], XLM_ROBERTA_LAST]
        return loaded, Vocabulary(TokenList.of(pieces), settings)
    with Workers(1) as pool:
        loading = pool.submit(SentencePieceModel, model)
        try:
            vocabulary = Vocabulary(read_vocabulary(vocab_file), settings)
        except ArtifactError:
            loading.result()  # report a bad model, or a missing sentencepiece, first
            raise
        return loading.result(), vocabulary


def _laid_out(
    first: Sequence[_Value], second: Sequence[_Value] | None, *, cls: Sequence[_Value], sep: Sequence[_Value]
) -> list[_Value]:
    """Return ``[CLS] A [SEP]`` or ``[CLS] A [SEP] [SEP] B [SEP]``."""
    if second is None:
        return [*cls, *first, *sep]
    return [*cls, *first, *sep, *sep, *second, *sep]


def _check_text(name: str, value: object) -> None:
    """Raise unless ``value`` is a str."""
    if not isinstance(value, str):
        hint = "; batch() takes several texts" if isinstance(value, (list, tuple)) else ""
        raise InvalidInputError(f"{name} must be str, not {type(value).__name__}{hint}.")


def _check_batch(texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    """Raise unless both are non-empty lists of str of the same length."""
    for name, values in (("texts", texts), ("pairs", pairs)):
        if values is not None and not isinstance(values, (list, tuple)):
            raise InvalidInputError(f"{name} must be a list of str, not {type(values).__name__}.")
    if not texts:
        raise InvalidInputError("A batch needs at least one text.")
    if pairs is not None and len(pairs) != len(texts):
        raise InvalidInputError(f"There must be as many pairs as texts, not {len(pairs)} pairs for {len(texts)} texts.")
    for name, values in (("text", texts), ("pair", pairs or ())):
        _check_texts(name, values)


def _checked_ids(ids: Iterable[int]) -> list[int]:
    """Return the ids as Python integers; raise unless they are integers."""
    return [_checked_id(i) for i in _iterator("ids", "integers", ids)]


def _checked_tokens(tokens: Iterable[str]) -> list[str]:
    """Return the tokens as a list; raise unless they are str."""
    found = list(_iterator("tokens", "str", tokens))
    _check_texts("token", found)
    return found


def _check_multiple(multiple_of: int | None, limit: int | None) -> None:
    """Raise unless rows cut to ``limit`` tokens stay within it when padded to a multiple."""
    if multiple_of is None:
        return
    multiple_of = require_count("pad_to_multiple_of", multiple_of)
    if limit is not None and limit % multiple_of:
        raise InvalidInputError(
            f"max_length={limit} is not a multiple of pad_to_multiple_of={multiple_of}, so rows that were cut would "
            "grow beyond it again."
        )


def _checked_id(value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise InvalidInputError(f"ids must be a list of integers; one is {type(value).__name__}.") from error


def _check_texts(name: str, values: Sequence[str]) -> None:
    if set(map(type, values)) - {str}:
        for value in values:
            _check_text(name, value)


def _iterator(name: str, of: str, values: Iterable[_Value]) -> Iterator[_Value]:
    try:
        return iter(values)
    except TypeError as error:  # also for a 0-d array, which claims to be iterable
        raise InvalidInputError(f"{name} must be a list of {of}, not {type(values).__name__}.") from error
