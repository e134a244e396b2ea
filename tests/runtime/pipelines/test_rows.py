"""Rows of ids: texts encoded together, windows over long texts, batches of like lengths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.batching import run_rows
from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline
from erniem_rt.pipelines.inputs import best_parts, encode_rows, windows
from erniem_rt.pipelines.text_classification import TextClassificationPipeline
from erniem_rt.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

NLI = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("max_length", [6, 16, 512])
def test_rows_are_those_of_each_text_alone(tokenizer_dir, sentences, side, special, paired, max_length):
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
def test_a_list_is_encoded_together_and_answered_as_each_text_alone(make, calls, sentences, kind):
    pipe = make(kind)
    texts = list(sentences)[:16]
    together = pipe(texts)
    assert calls == [16]
    alone = [pipe([text])[0] for text in texts]
    np.testing.assert_equal(together, alone)


@pytest.mark.parametrize("item", [("\u200b", "[SEP]"), ("[SEP]", "\u200b"), ("\u200b", "x"), ("x y z", "\u200b")])
def test_the_text_of_a_pair_that_has_no_tokens_is_named(make, item):
    name = "text" if item[0] == "\u200b" else "text_pair"
    inputs = [{"text": text, "text_pair": pair} for text, pair in (("x", "y"), item)]
    with pytest.raises(InvalidInputError, match=f"^input 1: {name} has no tokens left after normalization"):
        make("cls")(inputs)


def test_a_text_that_is_cut_to_nothing_is_not_one_without_tokens(tokenizer):
    expected = tokenizer("x", "y", truncation="longest_first", max_length=5).input_ids
    assert len(expected) == 5
    assert encode_rows(tokenizer, ["x"], ["y"], max_length=5, threads=1) == [expected]


def test_texts_and_pairs_may_be_mixed(make, calls):
    pipe = make("cls")
    pairs = [{"text": "one", "text_pair": "two"}, {"text": "three and four", "text_pair": "five"}]
    expected = [pipe([item])[0] for item in [*pairs, "six", {"text": "seven", "text_pair": None}]]
    calls.clear()
    assert pipe(pairs) == expected[:2]
    assert calls == [2]
    assert pipe([*pairs, "six", {"text": "seven", "text_pair": None}]) == expected


LAYOUTS = st.tuples(st.integers(1, 90), st.integers(1, 30), st.integers(1, 30)).map(
    lambda sizes: (sizes[0], sizes[1], min(sizes[1:]))
)


def context_of(token: int, window: range, length: int) -> float:
    """Count the tokens up to the nearer edge of the window; where the text itself ends is no edge."""
    left = token - window.start if window.start else float("inf")
    right = window.stop - 1 - token if window.stop < length else float("inf")
    return min(left, right)


def test_a_text_that_fits_is_one_window():
    assert windows(10, 10, 3) == [range(10)]
    assert windows(0, 10, 3) == [range(0)]


def test_windows_start_every_step_until_one_reaches_the_end():
    assert windows(11, 10, 3) == [range(10), range(3, 11)]
    assert windows(13, 10, 3) == [range(10), range(3, 13)]
    assert windows(14, 10, 3) == [range(10), range(3, 13), range(6, 14)]


@given(LAYOUTS)
def test_windows_cover_the_text_and_none_is_needless(layout):
    length, size, step = layout
    spans = windows(length, size, step)
    assert {token for span in spans for token in span} == set(range(length))
    assert all(len(span) == size for span in spans[:-1])
    assert 0 < len(spans[-1]) <= size
    assert all(span.stop < length for span in spans[:-1])


@given(LAYOUTS)
def test_parts_are_disjoint_and_cover_the_text(layout):
    length = layout[0]
    assert [token for part in best_parts(windows(*layout)) for token in part] == list(range(length))


@given(LAYOUTS)
def test_no_other_window_shows_more_around_a_token(layout):
    length = layout[0]
    spans = windows(*layout)
    for span, part in zip(spans, best_parts(spans), strict=True):
        for token in part:
            others = [context_of(token, other, length) for other in spans if token in other]
            assert context_of(token, span, length) == max(others)


COLUMNS = np.arange(3, dtype=np.float32)


def per_token(ids):
    """Each token's answer depends on its row's other tokens too, so that nothing can be mixed up."""
    return {"logits": np.outer(ids, COLUMNS + 1) + sum(ids)}


@given(
    rows=st.lists(st.lists(st.integers(2, 99), min_size=1, max_size=30), max_size=40),
    batch_size=st.integers(1, 9),
)
@settings(max_examples=60)
def test_each_row_comes_out_as_if_it_had_run_alone(scripted_session, rows, batch_size):
    session = scripted_session("ner", per_token, labels=("a", "b", "c"))
    results = list(run_rows(session, rows, batch_size=batch_size))
    assert sorted(row for row, _ in results) == list(range(len(rows)))
    for row, outputs in results:
        np.testing.assert_array_equal(outputs["logits"], per_token(rows[row])["logits"])


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=40), batch_size=st.integers(1, 9))
@settings(max_examples=60)
def test_batches_hold_neighbours_in_length_and_no_more_padding_than_that(scripted_session, lengths, batch_size):
    session = scripted_session("cls", lambda ids: {"logits": [len(ids)]}, labels=("a",))
    list(run_rows(session, [[7] * length for length in lengths], batch_size=batch_size))
    found = [(ids != 1).sum(axis=1).tolist() for ids in session.batches]
    in_order = sorted(lengths, reverse=True)
    assert found == [in_order[i : i + batch_size] for i in range(0, len(in_order), batch_size)]
    assert [ids.shape[1] for ids in session.batches] == [max(group) for group in found]


def test_a_padding_token_within_a_row_is_a_token_like_others(scripted_session):
    session = scripted_session("cls", lambda ids: {"logits": [len(ids)]}, labels=("a",))
    ((_, outputs),) = run_rows(session, [[5, 1, 1]])
    assert outputs["logits"].tolist() == [3]


def test_every_choice_is_a_row_of_its_own(scripted_session):
    session = scripted_session("mc", lambda ids: {"logits": sum(ids)})
    results = dict(run_rows(session, [[5, 6], [7, 8, 9]], batch_size=2))
    assert [results[i]["logits"].tolist() for i in (0, 1)] == [[11], [24]]
    assert session.batches[0].shape == (2, 1, 3)


@pytest.mark.parametrize("head", ["base", "qa", "ie"])
def test_outputs_of_a_row_lose_batch_axis_and_padding(make_text_artifact, scripted_session, head):
    artifact = make_text_artifact(head)
    rows = [[5, 6, 7], [9]]
    for row, outputs in run_rows(scripted_session(head, artifact.function), rows):
        expected = artifact.function(rows[row])
        assert outputs.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(outputs[name], value)


def test_results_come_batch_by_batch(scripted_session):
    session = scripted_session("cls", lambda ids: {"logits": [0]}, labels=("a",))
    results = run_rows(session, [[5], [6], [7]], batch_size=1)
    assert session.batches == []
    next(results)
    assert len(session.batches) == 1
