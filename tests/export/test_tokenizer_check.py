"""A tokenizer that is not the one of the embeddings is refused before the long work, or doubted aloud."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from erniem_export import pipeline
from erniem_export.checkpoint import load_checkpoint
from erniem_rt import ArtifactError
from erniem_rt import pipeline as pipeline_of
from erniem_rt.tokenizer import Tokenizer


@pytest.fixture
def checkpoint(tmp_path, tokenizer_dir, write_checkpoint):
    folder = write_checkpoint(tmp_path / "checkpoint")
    for name in ("sentencepiece.bpe.model", "vocab.txt"):
        shutil.copy(tokenizer_dir / name, folder)
    return folder


def cut_vocabulary(folder, count):
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "vocab.txt").write_text("".join(lines[:count]), encoding="utf-8")


@pytest.mark.parametrize("added", [{"<ent>": 1000}, {"<far>": 5000}])
def test_added_tokens_without_embeddings(added, checkpoint, export_fails, monkeypatch):
    monkeypatch.setattr(pipeline, "trace", None)
    (checkpoint / "added_tokens.json").write_text(json.dumps(added))
    assert export_fails(checkpoint) == (
        f"checkpoint has a tokenizer with ids up to {max(added.values())}, and its vocab_size is 1000: "
        "put in the tokenizer that it was trained with, or resize the embeddings"
    )


def test_another_tokenizer(checkpoint, export_fails):
    with (checkpoint / "vocab.txt").open("a", encoding="utf-8") as vocabulary:
        vocabulary.writelines(f"extra{i}\n" for i in range(2000))
    assert "tokenizer with ids up to 2593, and its vocab_size is 1000" in export_fails(checkpoint)


@pytest.mark.usefixtures("quick_gate")
def test_the_last_row_may_be_a_token(checkpoint, tmp_path, erniem_export):
    (checkpoint / "added_tokens.json").write_text(json.dumps({"<ent>": 999}))
    result = erniem_export("--model", checkpoint, "--output", tmp_path / "out")
    assert result.code == 0
    assert "the tokenizer has" not in result.err


@pytest.mark.usefixtures("quick_gate")
def test_a_vocabulary_cut_short(checkpoint, tmp_path, erniem_export):
    cut_vocabulary(checkpoint, 300)
    result = erniem_export("--model", checkpoint, "--output", tmp_path / "out")
    assert result.code == 0
    ids = max(Tokenizer.from_dir(checkpoint).get_vocab().values())
    assert f"the tokenizer has ids up to {ids}, and the embeddings 1000 rows: is it the right one?" in result.err


@pytest.mark.usefixtures("quick_gate")
def test_no_vocabulary(checkpoint, tmp_path, erniem_export):
    (checkpoint / "vocab.txt").unlink()
    (checkpoint / "added_tokens.json").write_text(json.dumps({"<ent>": 999}))
    result = erniem_export("--model", checkpoint, "--output", tmp_path / "out")
    assert result.code == 0
    assert "there is no vocab.txt: the ids are those of the pieces in sentencepiece.bpe.model" in result.err
    (checkpoint / "added_tokens.json").write_text(json.dumps({"<ent>": 1000}))
    result = erniem_export("--model", checkpoint, "--output", tmp_path / "out2")
    assert result.code == 1
    assert "ids up to 1000 (there is no vocab.txt, so they are the pieces of sentencepiece.bpe.model)" in result.err


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize("left", [(), ("vocab.txt", "tokenizer_config.json")])
def test_a_checkpoint_without_tokenizer(left, checkpoint, tmp_path, erniem_export):
    (checkpoint / "tokenizer_config.json").write_text("{}")
    for name in ("sentencepiece.bpe.model", "vocab.txt", "tokenizer_config.json"):
        if name not in left:
            (checkpoint / name).unlink()
    output = tmp_path / "out"
    result = erniem_export("--model", checkpoint, "--output", output)
    assert result.code == 0
    assert "the checkpoint has no sentencepiece.bpe.model and so no tokenizer: the artifact takes ids" in result.err
    for load in (lambda: pipeline_of(output / "cls.onnx"), lambda: Tokenizer.from_dir(output)):
        with pytest.raises(ArtifactError) as caught:
            load()
        assert str(caught.value) == (
            f"{output} has no sentencepiece.bpe.model: its checkpoint had no tokenizer files when it was exported. Put "
            "them into the checkpoint's folder and export again, or give ids to a Session."
        )


def test_the_tokenizer_of_another_class(checkpoint, export_fails, monkeypatch):
    monkeypatch.setattr(pipeline, "trace", None)
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    message = export_fails(checkpoint)
    assert message.startswith(f"{checkpoint / 'tokenizer_config.json'} says tokenizer_class = 'XLMRobertaTokenizer', ")


@pytest.mark.usefixtures("quick_gate")
def test_what_was_taken_off_and_left_out_is_said(tmp_path, write_checkpoint, erniem_export):
    def edit(state):
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        return {**wrapped, "module.loss_fct.weight": torch.ones(3)}

    result = erniem_export("--model", write_checkpoint(tmp_path / "model", edit=edit), "--output", tmp_path / "out")
    assert result.code == 0
    assert "the names of the tensors begin with module., which was taken off" in result.err
    assert "weights left out, because no output depends on them: loss_fct.weight" in result.err


@pytest.fixture
def bare(tmp_path, write_checkpoint):
    """A checkpoint without a tokenizer."""
    return write_checkpoint(tmp_path / "bare")


@pytest.mark.usefixtures("quick_trace")
def test_a_tokenizer_from_elsewhere(bare, tokenizer_dir, tmp_path, erniem_export, erniem_verify):
    result = erniem_export("--model", bare, "--tokenizer", tokenizer_dir, "--output", tmp_path / "out").ok()
    assert "no tokenizer" not in result.err
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == (tokenizer_dir / "vocab.txt").read_bytes()
    assert pipeline_of(tmp_path / "out")("ein Text")[0]["label"]
    for given in ([], ["--tokenizer", tokenizer_dir]):
        report = erniem_verify(tmp_path / "out", "--model", bare, *given).ok()
        assert report.out.splitlines()[0] == result.out.splitlines()[0]  # as many cases, those of text among them


def test_a_tokenizer_from_elsewhere_wins_and_says_so(checkpoint, tmp_path, tokenizer_dir):
    other = Path(shutil.copytree(tokenizer_dir, tmp_path / "other"))
    same = load_checkpoint(str(checkpoint), tokenizer=str(other))
    assert (same.tokenizer_dir, same.notes) == (other, ())
    (other / "tokenizer_config.json").write_text('{"model_max_length": 20}')
    found = load_checkpoint(str(checkpoint), tokenizer=str(other))
    assert found.tokenizer_dir == other
    assert found.defaults.max_seq_len == 20
    assert "the tokenizer is that of --tokenizer (other), and not the checkpoint's own, which differs" in found.notes


@pytest.mark.parametrize("model", ["random:tiny", "a checkpoint"])
def test_a_tokenizer_from_elsewhere_with_too_many_ids(model, bare, tokenizer_dir, tmp_path, export_fails, monkeypatch):
    monkeypatch.setattr(pipeline, "trace", None)
    other = Path(shutil.copytree(tokenizer_dir, tmp_path / "other"))
    (other / "added_tokens.json").write_text('{"<ent>": 300000}')
    given = str(bare) if model == "a checkpoint" else model
    assert "has a tokenizer with ids up to 300000, and its vocab_size is " in export_fails(given, "--tokenizer", other)


def test_a_tokenizer_of_another_kind(bare, tokenizer_dir, tmp_path, xlm_roberta, export_fails):
    """Its ids are others, although they are few enough."""
    theirs = Path(shutil.copytree(xlm_roberta("cls"), tmp_path / "theirs", ignore=shutil.ignore_patterns("model*")))
    assert "is XLM-R's by its files, and the model is ErnieM's" in export_fails(bare, "--tokenizer", theirs)
    assert "is ErnieM's by its files, and the model is XLM-R's" in export_fails(
        xlm_roberta("cls"), "--tokenizer", tokenizer_dir
    )


def test_no_tokenizer_there(bare, tmp_path, export_fails):
    (tmp_path / "other").mkdir()
    assert export_fails(bare, "--tokenizer", tmp_path / "gone") == f"there is no folder {tmp_path / 'gone'}"
    assert export_fails(bare, "--tokenizer", tmp_path / "other") == (
        f"{tmp_path / 'other'} has no sentencepiece.bpe.model: expected a folder with ErnieM's tokenizer"
    )
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "other" / "sentencepiece.bpe.model").write_text(pointer)
    assert export_fails(bare, "--tokenizer", tmp_path / "other").endswith("not the file itself: run git lfs pull")


def test_a_file_in_place_of_a_tokenizer(bare, tokenizer_dir, export_fails):
    file = tokenizer_dir / "sentencepiece.bpe.model"
    assert export_fails(bare, "--tokenizer", file) == (
        f"--tokenizer {file} is a file; expected the folder that holds {file.name}: give {file.parent} if it is that"
    )


def test_a_tokenizer_from_the_hub(bare, tokenizer_dir, monkeypatch):
    asked = []

    def download(name, *, allow_patterns):
        asked.extend(allow_patterns)
        return str(tokenizer_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_checkpoint(str(bare), tokenizer="some/model").tokenizer_dir == tokenizer_dir
    assert "sentencepiece.bpe.model" in asked
    assert not any(pattern.startswith(("model", "pytorch_model")) for pattern in asked if "config" not in pattern)
