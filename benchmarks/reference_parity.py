"""Compares the six heads, as PyTorch models and as exported graphs, with transformers 4.57's classes.

Each head is loaded twice from one folder, by the reference's class and by the exporter, and the exported graph runs as
for users. The inputs are the parity gate's. Writes a JSON file and prints a table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.models.deprecated import ernie_m as reference

import erniem_export
from benchmarks.documents import RESULTS_DIR, table
from erniem_export.checkpoint import load_checkpoint
from erniem_export.gate.cases import build_cases
from erniem_export.gate.parity import reference_outputs
from erniem_rt import Session
from erniem_rt.manifest import HEADS


def main() -> None:
    """Export every head and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:tiny", help="random:SIZE, or a folder with one folder per head")
    parser.add_argument("--output", type=Path, default=RESULTS_DIR / "reference_parity.json")
    options = parser.parse_args()
    rows = {}
    for head in HEADS:
        with tempfile.TemporaryDirectory() as folder:
            rows[head] = _compare(options.model, head, Path(folder))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnxruntime")}
    result = {"model": options.model, "versions": versions, "heads": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(_table(rows))


def _compare(model: str, head: str, folder: Path) -> dict[str, Any]:
    if model.startswith("random:"):
        checkpoint = load_checkpoint(model, head)
        source = folder / "checkpoint"
        checkpoint.model.save_pretrained(source)
    else:
        source = Path(model) / head
        checkpoint = load_checkpoint(str(source), head)
    theirs = getattr(reference, type(checkpoint.model).__name__).from_pretrained(source).float().eval()
    artifact, _ = erniem_export.export(source, folder / "out", head=head)
    torch_gap = graph_gap = largest = 0.0
    values = 0
    with Session(artifact) as session:
        for case in build_cases(session.manifest, checkpoint.tokenizer_dir):
            expected = reference_outputs(theirs, session.manifest, case)
            ours = reference_outputs(checkpoint.model, session.manifest, case)
            graph = session.run(case.feeds)
            for name, array in expected.items():
                torch_gap = max(torch_gap, float(np.abs(ours[name] - array).max()))
                graph_gap = max(graph_gap, float(np.abs(graph[name] - array).max()))
                largest = max(largest, float(np.abs(array).max()))
                values += array.size
    return {
        "class": type(theirs).__name__,
        "values": values,
        "largest": largest,
        "pytorch": torch_gap,
        "onnx": graph_gap,
    }


def _table(heads: dict[str, dict[str, Any]]) -> str:
    header = ["head", "values compared", "largest value", "our PyTorch", "our ONNX"]
    rows = [
        [f"`{head}`", f"{row['values']:,}", f"{row['largest']:.1f}", f"{row['pytorch']:.1e}", f"{row['onnx']:.1e}"]
        for head, row in heads.items()
    ]
    return table(header, rows)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
