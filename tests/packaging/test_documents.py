"""The README's Python snippets run, on the artifacts that its commands make, and print what it says."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from erniem_rt.manifest import HEADS
from erniem_rt.pipelines import _TASKS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```console\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
SNIPPETS = list(BLOCK.finditer(README))


def test_every_task_has_a_section_with_a_snippet_and_its_output() -> None:
    sections = {
        title.lower().replace(" ", "-"): BLOCK.search(text)
        for title, text in re.findall(r"^### (.+)\n((?:(?!#).*\n)*)", README, re.MULTILINE)
    }

    assert [task for task in _TASKS if not (sections.get(task) and sections[task]["output"])] == []


@pytest.mark.parametrize(
    "snippet", SNIPPETS, ids=lambda snippet: f"line-{README[: snippet.start()].count(chr(10)) + 1}"
)
def test_snippet_prints_what_the_readme_says(
    snippet: re.Match[str], nano_artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (head,) = (head for head in HEADS if f"{head}.onnx" in snippet["code"])
    monkeypatch.chdir(nano_artifact(head).parents[2])
    printed = io.StringIO()

    with contextlib.redirect_stdout(printed):
        exec(compile(snippet["code"], "README.md", "exec"), {})

    assert snippet["output"] is not None, "each snippet of the README shows its output"
    assert rounded(printed.getvalue()) == rounded(snippet["output"])


def rounded(text: str) -> str:
    """Scores to two digits: the last ones depend on the processor."""
    return re.sub(r"\d+\.\d+(e-\d+)?", lambda number: f"{float(number[0]):.2f}", text).strip()
