"""Where checkpoints are looked for, and what is said when they are not there."""

import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from erniem_export import cli
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import CheckpointError
from erniem_export.sources import find_folder, find_tokenizer, tokenizer_files, weight_files

SNAPSHOT = "huggingface_hub.snapshot_download"


def hub_error(kind, text):
    """An error as the hub's client raises it; its arguments differ between the client's versions."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "a/b/c", "nowhere/", "~/nowhere-at-all", "..\\x"])
def test_a_path_that_is_not_there(model, export_fails):
    with mock.patch(SNAPSHOT, side_effect=AssertionError("the hub was asked for a path")):
        assert export_fails(model) == f"there is no folder {model}"


def test_the_home_of_nobody(export_fails):
    assert export_fails("~nobody-has-this-name/model").startswith("there is no folder ~nobody-has-this-name/model")


def test_a_name_too_long_for_a_folder(export_fails):
    assert "cannot be read: File name too long" in export_fails("/" + "x" * 300)


def test_a_file_is_no_folder(tmp_path, export_fails):
    file = tmp_path / "model.safetensors"
    file.touch()
    said = f"is a file; expected the folder that holds config.json and the weights: give {file.parent} if it is that"
    assert said in export_fails(file)


@pytest.mark.parametrize("flag", ["--model", "--base", "--tokenizer"])
@pytest.mark.parametrize("given", ["", " "])
def test_an_empty_name(flag, given):
    """As of a shell's variable that is not set; an empty path is the current folder."""
    named = {"model": "random:tiny", flag.removeprefix("--"): given}
    with pytest.raises(CheckpointError, match=f"{flag} is empty: expected a folder or a hub id"):
        load_checkpoint(**named)


@pytest.mark.parametrize("given", ["", " "])
@pytest.mark.parametrize(
    ("command", "words", "flag"),
    [
        *((cli.main, ["--model", "random:tiny"], flag) for flag in ("--output", "--base", "--tokenizer", "--task-set")),
        *((cli.main, ["--output", "out"], flag) for flag in ("--model", "--calibration", "--keep-tokens")),
        *((cli.verify_main, ["out"], flag) for flag in ("--model", "--base", "--tokenizer", "--task-set")),
        (cli.verify_main, [], ""),
        *((cli.convert_main, ["in", "--to", "ernie-m"], flag) for flag in ("--output", "--text")),
        (cli.convert_main, ["--to", "ernie-m", "--output", "out"], ""),
    ],
)
def test_an_empty_argument(command, words, flag, given, capsys):
    with pytest.raises(SystemExit, match="2"):
        command([*words, *filter(None, [flag]), given])
    assert f"{flag}: it is empty: expected a path or a name" in capsys.readouterr().err


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_folder("~/model") == tmp_path / "model"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (hub_error(RepositoryNotFoundError, "401 Client Error."), "no such model on the hub"),
        (hub_error(GatedRepoError, "403 Client Error."), "is gated: accept its terms on the hub and log in"),
        (hub_error(LocalEntryNotFoundError, "No network."), "the hub cannot be reached; download the model where"),
        (ConnectionResetError("reset by peer"), "the download from the hub failed: reset by peer"),
        (OSError(28, "No space left on device"), "the download from the hub failed: [Errno 28] No space left"),
        (RuntimeError("\n\nfirst line\nsecond"), "the download from the hub failed: first line"),
    ],
)
def test_the_hub_refuses(error, said, export_fails):
    with mock.patch(SNAPSHOT, side_effect=error):
        message = export_fails("someone/ernie-m")
    assert said in message
    assert "someone/ernie-m" in message


def test_a_name_that_cannot_be_a_hub_id(export_fails):
    assert "'two words' is neither a local folder nor a hub id" in export_fails("two words")


def test_offline_without_a_copy(tmp_path):
    """With the hub's own client, and no network, in a process of its own: it reads the setting when imported."""
    code = "import sys; from erniem_export.cli import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", code, "--model", "someone/ernie-m", "--output", tmp_path / "out"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert "error: there is no folder someone/ernie-m, and the hub cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


