"""Cold start and memory: from the start of a process to its first answer, ours beside transformers + torch.

One process per measurement, the engines interleaved, the median over rounds. An engine whose answer is not the
reference's has no time. Writes a JSON file that the tables are made from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNNERS = Path(__file__).resolve().parent / "runners"
TOLERANCE = 1e-4


def main() -> None:
    """Export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:base", help="random:tiny, random:base or random:large")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=32, help="length of the one row that is answered")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "cold_start.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT / "benchmarks") as folder:
        checkpoint, artifact = _prepare(options.model, Path(folder))
        ids = ",".join(str(3 + 7 * i) for i in range(options.tokens))
        commands = _commands(checkpoint, artifact, options.threads, ids)
        rows = _measure(commands, options.rounds)
    result = {"model": options.model, "tokens": options.tokens, "machine": _machine(options.threads), "engines": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(_table(rows))


def _prepare(model: str, folder: Path) -> tuple[Path, Path]:
    """Write one checkpoint in both forms: for transformers, and exported."""
    from erniem_export.checkpoint import load_checkpoint

    checkpoint = folder / "checkpoint"
    load_checkpoint(model, "cls").model.save_pretrained(checkpoint)
    command = [sys.executable, "-m", "erniem_export.cli", "--model", str(checkpoint), "--output", str(folder / "out")]
    subprocess.run(command, check=True)
    return checkpoint, folder / "out" / "cls.onnx"


def _commands(checkpoint: Path, artifact: Path, threads: int, ids: str) -> dict[str, list[str]]:
    serving = ROOT / ".venv-serve" / "bin" / "python"
    ours = [str(serving), str(RUNNERS / "erniem_rt_session.py"), str(artifact), str(threads), ids]
    reference = [sys.executable, str(RUNNERS / "transformers_torch.py"), str(checkpoint), str(threads), ids]
    return {
        "transformers + torch": reference,
        "erniem-rt": ours,
        "erniem-rt, verify=False": [*ours, "--no-verify"],
    }


def _measure(commands: dict[str, list[str]], rounds: int) -> dict[str, dict[str, Any]]:
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            samples[name].append(_once(command))
    reference = samples["transformers + torch"][0]["logits"]
    return {name: _summary(runs[1:], reference) for name, runs in samples.items()}  # the first round warms the disk


def _once(command: list[str]) -> dict[str, Any]:
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
    if process.returncode or not line:
        raise SystemExit(f"{' '.join(command[:2])} failed with exit code {process.returncode}")
    return {**json.loads(line), "seconds": seconds}


def _summary(runs: list[dict[str, Any]], reference: list[float]) -> dict[str, Any]:
    difference = max(abs(a - b) for run in runs for a, b in zip(run["logits"], reference, strict=True))
    seconds = [run["seconds"] for run in runs]
    correct = difference <= TOLERANCE
    return {
        "correct": correct,
        "max_abs_difference": difference,
        "seconds": statistics.median(seconds) if correct else None,
        "seconds_range": [min(seconds), max(seconds)] if correct else None,
        "resident_mb": statistics.median(run["resident"] for run in runs) / 1e6,
        "resident_private_mb": statistics.median(run["resident_private"] for run in runs) / 1e6,
        "peak_mb": statistics.median(run["peak"] for run in runs) / 1e6,
        "torch_loaded": runs[0]["torch_loaded"],
        "versions": runs[0]["versions"],
    }


def _machine(threads: int) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    return {"cpu": model, "cores": os.cpu_count(), "threads": threads, "python": platform.python_version()}


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| | first answer | resident | of it private | peak |", "| --- | --- | --- | --- | --- |"]
    for name, row in rows.items():
        seconds = f"{row['seconds']:.2f} s" if row["correct"] else "wrong answer"
        sizes = " | ".join(f"{row[key]:.0f} MB" for key in ("resident_mb", "resident_private_mb", "peak_mb"))
        lines.append(f"| {name} | {seconds} | {sizes} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
