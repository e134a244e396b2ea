"""The artifact's folder: all of an export or nothing, whatever goes wrong, and whatever was there before."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import erniem_rt
from erniem_export import bundle, pipeline
from erniem_export.errors import ExportError
from erniem_rt import ArtifactError, Session
from erniem_rt.manifest import Manifest

OR_OLDER, ELSE = " or from an older version", "choose another --output"

pytestmark = pytest.mark.usefixtures("quick_trace")


@pytest.fixture(scope="module")
def original(tmp_path_factory, write_checkpoint, tokenizer_dir):
    """A checkpoint of head cls, with a tokenizer, to be copied."""
    folder = write_checkpoint(tmp_path_factory.mktemp("original") / "checkpoint")
    shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def original_export(original, erniem_export):
    """An artifact that passed the gate, to be copied."""
    output = original.parent / "exported"
    erniem_export("--model", original, "--output", output).ok()
    return output


@pytest.fixture
def checkpoint(tmp_path, original):
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


@pytest.fixture
def exported(tmp_path, original_export):
    """A folder that holds an artifact already."""
    return Path(shutil.copytree(original_export, tmp_path / "exported"))


@contextlib.contextmanager
def failing(monkeypatch, owner, name, error, at=""):
    """Let a function fail where one of its arguments ends with ``at``; before that it does its work."""
    original = getattr(owner, name)

    def fail(*arguments, **named):
        if any(str(argument).endswith(at) for argument in arguments):
            raise error
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
STEPS = [
    (pipeline, "trace", ""),
    (pipeline, "write", ""),
    (Path, "write_text", "config.json"),
    (Path, "write_bytes", "sentencepiece.bpe.model"),
    (Path, "write_bytes", "vocab.txt"),
    (Manifest, "save", ""),
    (pipeline, "judge", ""),
    (Path, "replace", "out/config.json"),
    (Path, "replace", "out/cls.onnx.data"),
    (Path, "replace", "out/cls.json"),
]


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize(("owner", "name", "at"), STEPS, ids=[f"{name}-{at}" for _, name, at in STEPS])
@pytest.mark.parametrize("error", [NO_SPACE, KeyboardInterrupt()], ids=["disk full", "interrupted"])
@pytest.mark.parametrize("before", ["nothing", "an artifact"])
def test_an_export_that_ends_in_the_middle_leaves_nothing(
    owner, name, at, error, before, tmp_path, checkpoint, exported, export_fails, monkeypatch
):
    output = tmp_path / "new" / "out"
    if before == "an artifact":
        output.parent.mkdir()
        exported.rename(output)
    with failing(monkeypatch, owner, name, error, at):
        message = export_fails(checkpoint, code=1 if error is NO_SPACE else 130)
    if error is NO_SPACE:
        assert message.startswith(f"cannot write to {output}: No space left on device; nothing was left there")
    else:
        assert message == "interrupted; nothing was written"
    if before == "an artifact":
        Session(output / "cls.onnx").close()


def test_the_system_refuses_to_write_more(tmp_path, checkpoint, export_fails):
    """A limit on the size of files stands for a full disk: nothing of ours is replaced."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        message = export_fails(checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith(f"cannot write to {tmp_path}/new/out: File too large")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written(number, checkpoint, export_fails, monkeypatch):
    with failing(monkeypatch, Path, "mkdir", OSError(number, os.strerror(number)), "out"):
        assert f"out: {os.strerror(number)}; nothing was left there: choose another --output" in export_fails(
            checkpoint
        )


