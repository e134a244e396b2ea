"""Our tokenizer in XLM-R's mode beside transformers' own: ids, offsets, pairs, truncation."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt.errors import ArtifactError
from erniem_rt.tokenizer import Tokenizer

if not hasattr(transformers.XLMRobertaTokenizer, "_tokenize"):
    pytest.skip("transformers 5 has no tokenizer of sentencepiece's own", allow_module_level=True)

TEXTS = (
    *("你好世界 hello", "  two  spaces ", "a <mask> b", "a<mask>b", "x\ty\nz", "", " ", "♞ unknown ☃☃", "㍻年 ﬁ"),
    *("Hello</s>there", "▁ x", "12 3", "…  … a\u200bb", "a\u3000b", "<mask>", "ab <pad> c", "a▁b", "▁", "\u200b"),
    *("x <mask>  y <s>z", "ﷺ x", " \u0301x"),
)
AWKWARD = st.sampled_from(
    [*" \t\u3000\u200b▁ﬁ½㍻…ｶﾞ１²İß🦊，。1中aB가", "<mask>", " <mask> ", "<s>", "</s>", "<pad>", "<unk>"]
)
RANDOM = st.lists(AWKWARD | st.characters(exclude_categories=["Cs"]), max_size=16).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sentencepiece_model: bytes) -> Path:
    found = tmp_path_factory.mktemp("xlm-roberta")
    (found / "sentencepiece.bpe.model").write_bytes(sentencepiece_model)
    (found / "config.json").write_text('{"model_type": "xlm-roberta"}')
    return found


@pytest.fixture(scope="module")
def slow(folder: Path) -> Any:
    return transformers.XLMRobertaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def fast(folder: Path) -> Any:
    """As XLM-R's published tokenizer.json has it, and transformers 5."""
    from tokenizers import pre_tokenizers

    found = transformers.XLMRobertaTokenizerFast.from_pretrained(folder)
    found.backend_tokenizer.normalizer = found.backend_tokenizer.normalizer[0]
    steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", prepend_scheme="always")]
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return found


@pytest.fixture(scope="module")
def without_model(fast: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers 5 writes it: tokenizer.json alone."""
    found = tmp_path_factory.mktemp("fast")
    fast.backend_tokenizer.save(str(found / "tokenizer.json"))
    (found / "config.json").write_text('{"model_type": "xlm-roberta"}')
    (found / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    return found


@pytest.fixture(scope="module", params=["sentencepiece", "tokenizer.json"])
def ours(request: pytest.FixtureRequest, folder: Path, without_model: Path) -> Tokenizer:
    return Tokenizer.from_dir(folder if request.param == "sentencepiece" else without_model)


def test_ids_and_offsets_are_those_of_transformers(ours, slow, fast, sentences):
    texts = [*sentences, *TEXTS]
    for text, row in zip(texts, ours.batch(texts).encodings, strict=True):
        one, expected = ours(text), fast(text, return_offsets_mapping=True)
        assert one.input_ids == slow(text)["input_ids"] == expected["input_ids"], text
        assert one.offsets == [tuple(pair) for pair in expected["offset_mapping"]], text
        kept = slice(len(one.input_ids))
        assert (row.input_ids[kept], row.offsets[kept]) == (one.input_ids, one.offsets)
        assert ours.decode(one.input_ids) == slow.decode(one.input_ids)
        assert ours.tokenize(text) == slow.tokenize(text)


@settings(max_examples=200)
@given(text=RANDOM, pair=RANDOM)
def test_ids_are_those_of_sentencepiece_whatever_the_text(ours, slow, text, pair):
    assert ours(text, pair).input_ids == slow(text, pair)["input_ids"]
    offsets = ours(text).offsets
    assert all(0 <= start <= end <= len(text) for start, end in offsets)


def test_pairs_are_laid_out_and_cut_as_by_the_fast_tokenizer(ours, fast, sentences):
    for text, pair in pairwise(sentences):
        whole = ours(text, pair).input_ids
        assert whole == fast(text, pair)["input_ids"]
        cuts = [("longest_first", limit) for limit in (7, 8, 11, 12, 17, 30)]
        for strategy, limit in (*cuts, ("only_first", len(whole) - 2), ("only_second", len(whole) - 3)):
            found = ours(text, pair, truncation=strategy, max_length=limit).input_ids
            assert found == fast(text, pair, truncation=strategy, max_length=limit)["input_ids"]


def test_vocabulary_and_special_tokens(ours, slow):
    assert ours.get_vocab() == slow.get_vocab()
    assert (len(ours), ours.vocab_size) == (len(slow), slow.vocab_size)
    for name in ("cls", "sep", "pad", "unk", "mask"):
        assert getattr(ours, f"{name}_token_id") == getattr(slow, f"{name}_token_id")
    for first, second in (([7, 8], None), ([7, 8], [9])):
        for method in (
            "build_inputs_with_special_tokens",
            "get_special_tokens_mask",
            "create_token_type_ids_from_sequences",
        ):
            assert getattr(ours, method)(first, second) == getattr(slow, method)(first, second)


def test_what_was_saved_is_read_back(slow, tmp_path):
    slow.add_tokens(["<ent>"])
    slow.save_pretrained(tmp_path)
    ours = Tokenizer.from_dir(tmp_path)
    assert ours.settings.family == "xlm-roberta"
    for text in ("a <ent>b <mask> c", *TEXTS):
        assert ours(text).input_ids == slow(text)["input_ids"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda said: said["model"].update(type="BPE"), "another model or order of tokens"),
        (lambda said: said.update(normalizer={"type": "Lowercase"}), "the steps Lowercase"),
        (lambda said: said["model"].pop("vocab"), "is not a readable tokenizer.json of XLM-R"),
        (lambda said: said["model"]["vocab"].reverse(), "another model or order of tokens"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(without_model, tmp_path, edit, reason):
    said = json.loads((without_model / "tokenizer.json").read_text(encoding="utf-8"))
    edit(said)
    (tmp_path / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    with pytest.raises(ArtifactError, match=reason):
        Tokenizer.from_dir(tmp_path)
