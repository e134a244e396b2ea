"""The built wheel, and an environment that holds what a server needs and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def wheel(once_per_run: Callable[..., Path]) -> Path:
    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"the wheel cannot be built:\n{done.stderr}"

    (built,) = once_per_run("wheel", build).iterdir()
    return built


@pytest.fixture(scope="session")
def serving_environment(wheel: Path, once_per_run: Callable[..., Path]) -> Path:
    """``bin`` of a fresh virtual environment with the wheel, numpy and onnxruntime; needs the package index."""
    if os.environ.get("ERNIEM_OFFLINE") == "1":
        pytest.skip("ERNIEM_OFFLINE=1: numpy and onnxruntime cannot be installed without the package index")

    def install(folder: Path) -> None:
        venv.create(folder, with_pip=False)
        pins = ROOT / "requirements" / "serve.txt"
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
        command = [*pip, "install", "--quiet", "--constraint", str(pins), str(wheel), "numpy", "onnxruntime"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            pytest.fail(
                "The serving environment cannot be installed. If the package index is out of reach, run with "
                f"ERNIEM_OFFLINE=1 to skip what needs it. pip said:\n{done.stderr[-2000:]}",
                pytrace=False,
            )

    return once_per_run("serving", install) / "bin"
