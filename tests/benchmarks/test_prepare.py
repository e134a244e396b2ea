"""Which artifacts are made, in which order, and when again: with steps that only leave a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import conversions, prepare
from benchmarks.engines import ENGINES
from benchmarks.gpu.engines import ENGINES as GPU_ENGINES


class Steps:
    """Stands in for the processes that make the artifacts; ``lost`` are those that fail, with what they say."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.lost: dict[str, str] = {}

    def run(self, command: list[str], **_: Any) -> Any:
        step, folder = command[3], Path(command[4])
        self.made.append(step)
        (folder / step / "model").write_bytes(bytes(7))
        failure = self.lost.get(step)
        return SimpleNamespace(returncode=int(failure is not None), stdout="", stderr=failure or "")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(prepare.subprocess, "run", steps.run)
    return steps


def test_what_a_step_needs_is_made_first_and_once(steps: Steps, tmp_path: Path) -> None:
    assert prepare.prepare("openvino-int8", tmp_path, "random:tiny") is None
    assert steps.made == ["checkpoint", "onnx-plain", "openvino", "openvino-int8"]
    assert prepare.prepare("ctranslate2", tmp_path, "random:tiny") is None
    assert steps.made[4:] == ["ctranslate2"]
    assert prepare.artifact_bytes(tmp_path / "ctranslate2") == 7  # without what we note beside it


def test_another_model_or_other_code_makes_it_again(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("random:tiny", "random:tiny", "small"):
        prepare.prepare("checkpoint", tmp_path, model)
    assert steps.made == ["checkpoint"] * 2
    monkeypatch.setattr(prepare, "_digest", lambda _: "other code")
    prepare.prepare("checkpoint", tmp_path, "small")
    assert steps.made == ["checkpoint"] * 3


def test_a_step_that_fails_is_a_gap_for_all_that_need_it_and_is_tried_again(steps: Steps, tmp_path: Path) -> None:
    steps.lost["onnx-plain"] = "Traceback ...\nMemoryError: no room\n\n"
    gap = prepare.prepare("openvino", tmp_path, "random:tiny")
    assert gap == "preparing onnx-plain failed with exit code 1: MemoryError: no room"
    assert steps.made == ["checkpoint", "onnx-plain"]
    assert "Traceback" in (tmp_path / "onnx-plain.log").read_text()
    steps.lost.clear()
    assert prepare.prepare("openvino", tmp_path, "random:tiny") is None
    assert steps.made[2:] == ["onnx-plain", "openvino"]


def test_every_engine_s_artifact_has_a_step() -> None:
    for spec in (*ENGINES.values(), *GPU_ENGINES.values()):
        assert spec.artifact in prepare.SOURCES
    assert prepare.SOURCES.keys() == conversions.STEPS.keys()