def test_a_folder_that_takes_no_files(checkpoint, export_fails, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(bundle.tempfile, "mkdtemp", refuse)
    assert "Permission denied" in export_fails(checkpoint)


@pytest.mark.parametrize("output", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_made(output, tmp_path, checkpoint, erniem_export):
    (tmp_path / "file").write_text("mine")
    result = erniem_export("--model", checkpoint, "--output", tmp_path / output)
    assert result.code == 1
    assert result.err.startswith(f"error: cannot write to {tmp_path / output}: ")
    assert (tmp_path / "file").read_text() == "mine"
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "checkpoint"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every path is Unicode")
def test_a_folder_that_onnxruntime_could_not_read(tmp_path, checkpoint):
    output = tmp_path / os.fsdecode(b"mod\xe8le")
    with (
        pytest.raises(ArtifactError, match=r"onnxruntime cannot open .*mod\\xe8le: it takes UTF-8"),
        bundle.staging(output),
    ):
        pytest.fail("the export would begin")
    assert not output.exists()


@pytest.mark.usefixtures("quick_gate")
def test_a_folder_in_the_place_of_a_file(tmp_path, checkpoint, export_fails):
    (tmp_path / "out" / "cls.onnx").mkdir(parents=True)
    (tmp_path / "out" / "cls.onnx" / "mine").touch()
    assert "cls.onnx is a folder, and a file of that name must go there" in export_fails(
        checkpoint, output=tmp_path / "out"
    )


def test_the_folder_holds_the_artifact_and_its_companions(exported):
    assert sorted(file.name for file in exported.iterdir()) == [
        "cls.json",
        "cls.onnx",
        "cls.onnx.data",
        "config.json",
        "sentencepiece.bpe.model",
        "sentencepiece.sorted.model",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    umask_mode = (exported / "cls.json").stat().st_mode
    assert all(file.stat().st_mode == umask_mode for file in exported.iterdir())


def test_the_manifest_tells_the_truth(exported, checkpoint):
    manifest = json.loads((exported / "cls.json").read_text())
    for name, record in manifest["files"].items():
        content = (exported / name).read_bytes()
        assert record == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    assert manifest["files"].keys() == {file.name for file in exported.iterdir()} - {"cls.json"}
    assert manifest["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert manifest["limits"] == {"max_length": 128, "vocab_size": 1000, "pad_token_id": 1}
    assert manifest["checkpoint"] == {
        "source": "checkpoint",
        "architecture": "ErnieMForSequenceClassification",
        "sha256": pipeline.load_checkpoint(str(checkpoint)).identity(),
    }
    assert manifest["parity"]["cls.onnx"]["passed"] is True
    assert "real text, pairs" in manifest["parity"]["cls.onnx"]["cases"]


@pytest.mark.usefixtures("quick_gate")
def test_no_path_of_this_machine_is_anywhere(tmp_path, checkpoint, erniem_export):
    secrets = {"_name_or_path": str(tmp_path), "special_tokens_map_file": "/home/someone/.cache/map.json"}
    for name in ("config.json", "tokenizer_config.json"):
        path = checkpoint / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **secrets}))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**secrets, "do_lower_case": False}))
    erniem_export("--model", checkpoint, "--output", tmp_path / "out").ok()
    for file in (tmp_path / "out").iterdir():
        for secret in (str(tmp_path), str(Path.home()) + "/", "/home/", str(Path.cwd()), ".venv", "site-packages"):
            assert secret.encode() not in file.read_bytes(), f"{file.name} holds {secret}"
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings == {"do_lower_case": False, "model_input_names": ["input_ids", "attention_mask"]}


@pytest.mark.usefixtures("quick_gate")
def test_export_again_replaces_and_leaves_nothing_stale(tmp_path, exported, checkpoint, erniem_export):
    (checkpoint / "vocab.txt").rename(checkpoint / "not-for-us.txt")
    (checkpoint / "config.json").write_text(
        json.dumps({**json.loads((checkpoint / "config.json").read_text()), "a": 1})
    )
    (exported / "notes.txt").write_text("mine")
    (exported / "cls.onnx.data").write_bytes(b"damaged since")
    with (exported / "cls.onnx.data").open("rb") as served:  # as a process has it mapped
        erniem_export("--model", checkpoint, "--output", exported).ok()
        assert served.read() == b"damaged since"
    # A vocabulary of the old checkpoint beside the new model would give wrong ids.
    assert not (exported / "vocab.txt").exists()
    assert (exported / "notes.txt").read_text() == "mine"
    assert json.loads((exported / "config.json").read_text())["a"] == 1
    Session(exported / "cls.onnx").close()


def other_head(exported):
    """Turn the artifact into one of head ner, as far as anybody can see from outside."""
    manifest = json.loads((exported / "cls.json").read_text())
    manifest |= {"head": "ner", "task": "token-classification", "artifact": "ner.onnx"}
    manifest["files"] = {name.replace("cls.", "ner."): record for name, record in manifest["files"].items()}
    (exported / "ner.json").write_text(json.dumps(manifest))
    for file in list(exported.glob("cls.*")):
        if file.name == "cls.json":
            file.unlink()
        else:
            file.rename(exported / file.name.replace("cls.", "ner."))


@pytest.mark.usefixtures("quick_gate")
def test_export_into_the_checkpoint_itself(checkpoint, erniem_export):
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    for _ in range(2):
        erniem_export("--model", checkpoint, "--output", checkpoint).ok()
    after = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"cls.json", "cls.onnx", "cls.onnx.data", "sentencepiece.sorted.model"}


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize("before", ["nothing", "an export"])
def test_a_checkpoint_is_not_replaced_by_a_part_of_it(before, checkpoint, exported, export_fails, tmp_path):
    """Nor where an export that listed the checkpoint's own files went there first."""
    if before == "an export":
        shutil.copytree(exported, checkpoint, dirs_exist_ok=True)
    (tmp_path / "kept.txt").write_text("a few words")
    message = export_fails(checkpoint, "--keep-tokens", tmp_path / "kept.txt", output=checkpoint)
    assert message.startswith(f"{checkpoint}/")
    assert message.endswith(" is not from an export and would be lost: choose another --output")


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize("name", ["config.json", "cls.onnx", "cls.json"])
def test_files_of_others_stay(name, tmp_path, checkpoint, export_fails):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    message = export_fails(checkpoint, output=tmp_path / "out")
    assert message == f"{tmp_path}/out/{name} is not from an export and would be lost: choose another --output"


