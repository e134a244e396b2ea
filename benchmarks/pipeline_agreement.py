"""Compares the answers and scores of our pipelines with those of transformers 4.57.6, task by task.

Usage: python -m benchmarks.pipeline_agreement [--output FILE] [--tables-only]
Runs on nano's checkpoints and held-out texts, writes a JSON file, and writes its tables into the documents.
``--tables-only`` makes the tables from the existing file. The comparisons are those of the tests.
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

from benchmarks.documents import README, RESULTS_DIR, ROOT, Blocks, table, write_blocks

RESULTS = RESULTS_DIR / "pipeline_agreement.json"
NANO = ROOT / "examples" / "nano"
_VERSIONS = ("transformers", "torch", "onnxruntime", "numpy", "sentencepiece")

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, write and print; return 1 if anything differs."""
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
        write_blocks(blocks(result))
    print(full_table(result))
    return 0 if all(row["same"] == row["inputs"] for row in result["rows"]) else 1


def full_table(result: dict[str, Any]) -> str:
    """Return a table of all comparisons."""
    header = ["task", "options", "compared with", "inputs", "languages", "same answers", "scores", "largest difference"]
    rows = [
        [
            row["task"],
            f"`{row['options']}`" if row["options"] else "defaults",
            row["reference"],
            str(row["inputs"]),
            str(len(row["languages"])),
            str(row["same"]),
            f"{row['scores']:,}",
            f"{row['largest_difference']:.1e}",
        ]
        for row in result["rows"]
    ]
    return table(header, rows) + "\n"


def short_table(result: dict[str, Any]) -> str:
    """Return a table with a row per task, over all options."""
    lines = []
    for task, group in groupby(result["rows"], key=lambda row: row["task"]):
        rows = list(group)
        inputs, same = (sum(row[key] for row in rows) for key in ("inputs", "same"))
        languages = min(len(row["languages"]) for row in rows)
        largest = max(row["largest_difference"] for row in rows)
        times = f"{inputs // len(rows)} × {len(rows)}"
        lines.append([task, times, str(languages), f"{same:,} of {inputs:,}", f"{largest:.1e}"])
    header = ["task", "inputs × options", "languages", "same answers", "largest difference of a score"]
    return table(header, lines) + "\n"


def blocks(result: dict[str, Any]) -> Blocks:
    """Return the text of each marked block."""
    return {
        (README, "agreement"): short_table(result),
        (ROOT / "docs" / "pipeline-differences.md", "agreement"): full_table(result),
    }


def _compare_all(folder: Path) -> list[Row]:
    # nano's corpus and the tests are not installed.
    sys.path[:0] = [str(NANO), str(ROOT)]
    from tests.parity.agreement import COMPARISONS

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
    import erniem_export
    from erniem_rt.manifest import HEADS

    return {head: erniem_export.export(NANO / "checkpoints" / head, folder / head, head=head)[0] for head in HEADS}


def _held_out(task: str, seed: int, count: int, long_share: float = 0.0) -> Iterable[Any]:
    from generate import generate
    from languages import CODES

    return [e for code in CODES for e in generate(task, code, "heldout", seed, count, long_share=long_share)]


if __name__ == "__main__":
    sys.exit(main())
