"""``python -m erniem_rt`` with a standard stream that is closed: it is missed only where it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LINES = '"one"\nbad\n"two"\n'


@pytest.fixture
def artifact(make_text_artifact) -> Path:
    return make_text_artifact("cls", labels=("good", "bad")).path


@pytest.fixture
def run(artifact: Path, tmp_path: Path):
    """``run(redirection, *options)``: as a shell starts it with that redirection, with three lines to answer."""
    (tmp_path / "in.jsonl").write_text(LINES)

    def start(redirection: str, *options: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "erniem_rt", str(artifact), *options]
        command = ["sh", "-c", f'"$@" {redirection}', "sh", *program]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        return subprocess.run(
            command, cwd=tmp_path, env=buffered, input=LINES, capture_output=True, text=True, check=False, timeout=60
        )

    return start


def assert_answered(text: str) -> None:
    assert ["error" in json.loads(line) for line in text.splitlines()] == [False, True, False]


def assert_reported(text: str) -> None:
    bad, total = text.splitlines()
    assert bad.startswith("line 2: expected a JSON string")
    assert total == "error: 1 of 3 lines could not be answered"


def test_input_from_a_file_needs_no_standard_input(run) -> None:
    result = run("<&-", "--input", "in.jsonl")
    assert result.returncode == 1
    assert_answered(result.stdout)
    assert_reported(result.stderr)


def test_output_to_a_file_needs_no_standard_output(run, tmp_path) -> None:
    result = run(">&-", "--output", "out.jsonl")
    assert result.returncode == 1
    assert_answered((tmp_path / "out.jsonl").read_text())
    assert_reported(result.stderr)


def test_an_error_needs_no_standard_output(run) -> None:
    result = run(">&-", "--input", "none.jsonl", "--output", "out.jsonl")
    assert (result.returncode, result.stderr) == (1, "error: [Errno 2] No such file or directory: 'none.jsonl'\n")


@pytest.mark.parametrize(
    "redirection",
    [
        "2>&-",
        pytest.param("2>/dev/full", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")),
    ],
)
def test_answers_need_no_standard_error(run, redirection) -> None:
    result = run(redirection)
    assert result.returncode == 1
    assert_answered(result.stdout)


@pytest.mark.parametrize(("redirection", "name"), [("<&-", "input"), (">&-", "output")])
def test_a_stream_that_is_needed_is_named(run, redirection, name) -> None:
    result = run(redirection)
    message = f"error: standard {name} is closed: open it, or name a file with --{name}.\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", message)
