"""A part of the vocabulary: which tokens, under which ids, and the same numbers."""

import dataclasses
import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import regex
import torch

from erniem_export.checkpoint import Checkpoint, randomize
from erniem_export.configuration import ErnieMConfig
from erniem_export.errors import CheckpointError
from erniem_export.heads import CLASSES
from erniem_export.languages import LANGUAGES
from erniem_export.options import Keep
from erniem_export.vocabulary import original_ids, pieces_at_the_ends, prune, prune_like, select, write_part
from erniem_rt.errors import InvalidInputError
from erniem_rt.tokenizer import Tokenizer

SPECIAL = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def tokens_of(tokenizer, ids):
    return {token for token, index in tokenizer.get_vocab().items() if index in ids}


@pytest.fixture(autouse=True)
def no_words(monkeypatch):
    """By alphabets, whether wordfreq is installed or not; test_words.py is about the words."""
    monkeypatch.setitem(sys.modules, "wordfreq", None)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return Tokenizer.from_dir(tokenizer_dir)


@pytest.fixture
def text(tmp_path):
    def write(content):
        path = tmp_path / "corpus.txt"
        path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.fixture
def checkpoint(tokenizer_dir, tokenizer):
    """A model over the tokenizer's vocabulary and a few rows more, as checkpoints have them."""

    def build(folder=tokenizer_dir, head="cls", **config):
        content = {**SIZES, "vocab_size": len(tokenizer) + 5, "num_labels": 3, "sep_token_id": 2, **config}
        model = CLASSES[head](ErnieMConfig(**content)).eval()
        randomize(model)
        return Checkpoint(model, head, "test", model.config.to_json_string(use_diff=False), folder)

    return build


def test_every_language_has_scripts_that_unicode_knows():
    for code, language in LANGUAGES.items():
        assert regex.fullmatch("[a-z]{2}", code)
        for script in language.scripts:
            assert regex.compile(rf"\p{{Script={script}}}")
        assert language.letters == language.letters.lower()
        assert all(regex.fullmatch(r"\p{Script=Latin}", letter) for letter in language.letters)
        assert "Latin" in language.scripts or not language.letters


@pytest.mark.parametrize(
    ("codes", "kept", "dropped"),
    [
        ("en", "▁of letters ▁Zürich"[:10], "▁größte"),
        ("de", "ß ä ▁2021 , ▁", "Київ ы 图 ağ"),
        ("ru", "ы ▁в 12 , a Z", "ß 图 ا"),
        ("zh,en", "图 书 ，", "カ ы"),
        ("ja", "カ 図 ー", "ы 어"),
    ],
)
def test_languages_keep_their_scripts_and_what_belongs_to_all(codes, kept, dropped, tokenizer):
    found = tokens_of(tokenizer, select(tokenizer, Keep(tuple(codes.split(",")))))
    known = tokenizer.get_vocab().keys()
    assert found.issuperset(SPECIAL)
    assert found.issuperset(set(kept.split()) & known)
    assert found.isdisjoint(dropped.split())
    assert set("0123456789.,") & known <= found


def test_words_outside_an_alphabet_go_and_its_letters_stay(tokenizer):
    vocabulary = tokenizer.get_vocab()
    english, polish = (tokens_of(tokenizer, select(tokenizer, Keep((code,)))) for code in ("en", "pl"))
    written = {token for token in vocabulary if regex.search("[łąęż]", token)}
    letters = {token for token in written if len(token) == 1}
    assert letters
    assert written > letters
    assert written <= polish
    assert written & english == letters, "a name can still be spelled"


def test_a_text_keeps_its_own_tokens_and_single_characters(tokenizer, text, sentences):
    ids = select(tokenizer, Keep(text=text(f"{sentences[0]}\n\n{sentences[8]}\n")))
    used = set(tokenizer(sentences[0]).input_ids) | set(tokenizer(sentences[8]).input_ids)
    assert used <= ids
    extra = tokens_of(tokenizer, ids - used) - set(SPECIAL)
    assert all(len(token.removeprefix("▁") or token) == 1 for token in extra)
    assert {"z", "ы"} <= tokens_of(tokenizer, ids)
    assert "图" not in tokens_of(tokenizer, ids)


def test_languages_and_text_add_up(tokenizer, text, sentences):
    path = text(sentences[18])
    both = select(tokenizer, Keep(("en",), path))
    assert both == select(tokenizer, Keep(("en",))) | select(tokenizer, Keep(text=path))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda text: Keep(("en", "xx")), "language 'xx' is not known; expected codes among"),
        (lambda text: Keep(text=text("")), "corpus.txt is empty; expected text in the languages to keep"),
        (lambda text: Keep(text=text("ᚠᚢᚦ\n")), "holds no token of the vocabulary"),
        (lambda text: Keep(text=Path("nowhere.txt")), "nowhere.txt, cannot be read: No such file"),
    ],
)
def test_what_cannot_be_kept_is_said(keep, message, tokenizer, text):
    with pytest.raises(InvalidInputError, match=message):
        select(tokenizer, keep(text))


