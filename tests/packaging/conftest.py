"""The built wheel, and an environment that holds what a server needs and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert build.returncode == 0, f"the wheel cannot be built:\n{build.stderr}"
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="session")
def serving_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of a fresh virtual environment with the wheel, numpy and onnxruntime; needs the package index."""
    if os.environ.get("ERNIEM_OFFLINE") == "1":
        pytest.skip("ERNIEM_OFFLINE=1: numpy and onnxruntime cannot be installed without the package index")
    folder = tmp_path_factory.mktemp("serving") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pins = ROOT / "requirements" / "serve.txt"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--constraint", str(pins), str(wheel), "numpy", "onnxruntime"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.fail(
            "The serving environment cannot be installed. If the package index is out of reach, run with "
            f"ERNIEM_OFFLINE=1 to skip what needs it. pip said:\n{done.stderr[-2000:]}",
            pytrace=False,
        )
    return python.parent
