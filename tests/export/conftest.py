"""Checkpoints of a few kilobytes, and the commands, run in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file

from erniem_export import cli, pipeline
from erniem_export.bundle import build_manifest
from erniem_export.checkpoint import Checkpoint, randomize
from erniem_export.configuration import ErnieMConfig
from erniem_export.heads import CLASSES
from erniem_export.modeling import ErnieMPreTrainedModel
from erniem_export.onnx_export import write
from erniem_export.options import GraphOptions
from erniem_rt.files import hash_file
from erniem_rt.manifest import Manifest

# The vocabulary holds all ids of the tokenizer that the tests share.
MICRO = {
    "vocab_size": 1000,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 130,
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def ok(self):
        """Return the result of a command that must succeed."""
        assert self.code == 0, self.err
        return self


def run(command, *arguments):
    if command is cli.main and "--engine" not in arguments:
        arguments = (*arguments, "--engine", "none")  # where plans are not the subject, none is built
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def contents(folder):
    """Every file below a folder, or None without the folder."""
    if not folder.exists():
        return None
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="session")
def micro_model():
    """Build a small random model of a head; further arguments go to its config."""

    def build(head="cls", seed=0, **config):
        config = {**MICRO, "num_labels": 2 if head == "qa" else 3, "architectures": [CLASSES[head].__name__], **config}
        model = CLASSES[head](ErnieMConfig(**config)).eval()
        randomize(model, seed)
        return model

    return build


@pytest.fixture(scope="session")
def write_checkpoint(micro_model):
    """Write a checkpoint as a user has it: ``edit`` changes its weights, ``config`` its config.json (None removes)."""

    def write(folder, head="cls", *, edit=dict, pickled=False, seed=0, **config):
        folder.mkdir(parents=True, exist_ok=True)
        model = micro_model(head, seed)
        state = edit({name: tensor.clone() for name, tensor in model.state_dict().items()})
        if pickled:
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        content = {**json.loads(model.config.to_json_string()), **config}
        content = {key: value for key, value in content.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture(scope="session")
def erniem_export():
    """``erniem-export`` with the given arguments."""
    return lambda *arguments: run(cli.main, *arguments)


@pytest.fixture(scope="session")
def erniem_verify():
    """``erniem-verify`` with the given arguments."""
    return lambda *arguments: run(cli.verify_main, *arguments)


@pytest.fixture(scope="session")
def files_in():
    """Every file below a folder with its content; None if there is no folder."""
    return contents


@pytest.fixture
def export_fails(tmp_path):
    """Run an export that must fail as a user's mistake does; return the one line that it says.

    Whatever is in the output folder must be the same afterwards; if it was not there, it must not be there.
    """

    def fail(model, *arguments, output=tmp_path / "new" / "out", code=1):
        before = contents(output), (tmp_path / "new").exists()
        result = run(cli.main, "--model", model, "--output", output, *arguments)
        assert (contents(output), (tmp_path / "new").exists()) == before
        assert result.code == code, result.err
        line = result.err.splitlines()[-1]
        assert line.startswith("error: ")
        assert result.err.count("error: ") == 1
        assert "Traceback" not in result.err
        return line.removeprefix("error: ")

    return fail


@pytest.fixture(scope="session", autouse=True)
def exports_trace_once(trace_once):
    """Exports too; that tracing twice gives the same is what ``graph/test_onnx_contract.py`` tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "trace", trace_once)
        yield


@pytest.fixture
def quick_trace(monkeypatch, micro_model, trace_once):
    """Replace the slowest step of an export: every graph is that of ``micro_model()``, whatever the weights."""
    monkeypatch.setattr(pipeline, "trace", lambda *_: trace_once(micro_model(), "cls", GraphOptions()))


@pytest.fixture
def quick_gate(monkeypatch):
    """Let everything pass, for tests of what comes before and after the gate."""
    monkeypatch.setattr(pipeline, "judge", lambda artifact, *_, **__: {artifact.name: {"passed": True}})
    monkeypatch.setattr(pipeline, "with_bf16", lambda manifest, *_, **__: manifest)
    monkeypatch.setattr(cli, "_table", str)


# Artifacts for graph/ and gate/, traced once per session, and a way to damage copies of them.

# No two sizes alike, so that a swapped axis cannot go unseen.
TINY = {
    "vocab_size": 211,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """An artifact that nothing has checked yet, and the model that it was traced from."""

    head: str
    options: GraphOptions
    model: ErnieMPreTrainedModel
    folder: Path

    @property
    def path(self):
        return self.folder / f"{self.head}.onnx"

    @property
    def manifest(self):
        return Manifest.load(self.folder / f"{self.head}.json")


@pytest.fixture(params=["base", "cls", "ner", "mc", "qa", "ie"])
def head(request):
    return request.param


@pytest.fixture(scope="session")
def export_model(trace_once, tmp_path_factory):
    """Return a function that traces a model into a fresh folder."""

    def export(head, model, **flags):
        folder, options = tmp_path_factory.mktemp(head), GraphOptions(**flags)
        write(trace_once(model.eval(), head, options), folder / f"{head}.onnx")
        checkpoint = Checkpoint(model, head, "test", model.config.to_json_string(use_diff=False), None)
        build_manifest(checkpoint, options, folder).save(folder / f"{head}.json")
        return Exported(head, options, model, folder)

    return export


@pytest.fixture(scope="session")
def make_model():
    """Return a function that builds a small random model; keywords override its config."""

    def make(head, **overrides):
        labels = 2 if head == "qa" else 3
        model = CLASSES[head](ErnieMConfig(**TINY | {"num_labels": labels} | overrides))
        randomize(model)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def exported(export_model, make_model):
    """Return a function that gives the artifact of a head, traced once for all tests: do not change it."""
    cache = {}

    def get(head, **flags):
        key = (head, *sorted(flags.items()))
        if key not in cache:
            cache[key] = export_model(head, make_model(head), **flags)
        return cache[key]

    return get


@pytest.fixture
def damaged(tmp_path):
    """Return a function that copies an artifact, edits the graph of the copy and signs it anew."""

    def damage(artifact, edit):
        folder = tmp_path / "damaged"
        shutil.copytree(artifact.folder, folder)
        path = folder / artifact.path.name
        model = onnx.load(path)
        edit(model)
        Path(f"{path}.data").unlink()
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=64)
        files = {name: hash_file(folder / name) for name in artifact.manifest.files}
        dataclasses.replace(artifact.manifest, files=files).save(folder / f"{artifact.head}.json")
        return path

    return damage


@pytest.fixture(scope="session")
def case_inputs():
    """Return a function that draws inputs for an artifact, right-padded, at the given sizes."""
    generator = torch.Generator().manual_seed(3)

    def draw(artifact, **sizes):
        feeds = {}
        for spec in artifact.manifest.inputs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
            if spec.name == "attention_mask":
                lengths = torch.randint(1, shape[-1] + 1, (*shape[:-1], 1), generator=generator)
                values = (torch.arange(shape[-1]) < lengths).long()
            elif spec.dtype == "int64":
                stop = TINY["vocab_size"] if spec.name == "input_ids" else artifact.manifest.limits.max_length
                values = torch.randint(0, stop, shape, generator=generator)
            else:
                values = torch.rand(shape, generator=generator)
            feeds[spec.name] = values.numpy()
        return feeds

    return draw