def test_text_that_is_not_utf8(tokenizer, tmp_path):
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InvalidInputError, match="it is not UTF-8"):
        select(tokenizer, Keep(text=tmp_path / "latin1.txt"))


@pytest.mark.parametrize("codes", [("en",), ("de", "en"), ("ru", "en"), ("zh", "ja", "ko"), ("ar",)])
def test_text_of_kept_tokens_is_cut_as_before_and_computes_the_same(codes, checkpoint, tokenizer, sentences, tmp_path):
    whole = checkpoint()
    part, sizes = prune(checkpoint(), Keep(codes), tmp_path)
    kept = original_ids(whole.tokenizer_dir, tmp_path)
    smaller = Tokenizer.from_dir(tmp_path)
    assert sizes.kept == len(kept) == part.config.vocab_size < sizes.of
    words = [word for sentence in sentences for word in (sentence, *sentence.split())]
    exact = 0
    for word in words:
        old, new = tokenizer(word).input_ids, smaller(word).input_ids
        if not set(old) <= set(kept):
            continue
        assert [kept[index] for index in new] == old
        exact += 1
        if len(old) > 8:
            with torch.no_grad():
                expected, found = (
                    m.model(input_ids=torch.tensor([ids])).logits for m, ids in ((whole, old), (part, new))
                )
            assert torch.equal(expected, found)
    assert exact > 10


def test_text_that_needs_dropped_tokens_is_spelled_with_kept_ones(checkpoint, tokenizer, tmp_path):
    part, _ = prune(checkpoint(), Keep(("en",)), tmp_path)
    smaller = Tokenizer.from_dir(tmp_path)
    name = "Straßenfest"
    assert len(tokenizer.tokenize(name)) < len(smaller.tokenize(name))
    assert smaller.unk_token_id not in smaller(name).input_ids
    assert max(smaller(name).input_ids) < part.config.vocab_size


def test_unknown_characters_cost_what_they_did(tmp_path):
    """A text is cut by scores, and the unknown's follows from the lowest one: of a piece that no text uses."""
    scores = {"▁": -1.0, "xy": -15.0, "a": -14.9, "ya": -0.1, "qq": -100.0}
    model = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.pieces.add(piece="<unk>", score=0.0, type=2)
    for piece, score in scores.items():
        model.pieces.add(piece=piece, score=score, type=1)
    source, target, corpus = tmp_path / "source", tmp_path / "target", tmp_path / "corpus.txt"
    source.mkdir()
    target.mkdir()
    (source / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    (source / "vocab.txt").write_text("\n".join([*SPECIAL, *scores, "filler"]), encoding="utf-8")
    corpus.write_text("xya", encoding="utf-8")
    whole = Tokenizer.from_dir(source)
    assert whole.tokenize("xya") == ["xy", "a"]
    ids = select(whole, Keep(text=corpus)) | {whole.get_vocab()[token] for token in pieces_at_the_ends(source)}
    assert whole.get_vocab()["filler"] not in ids
    write_part(source, sorted(ids), target)
    assert Tokenizer.from_dir(target).tokenize("xya") == ["xy", "a"]
    write_part(source, sorted(ids - {whole.get_vocab()["qq"]}), target)
    assert Tokenizer.from_dir(target).tokenize("xya") != ["xy", "a"], "else this test would show nothing"


@pytest.mark.parametrize("pad", [1, 6])
def test_config_and_padding_follow(pad, checkpoint, tmp_path):
    whole = checkpoint(pad_token_id=pad)
    part, _ = prune(checkpoint(pad_token_id=pad), Keep(("zh",)), tmp_path)
    kept = original_ids(whole.tokenizer_dir, tmp_path)
    content = json.loads(part.config_text)
    assert content["vocab_size"] == part.config.vocab_size == len(kept)
    assert content["pad_token_id"] == part.config.pad_token_id == kept.index(pad)
    assert content["sep_token_id"] == kept.index(2)
    table = part.model.get_input_embeddings()
    assert table.padding_idx == part.config.pad_token_id
    assert torch.equal(table.weight, whole.model.get_input_embeddings().weight[kept])


def test_files_that_number_added_tokens_follow(checkpoint, tokenizer_dir, tmp_path):
    source = shutil.copytree(tokenizer_dir, tmp_path / "source")
    size = len(Tokenizer.from_dir(source))
    (source / "added_tokens.json").write_text(json.dumps({"<ent>": size, "</ent>": size + 1}))
    target = tmp_path / "part"
    target.mkdir()
    part, _ = prune(checkpoint(source), Keep(("ru",)), target)
    smaller = Tokenizer.from_dir(target)
    count = part.config.vocab_size
    assert smaller.convert_tokens_to_ids(["<ent>", "</ent>"]) == [count - 2, count - 1]
    assert original_ids(source, target)[-2:] == [size, size + 1]
    config = {"added_tokens_decoder": {str(size): {"content": "<ent>", "special": True}}}
    (source / "added_tokens.json").unlink()
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.rmtree(target)
    target.mkdir()
    part, _ = prune(checkpoint(source), Keep(("ru",)), target)
    assert Tokenizer.from_dir(target).convert_tokens_to_ids("<ent>") == part.config.vocab_size - 1


@pytest.mark.parametrize("added", [{"<ent>": 5000}, {"<ent>": [1]}])
def test_files_that_number_added_tokens_differently(added, checkpoint, tokenizer_dir, tmp_path):
    source = shutil.copytree(tokenizer_dir, tmp_path / "source")
    size = len(Tokenizer.from_dir(source))
    config = {"added_tokens_decoder": {str(size): {"content": "<ent>", "special": True}}}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "part").mkdir()
    with pytest.raises(CheckpointError, match=r"added_tokens\.json numbers added tokens differently"):
        prune(checkpoint(source), Keep(("ru",)), tmp_path / "part")