@pytest.mark.usefixtures("quick_gate")
def test_another_head_of_the_same_checkpoint_may_stay(exported, checkpoint, erniem_export):
    other_head(exported)
    erniem_export("--model", checkpoint, "--output", exported).ok()
    for head in ("ner", "cls"):
        Manifest.load(exported / f"{head}.json").verify(exported)


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_another_head_of_another_checkpoint_is_not_broken(name, exported, checkpoint, export_fails):
    other_head(exported)
    text = (checkpoint / name).read_text(encoding="utf-8")
    (checkpoint / name).write_text(text.replace("{", '{"a": 1, ', 1) + "\n", encoding="utf-8")
    message = export_fails(checkpoint, output=exported)
    assert message == f"{exported} holds head ner of another checkpoint{OR_OLDER}, with its own {name}: {ELSE}"


@pytest.mark.parametrize("neighbour", [True, False])
def test_what_may_not_go_there_is_said_before_the_work(
    neighbour, tmp_path, exported, checkpoint, export_fails, monkeypatch
):
    monkeypatch.setattr(pipeline, "trace", None)
    output = exported if neighbour else tmp_path / "out"
    output.mkdir(exist_ok=True)
    if neighbour:
        other_head(exported)
    (output / "config.json").write_text("another")
    text = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**text, "initializer_range": 0.03}))
    expected = (
        f"holds head ner of another checkpoint{OR_OLDER}, with its own config.json"
        if neighbour
        else "is not from an export"
    )
    assert expected in export_fails(checkpoint, output=output)


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize("text", ["", "{}", "[]", "not json"])
def test_what_is_no_manifest_of_ours_is_no_obstacle(text, tmp_path, checkpoint, erniem_export):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "qa.json").write_text(text)
    erniem_export("--model", checkpoint, "--output", tmp_path / "out").ok()
    assert (tmp_path / "out" / "qa.json").read_text() == text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sentencepiece.bpe.model", b"\x00\x01 no model"),
        ("tokenizer_config.json", b"\xff\xfe\x00"),
        ("tokenizer_config.json", b'{"x": '),
        ("special_tokens_map.json", b"[]"),
        ("added_tokens.json", b"null"),
        ("vocab.txt", b"\xff\xfe\x00"),
        ("vocab.txt", b""),
    ],
)
def test_damaged_files_of_a_tokenizer(name, content, checkpoint, export_fails):
    (checkpoint / name).write_bytes(content)
    assert name in export_fails(checkpoint)


def test_errors_of_others_pass_through_the_stage(tmp_path):
    with pytest.raises(ExportError, match="mine"), bundle.staging(tmp_path / "a" / "b"):
        raise ExportError("mine")
    assert not (tmp_path / "a").exists()


def test_folders_that_were_there_stay(tmp_path):
    (tmp_path / "a").mkdir()
    with bundle.staging(tmp_path / "a" / "b" / "c"):
        assert (tmp_path / "a" / "b" / "c").is_dir()
    assert [file.name for file in tmp_path.rglob("*")] == ["a"]


OPTIMUM = {"onnx/model.onnx", "onnx/model.onnx_data"}


@pytest.fixture
def for_optimum(checkpoint, erniem_export, quick_gate):
    erniem_export("--model", checkpoint, "--layout", "optimum", "--output", checkpoint.parent / "out").ok()
    return checkpoint.parent / "out"


def test_the_layout_of_optimum(for_optimum, exported, monkeypatch):
    """The same artifact under other names, which a session opens by each of them, and from everywhere."""
    found = {str(file.relative_to(for_optimum)) for file in for_optimum.rglob("*") if file.is_file()}
    flat = {file.name for file in exported.iterdir()}
    assert found == flat - {"cls.onnx", "cls.onnx.data"} | OPTIMUM
    manifest = Manifest.load(for_optimum / "cls.json")
    assert manifest.artifact == "onnx/model.onnx"
    assert manifest.files.keys() == found - {"cls.json"}
    ids = np.array([[0, 5, 7, 2]])
    with Session(exported) as session:
        expected = session.run(input_ids=ids)["logits"]
    monkeypatch.chdir(for_optimum / "onnx")
    for path in (for_optimum, for_optimum / "cls.json", for_optimum / "onnx", "model.onnx", ".", "../cls.json"):
        with Session(path) as session:
            assert session.path.resolve() == for_optimum / "onnx" / "model.onnx"
            np.testing.assert_array_equal(session.run(input_ids=ids)["logits"], expected)
            copied = pickle.loads(pickle.dumps(session))
        copied.close()
    with erniem_rt.pipeline(for_optimum / "onnx" / "model.onnx") as pipe, erniem_rt.pipeline(exported) as other:
        assert pipe("Ein Satz.") == other("Ein Satz.")


