"""The tokenizer: ids of texts, character offsets, and what it refuses."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt.errors import EngineUnavailableError, InvalidInputError
from erniem_rt.tokenizer import AddedToken, Tokenizer, TokenizerSettings

CLS, PAD, SEP, UNK = 0, 1, 2, 3


def load(folder: Path, **settings: Any) -> Tokenizer:
    files = folder / "sentencepiece.bpe.model", folder / "vocab.txt"
    return Tokenizer(*files, settings=TokenizerSettings(**settings))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(tokenizer_dir)


def test_a_row_has_lists_of_one_length(tokenizer):
    row = tokenizer("The letters", "wrote")
    words = tokenizer.convert_tokens_to_ids(["▁The", "▁letters", "▁wrote"])
    assert row.input_ids == [CLS, *words[:2], SEP, SEP, words[2], SEP]
    assert row.attention_mask == [1] * 7
    assert row.special_tokens_mask == [1, 0, 0, 1, 1, 0, 1]
    assert {len(row.offsets), len(row.sequence_ids), len(row)} == {7}
    with pytest.raises(FrozenInstanceError):
        row.input_ids = []  # type: ignore[misc]


def test_rows_without_special_tokens(tokenizer):
    row = tokenizer("The letters", "wrote", add_special_tokens=False)
    assert row.sequence_ids == [0, 0, 1]
    assert row.special_tokens_mask == [0, 0, 0]
    assert row.offsets == [(0, 3), (4, 11), (0, 5)]


def test_special_tokens_written_in_a_text_are_not_inserted_ones(tokenizer):
    row = tokenizer("The [MASK] wrote")
    assert row.input_ids[2] == tokenizer.mask_token_id
    assert row.special_tokens_mask == [1, 0, 0, 0, 1]
    assert row.offsets[2] == (4, 10)


@pytest.mark.parametrize("text", ["", " \n", "\u200b"])
def test_texts_of_nothing_give_only_special_tokens(tokenizer, text):
    assert tokenizer(text).input_ids == [CLS, SEP]
    assert tokenizer(text, text).input_ids == [CLS, SEP, SEP, SEP]


@pytest.mark.parametrize(("side", "kept"), [("right", "The lighthouse"), ("left", "keeper wrote")])
def test_truncation_keeps_offsets_with_their_tokens(tokenizer_dir, side, kept):
    tokenizer = load(tokenizer_dir, truncation_side=side, model_max_length=4)
    text = "The lighthouse keeper wrote"
    row = tokenizer(text, truncation="longest_first")
    assert " ".join(text[start:end] for start, end in row.offsets[1:-1]) == kept


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_arrays(tokenizer, side):
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


def test_the_checkpoint_names_padding_side_and_limit(tokenizer_dir):
    tokenizer = load(tokenizer_dir, padding_side="left", model_max_length=8)
    batch = tokenizer.batch(["The"], padding="max_length")
    assert batch.input_ids[0, :5].tolist() == [PAD] * 5


def test_without_padding_rows_of_one_length_make_an_array(tokenizer):
    assert tokenizer.batch(["The", "wrote"], padding=None).input_ids.shape == (2, 3)


def test_tokens_ids_and_text(tokenizer):
    ids = tokenizer("The lighthouse keeper").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[1] == "▁The"
    assert tokenizer.convert_ids_to_tokens(np.int64(CLS)) == "[CLS]"
    assert tokenizer.convert_ids_to_tokens(10**9) == "[UNK]"
    assert tokenizer.convert_tokens_to_ids("not a token") == UNK
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The lighthouse keeper"
    assert tokenizer.decode(np.array(ids)) == "[CLS] The lighthouse keeper[SEP]"
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab())


def test_added_tokens_get_ids_after_the_vocabulary(tokenizer_dir):
    tokenizer = load(tokenizer_dir, additional_special_tokens=(AddedToken("<ent>"),))
    assert tokenizer.convert_tokens_to_ids("<ent>") == tokenizer.vocab_size == len(tokenizer) - 1
    assert tokenizer.tokenize("The<ent>wrote") == ["▁The", "<ent>", "▁wrote"]


def test_decoding_can_tidy_english_punctuation(tokenizer_dir):
    tidy = load(tokenizer_dir, clean_up_tokenization_spaces=True)
    ids = tidy("The , ever", add_special_tokens=False).input_ids
    assert tidy.decode(ids) == "The, ever"
    assert load(tokenizer_dir).decode(ids) == "The , ever"


def test_threads_get_the_results_of_one(tokenizer, sentences):
    expected = [tokenizer(sentence) for sentence in sentences * 4]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(tokenizer, sentences * 4)) == expected


def test_saving_needs_a_folder(tokenizer, tmp_path):
    vocabulary, model = tokenizer.save_vocabulary(tmp_path, "tiny")
    assert Path(vocabulary).name == "tiny-vocab.txt"
    assert Tokenizer(model, vocabulary)("The 2021").input_ids == tokenizer("The 2021").input_ids
    with pytest.raises(InvalidInputError, match="must be an existing folder, got "):
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
            "must be one of longest_first, .* or None, got 'longest'",
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
def test_bad_arguments_are_named(tokenizer, call, message):
    with pytest.raises(InvalidInputError, match=message):
        call(tokenizer)


def test_a_missing_sentencepiece_is_named(tokenizer_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(EngineUnavailableError, match=r'pip install "erniem-rt\[text\]"'):
        Tokenizer.from_dir(tokenizer_dir)


AWKWARD = [
    *" \t\n\u3000\u200b\u00a0▁\u0000\u0007\u0301\u0327\u200dİΣßﬁ½㍻ﷺ…ｶﾞ🦊中가\u1100\u1161\u11a8，。?1２٣²aAbB\ud800"
]
TEXTS = st.lists(st.sampled_from([*AWKWARD, "[MASK]", "The", " wrote "]) | st.characters(), max_size=20).map("".join)


@pytest.fixture(scope="module", params=[False, True], ids=["cased", "lower-cased"])
def either(tokenizer_dir: Path, request: pytest.FixtureRequest) -> Tokenizer:
    return load(tokenizer_dir, do_lower_case=request.param)


@pytest.fixture(scope="module")
def normalizer(tokenizer_dir: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "sentencepiece.bpe.model"))


def spans(either: Tokenizer, text: str) -> list[tuple[str, int, int]]:
    encoding = either(text, add_special_tokens=False)
    tokens = either.tokenize(text)
    return [(token, *span) for token, span in zip(tokens, encoding.offsets, strict=True)]


def sources(either: Tokenizer, text: str) -> list[tuple[str, str]]:
    return [(token, text[start:end]) for token, start, end in spans(either, text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  wrote", [("▁The", 0, 3), ("▁wrote", 5, 10)]),
        ("\u3000The\u200b\twrote \n", [("▁The", 1, 4), ("▁wrote", 6, 11)]),
        ("The\u0007\u0007 \u0007wrote\u0007", [("▁The", 0, 3), ("▁wrote", 7, 12)]),
        ("T\u0007he", [("▁The", 0, 4)]),
        ("ofﬁce", [("▁office", 0, 5)]),
        ("…", [(".", 0, 1)] * 3),
        ("㍿", [("株", 0, 1), ("式", 0, 1), ("会", 0, 1), ("社", 0, 1)]),
        ("\u1112\u1161\u11ab\u1100\u1161\u11bc에서", [("▁한강에서", 0, 8)]),
        ("1897,3", [("1897", 0, 4), (",", 4, 5), ("3", 5, 6)]),
        ("２０２１", [("2021", 0, 4)]),
        ("u\u0308berraschend u\u0308berraschend", [("▁überraschend", 0, 13), ("▁überraschend", 14, 27)]),
        ("The[MASK] wrote", [("▁The", 0, 3), ("[MASK]", 3, 9), ("▁wrote", 10, 15)]),
        ("", []),
        (" \n\u200b", []),
    ],
)
def test_known_spans(tokenizer_dir, text, expected):
    assert spans(Tokenizer.from_dir(tokenizer_dir), text) == expected


def test_a_lone_word_mark_has_the_first_whitespace_character_of_its_run(tokenizer_dir):
    assert sources(Tokenizer.from_dir(tokenizer_dir), "The\t \u0007 ever\u3000ž")[1:] == [
        ("▁ever", "ever"),
        ("▁", "\u3000"),
        ("ž", "ž"),
    ]


def test_lower_casing_that_adds_code_points_keeps_positions(tokenizer_dir):
    lowering = load(tokenizer_dir, do_lower_case=True)
    text = "İİ ΟΔΟΣ [MASK] WROTE"
    found = sources(lowering, text)
    assert found[-2:] == [("[MASK]", "[MASK]"), ("▁wrote", "WROTE")]
    assert "".join(source for _, source in found if source.isalpha() and source > "Ͱ") == "ΟΔΟΣ"
    assert found[0][1] in ("İ", "İİ")


def test_added_tokens_that_swallow_whitespace_do_not_shift_their_neighbours(tokenizer_dir):
    greedy = load(tokenizer_dir, additional_special_tokens=(AddedToken("<ent>", lstrip=True, rstrip=True),))
    assert spans(greedy, "The  <ent>  wrote") == [("▁The", 0, 3), ("<ent>", 5, 10), ("▁wrote", 12, 17)]


def test_tokens_cut_from_one_rewritten_sequence_share_all_of_it(train_sentencepiece, tmp_path):
    """nmt_nfkc has no rule from several characters to several, but a model's own rules may."""
    rules = tmp_path / "rules.tsv"
    rules.write_text("61 62\t78 79\n", encoding="utf-8")  # "ab" becomes "xy"
    train_sentencepiece(tmp_path, ["x y xy q"] * 9, vocab_size=9, model_type="char", normalization_rule_tsv=str(rules))
    assert spans(Tokenizer.from_dir(tmp_path), "qabq") == [("q", 0, 1), ("x", 1, 3), ("y", 1, 3), ("q", 3, 4)]


