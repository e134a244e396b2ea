"""The tokenizer's interface: rows, batches, vocabulary, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniem_rt.errors import EngineUnavailableError, InvalidInputError
from erniem_rt.tokenizer import AddedToken, Tokenizer, TokenizerSettings

CLS, PAD, SEP, UNK = 0, 1, 2, 3


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(tokenizer_dir)


def test_a_row_has_lists_of_one_length(tokenizer: Tokenizer) -> None:
    row = tokenizer("The letters", "wrote")
    words = tokenizer.convert_tokens_to_ids(["▁The", "▁letters", "▁wrote"])
    assert row.input_ids == [CLS, *words[:2], SEP, SEP, words[2], SEP]
    assert row.attention_mask == [1] * 7
    assert row.special_tokens_mask == [1, 0, 0, 1, 1, 0, 1]
    assert {len(row.offsets), len(row.sequence_ids), len(row)} == {7}
    with pytest.raises(FrozenInstanceError):
        row.input_ids = []  # type: ignore[misc]


def test_rows_without_special_tokens(tokenizer: Tokenizer) -> None:
    row = tokenizer("The letters", "wrote", add_special_tokens=False)
    assert row.sequence_ids == [0, 0, 1]
    assert row.special_tokens_mask == [0, 0, 0]
    assert row.offsets == [(0, 3), (4, 11), (0, 5)]


def test_special_tokens_written_in_a_text_are_not_inserted_ones(tokenizer: Tokenizer) -> None:
    row = tokenizer("The [MASK] wrote")
    assert row.input_ids[2] == tokenizer.mask_token_id
    assert row.special_tokens_mask == [1, 0, 0, 0, 1]
    assert row.offsets[2] == (4, 10)


@pytest.mark.parametrize("text", ["", " \n", "\u200b"])
def test_texts_of_nothing_give_only_special_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer(text).input_ids == [CLS, SEP]
    assert tokenizer(text, text).input_ids == [CLS, SEP, SEP, SEP]


@pytest.mark.parametrize(("side", "kept"), [("right", "The lighthouse"), ("left", "keeper wrote")])
def test_truncation_keeps_offsets_with_their_tokens(tokenizer_dir: Path, side: Any, kept: str) -> None:
    tokenizer = Tokenizer(
        tokenizer_dir / "sentencepiece.bpe.model",
        tokenizer_dir / "vocab.txt",
        settings=TokenizerSettings(truncation_side=side, model_max_length=4),
    )
    text = "The lighthouse keeper wrote"
    row = tokenizer(text, truncation="longest_first")
    assert " ".join(text[start:end] for start, end in row.offsets[1:-1]) == kept


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_arrays(tokenizer: Tokenizer, side: Any) -> None:
    batch = tokenizer.batch(["The lighthouse keeper", "The"], padding_side=side)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, 5)
    columns = slice(3, 5) if side == "right" else slice(0, 2)
    padded = batch.encodings[1]
    assert batch.input_ids[1, columns].tolist() == [PAD, PAD]
    assert batch.attention_mask[1].sum() == 3
    assert padded.offsets[columns] == [(0, 0), (0, 0)]
    assert padded.special_tokens_mask[columns] == [1, 1]
    assert padded.sequence_ids[columns] == [None, None]
    assert batch.input_ids.tolist() == [row.input_ids for row in batch.encodings]
    assert len(batch) == 2


def test_the_checkpoint_names_padding_side_and_limit(tokenizer_dir: Path) -> None:
    tokenizer = Tokenizer(
        tokenizer_dir / "sentencepiece.bpe.model",
        tokenizer_dir / "vocab.txt",
        settings=TokenizerSettings(padding_side="left", model_max_length=8),
    )
    batch = tokenizer.batch(["The"], padding="max_length")
    assert batch.input_ids[0, :5].tolist() == [PAD] * 5


def test_without_padding_rows_of_one_length_make_an_array(tokenizer: Tokenizer) -> None:
    assert tokenizer.batch(["The", "wrote"], padding=None).input_ids.shape == (2, 3)


def test_tokens_ids_and_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer("The lighthouse keeper").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[1] == "▁The"
    assert tokenizer.convert_ids_to_tokens(np.int64(CLS)) == "[CLS]"
    assert tokenizer.convert_ids_to_tokens(10**9) == "[UNK]"
    assert tokenizer.convert_tokens_to_ids("not a token") == UNK
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The lighthouse keeper"
    assert tokenizer.decode(np.array(ids)) == "[CLS] The lighthouse keeper[SEP]"
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab())


def test_added_tokens_get_ids_after_the_vocabulary(tokenizer_dir: Path) -> None:
    tokenizer = Tokenizer(
        tokenizer_dir / "sentencepiece.bpe.model",
        tokenizer_dir / "vocab.txt",
        settings=TokenizerSettings(additional_special_tokens=(AddedToken("<ent>"),)),
    )
    assert tokenizer.convert_tokens_to_ids("<ent>") == tokenizer.vocab_size == len(tokenizer) - 1
    assert tokenizer.tokenize("The<ent>wrote") == ["▁The", "<ent>", "▁wrote"]


def test_decoding_can_tidy_english_punctuation(tokenizer_dir: Path) -> None:
    model, vocabulary = tokenizer_dir / "sentencepiece.bpe.model", tokenizer_dir / "vocab.txt"
    tidy = Tokenizer(model, vocabulary, settings=TokenizerSettings(clean_up_tokenization_spaces=True))
    ids = tidy("The , ever", add_special_tokens=False).input_ids
    assert tidy.decode(ids) == "The, ever"
    assert Tokenizer(model, vocabulary).decode(ids) == "The , ever"


def test_threads_get_the_results_of_one(tokenizer: Tokenizer, sentences: tuple[str, ...]) -> None:
    expected = [tokenizer(sentence) for sentence in sentences * 4]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(tokenizer, sentences * 4)) == expected


def test_saving_needs_a_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    vocabulary, model = tokenizer.save_vocabulary(tmp_path, "tiny")
    assert Path(vocabulary).name == "tiny-vocab.txt"
    assert Tokenizer(model, vocabulary)("The 2021").input_ids == tokenizer("The 2021").input_ids
    with pytest.raises(InvalidInputError, match="must be an existing folder; there is none at "):
        tokenizer.save_vocabulary(tmp_path / "missing")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t(None), "text must be str, not NoneType"),
        (lambda t: t(b"The"), "text must be str, not bytes"),
        (lambda t: t(["The"]), r"text must be str, not list; batch\(\) takes several texts"),
        (lambda t: t("The", 5), "pair must be str, not int"),
        (
            lambda t: t("The", truncation="longest"),
            "truncation must be one of longest_first, .* or None, got 'longest'",
        ),
        (lambda t: t("The", truncation="longest_first"), "truncation needs max_length"),
        (lambda t: t("The", max_length=1), "max_length=1 is less than the 2 special tokens"),
        (lambda t: t("The", "3", truncation="longest_first", max_length=3), "less than the 4 special tokens"),
        (lambda t: t("The", max_length=0, add_special_tokens=False), "max_length must be an integer of at least 1"),
        (lambda t: t("The", max_length=2.5), "max_length must be an integer of at least 1, got 2.5"),
        (lambda t: t("The lighthouse", max_length=3), "row has 4 tokens, more than max_length=3. Pass truncation="),
        (lambda t: t("The", truncation="only_second", max_length=2), "remove 1 tokens, but the second text has 0"),
        (
            lambda t: t("The", "The letters", truncation="only_first", max_length=4),
            "remove 3 tokens, but the first text has 1",
        ),
        (lambda t: t.batch([]), "at least one text"),
        (lambda t: t.batch("The"), "texts must be a list of str, not str"),
        (lambda t: t.batch(["The", 3]), "text must be str, not int"),
        (lambda t: t.batch(["The"], ["a", "b"]), "as many pairs as texts, not 2 pairs for 1 texts"),
        (lambda t: t.batch(["The"], padding=True), "padding must be one of longest, max_length or None, got True"),
        (lambda t: t.batch(["The"], padding_side="top"), "padding_side must be one of left, right or None"),
        (lambda t: t.batch(["The"], padding="max_length"), "padding='max_length' needs max_length"),
        (lambda t: t.batch(["The", "The letters"], padding=None), "Rows of different lengths"),
        (lambda t: t.batch(["The"], padding=None, pad_to_multiple_of=8), "pad_to_multiple_of needs padding"),
        (lambda t: t.batch(["The"], pad_to_multiple_of=0), "pad_to_multiple_of must be an integer of at least 1"),
        (
            lambda t: t.batch(["The"], truncation="longest_first", max_length=9, pad_to_multiple_of=8),
            "max_length=9 is not a multiple of pad_to_multiple_of=8",
        ),
        (lambda t: t.batch(["The"], truncation=np.array(["a", "b"])), "truncation must be one of longest_first"),
        (lambda t: t.decode(5), "ids must be a list of integers, not int"),
        (lambda t: t.decode(np.array(5)), "ids must be a list of integers, not ndarray"),
        (lambda t: t.decode([0, 1.5]), "ids must be a list of integers; one is float"),
        (lambda t: t.decode("12"), "ids must be a list of integers; one is str"),
        (lambda t: t.decode([[0, 2]]), "ids must be a list of integers; one is list"),
        (lambda t: t.convert_ids_to_tokens(None), "ids must be a list of integers, not NoneType"),
        (lambda t: t.convert_ids_to_tokens(np.array([1.5])), "ids must be a list of integers; one is float64"),
        (lambda t: t.convert_tokens_to_ids(None), "tokens must be a list of str, not NoneType"),
        (lambda t: t.convert_tokens_to_ids(["The", 3]), "token must be str, not int"),
        (lambda t: t.convert_tokens_to_ids([["The"]]), "token must be str, not list"),
        (lambda t: Tokenizer.from_dir(None), "path must be a str or a path, got NoneType"),
        (lambda t: Tokenizer(b"spm.model"), "sentencepiece_model must be a str or a path, got bytes"),
        (lambda t: Tokenizer("spm.model", 3), "vocab_file must be a str or a path, got int"),
        (lambda t: t.save_vocabulary(None), "save_directory must be a str or a path, got NoneType"),
        (lambda t: t.get_special_tokens_mask([0], [1], already_has_special_tokens=True), "leave token_ids_1 out"),
    ],
)
def test_bad_arguments_are_named(tokenizer: Tokenizer, call: Callable[[Any], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call(tokenizer)


def test_a_missing_sentencepiece_is_named(tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(EngineUnavailableError, match=r'pip install "erniem-rt\[text\]"'):
        Tokenizer.from_dir(tokenizer_dir)
