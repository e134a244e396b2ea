"""What README and CI tell people to run exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = {
    "bench",
    "bench-gpu",
    "bench-quick",
    "bench-xlm-roberta",
    "bench-serving",
    "check",
    "clean",
    "clean-all",
    "demo",
    "format",
    "help",
    "lint",
    "nano-eval",
    "nano-task-sets",
    "nano-train",
    "setup",
    "soak",
    "test",
    "test-floor",
    "test-gpu",
    "test-interop",
    "test-serving",
    "test-slow",
    "test-transformers5",
    "test-web",
    "typecheck",
    "web",
    "wheel",
}
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
# In a code span, or at the start of a line of a transcript or of a code block.
MAKE = re.compile(r'(?:`|^(?:\$ )?)make(?: [A-Z]+=(?:"[^"]*"|\S+))* ([a-z][a-z0-9-]*)', re.MULTILINE)
CONSOLE = re.compile(r"(?:`|^(?:\$ )?)(erniem-(?:export|verify|convert))((?:[^`\n\\]|\\\n)*)", re.MULTILINE)


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Run from `make test`, this make is nobody's child: no job server, no flags of its caller.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_make_alone_lists_every_target_with_a_line(root):
    result = make(root)
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines.keys() == TARGETS
    assert all(lines.values())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_target_knows_how_to_make_all_it_needs(target, root):
    result = make(root, "--dry-run", "--always-make", target)
    assert result.returncode == 0, result.stderr


def test_an_old_python_is_named_in_one_line(root, tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = make(root, "--always-make", "--no-print-directory", f"PYTHON={old}", "setup")
    assert result.returncode == 2
    expected, *rest = result.stderr.splitlines()
    assert expected.startswith("Expected Python 3.11 or newer")
    assert "make PYTHON=" in expected
    assert all(line.startswith("make:") for line in rest)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_in_documents_exist(document, root):
    found = set(MAKE.findall((root / document).read_text(encoding="utf-8")))
    assert found, f"{document} names no make target"
    assert found <= TARGETS


def test_ci_runs_targets(root):
    steps = re.search(r"for step in ([^;]+); do", (root / ".ci" / "run").read_text())
    assert steps is not None
    assert set(steps[1].split()) <= TARGETS
    assert os.access(root / ".ci" / "run", os.X_OK)


def help_of(function: str) -> str:
    """What ``--help`` prints, from a process that fails if it needed a heavy package for that."""
    code = f"""
import sys
from erniem_export.cli import {function}
try:
    status = {function}(["--help"])
except SystemExit as end:
    status = end.code
loaded = {{"onnx", "onnxruntime", "onnxscript", "torch", "transformers"}} & sys.modules.keys()
sys.exit(f"--help imported {{sorted(loaded)}}" if loaded else status)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("function", ["main", "verify_main"])
def test_help_needs_no_heavy_package(function):
    assert "--model" in help_of(function)


@pytest.mark.parametrize("document", ["README.md", "docs/tensorrt.md", "docs/xlm-r.md"])
def test_options_in_documents_exist(document, root):
    commands = {"erniem-export": "main", "erniem-verify": "verify_main", "erniem-convert": "convert_main"}
    known = {command: help_of(function) for command, function in commands.items()}
    for command, arguments in CONSOLE.findall((root / document).read_text(encoding="utf-8")):
        for option in re.findall(r"--[a-z][a-z0-9-]*", arguments):
            assert re.search(rf"{option}\b(?!-)", known[command]), f"{document}: {command} has no {option}"
