"""The README's snippets and its command line run, on the artifacts of its exports, and print what it says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from erniem_rt.manifest import HEADS
from erniem_rt.pipelines import _TASKS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```console\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
SNIPPETS = list(BLOCK.finditer(README))


def test_every_task_has_a_section_with_a_snippet_and_its_output():
    sections = {
        title.lower().replace(" ", "-"): BLOCK.search(text)
        for title, text in re.findall(r"^### (.+)\n((?:(?!#).*\n)*)", README, re.MULTILINE)
    }

    assert [task for task in _TASKS if not (sections.get(task) and sections[task]["output"])] == []


@pytest.mark.parametrize(
    "snippet", SNIPPETS, ids=lambda snippet: f"line-{README[: snippet.start()].count(chr(10)) + 1}"
)
def test_snippet_prints_what_the_readme_says(snippet, nano_artifact, monkeypatch):
    (head,) = (head for head in HEADS if f"out/{head}" in snippet["code"])
    monkeypatch.chdir(nano_artifact(head).parents[2])
    printed = io.StringIO()

    with contextlib.redirect_stdout(printed):
        exec(compile(snippet["code"], "README.md", "exec"), {})

    assert snippet["output"] is not None, "each snippet of the README shows its output"
    assert rounded(printed.getvalue()) == rounded(snippet["output"])


def test_the_layout_names_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^## Layout\n\n```\n(.*?)^```\n", text, re.MULTILINE | re.DOTALL)
    tasks = {f"{task.replace('-', '_')}.py" for task in _TASKS}  # "one file per task"
    for package in ("erniem_rt", "export/erniem_export"):
        shown = tree[tree.index(f"{package}/ ") :].partition("\nexport/" if package == "erniem_rt" else "\ntests/")[0]
        modules = {file.name for file in (ROOT / package).rglob("*.py") if not file.name.startswith("__")}
        assert set(re.findall(r"\w+\.py", shown)) - {"__init__.py"} == modules - tasks


def test_the_command_line_prints_what_the_readme_says(nano_artifact):
    (shown,) = re.finditer(
        r"^```bash\n(?P<command>erniem-rt .*?)^```\n\n```console\n(?P<output>.*?)^```\n",
        README,
        re.MULTILINE | re.DOTALL,
    )
    (head,) = (head for head in HEADS if f"out/{head} " in shown["command"])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    done = subprocess.run(
        ["bash", "-c", shown["command"]],
        cwd=nano_artifact(head).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )

    assert done.returncode == 1
    assert rounded(done.stdout) == rounded(shown["output"])
    assert done.stderr.splitlines()[-1] == "error: 1 of 2 lines could not be answered"


def rounded(text: str) -> str:
    """Scores to two digits: the last ones depend on the processor."""
    return re.sub(r"\d+\.\d+(e-\d+)?", lambda number: f"{float(number[0]):.2f}", text).strip()
