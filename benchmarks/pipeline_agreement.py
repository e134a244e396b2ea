"""Our pipelines beside transformers 4.57.6's, task by task: the same answers, and how far apart the scores are.

Usage: python -m benchmarks.pipeline_agreement [--output FILE] [--tables-only]
Runs on nano's checkpoints and held-out texts, writes a JSON file, and puts its tables into the documents.
``--tables-only`` makes the tables of the file as it is. The comparisons are those of the tests.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.tables import ROOT, block

RESULTS = ROOT / "benchmarks" / "results" / "pipeline_agreement.json"
NANO = ROOT / "examples" / "nano"
_VERSIONS = ("transformers", "torch", "onnxruntime", "numpy", "sentencepiece")

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, write, print; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true")
    options = parser.parse_args(argv)
    if not options.tables_only:
        with tempfile.TemporaryDirectory() as folder:
            rows = _compare_all(Path(folder))
        versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
        result = {"model": "examples/nano", "versions": versions, "rows": rows}
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    result = json.loads(options.output.read_text(encoding="utf-8"))
    if options.output == RESULTS:
        write_documents(result)
    print(full_table(result))
    return 0 if all(row["same"] == row["inputs"] for row in result["rows"]) else 1


def full_table(result: dict[str, Any]) -> str:
    """Every comparison."""
    lines = [
        "| task | options | compared with | inputs | languages | same answers | scores | largest difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        options = f"`{row['options']}`" if row["options"] else "defaults"
        figures = f"{row['inputs']} | {len(row['languages'])} | {row['same']} | {row['scores']:,}"
        lines.append(
            f"| {row['task']} | {options} | {row['reference']} | {figures} | {row['largest_difference']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def short_table(result: dict[str, Any]) -> str:
    """A line per task, its comparisons with different options together."""
    lines = [
        "| task | inputs × options | languages | same answers | largest difference of a score |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, group in groupby(result["rows"], key=lambda row: row["task"]):
        rows = list(group)
        inputs, same = (sum(row[key] for row in rows) for key in ("inputs", "same"))
        languages = min(len(row["languages"]) for row in rows)
        largest = max(row["largest_difference"] for row in rows)
        times = f"{inputs // len(rows)} × {len(rows)}"
        lines.append(f"| {task} | {times} | {languages} | {same:,} of {inputs:,} | {largest:.1e} |")
    return "\n".join(lines) + "\n"


def documents(result: dict[str, Any], root: Path = ROOT) -> dict[Path, str]:
    """Which document has which table, between the markers ``agreement``."""
    return {root / "README.md": short_table(result), root / "docs" / "pipeline-differences.md": full_table(result)}


def write_documents(result: dict[str, Any], root: Path = ROOT) -> None:
    """Replace what stands between the markers."""
    for document, text in documents(result, root).items():
        content = document.read_text(encoding="utf-8")
        span = block(content, "agreement")
        if span is not None:
            document.write_text(content[: span.start] + text + content[span.stop :], encoding="utf-8")


def _compare_all(folder: Path) -> list[Row]:
    from benchmarks.agreement import COMPARISONS

    sys.path.insert(0, str(NANO))  # not installed
    artifacts = _exported(folder)
    rows = []
    for comparison in COMPARISONS:
        tally = comparison.run(artifacts.__getitem__, _held_out, **comparison.arguments)
        print(f"{comparison.name}: {tally.same} of {tally.inputs} the same, {tally.largest:.1e}", file=sys.stderr)
        for ours, theirs in tally.differing[:3]:
            print(f"  ours {ours}\n  theirs {theirs}", file=sys.stderr)
        rows.append(
            {
                "task": comparison.task,
                "options": comparison.options,
                "reference": comparison.reference,
                "inputs": tally.inputs,
                "languages": sorted(tally.languages),
                "same": tally.same,
                "scores": tally.scores,
                "largest_difference": tally.largest,
            }
        )
    return rows


def _exported(folder: Path) -> dict[str, Path]:
    from erniem_export.heads import CLASSES
    from erniem_export.options import ExportOptions
    from erniem_export.pipeline import export
    from erniem_export.progress import Terminal

    options = {h: ExportOptions(model=str(NANO / "checkpoints" / h), head=h, output=folder / h) for h in CLASSES}
    return {head: export(option, Terminal())[0] for head, option in options.items()}


def _held_out(task: str, seed: int, count: int, long_share: float = 0.0) -> Iterable[Any]:
    from generate import generate
    from languages import CODES

    return [e for code in CODES for e in generate(task, code, "heldout", seed, count, long_share=long_share)]


if __name__ == "__main__":
    sys.exit(main())