class FakeHub:
    """Downloads as the hub's client does: into blobs, with links in a snapshot folder."""

    def __init__(self, files, cache):
        self.files, self.snapshot, self.blobs = files, cache / "snapshots" / "0a1b", cache / "blobs"
        self.snapshot.mkdir(parents=True)
        self.blobs.mkdir()

    def download(self, repo_id, *, allow_patterns):
        assert repo_id == "someone/ernie-m"
        for number, file in enumerate(sorted(file for file in self.files.rglob("*") if file.is_file())):
            name = file.relative_to(self.files)
            if any(fnmatch(str(name), pattern) for pattern in allow_patterns) and not (self.snapshot / name).exists():
                blob = self.blobs / f"{file.stem}{number}"
                blob.write_bytes(file.read_bytes())
                (self.snapshot / name).parent.mkdir(exist_ok=True)
                (self.snapshot / name).symlink_to(blob)
        return str(self.snapshot)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_download(pickled, tmp_path, tokenizer_dir, write_checkpoint, monkeypatch):
    files = write_checkpoint(tmp_path / "remote", pickled=pickled)
    (files / "vocab.txt").write_bytes((tokenizer_dir / "vocab.txt").read_bytes())
    (files / "sentencepiece.bpe.model").write_bytes((tokenizer_dir / "sentencepiece.bpe.model").read_bytes())
    for unwanted in ("model.fp16.safetensors", "tf_model.h5", "optimizer.pt", "README.md"):
        (files / unwanted).write_text("unwanted")
    if not pickled:
        (files / "pytorch_model.bin").write_text("not needed")
    hub = FakeHub(files, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)

    checkpoint = load_checkpoint("someone/ernie-m")

    assert checkpoint.identity() == load_checkpoint(str(files)).identity()
    assert checkpoint.source == "someone/ernie-m"
    assert {file.name for file in hub.snapshot.iterdir()} == {
        "config.json",
        "pytorch_model.bin" if pickled else "model.safetensors",
        "sentencepiece.bpe.model",
        "vocab.txt",
    }


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_a_download_from_sentence_transformers(inner, pickled, tmp_path, write_checkpoint, monkeypatch):
    files = tmp_path / "remote"
    write_checkpoint(files / inner, "base", pickled=pickled)
    (files / "1_Pooling").mkdir()
    (files / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (files / inner / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    modules = [
        {"type": f"sentence_transformers.models.{n}", "path": p}
        for n, p in (("Transformer", inner), ("Pooling", "1_Pooling"))
    ]
    (files / "modules.json").write_text(json.dumps(modules))
    if not pickled:
        (files / inner / "pytorch_model.bin").write_text("not needed")
    hub = FakeHub(files, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    checkpoint = load_checkpoint("someone/ernie-m")
    assert checkpoint.identity() == load_checkpoint(str(files)).identity()
    assert (checkpoint.defaults.max_seq_len, checkpoint.defaults.pooling) == (64, "cls")
    assert pickled or not (hub.snapshot / inner / "pytorch_model.bin").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_no_weights(name, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"has no weights: expected model.safetensors, pytorch_model.bin or model_state.pdparams"
    ):
        weight_files(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name} is a folder; expected a file"):
        weight_files(tmp_path)


@pytest.mark.parametrize("config", [True, False])
def test_the_folder_of_a_training_run(config, tmp_path, write_checkpoint, export_fails):
    folder = tmp_path / "run"
    for name in ("checkpoint-1000", "checkpoint-500", "checkpoint-9"):
        write_checkpoint(folder / name)
    (folder / "logs").mkdir()
    if config:
        (folder / "config.json").write_text((folder / "checkpoint-9" / "config.json").read_text())
    said = "it holds checkpoint-9, checkpoint-500, checkpoint-1000: give such a folder, for example "
    message = export_fails(folder)
    assert message.startswith(f"{folder} has no {'weights' if config else 'config.json'}")
    assert message.endswith(f"; {said}{folder / 'checkpoint-1000'}")
    assert load_checkpoint(str(folder / "checkpoint-1000")).head == "cls"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["tf_model.h5", "notes.txt"], "it holds tf_model.h5"),
        (["zero_to_fp32.py", "latest"], "DeepSpeed's zero_to_fp32.py, which is there, gathers its shards into "),
    ],
)
def test_other_weights_are_named(names, said, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).touch()
    assert f"or shards; {said}" in export_fails(folder)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "sentencepiece.bpe.model",
        "vocab.txt",
        "tokenizer_config.json",
        "task_set.jsonl",
        "calibration.txt",
        "model.safetensors.index.json",
    ],
)
def test_pointers_of_git_lfs(name, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert export_fails(folder) == f"{folder / name} is a pointer of Git LFS, not the file itself: run git lfs pull"


def test_a_broken_link(tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "cleaned")
    for name in ("model.safetensors", "config.json"):
        content = (folder / name).read_bytes()
        for to in ("../../blobs/gone", name):
            (folder / name).unlink()
            (folder / name).symlink_to(to)
            assert f"{name} is a broken link, to {to}: put the file there" in export_fails(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    (tmp_path / "gone").symlink_to("nowhere")
    assert "gone is a broken link: there is nothing at nowhere" in export_fails(tmp_path / "gone")


def test_safetensors_come_first(tmp_path):
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}', "\xff"])
def test_a_damaged_index(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="is not an index of weight files"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["../model-1.safetensors", "/model-1.safetensors", "a/../../b", "..\\b", "C:\\b"])
def test_an_index_whose_paths_leave_the_folder(name, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"expected names of files in its folder: put the shards beside it"):
        weight_files(tmp_path)


def test_an_adapter_without_its_config(tmp_path, export_fails):
    (tmp_path / "adapter_model.safetensors").touch()
    assert "put the adapter's adapter_config.json beside them" in export_fails(tmp_path)


def test_a_file_in_place_of_a_tokenizers_folder(tmp_path):
    (tmp_path / "vocab.txt").touch()
    with pytest.raises(CheckpointError, match=r"is a file; expected the folder that holds sentencepiece.bpe.model"):
        find_tokenizer(str(tmp_path / "vocab.txt"))


def test_an_empty_index(tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="lists no weight files"):
        weight_files(tmp_path)


def test_without_the_sentencepiece_model_there_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokenizer_files(tmp_path) == []
    (tmp_path / "sentencepiece.bpe.model").touch()
    assert [file.name for file in tokenizer_files(tmp_path)] == ["sentencepiece.bpe.model", "tokenizer_config.json"]
