"""Checkpoints of a few kilobytes, and the commands, run in this process."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from erniem_export import cli, pipeline
from erniem_export.configuration import ErnieMConfig
from erniem_export.heads import CLASSES
from erniem_export.options import GraphOptions
from erniem_export.random_weights import randomize

# The vocabulary holds all ids of the tokenizer that the tests share.
MICRO = {
    "vocab_size": 1000,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 130,
}

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run(command: Callable[[list[str]], int], *arguments: Any) -> Result:
    if command is cli.main and "--engine" not in arguments:
        arguments = (*arguments, "--engine", "none")  # where plans are not the subject, none is built
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, bytes] | None:
    """Every file below a folder, or None without the folder."""
    if not folder.exists():
        return None
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="session")
def micro_model() -> Callable[..., Any]:
    """Build a small random model of a head; further arguments go to its config."""

    def build(head: str = "cls", seed: int = 0, **config: Any) -> Any:
        config = {**MICRO, "num_labels": 2 if head == "qa" else 3, "architectures": [CLASSES[head].__name__], **config}
        model = CLASSES[head](ErnieMConfig(**config)).eval()
        randomize(model, seed)
        return model

    return build


@pytest.fixture(scope="session")
def write_checkpoint(micro_model: Callable[..., Any]) -> Callable[..., Path]:
    """Write a checkpoint as a user has it: ``edit`` changes its weights, ``config`` its config.json (None removes)."""

    def write(
        folder: Path,
        head: str = "cls",
        *,
        edit: Callable[[State], State] = dict,
        pickled: bool = False,
        seed: int = 0,
        **config: Any,
    ) -> Path:
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
def erniem_export() -> Callable[..., Result]:
    """``erniem-export`` with the given arguments."""
    return lambda *arguments: run(cli.main, *arguments)


@pytest.fixture(scope="session")
def erniem_verify() -> Callable[..., Result]:
    """``erniem-verify`` with the given arguments."""
    return lambda *arguments: run(cli.verify_main, *arguments)


@pytest.fixture(scope="session")
def files_in() -> Callable[[Path], dict[str, bytes] | None]:
    """Every file below a folder with its content; None if there is no folder."""
    return contents


@pytest.fixture
def export_fails(tmp_path: Path) -> Callable[..., str]:
    """Run an export that must fail as a user's mistake does; return the one line that it says.

    Whatever is in the output folder must be the same afterwards; if it was not there, it must not be there.
    """

    def fail(model: object, *arguments: Any, output: Path = tmp_path / "new" / "out") -> str:
        before = contents(output), (tmp_path / "new").exists()
        result = run(cli.main, "--model", model, "--output", output, *arguments)
        assert (contents(output), (tmp_path / "new").exists()) == before
        assert result.code == 1, result.err
        line = result.err.splitlines()[-1]
        assert line.startswith("error: ")
        assert result.err.count("error: ") == 1
        assert "Traceback" not in result.err
        return line.removeprefix("error: ")

    return fail


@pytest.fixture(scope="session", autouse=True)
def exports_trace_once(trace_once: Callable[..., ir.Model]) -> Iterator[None]:
    """Exports too; that tracing twice gives the same is what ``graph/test_onnx_contract.py`` tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "trace", trace_once)
        yield


@pytest.fixture
def quick_trace(monkeypatch: pytest.MonkeyPatch, micro_model: Callable[..., Any], trace_once: Any) -> None:
    """Replace the slowest step of an export: every graph is that of ``micro_model()``, whatever the weights."""
    monkeypatch.setattr(pipeline, "trace", lambda *_: trace_once(micro_model(), "cls", GraphOptions()))


@pytest.fixture
def quick_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything pass, for tests of what comes before and after the gate."""
    monkeypatch.setattr(pipeline, "judge", lambda artifact, *_, **__: {artifact.name: {"passed": True}})
    monkeypatch.setattr(pipeline, "with_bf16", lambda manifest, *_, **__: manifest)
    monkeypatch.setattr(cli, "format_report", str)
