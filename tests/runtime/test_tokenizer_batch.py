"""Batches: the fast path over many texts gives what the plain path gives for each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from erniem_rt.errors import InvalidInputError
from erniem_rt.tokenizer import AddedToken, Encoding, Tokenizer, TokenizerSettings

AWKWARD = [*" \t\u3000\u200b▁\u0000\u0007\u0301İΣßﬁ½㍻ﷺ…ｶﾞ🦊中가\u1100\u1161，。?1２٣²aB\ud800"]
MARKUP = ["[MASK]", "[CLS]", "<ent>", " xx ", "xx"]
WORDS = ["The", " wrote ", "letters", " 1897,", " lighthouse keeper ", "图书馆"]
TEXTS = st.lists(st.sampled_from([*AWKWARD, *MARKUP, *WORDS * 4]) | st.characters(), max_size=16).map("".join)
ADDED = TokenizerSettings(
    do_lower_case=True,
    truncation_side="left",
    additional_special_tokens=(AddedToken("<ent>", lstrip=True), AddedToken("xx", single_word=True)),
)


def load(folder: Path, options: TokenizerSettings) -> Tokenizer:
    return Tokenizer(folder / "sentencepiece.bpe.model", folder / "vocab.txt", settings=options)


@pytest.fixture(
    scope="module", params=[TokenizerSettings(), ADDED], ids=["plain", "lower-cased, added tokens, cut on the left"]
)
def tokenizer(tokenizer_dir: Path, request: pytest.FixtureRequest) -> Tokenizer:
    return load(tokenizer_dir, request.param)


def padded(row: Encoding, length: int, pad_id: int, side: str) -> Encoding:
    """The oracle of padding, field by field."""
    count = length - len(row)
    fillers = {"input_ids": pad_id, "attention_mask": 0, "offsets": (0, 0), "special_tokens_mask": 1}
    columns = {}
    for name, values in vars(row).items():
        padding = [fillers.get(name)] * count
        columns[name] = padding + values if side == "left" else values + padding
    return replace(row, **columns)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the text of its error."""
    try:
        return call()
    except InvalidInputError as error:
        return str(error)


def check_batch(tokenizer: Tokenizer, texts: list[str], pairs: list[str] | None, side: Any, **options: Any) -> None:
    """Compare every field of every row with the tokenizer's answer to that row alone."""
    threads = options.pop("threads", 1)
    batch = outcome(lambda: tokenizer.batch(texts, pairs, padding_side=side, threads=threads, **options))
    questions = list(zip(texts, pairs or [None] * len(texts), strict=True))
    rows = outcome(lambda: [tokenizer(text, pair, **options) for text, pair in questions])
    if isinstance(rows, str):
        assert batch == rows
        return
    length = max(map(len, rows))
    expected = [padded(row, length, tokenizer.pad_token_id, side) for row in rows]
    assert batch.encodings == tuple(expected)
    assert batch.input_ids.tolist() == [row.input_ids for row in expected]
    assert batch.attention_mask.tolist() == [row.attention_mask for row in expected]
    assert [list(map(tuple, row)) for row in batch.offsets.tolist()] == [row.offsets for row in expected]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.offsets.dtype == np.int64
    assert batch.offsets.shape == (len(texts), length, 2)


@settings(max_examples=300)
@example(rows=[("", "")], paired=False, side="right", special=False, limit=None, strategy="longest_first", threads=1)
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5),
    paired=st.booleans(),
    side=st.sampled_from(["left", "right"]),
    special=st.booleans(),
    limit=st.none() | st.integers(4, 24),
    strategy=st.sampled_from(["longest_first", "only_first", "only_second"]),
    threads=st.integers(1, 3),
)
def test_batches_hold_the_rows_of_their_texts(tokenizer, rows, paired, side, special, limit, strategy, threads):
    texts, seconds = map(list, zip(*rows, strict=True))
    options = {"add_special_tokens": special, "max_length": limit, "truncation": strategy if limit else None}
    check_batch(tokenizer, texts, seconds if paired else None, side, threads=threads, **options)