def test_a_list_of_ids_in_the_config(checkpoint, tmp_path):
    whole = checkpoint()
    content = {**json.loads(whole.config_text), "eos_token_id": [2, 3]}
    whole = dataclasses.replace(whole, config_text=json.dumps(content))
    for call in (lambda: prune(whole, Keep(("de",)), tmp_path), lambda: prune_like(whole, tmp_path)):
        with pytest.raises(CheckpointError, match=r"config\.json of test has eos_token_id = \[2, 3\]; expected one id"):
            call()


def test_a_tokenizer_without_vocab_txt_gets_one(tokenizer_dir, checkpoint, tmp_path):
    source, target = tmp_path / "source", tmp_path / "part"
    source.mkdir()
    target.mkdir()
    shutil.copy(tokenizer_dir / "sentencepiece.bpe.model", source)
    whole = Tokenizer.from_dir(source)
    part, _ = prune(
        checkpoint(source, pad_token_id=whole.pad_token_id, max_position_embeddings=2000), Keep(("en",)), target
    )
    assert (target / "vocab.txt").is_file()
    assert len(Tokenizer.from_dir(target)) == part.config.vocab_size


def test_pruned_again_from_the_files_alone(checkpoint, tmp_path):
    part, _ = prune(checkpoint(), Keep(("de",)), tmp_path)
    again = prune_like(checkpoint(), tmp_path)
    assert again.identity() == part.identity()
    assert again.config_text == part.config_text


def test_without_a_tokenizer_nothing_can_be_told(checkpoint, tmp_path):
    for call in (
        lambda: prune(checkpoint(None), Keep(("de",)), tmp_path),
        lambda: prune_like(checkpoint(None), tmp_path),
    ):
        with pytest.raises(CheckpointError, match="has no tokenizer"):
            call()


def test_a_tokenizer_larger_than_its_model_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"has a tokenizer of \d+ tokens, and its model has 100"):
        prune(checkpoint(vocab_size=100), Keep(("de",)), tmp_path)


def test_another_vocabulary_is_no_part(tokenizer_dir, tmp_path):
    other = shutil.copytree(tokenizer_dir, tmp_path / "other")
    (other / "vocab.txt").write_text("\n".join([*SPECIAL, "something", "else"]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not a part of the one"):
        original_ids(tokenizer_dir, other)


def test_the_part_reads_the_same_in_transformers(checkpoint, sentences, tmp_path):
    transformers = pytest.importorskip("transformers.models.deprecated.ernie_m")
    prune(checkpoint(), Keep(("de", "en")), tmp_path)
    theirs = transformers.ErnieMTokenizer(str(tmp_path / "sentencepiece.bpe.model"), str(tmp_path / "vocab.txt"))
    ours = Tokenizer.from_dir(tmp_path)
    for sentence in sentences[:6]:
        assert ours(sentence).input_ids == theirs(sentence)["input_ids"]


def test_ids_with_a_gap_that_cannot_be_kept(tokenizer_dir, tmp_path):
    source, target = shutil.copytree(tokenizer_dir, tmp_path / "source"), tmp_path / "part"
    target.mkdir()
    with pytest.raises(CheckpointError):
        write_part(source, [5, 6, 7], target)
