"""Texts encoded together are the rows that they are alone, and pipelines encode what comes together so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline
from erniem_rt.pipelines.rows import encode_rows
from erniem_rt.pipelines.text_classification import TextClassificationPipeline
from erniem_rt.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

NLI = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("max_length", [6, 16, 512])
def test_rows_are_those_of_each_text_alone(tokenizer_dir, sentences, side, special, paired, max_length) -> None:
    tokenizer = Tokenizer.from_dir(tokenizer_dir)
    tokenizer.settings = replace(tokenizer.settings, truncation_side=side, padding_side=side)
    texts = ["x", *sentences, "x"]
    pairs = [*reversed(texts)] if paired else [None] * len(texts)
    options = {"max_length": max_length, "add_special_tokens": special}
    expected = [
        tokenizer(text, pair, truncation="longest_first", **options).input_ids
        for text, pair in zip(texts, pairs, strict=True)
    ]
    assert encode_rows(tokenizer, texts, pairs if paired else None, threads=2, **options) == expected


@pytest.fixture
def make(scripted_session, tokenizer):
    def logits(ids):
        return {"logits": np.random.default_rng(sum(ids) * len(ids)).standard_normal(3)}

    def states(ids):
        values = np.random.default_rng(ids).standard_normal((len(ids), 4))
        return {"last_hidden_state": values, "pooler_output": values[0]}

    def pipe(kind):
        session = scripted_session("base", states) if kind == "base" else scripted_session("cls", logits, labels=NLI)
        options = {"batch_size": 2}
        if kind == "base":
            return FeatureExtractionPipeline(session, tokenizer, **options)
        if kind == "cls":
            return TextClassificationPipeline(session, tokenizer, **options)
        zero_shot = ZeroShotClassificationPipeline(session, tokenizer, **options)
        return lambda inputs: zero_shot(inputs, ["art", "sport"])

    return pipe


@pytest.fixture
def calls(monkeypatch):
    """How many texts each call of ``Tokenizer.batch`` was given."""
    counts = []
    real = Tokenizer.batch

    def spy(self, texts, *args, **kwargs):
        counts.append(len(texts))
        return real(self, texts, *args, **kwargs)

    monkeypatch.setattr(Tokenizer, "batch", spy)
    return counts


@pytest.mark.parametrize("kind", ["base", "cls", "zero-shot"])
def test_a_list_is_encoded_together_and_answered_as_each_text_alone(make, calls, sentences, kind) -> None:
    pipe = make(kind)
    texts = list(sentences)[:16]
    together = pipe(texts)
    assert calls == [16]
    alone = [pipe([text])[0] for text in texts]
    np.testing.assert_equal(together, alone)


@pytest.mark.parametrize("kind", ["base", "cls", "zero-shot"])
def test_a_text_at_fault_is_still_named(make, kind) -> None:
    pipe = make(kind)
    with pytest.raises(InvalidInputError, match=r"^input 17: text is empty: "):
        pipe([*["fine"] * 17, " ", "fine"])


@pytest.mark.parametrize("text", ["\u200b", "\ufeff", "\x01\x02\x7f", "▁", "\ud83d", " \u200b▁\n"])
@pytest.mark.parametrize("kind", ["base", "cls", "zero-shot"])
def test_a_text_without_tokens_is_named_as_an_empty_one_is(make, kind, text) -> None:
    pipe = make(kind)
    message = r"text has no tokens left after normalization: expected text\.$"
    with pytest.raises(InvalidInputError, match=f"^{message}"):
        pipe(text)
    with pytest.raises(InvalidInputError, match=f"^input 17: {message}"):
        pipe([*["fine"] * 17, text, "fine"])


@pytest.mark.parametrize("item", [("\u200b", "[SEP]"), ("[SEP]", "\u200b"), ("\u200b", "x"), ("x y z", "\u200b")])
def test_the_text_of_a_pair_that_has_no_tokens_is_named(make, item) -> None:
    name = "text" if item[0] == "\u200b" else "text_pair"
    inputs = [{"text": text, "text_pair": pair} for text, pair in (("x", "y"), item)]
    with pytest.raises(InvalidInputError, match=f"^input 1: {name} has no tokens left after normalization"):
        make("cls")(inputs)


def test_a_text_that_is_cut_to_nothing_is_not_one_without_tokens(tokenizer) -> None:
    expected = tokenizer("x", "y", truncation="longest_first", max_length=5).input_ids
    assert len(expected) == 5
    assert encode_rows(tokenizer, ["x"], ["y"], max_length=5, threads=1) == [expected]


def test_texts_and_pairs_may_be_mixed(make, calls) -> None:
    pipe = make("cls")
    pairs = [{"text": "one", "text_pair": "two"}, {"text": "three and four", "text_pair": "five"}]
    expected = [pipe([item])[0] for item in [*pairs, "six", {"text": "seven", "text_pair": None}]]
    calls.clear()
    assert pipe(pairs) == expected[:2]
    assert calls == [2]
    assert pipe([*pairs, "six", {"text": "seven", "text_pair": None}]) == expected
