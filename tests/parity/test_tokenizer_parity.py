"""Our tokenizer beside transformers 4.57.6's own: equal ids, or a test that says where the reference fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from erniem_rt.tokenizer import AddedToken, Tokenizer, TokenizerSettings

ernie_m = pytest.importorskip("transformers.models.deprecated.ernie_m.tokenization_ernie_m")

SPACES_AND_CONTROLS = " \t\n\r\u3000\u200b\u00a0\u2028▁\u0000\u0007\u200d\ufffd\ufeff"
CHANGED_BY_NFKC = "\u0301\u0327ﬁ½㍻№ﷺ…ｶﾞ１²\u1100\u1161"
AWKWARD = [*SPACES_AND_CONTROLS, *CHANGED_BY_NFKC, *"İΣσςß🦊👩，。?1２٣中國𠀀aAbZ가"]
MARKUP = [
    "[MASK]",
    "[CLS]",
    "[mask]",
    "[PAD",
    "<ent>",
    "<ent>2",
    "<ent",
    " Foo ",
    "Foo",
    "FOO",
    "xx",
    " xx ",
    "BbZ",
    "bbz",
]
UNICODE = st.characters(exclude_categories=["Cs"])  # the reference cannot take surrogates at all
TEXTS = st.lists(st.sampled_from(AWKWARD) | st.sampled_from(MARKUP) | UNICODE, max_size=16).map("".join)
THOROUGH = settings(max_examples=250)


def reference_from(folder: Path, **options: Any) -> Any:
    return ernie_m.ErnieMTokenizer.from_pretrained(folder, **options)


@pytest.fixture(scope="module", autouse=True)
def quiet_reference() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(level)


@pytest.fixture(scope="module", params=["vocab", "no-vocab"])
def source(request: pytest.FixtureRequest, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the vocabulary files."""
    if request.param == "vocab":
        return tokenizer_dir
    folder = tmp_path_factory.mktemp("no-vocab")
    shutil.copy(tokenizer_dir / "sentencepiece.bpe.model", folder)
    return folder


