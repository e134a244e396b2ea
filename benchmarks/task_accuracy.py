"""Measures what each precision costs nano in its tasks' metrics, with the accuracy gate's figures.

Usage: python -m benchmarks.task_accuracy [--output FILE] [--table-only]
Exports every head in every precision, writes a JSON file, and writes its table into docs/benchmarks.md. int8 is
calibrated on the checkpoint's own text (the default) and on the built-in text. Precisions that the gate refuses are in
the table too. ``--table-only`` makes the table from the existing file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.documents import BENCHMARKS, EMPTY, RESULTS_DIR, ROOT, Blocks, table, write_blocks

RESULTS = RESULTS_DIR / "task_accuracy.json"
CHECKPOINTS = ROOT / "examples" / "nano" / "checkpoints"
HEADS = ("qa", "cls", "ner", "mc", "ie")
BUILT_IN_TEXT = "int8, built-in text"
PRECISIONS = ("fp32", "fp16", "int8", BUILT_IN_TEXT)
_VERSIONS = ("torch", "onnxruntime", "numpy")


def main(argv: Sequence[str] | None = None) -> int:
    """Export, write and print; return 1 if the gate refused an export with the default calibration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table-only", action="store_true")
    options = parser.parse_args(argv)
    if not options.table_only:
        with tempfile.TemporaryDirectory() as folder:
            rows = [_row(head, precision, Path(folder)) for head in HEADS for precision in PRECISIONS]
        versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
        result = {"model": "examples/nano", "versions": versions, "rows": rows}
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    result = json.loads(options.output.read_text(encoding="utf-8"))
    if options.output == RESULTS:
        write_blocks(blocks(result))
    print(markdown(result))
    return 0 if all(row["passed"] for row in result["rows"] if row["precision"] != BUILT_IN_TEXT) else 1


def markdown(result: dict[str, Any]) -> str:
    """Return a row per head and metric, with the number of answers equal to PyTorch's in brackets."""
    rows = []
    for head in dict.fromkeys(row["head"] for row in result["rows"]):
        of_head = {row["precision"]: row["accuracy"] for row in result["rows"] if row["head"] == head}
        first = next(iter(of_head.values()))
        for metric, pair in first["metrics"].items():
            cells = [_cell(of_head.get(precision), metric) for precision in PRECISIONS]
            rows.append([f"`{head}`", metric, str(first["examples"]), f"{pair['reference']:.2f}", *cells])
    return table(["head", "metric", "examples", "PyTorch, fp32", *PRECISIONS], rows) + "\n"


def _cell(accuracy: dict[str, Any] | None, metric: str) -> str:
    """Return a table cell; a dash if it was not measured."""
    return EMPTY if accuracy is None else f"{accuracy['metrics'][metric]['found']:.2f} ({accuracy['same_answers']})"


def blocks(result: dict[str, Any]) -> Blocks:
    """Return the text of each marked block."""
    return {(BENCHMARKS, "task-accuracy"): markdown(result)}


def _row(head: str, precision: str, folder: Path) -> dict[str, Any]:
    import erniem_export
    from erniem_export.errors import ParityError

    calibration = _built_in() if precision == BUILT_IN_TEXT else None
    options = {"precision": precision.split(",")[0], "calibration": calibration, "engine": "none"}
    cpu = None
    try:
        # Standard operators in fp32 and fp16: their rounding can be emulated on a CPU.
        target = "auto" if options["precision"] == "int8" else "portable"
        output = folder / head / precision
        _, manifest = erniem_export.export(CHECKPOINTS / head, output, head=head, target=target, **options)
        report = manifest.parity[manifest.artifact]
        cpu = manifest.cpu
    except ParityError as error:
        if error.report is None or "accuracy" not in error.report:
            raise
        report = error.report
    print(f"{head} {precision}: {report['accuracy']}", file=sys.stderr, flush=True)
    row = {"head": head, "precision": precision, "passed": report["passed"], "accuracy": report["accuracy"]}
    return row if cpu is None else {**row, "cpu": cpu}


def _built_in() -> Path:
    """Return the path of the exporter's built-in text."""
    from erniem_export import quantization

    return Path(quantization.__path__[0]) / "calibration.txt"


if __name__ == "__main__":
    sys.exit(main())
