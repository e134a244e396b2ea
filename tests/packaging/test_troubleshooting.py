"""Every message that docs/tensorrt.md explains is one that the code can say."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
SOURCES = (ROOT / "erniem_rt", ROOT / "export" / "erniem_export")
TABLES = ("Building", "Running")


def rows(title: str) -> list[str]:
    """The first cells of the table below a heading."""
    (section,) = re.findall(rf"^### {title}\n(.*?)(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    return [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| ")][2:]


MESSAGES = [message for title in TABLES for cell in rows(title) for message in re.findall(r"`([^`]+)`", cell)]


@cache
def said() -> tuple[str, ...]:
    """All texts in the code, as one piece each; ``\\0`` where something is filled in."""
    found = []
    for path in (path for folder in SOURCES for path in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = node.values
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def is_said(message: str) -> bool:
    """Whether a text holds the fixed parts of ``message`` in this order, and fills something in between them."""
    pattern = re.compile("[^\n]*\0[^\n]*".join(map(re.escape, message.removesuffix(" ...").split("..."))))
    return any(pattern.search(text) for text in said())


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_is_in_the_code(message: str) -> None:
    assert is_said(message)
    assert len(message.replace("...", "").replace(" ", "")) >= 8, "too little of it is fixed to find it by"


def test_a_message_that_nobody_says_is_found_out() -> None:
    assert not is_said("needs the package ..., and it cannot be laoded")
    assert not is_said("it cannot be loaded ... needs the package")
    assert not is_said("makes no ... here")


@pytest.mark.parametrize("title", TABLES)
def test_every_row_has_a_message(title: str) -> None:
    assert len(rows(title)) >= 15
    assert all("`" in cell for cell in rows(title))