@pytest.fixture(scope="module", params=["plain", "lower", "added", "lower+added"])
def saved(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reference's save_pretrained writes, under several options."""
    from transformers import AddedToken as ReferenceToken

    options: dict[str, Any] = {"do_lower_case": "lower" in request.param, "model_max_length": 512}
    if "added" in request.param:
        greedy = ReferenceToken("Foo", lstrip=True, rstrip=True)
        options["additional_special_tokens"] = ["<ent>", greedy]
    reference = reference_from(source, **options)
    if "added" in request.param:
        whole_word = ReferenceToken("xx", single_word=True)
        reference.add_tokens([whole_word, ReferenceToken("FOO", normalized=False), "BbZ", "<ent>2"])
    folder = tmp_path_factory.mktemp("saved")
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(saved: Path) -> Tokenizer:
    return Tokenizer.from_dir(saved)


@pytest.fixture(scope="module")
def reference(saved: Path) -> Any:
    return reference_from(saved)


@pytest.fixture(scope="module")
def plain(tokenizer_dir: Path) -> tuple[Tokenizer, Any]:
    return Tokenizer.from_dir(tokenizer_dir), reference_from(tokenizer_dir)


def known_ids(reference: Any, row: list[int | None]) -> list[int]:
    """Without vocab.txt the reference gives None for an unknown piece, which no model can take; ours gives [UNK]."""
    unknown: int = reference.convert_tokens_to_ids(reference.unk_token)
    return [unknown if index is None else index for index in row]


def test_vocabularies_are_equal(ours, reference):
    assert ours.get_vocab() == reference.get_vocab()
    assert len(ours) == len(reference)
    assert ours.vocab_size == reference.vocab_size
    for name in ("cls", "sep", "pad", "unk", "mask"):
        assert getattr(ours, f"{name}_token") == getattr(reference, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(reference, f"{name}_token_id")


def test_sentences_give_equal_ids(ours, reference, sentences):
    for first, second in pairwise(sentences):
        assert ours(first).input_ids == known_ids(reference, reference(first)["input_ids"])
        assert ours(first, second).input_ids == known_ids(reference, reference(first, second)["input_ids"])
    assert len({index for sentence in sentences for index in ours(sentence).input_ids}) > 200


@THOROUGH
@example(text="")
@example(text=" \t\u200b")
@example(text="a[MASK]b [MASK]  [CLS]")
@example(text="ΟΔΥΣΣΕΥΣ [MASK] İ")
@example(text="fooxx xx barxx")
@example(text="<ent>2<ent>")
@given(text=TEXTS)
def test_any_text_gives_equal_tokens_and_ids(ours, reference, text):
    assert ours.tokenize(text) == reference.tokenize(text)
    expected = known_ids(reference, reference(text)["input_ids"])
    encoding = ours(text)
    assert encoding.input_ids == expected
    assert ours.convert_ids_to_tokens(expected) == reference.convert_ids_to_tokens(expected)
    for skip in (False, True):
        assert ours.decode(expected, skip_special_tokens=skip) == reference.decode(expected, skip).rstrip()
    bare = ours(text, add_special_tokens=False).input_ids
    assert bare == known_ids(reference, reference(text, add_special_tokens=False)["input_ids"])


@THOROUGH
@given(
    text=TEXTS,
    pair=TEXTS,
    strategy=st.sampled_from(["longest_first", "only_first", "only_second"]),
    max_length=st.integers(4, 24),
    side=st.sampled_from(["left", "right"]),
)
def test_truncation_gives_equal_ids(tokenizer_dir, plain, text, pair, strategy, max_length, side):
    _, reference = plain
    reference.truncation_side = side
    ours = Tokenizer(
        tokenizer_dir / "sentencepiece.bpe.model",
        tokenizer_dir / "vocab.txt",
        settings=TokenizerSettings(truncation_side=side),
    )
    expected = reference(text, pair, truncation=strategy, max_length=max_length, return_special_tokens_mask=True)
    if len(expected["input_ids"]) > max_length:  # the reference logs an error and returns the row uncut
        assert strategy != "longest_first"
        side_ids = ours(text if strategy == "only_first" else pair, add_special_tokens=False).input_ids
        excess = len(ours(text, pair)) - max_length
        if excess > len(side_ids):
            with pytest.raises(ValueError, match=f"truncation='{strategy}' would have to remove {excess}"):
                ours(text, pair, truncation=strategy, max_length=max_length)
        else:
            assert len(ours(text, pair, truncation=strategy, max_length=max_length)) == max_length
        return
    encoding = ours(text, pair, truncation=strategy, max_length=max_length)
    assert encoding.input_ids == expected["input_ids"]
    assert encoding.special_tokens_mask == expected["special_tokens_mask"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("multiple", [None, 1, 8, 7])
def test_padding_gives_equal_arrays(plain, sentences, side, padding, multiple):
    ours, reference = plain
    texts, pairs = list(sentences[:6]), list(sentences[6:12])
    limit = 56 if padding == "max_length" else None
    options = {"padding": padding, "pad_to_multiple_of": multiple, "padding_side": side, "max_length": limit}
    truncation = "longest_first" if limit else None
    for second in (None, pairs):
        expected = reference(
            texts,
            second,
            **options,
            truncation=truncation,
            return_attention_mask=True,
            return_special_tokens_mask=True,
        )
        batch = ours.batch(texts, second, **options, truncation=truncation)
        assert batch.input_ids.tolist() == expected["input_ids"]
        assert batch.attention_mask.tolist() == expected["attention_mask"]
        assert [row.special_tokens_mask for row in batch.encodings] == expected["special_tokens_mask"]


@THOROUGH
@given(first=st.lists(st.integers(0, 9), max_size=5), second=st.none() | st.lists(st.integers(0, 9), max_size=5))
def test_row_layouts_are_equal(plain, first, second):
    ours, reference = plain
    for method in (
        "build_inputs_with_special_tokens",
        "get_special_tokens_mask",
        "create_token_type_ids_from_sequences",
    ):
        assert getattr(ours, method)(first, second) == getattr(reference, method)(first, second)
    row = ours.build_inputs_with_special_tokens(first, second)
    assert ours.get_special_tokens_mask(row, already_has_special_tokens=True) == reference.get_special_tokens_mask(
        row, already_has_special_tokens=True
    )
    pair = second is not None
    assert ours.num_special_tokens_to_add(pair) == reference.num_special_tokens_to_add(pair)


def test_saved_vocabularies_are_equal(ours, saved, tmp_path):
    paths = ours.save_vocabulary(tmp_path)
    assert [Path(path).name for path in paths] == ["vocab.txt", "sentencepiece.bpe.model"]
    for path in paths:
        assert Path(path).read_bytes() == (saved / Path(path).name).read_bytes()


def test_files_of_older_transformers_give_equal_ids(saved, tmp_path):
    """Before added_tokens_decoder, special_tokens_map.json and added_tokens.json held the added tokens."""
    folder = tmp_path / "old"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours, reference = Tokenizer.from_dir(folder), reference_from(folder)
    assert ours.get_vocab() == reference.get_vocab()
    for text in ("a Foo b", "xx axx <ent>FOO foo bbz", "[MASK]İ", "BbZ"):
        assert ours(text).input_ids == known_ids(reference, reference(text)["input_ids"])


class TestWhereTheReferenceFails:
    def test_lone_surrogates(self, plain):
        ours, reference = plain
        with pytest.raises((RuntimeError, TypeError, UnicodeEncodeError)):
            reference("The \ud800 wrote")
        assert ours("The \ud800wrote\udfff").input_ids == reference("The \ufffdwrote\ufffd")["input_ids"]

    def test_a_word_mark_at_the_end(self, train_sentencepiece, sentences, tmp_path):
        """`pieces[pi + 1]` runs off the list. Only models that keep extra whitespace can end so; ErnieM's does not."""
        options = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": False}
        train_sentencepiece(tmp_path, sentences * 5, vocab_size=500, **options)
        ours, reference = Tokenizer.from_dir(tmp_path), reference_from(tmp_path)
        with pytest.raises(IndexError):
            reference.tokenize("The ")
        assert ours.tokenize("The ") == [*reference.tokenize("The"), "▁"]
        assert ours(" The ").offsets[-2] == (4, 5)

    def test_unknown_pieces_without_a_vocabulary_file(self, tokenizer_dir, tmp_path):
        shutil.copy(tokenizer_dir / "sentencepiece.bpe.model", tmp_path)
        ours, reference = Tokenizer.from_dir(tmp_path), reference_from(tmp_path)
        assert None in reference("𠀀")["input_ids"]
        assert ours("𠀀").input_ids == [ours.cls_token_id, ours.unk_token_id, ours.sep_token_id]

    def test_an_added_token_inside_another(self, tokenizer_dir):
        """The reference's search looks past a failed longer match and then splits the text in the wrong place."""
        words = ("<ent>", "ent")
        reference = reference_from(tokenizer_dir, additional_special_tokens=list(words))
        ours = Tokenizer(
            tokenizer_dir / "sentencepiece.bpe.model",
            tokenizer_dir / "vocab.txt",
            settings=TokenizerSettings(additional_special_tokens=tuple(map(AddedToken, words))),
        )
        assert "ent" not in reference.tokenize("<entx>")
        assert "ent" in ours.tokenize("<entx>")
        assert ours.tokenize("<ent> ent") == reference.tokenize("<ent> ent")

    def test_a_single_text_cut_to_nothing(self, plain):
        ours, reference = plain
        assert len(reference("The wrote", truncation="longest_first", max_length=2)["input_ids"]) == 4
        row = ours("The wrote", truncation="longest_first", max_length=2)
        assert row.input_ids == [ours.cls_token_id, ours.sep_token_id]

    def test_offsets(self, plain):
        ours, reference = plain
        with pytest.raises(AttributeError, match="SP_CHAR_MAPPING"):
            reference.get_offset_mapping("The")
        assert ours("The").offsets == [(0, 0), (0, 3), (0, 0)]
