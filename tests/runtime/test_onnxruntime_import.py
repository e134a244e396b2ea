"""onnxruntime is imported with its telemetry off, unless the user has a say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import erniem_rt

ROOT = str(Path(erniem_rt.__file__).parents[1])
NOTE = "import os; __version__ = {version!r}; seen = os.environ.get('ORT_DISABLE_TELEMETRY')\n"
PROGRAM = """
{before}
from erniem_rt.engines.onnxruntime import import_onnxruntime
import_onnxruntime()
print(import_onnxruntime().seen)
"""


def imported(tmp_path, before: str, version: str = "1.31.1", **env: str) -> tuple[str, str]:
    """What the variable was when a stand-in for onnxruntime was imported, and what was said."""
    (tmp_path / "onnxruntime.py").write_text(NOTE.format(version=version), "utf-8")
    known = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        env={**known, **env, "PYTHONPATH": os.pathsep.join([str(tmp_path), ROOT])},
    )
    return done.stdout.strip(), done.stderr


def test_telemetry_is_off_and_nothing_is_said(tmp_path):
    assert imported(tmp_path, "") == ("1", "")


@pytest.mark.parametrize("before", ["", "import onnxruntime"])
@pytest.mark.parametrize("value", ["0", "1"])
def test_the_users_own_value_stays(tmp_path, before, value):
    assert imported(tmp_path, before, ORT_DISABLE_TELEMETRY=value) == (value, "")


def test_an_import_before_ours_is_said_once(tmp_path):
    seen, said = imported(tmp_path, "import onnxruntime, warnings; warnings.simplefilter('always')")
    assert seen == "None"
    assert said.count("UserWarning") == 1
    assert "onnxruntime 1.31.1 was imported before erniem_rt could turn its telemetry off" in said


@pytest.mark.parametrize("version", ["1.28.0", "1.20.1", "dev"])
def test_versions_without_telemetry_need_no_word(tmp_path, version):
    assert imported(tmp_path, "import onnxruntime", version) == ("None", "")