@settings(max_examples=200)
@given(text=TEXTS)
def test_spans_are_monotone_and_inside_the_text(either, text):
    found = spans(either, text)
    assert all(0 <= start < end <= len(text) for _, start, end in found)
    for (_, start, end), (_, next_start, next_end) in pairwise(found):
        assert start <= next_start
        assert end <= next_end


@settings(max_examples=200)
@given(text=TEXTS)
def test_spans_cover_exactly_what_normalisation_keeps(tokenizer_dir, normalizer, text):
    """The slow oracle: normalising what tokens cover spells them; normalising the rest leaves nothing."""
    either = Tokenizer.from_dir(tokenizer_dir)
    found = spans(either, text)
    readable = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    covered = {i for _, start, end in found for i in range(start, end)}
    assert not any(normalizer.normalize(char) for i, char in enumerate(readable) if i not in covered)
    for tokens, start, end in clusters(found):
        if tokens != "[MASK]":
            assert normalizer.normalize(readable[start:end]).replace("▁", "") == tokens.replace("▁", "")
    for token, start, end in found:
        if token != "▁":
            assert normalizer.normalize(readable[start])
            assert normalizer.normalize(readable[end - 1])


def clusters(found: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Join tokens that share a character: they can only be checked together."""
    joined: list[tuple[str, int, int]] = []
    for token, start, end in found:
        if joined and start < joined[-1][2]:
            joined[-1] = (joined[-1][0] + token, joined[-1][1], end)
        else:
            joined.append((token, start, end))
    return joined


def test_sentences_are_covered(either, sentences):
    for sentence in sentences:
        covered = {i for start, end in either(sentence).offsets for i in range(start, end)}
        assert all(i in covered or char.isspace() or char == "\u200c" for i, char in enumerate(sentence))


def test_pairs_have_offsets_of_their_own_text(tokenizer_dir):
    encoding = Tokenizer.from_dir(tokenizer_dir)("The letters", "wrote 3")
    assert encoding.offsets == [(0, 0), (0, 3), (4, 11), (0, 0), (0, 0), (0, 5), (6, 7), (0, 0)]
    assert encoding.sequence_ids == [None, 0, 0, None, None, 1, 1, None]
    assert encoding.special_tokens_mask == [1, 0, 0, 1, 1, 0, 0, 1]


def test_a_long_text_takes_time_in_proportion(tokenizer_dir):
    """100,000 characters of each awkward kind: anything quadratic would take far longer."""
    either = Tokenizer.from_dir(tokenizer_dir)
    for unit in ("The lighthouse ", " ", "\u0007", "x\u0007", "[MASK]", "[MASK", "🦊"):
        text = unit * (100_000 // len(unit))
        assert either(text).offsets[-2][1] <= len(text)