def test_the_oracle_and_the_batch_take_different_paths(tokenizer_dir, monkeypatch):
    """A sentence of known words needs no piece of text; the comparison above would prove little otherwise."""
    tokenizer = Tokenizer.from_dir(tokenizer_dir)
    expected = tokenizer("The lighthouse keeper wrote").input_ids
    monkeypatch.delattr("erniem_rt.tokenizer.pieces.SentencePieceModel.tokenize")
    assert tokenizer.batch(["The lighthouse keeper wrote"]).input_ids.tolist() == [expected]
    with pytest.raises(AttributeError):
        tokenizer("The lighthouse keeper wrote")


def test_sentences(tokenizer, sentences):
    for threads in (1, 2, 4):
        check_batch(tokenizer, list(sentences), list(sentences[::-1]), "right", threads=threads)
        check_batch(tokenizer, list(sentences), None, "left", threads=threads)


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity"},
        {"model_type": "bpe"},
        {"user_defined_symbols": ["▁▁", "wrote"], "remove_extra_whitespaces": False},
    ],
    ids=str,
)
def test_models_of_other_kinds(train_sentencepiece, sentences, tmp_path, options):
    train_sentencepiece(tmp_path, sentences * 5, vocab_size=600, **options)
    tokenizer = Tokenizer.from_dir(tmp_path)
    texts = [*sentences, "  The  letters ", "The", " The", "\tThe\u3000", "▁", " ", "1 ▁ 2", "…ﬁ ½", "𠀀", "The"]
    check_batch(tokenizer, texts, texts[::-1], "right")


def test_pieces_are_learned_by_many_threads_at_once(tokenizer_dir, sentences):
    texts = [*sentences, "The [MASK] wrote", "\U000e0001 letters"]
    expected = Tokenizer.from_dir(tokenizer_dir).batch(texts).input_ids
    for _ in range(5):
        fresh = Tokenizer.from_dir(tokenizer_dir)
        rotated = [texts[i:] + texts[:i] for i in range(16)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(fresh.batch, rotated))
        for i, batch in enumerate(found):
            np.testing.assert_array_equal(np.roll(batch.input_ids, i, axis=0), expected)


def test_offsets_and_rows_are_made_once(tokenizer_dir):
    batch = Tokenizer.from_dir(tokenizer_dir).batch(["The", "letters wrote"])
    assert batch.offsets is batch.offsets
    assert batch.encodings is batch.encodings


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_are_counted(tokenizer, threads):
    with pytest.raises(InvalidInputError, match="threads must be an integer from 1 to 1024 or None"):
        tokenizer.batch(["The"], threads=threads)


class Work:
    """What a text costs by both paths, offsets included: calls, and characters that sentencepiece is given."""

    def __init__(self, tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.characters = 0
        self._processor: Any = tokenizer._model._processor
        monkeypatch.setattr(tokenizer._model, "_processor", self)
        sys.setprofile(self._count_call)
        try:
            tokenizer(text)
            assert tokenizer.batch([text]).offsets.size
        finally:
            sys.setprofile(None)
        monkeypatch.undo()

    def __getattr__(self, name: str) -> Any:
        def counted(texts: Any, **options: Any) -> Any:
            self.characters += sum(map(len, [texts] if isinstance(texts, str) else texts))
            return getattr(self._processor, name)(texts, **options)

        return counted

    def _count_call(self, _frame: Any, event: str, _argument: Any) -> None:
        self.calls += event in ("call", "c_call")


@pytest.mark.parametrize("unit", ["The lighthouse ", "x\u0007", "🦊", "[MASK] ", "图书馆，", "  "])
def test_ten_times_the_text_takes_ten_times_the_work(tokenizer, unit, monkeypatch):
    short, long = (Work(tokenizer, unit * (size // len(unit)), monkeypatch) for size in (2500, 25_000))
    assert long.calls < 11 * short.calls  # were it quadratic: 100 times
    assert long.characters < 11 * short.characters
    assert long.characters >= 25_000 // len(unit)