def test_verify_and_damage_in_the_layout_of_optimum(for_optimum, checkpoint, erniem_verify):
    for path in (for_optimum, for_optimum / "onnx" / "model.onnx"):
        erniem_verify(path, "--model", checkpoint).ok()
    weights = for_optimum / "onnx" / "model.onnx_data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"onnx/model\.onnx_data was changed after export"):
        Session(for_optimum)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"onnx/model\.onnx_data is missing"):
        Session(for_optimum / "onnx" / "model.onnx")
    (for_optimum / "cls.json").unlink()
    with pytest.raises(ArtifactError, match="an artifact needs its manifest"):
        Session(for_optimum / "onnx" / "model.onnx")


def test_a_folder_changes_its_layout(for_optimum, checkpoint, erniem_export):
    erniem_export("--model", checkpoint, "--output", for_optimum).ok()
    assert not (for_optimum / "onnx").exists()
    erniem_export("--model", checkpoint, "--layout", "optimum", "--output", for_optimum).ok()
    assert not (for_optimum / "cls.onnx").exists()
    result = erniem_export("--model", checkpoint, "--head", "base", "--output", for_optimum)
    assert result.code == 0, "another head may lie beside it"
    with Session(for_optimum / "onnx") as session:
        assert session.manifest.head == "cls"


def test_what_the_layout_of_optimum_has_no_place_for(for_optimum, checkpoint, export_fails, erniem_export, tmp_path):
    layout = ("--layout", "optimum")
    message = export_fails(checkpoint, "--head", "base", *layout, output=for_optimum)
    assert message == f"{for_optimum} holds head cls in optimum's layout, and has room for one: {ELSE}"
    (tmp_path / "theirs" / "onnx").mkdir(parents=True)
    (tmp_path / "theirs" / "onnx" / "model.onnx").write_text("of somebody else")
    message = export_fails(checkpoint, *layout, output=tmp_path / "theirs")
    assert message == f"{tmp_path}/theirs/onnx/model.onnx is not from an export and would be lost: {ELSE}"
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "onnx").touch()
    message = export_fails(checkpoint, *layout, output=tmp_path / "file")
    assert message == f"{tmp_path}/file/onnx is a file, and a folder of that name must go there: move it away"
    for option, said in (
        (["--with-position-ids"], "optimum gives no position_ids: leave out --with-position-ids"),
        (["--with-inputs-embeds"], "optimum gives no inputs_embeds: leave out --with-inputs-embeds"),
        (["--engine", "tensorrt-rtx"], "--layout optimum has no place for a plan: leave out --engine tensorrt-rtx"),
    ):
        result = erniem_export("--model", checkpoint, *layout, *option, "--output", tmp_path / "out2")
        assert result.code == 2
        assert said in result.err


def test_the_layout_of_optimum_in_the_checkpoint_itself(checkpoint, erniem_export, quick_gate):
    """Whose files stay as they are, and its own modules.json counts."""
    modules = [{"type": f"sentence_transformers.models.{name}", "path": ""} for name in ("Transformer", "Pooling")]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "tokenizer_config.json").write_text("{}")
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    for _ in range(2):
        arguments = ("--model", checkpoint, "--head", "base", "--layout", "optimum", "--output", checkpoint)
        result = erniem_export(*arguments).ok()
        assert "so optimum finds no attention_mask: add" in result.err
        assert {name: (checkpoint / name).read_bytes() for name in before} == before
    settings = json.dumps({"model_input_names": ["input_ids", "attention_mask"]})
    (checkpoint / "tokenizer_config.json").write_text(settings)
    result = erniem_export(*arguments).ok()
    assert "attention_mask" not in result.err


@pytest.mark.parametrize("failing_at", ["onnx/model.onnx", "cls.json"])
def test_nothing_is_left_of_half_a_layout(failing_at, checkpoint, export_fails, quick_gate, monkeypatch):
    move = bundle._move

    def fail(name, source, target):
        if name == failing_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        move(name, source, target)

    monkeypatch.setattr(bundle, "_move", fail)
    assert "No space left on device" in export_fails(checkpoint, "--layout", "optimum")
