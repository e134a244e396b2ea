"""The tokenizer beside transformers' ErnieMTokenizer: seconds for the same texts, and what loading takes.

All ways take turns in one process, round by round; a ratio is the median of the rounds' ratios. A way whose ids are not
the reference's has no time. Wall time needs an idle machine; CPU time bears company, and what of it the main thread
takes is what more threads cannot share. Loading is measured in fresh processes. Writes a JSON file, prints its tables
and puts them into docs/benchmarks.md; ``--tables-only`` makes the tables of the file as it is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers.models.deprecated.ernie_m.tokenization_ernie_m import ErnieMTokenizer

import erniem_rt
from benchmarks.tables import ROOT
from benchmarks.tokenizer_data import make_texts, write_tokenizer
from benchmarks.tokenizer_tables import RESULTS, tables, write_document
from erniem_export.sentencepiece_model import in_byte_order
from erniem_export.sources import TOKENIZER_FILES, tokenizer_files
from erniem_rt import Tokenizer
from erniem_rt.tokenizer import BatchEncoding

REFERENCE = "transformers"
ONE_THREAD = "batch, 1 thread"
_OTHERS = ("transformers", "sentencepiece", "numpy")
Rows = list[list[int]]


class Way(NamedTuple):
    """A way to encode the texts, and how the rows of ids are read from what it returns."""

    run: Callable[[], Any]
    rows: Callable[[Any], Rows]


_LOAD = """
import json, sys, time
from pathlib import Path
import numpy, sentencepiece, erniem_rt.tokenizer
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before, wall, cpu = resident(), time.perf_counter(), time.process_time()
if sys.argv[2] == "sentencepiece":
    loaded = sentencepiece.SentencePieceProcessor()
    loaded.LoadFromSerializedProto((Path(sys.argv[1]) / "sentencepiece.bpe.model").read_bytes())
else:
    loaded = erniem_rt.tokenizer.Tokenizer.from_dir(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "added_mb": (resident() - before) / 1e6,
                  "resident_mb": resident() / 1e6}))
"""


def main() -> None:
    """Make texts and a vocabulary, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=1000, help="texts per call")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with a checkpoint's files; default: a made-up vocabulary"
    )
    parser.add_argument("--vocabulary", default="", help="what to call the files of --tokenizer")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true")
    options = parser.parse_args()
    if not options.tables_only:
        result = _measured(options)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    result = json.loads(options.output.read_text(encoding="utf-8"))
    if options.output == RESULTS:
        write_document(result)
    print(tables(result))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    texts = make_texts(options.texts)
    machine = _machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.tokenizer or Path(temporary) / "made_up"
        if options.tokenizer is None:
            folder.mkdir()
            write_tokenizer(folder)
        ways = _ways(folder, [texts[i : i + options.batch] for i in range(0, len(texts), options.batch)])
        rows = _measure(ways, options.rounds)
        loading = _loading(folder, _exported(folder, Path(temporary) / "exported"))
        long_texts = _long_texts(Tokenizer.from_dir(folder), " ".join(texts))
    return {
        "texts": len(texts),
        "characters": sum(map(len, texts)),
        "texts_per_call": options.batch,
        "rounds": options.rounds,
        "vocabulary": "made up, of 250,002 tokens"
        if options.tokenizer is None
        else options.vocabulary or "a checkpoint's",
        "machine": machine,
        "versions": {
            "erniem_rt": erniem_rt.__version__,
            **{name: importlib.metadata.version(name) for name in _OTHERS},
        },
        "ways": rows,
        "loading": loading,
        "long_texts": long_texts,
    }


def _ways(folder: Path, batches: list[list[str]]) -> dict[str, Way]:
    reference = ErnieMTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_dir(folder)

    def batch(threads: int) -> list[BatchEncoding]:
        return [ours.batch(texts, threads=threads) for texts in batches]

    def batch_with(attribute: str) -> list[BatchEncoding]:
        encoded = batch(1)
        for part in encoded:
            getattr(part, attribute)
        return encoded

    return {
        REFERENCE: Way(lambda: [reference(texts)["input_ids"] for texts in batches], _flat),
        ONE_THREAD: Way(lambda: batch(1), _unpadded),
        "batch, 2 threads": Way(lambda: batch(2), _unpadded),
        "batch with .offsets": Way(lambda: batch_with("offsets"), _unpadded),
        "batch with .encodings": Way(lambda: batch_with("encodings"), _unpadded),
        "one by one, with offsets": Way(
            lambda: [[ours(text) for text in texts] for texts in batches],
            lambda rows: [row.input_ids for row in _flat(rows)],
        ),
    }


def _flat(batches: Any) -> list[Any]:
    return [row for batch in batches for row in batch]


def _unpadded(batches: list[BatchEncoding]) -> Rows:
    rows = _flat(zip(part.input_ids, part.attention_mask, strict=True) for part in batches)
    return [ids[mask == 1].tolist() for ids, mask in rows]


def _measure(ways: dict[str, Way], rounds: int) -> dict[str, dict[str, Any]]:
    expected = ways[REFERENCE].rows(ways[REFERENCE].run())
    correct = {name: way.rows(way.run()) == expected for name, way in ways.items()}  # warms every way as well
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    serial: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time(), time.thread_time()
            way.run()
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
            serial[name].append(time.thread_time() - started[2])
    return {
        name: {
            "correct": correct[name],
            "seconds": statistics.median(wall[name]) if correct[name] else None,
            "cpu_seconds": statistics.median(cpu[name]) if correct[name] else None,
            "main_thread_cpu_seconds": statistics.median(serial[name]) if correct[name] else None,
            "times_reference": _ratio(wall[REFERENCE], wall[name]) if correct[name] else None,
            "times_reference_cpu": _ratio(cpu[REFERENCE], cpu[name]) if correct[name] else None,
            "times_one_thread": _ratio(wall[ONE_THREAD], wall[name]) if correct[name] else None,
            "times_one_thread_cpu": _ratio(cpu[ONE_THREAD], cpu[name]) if correct[name] else None,
        }
        for name in ways
    }


def _ratio(base: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(base, other, strict=True))


def _exported(source: Path, target: Path) -> Path:
    """The tokenizer's files as ``erniem-export`` writes them."""
    target.mkdir()
    for file in tokenizer_files(source):
        content = file.read_bytes()
        (target / file.name).write_bytes(in_byte_order(content) if file.name == TOKENIZER_FILES[0] else content)
    return target


def _loading(checkpoint: Path, exported: Path, rounds: int = 9) -> dict[str, dict[str, float]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ways = {
        "sentencepiece": (checkpoint, "sentencepiece"),
        "checkpoint": (checkpoint, "erniem_rt"),
        "exported": (exported, "erniem_rt"),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (folder, what) in ways.items():
            command = [sys.executable, "-c", _LOAD, str(folder), what]
            runs[name].append(json.loads(subprocess.check_output(command, env=environment)))
    return {
        name: {
            **{key: statistics.median(run[key] for run in rows) for key in rows[0]},
            "least_seconds": min(run["seconds"] for run in rows),
        }
        for name, rows in runs.items()
    }


def _long_texts(tokenizer: Tokenizer, text: str, rounds: int = 3) -> list[dict[str, float]]:
    """One text of growing length, with offsets."""
    rows = []
    for count in (10_000, 100_000, 1_000_000):
        whole = (text * (count // len(text) + 1))[:count]
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            tokenizer(whole)
            seconds.append(time.perf_counter() - started)
        rows.append({"characters": count, "seconds": statistics.median(seconds)})
    return rows


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],  # before
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
