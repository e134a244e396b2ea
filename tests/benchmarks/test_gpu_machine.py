"""What the targets for a GPU do around the device: what is missing, what is brought, what there is time for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import machine, wheels
from benchmarks.machine import flops_per_second, missing
from tests.gpu import run


def test_a_missing_package_is_named_with_the_remedy() -> None:
    lack = missing("cpu", ("numpy", "a_package_nobody_has"))
    assert lack == (
        f"{sys.executable} has no a_package_nobody_has; name a Python that has them: make GPU_PYTHON=/path/to/python."
    )
    assert missing("cpu", ("numpy",)) is None


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("2.13.0+cpu None False", "PyTorch 2.13.0+cpu (built without CUDA) finds no NVIDIA GPU; "),
        ("2.13.0 12.8 False", "PyTorch 2.13.0 (CUDA 12.8) finds no NVIDIA GPU; "),
        ("2.13.0 12.8 True", None),
    ],
)
def test_a_missing_gpu_is_one_sentence(says: str, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=0, stdout=says, stderr="")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    lack = missing("cuda", ())
    assert (lack or "").startswith(expected or "")
    assert (lack is None) == (expected is None)


def test_the_peak_waits_for_the_device_that_computes() -> None:
    waited: list[str] = []
    tensor = SimpleNamespace(to=lambda _: np.ones((2, 2)))
    torch = SimpleNamespace(randn=lambda *_, **__: tensor, cuda=SimpleNamespace(synchronize=waited.append))
    assert flops_per_second(torch, "cuda:1", None, 2) > 0
    assert set(waited) == {"cuda:1"}


def item(name: str, **parameters: str) -> Any:
    return SimpleNamespace(name=name, **({"callspec": SimpleNamespace(params=parameters)} if parameters else {}))


def test_the_most_telling_gpu_tests_come_first_until_the_budget_is_spent() -> None:
    clock = [0.0]
    timed = run.TimedRun(10, clock=lambda: clock[0])
    items = [
        item("test_x[ner-int8]", head="ner", precision="int8"),
        item("test_x[ner-fp16]", head="ner", precision="fp16"),
        item("test_x[qa-fp32]", head="qa", precision="fp32"),
        item("test_x[qa-fp16]", head="qa", precision="fp16"),
        item("test_kernels[packed]", target="packed"),
        item("test_once"),
    ]
    timed.pytest_collection_modifyitems(items)
    first, *rest = [each.name for each in items]
    assert {first, *rest[:2]} == {"test_x[qa-fp16]", "test_kernels[packed]", "test_once"}
    assert rest[2:] == ["test_x[qa-fp32]", "test_x[ner-fp16]", "test_x[ner-int8]"]
    timed.pytest_runtest_setup(items[0])
    clock[0] = 11
    for late in items[-2:]:
        with pytest.raises(pytest.skip.Exception, match="the time budget of 10 s was spent"):
            timed.pytest_runtest_setup(late)
    assert timed.left_out == {"test_x": ["ner-fp16", "ner-int8"]}


@pytest.mark.parametrize(
    ("code", "outcomes", "expected"), [(0, ["passed"], 0), (0, ["skipped"], 1), (5, [], 1), (1, ["failed"], 1)]
)
def test_gpu_tests_of_which_none_ran_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, code: int, outcomes: list[str], expected: int
) -> None:
    def main(_: list[str], plugins: list[Any]) -> int:
        for outcome in outcomes:
            plugins[0].pytest_runtest_logreport(SimpleNamespace(when="call", outcome=outcome))
        return code

    monkeypatch.setenv(run.DEVICE, "")
    monkeypatch.setattr(run.pytest, "main", main)
    assert run.main(["--device", "cpu"]) == expected
    nothing = "error: no test ran on cpu, so nothing is proven\n"
    assert capsys.readouterr().err == ("" if {"passed", "failed"} & set(outcomes) else nothing)


def test_wheels_travel_in_pieces_and_are_whole_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    wheel = tmp_path / "brought-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as content:
        content.writestr("brought.py", f"SIZE = {'1' * 5000}\n")
        content.writestr("brought-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
        content.writestr(
            "brought-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        content.writestr("brought-1.0.dist-info/RECORD", "")
    monkeypatch.setattr(wheels, "_download", lambda _, folder, __: shutil.copy(wheel, folder))
    pieces = wheels.collect(["brought"], tmp_path / "pieces", "3.12", 2000)
    assert len(pieces) > 3
    assert all(piece.stat().st_size <= 2000 for piece in pieces)
    assert wheels.main(["install", "--from", str(tmp_path / "pieces"), "--site", str(tmp_path / "site")]) == 0
    assert (tmp_path / "site" / "brought.py").exists()
    assert wheel.name in capsys.readouterr().out
    pieces[0].unlink()
    with pytest.raises(SystemExit, match="is not whole: bring all of its pieces"):
        wheels.install(tmp_path / "pieces", tmp_path / "site")


def test_a_package_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for gone\n")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SystemExit, match="gone cannot be downloaded: ERROR: No matching distribution"):
        wheels.collect(["gone"], tmp_path / "pieces", "3.12", 2000)
