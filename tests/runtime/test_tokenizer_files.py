"""The tokenizer's files, and its list of tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from erniem_rt.errors import ArtifactError
from erniem_rt.tokenizer import Tokenizer, TokenizerSettings
from erniem_rt.tokenizer.vocabulary import TokenList

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
FILES = (
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@pytest.fixture
def folder(tokenizer_dir: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_dir, copy)
    return copy


def configure(folder: Path, **values: Any) -> Tokenizer:
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return Tokenizer.from_dir(folder)


def test_the_model_alone_is_enough(folder):
    (folder / "vocab.txt").unlink()
    tokenizer = Tokenizer.from_dir(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    assert tokenizer.vocab_size == processor.get_piece_size()
    assert tokenizer.convert_tokens_to_ids("▁The") == processor.piece_to_id("▁The")
    assert tokenizer.unk_token_id == tokenizer.vocab_size  # special tokens follow the pieces


def test_settings_come_from_the_config(folder):
    tokenizer = configure(
        folder,
        do_lower_case=True,
        model_max_length=128,
        padding_side="left",
        truncation_side="left",
        cls_token={"__type": "AddedToken", "content": "<cls>", "lstrip": True},
        additional_special_tokens=["<ent>"],
        added_tokens_decoder={"900": {"content": "<extra>", "special": False, "normalized": True}},
    )
    assert tokenizer.settings.model_max_length == 128
    assert (tokenizer.settings.padding_side, tokenizer.settings.truncation_side) == ("left", "left")
    assert tokenizer.convert_ids_to_tokens(900) == "<extra>"
    assert tokenizer.tokenize("A <extra> <cls> <ent> <EXTRA>")[-1] == "<extra>"
    assert tokenizer.cls_token == "<cls>"
    assert tokenizer("a").input_ids[0] == tokenizer.convert_tokens_to_ids("<cls>") >= tokenizer.vocab_size


@pytest.mark.parametrize("limit", [None, 1e30])
def test_no_limit_is_none(folder, limit):
    assert configure(folder, model_max_length=limit).settings.model_max_length is None


def test_split_special_tokens_reads_them_as_text(folder):
    assert "[MASK]" not in configure(folder, split_special_tokens=True).tokenize("The [MASK]")


def test_the_vocabulary_s_last_line_needs_no_newline(folder):
    vocabulary = folder / "vocab.txt"
    expected = Tokenizer.from_dir(folder).get_vocab()
    vocabulary.write_bytes(vocabulary.read_bytes().rstrip(b"\n"))
    assert Tokenizer.from_dir(folder).get_vocab() == expected


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_lines_may_end_as_on_other_systems(folder, end):
    vocabulary = folder / "vocab.txt"
    expected = Tokenizer.from_dir(folder).get_vocab()
    vocabulary.write_bytes(vocabulary.read_bytes().replace(b"\n", end))
    assert Tokenizer.from_dir(folder).get_vocab() == expected


def test_a_token_listed_twice_has_its_last_id(folder):
    vocabulary = folder / "vocab.txt"
    size = Tokenizer.from_dir(folder).vocab_size
    vocabulary.write_text(vocabulary.read_text("utf-8") + "▁The\n", "utf-8")
    tokenizer = Tokenizer.from_dir(folder)
    first = vocabulary.read_text("utf-8").split("\n").index("▁The")
    assert tokenizer.convert_tokens_to_ids("▁The") == size
    assert tokenizer.convert_ids_to_tokens([first, size, -1]) == ["[UNK]", "▁The", "[UNK]"]
    assert tokenizer.vocab_size == size
    assert tokenizer.batch(["The"]).input_ids.tolist() == [tokenizer("The").input_ids] == [[0, size, 2]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sentencepiece.bpe.model", None, "no such file"),
        ("sentencepiece.bpe.model", b"", "not a.* sentencepiece model"),
        *((name, POINTER, "is a pointer of Git LFS, not the file itself: run git lfs pull") for name in FILES),
        ("vocab.txt", b"", "is empty"),
        ("vocab.txt", b"[CLS]\n\xff\xfe\n", "not a readable vocabulary"),
        ("tokenizer_config.json", b"{", "not readable JSON"),
        ("tokenizer_config.json", b"[]", "should hold a JSON object, not a list"),
        ("special_tokens_map.json", b"nonsense", "not readable JSON"),
        ("added_tokens.json", b"\xff", "not readable JSON"),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        Tokenizer.from_dir(folder)
    assert str(path) in str(caught.value)


def test_a_truncated_model_is_named(folder):
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArtifactError, match="is not a sentencepiece model, or it is damaged: fetch it again"):
        Tokenizer.from_dir(folder)


def test_missing_folders_and_named_files(tmp_path, tokenizer_dir):
    with pytest.raises(ArtifactError, match="no such folder"):
        Tokenizer.from_dir(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"other\.txt is not a readable vocabulary"):
        Tokenizer(tokenizer_dir / "sentencepiece.bpe.model", tmp_path / "other.txt")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"padding_side": "top"}, "padding_side must be 'left' or 'right', not 'top'"),
        ({"do_lower_case": "yes"}, "do_lower_case must be true or false, not 'yes'"),
        ({"sep_token": None}, "sep_token is not set"),
        ({"sep_token": 5}, "expected a token as text or as an object with 'content', got 5"),
        ({"added_tokens_decoder": {"one": {"content": "x"}}}, "invalid literal for int"),
        ({"added_tokens_decoder": {"1": {}}}, "expected a token as text"),
        ({"model_max_length": "long"}, "model_max_length must be a number, not 'long'"),
        ({"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs=.* is not supported"),
    ],
)
def test_unusable_settings_are_named(folder, values, message):
    with pytest.raises(ArtifactError, match=message) as caught:
        configure(folder, **values)
    assert "tokenizer_config.json" in str(caught.value)


@pytest.mark.parametrize("options", [{"byte_fallback": True}, {"treat_whitespace_as_suffix": True}])
def test_models_that_offsets_cannot_follow_are_refused(train_sentencepiece, sentences, tmp_path, options):
    train_sentencepiece(tmp_path, sentences * 5, vocab_size=700, **options)
    with pytest.raises(ArtifactError, match="byte fallback or marks at the end of words"):
        Tokenizer.from_dir(tmp_path)


def test_settings_given_in_code_are_checked_too():
    with pytest.raises(ArtifactError, match="truncation_side"):
        TokenizerSettings(truncation_side="middle")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "BertTokenizer", 3])
def test_the_tokenizer_of_another_class_is_refused(folder, name):
    """transformers would take that class, whose ids differ."""
    with pytest.raises(ArtifactError) as caught:
        configure(folder, tokenizer_class=name)
    assert str(caught.value).startswith(
        f"{folder / 'tokenizer_config.json'} says tokenizer_class = {name!r}, expected 'ErnieMTokenizer'"
    )


@pytest.mark.parametrize("name", ["ErnieMTokenizer", "ErnieMTokenizerFast", None])
def test_its_own_class_or_none_is_taken(folder, name):
    assert configure(folder, tokenizer_class=name)("a").input_ids == Tokenizer.from_dir(folder)("a").input_ids


def test_the_class_in_the_model_s_config_counts_where_the_tokenizer_s_names_none(folder):
    (folder / "config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"/config.json says tokenizer_class = 'BertTokenizer'"):
        Tokenizer.from_dir(folder)
    assert configure(folder, tokenizer_class="ErnieMTokenizer").cls_token == "[CLS]"


# Few letters, so that tokens repeat, share their ends, and are the beginnings of others.
LETTERS = st.sampled_from(["a", "b", "▁", "語", "😀", "\n"])
SHORT = st.text(LETTERS, max_size=6)
# Alike in length and in their first, middle and last eight bytes, so that only the whole text tells them apart.
ALIKE = st.builds(lambda i: "a" * 12 + str(i) + "b" * 40, st.integers(0, 3))
TOKENS = st.lists(st.one_of(SHORT, ALIKE), min_size=1, max_size=40)
ASKED = st.lists(st.one_of(SHORT, ALIKE, st.just("\ud800"), st.text(max_size=20)), max_size=40)


def by_dict(tokens: list[str], asked: list[str]) -> list[int | None]:
    """The obvious way: the last index counts."""
    table = {token: i for i, token in enumerate(tokens)}
    return [table.get(token) for token in asked]


@given(TOKENS, ASKED)
def test_tokens_are_found_as_in_a_dict(tokens, asked):
    found = TokenList.of(tokens)
    assert found.indices(asked) == by_dict(tokens, asked)
    assert found.indices(tokens) == by_dict(tokens, tokens)
    assert list(found) == tokens
    assert (len(found), found.distinct) == (len(tokens), len(set(tokens)))
    last = set(by_dict(tokens, tokens))
    assert [found.get(i) for i in range(-1, len(tokens) + 1)] == [
        None,
        *(token if i in last else None for i, token in enumerate(tokens)),
        None,
    ]


@pytest.mark.parametrize("end", ["", "\n"])
@given(st.lists(st.text(st.sampled_from("ab▁語"), max_size=6), min_size=1, max_size=20))
def test_lines_are_tokens(end, lines):
    lines.append("last")
    found = TokenList.of_lines(("\n".join(lines) + end).encode())
    assert list(found) == lines
    assert found.indices(lines) == by_dict(lines, lines)


def test_tokens_alike_where_keys_look_are_told_apart():
    tokens = ["a" * 12 + str(i) + "b" * 40 for i in (0, 1, 2, 1)]
    found = TokenList.of(tokens)
    assert len(found._sharing) == 3
    assert found.indices([*tokens, "a" * 12 + "3" + "b" * 40]) == [0, 3, 2, 3, None]
