"""Writes Markdown tables into marked blocks of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS_DIR = ROOT / "benchmarks" / "results"
README, BENCHMARKS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
EMPTY = "–"

# The text of each block, by the document and the name in its markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.
Blocks = Mapping[tuple[Path, str], str]


def read_block(document: Path, name: str) -> str | None:
    """Return the text between the markers; None without them."""
    content = document.read_text(encoding="utf-8")
    span = _span(content, name)
    return None if span is None else content[span]


def write_blocks(blocks: Blocks) -> list[Path]:
    """Replace the text between the markers; return the documents that have them."""
    written = []
    for (document, name), text in blocks.items():
        content = document.read_text(encoding="utf-8")
        span = _span(content, name)
        if span is not None:
            document.write_text(content[: span.start] + text + content[span.stop :], encoding="utf-8")
            written.append(document)
    return written


def _span(content: str, name: str) -> slice | None:
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    if begin not in content or end not in content:
        return None
    return slice(content.index(begin) + len(begin), content.index(end))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without a newline at its end."""
    return "\n".join([_line(header), _line(["---"] * len(header)), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def load(before: float | None) -> str:
    """Return the load average at the start of the run, as text."""
    return "" if before is None else f"; load {before:.2g} before the run"
