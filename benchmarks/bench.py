"""Measure every engine on every workload and write the figures as JSON; see docs/benchmarks.md.

Usage: python -m benchmarks.bench [--quick] [--rounds N] [--threads N] [--engines NAME,NAME] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import accuracy, end_to_end, processes
from benchmarks.client import Client, WorkerError
from benchmarks.engines import ENGINES, QUICK, REFERENCE, EngineSpec
from benchmarks.machine import describe_machine
from benchmarks.measure import (
    Results,
    Say,
    check_all,
    close_all,
    first_answers,
    open_all,
    require_reference,
    time_rounds,
)
from benchmarks.prepare import ROOT, artifact_bytes, prepare
from benchmarks.ratios import ratios
from benchmarks.tables import markdown
from benchmarks.workloads import ALL, Workload, build_workloads

RESULTS = ROOT / "benchmarks" / "results"
WORKERS = 4
QUICK_WORKLOADS = ("1x32", "8x128", "mixed")
LEFT_OUT = {"gap": "left out of this run"}
BUSY = 0.5


@dataclass(frozen=True)
class Options:
    """What is measured, how often, with how many threads, and where the figures go."""

    model: str
    threads: int
    rounds: int
    cold_rounds: int
    engines: tuple[str, ...]
    workloads: tuple[str, ...]
    quick: bool
    output: Path

    @property
    def folder(self) -> Path:
        """Where the artifacts of this model are."""
        return ROOT / "build" / "bench" / self.model.replace(":", "-")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if the reference itself cannot be measured."""
    options = _options(argv)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    try:
        results = run(options, say)
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"wrote {options.output}")
    print(markdown(results))
    return 0


def run(options: Options, say: Say) -> dict[str, Any]:
    """Prepare, check, time; return everything that was found."""
    machine = describe_machine()
    if machine["load_before"] > BUSY:
        say(f"the machine is busy (load {machine['load_before']}); figures will be off, and ratios less so")
    specs = [ENGINES[name] for name in ENGINES if name in options.engines]
    options.folder.mkdir(parents=True, exist_ok=True)
    gaps = {name: LEFT_OUT["gap"] for name in ENGINES if name not in options.engines}
    for spec in specs:
        say(f"preparing {spec.label}")
        gap = prepare(spec.artifact, options.folder, options.model)
        if gap is not None:
            gaps[spec.name] = gap
            say(gap)
    require_reference(gaps)
    config = json.loads((options.folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    workloads = build_workloads(options.workloads, config["vocab_size"])
    path = write_workloads(options.folder / "workloads.json", workloads)

    def open_client(spec: EngineSpec, rows: Path = path) -> Client:
        return Client(spec, options.folder, rows, options.threads)

    verdicts, versions = _timed(options, specs, workloads, open_client, gaps, say)
    results: dict[str, Any] = {
        "format": 1,
        "quick": options.quick,
        "commit": commit(),
        "machine": machine,
        "threads": options.threads,
        "rounds": options.rounds,
        "model": _model(options.model, config),
        "workloads": {workload.name: workload.description() for workload in workloads},
        "engines": {spec.name: _engine(spec, options.folder, gaps, verdicts, versions) for spec in ENGINES.values()},
    }
    present = [spec for spec in specs if spec.name not in gaps]
    correct = _cold_starters(results, present)
    _add_cold_starts(results, correct, open_client, options.cold_rounds, say)
    if options.quick:
        results |= {"end_to_end": LEFT_OUT, "accuracy": LEFT_OUT}
    else:
        _add_shared_memory(results, correct, open_client, say)
        say("from text to answer")
        results["end_to_end"] = end_to_end.end_to_end(options.folder, open_client, options.rounds, say)
        results["accuracy"] = _accuracy(options, say)
    results["ratios"] = ratios(results)
    _drop_logits(results)
    return results


def _accuracy(options: Options, say: Say) -> dict[str, Any]:
    def open_client(spec: EngineSpec, folder: Path, rows: Path) -> Client:
        return Client(spec, folder, rows, options.threads)

    folder = ROOT / "build" / "bench" / accuracy.MODEL
    return accuracy.accuracy(folder, options.engines, open_client, options.rounds, say)


def _drop_logits(results: dict[str, Any]) -> None:
    for engine in results["engines"].values():
        for verdict in engine["results"].values():
            verdict.pop("first_logits", None)


def _timed(
    options: Options,
    specs: list[EngineSpec],
    workloads: list[Workload],
    open_client: Any,
    gaps: dict[str, str],
    say: Say,
) -> tuple[dict[str, Results], dict[str, dict[str, str]]]:
    clients = open_all(specs, open_client, gaps, say)
    try:
        versions = first_answers(clients, processes.FIRST, gaps, say)
        require_reference(gaps)
        say("comparing with PyTorch")
        verdicts = check_all(clients, workloads, say)
        time_rounds(clients, workloads, verdicts, options.rounds, say)
    finally:
        close_all(clients)
    return verdicts, versions


def _cold_starters(results: dict[str, Any], specs: list[EngineSpec]) -> list[EngineSpec]:
    """The engines of which a fresh process can be asked for its first answer."""
    return [
        spec
        for spec in specs
        if spec.no_cold_start is None and results["engines"][spec.name]["results"][processes.FIRST]["correct"]
    ]


def _add_cold_starts(results: dict[str, Any], specs: list[EngineSpec], open_client: Any, rounds: int, say: Say) -> None:
    say("cold starts")
    engines = results["engines"]
    expected = {spec.name: engines[spec.name]["results"][processes.FIRST]["first_logits"] for spec in specs}
    for name, found in processes.cold_starts(specs, open_client, expected, rounds).items():
        engines[name]["cold_start"] = found


def _add_shared_memory(results: dict[str, Any], specs: list[EngineSpec], open_client: Any, say: Say) -> None:
    for spec in specs:
        say(f"{WORKERS} workers of {spec.label}")
        results["engines"][spec.name]["shared"] = processes.shared_memory(spec, open_client, WORKERS)


def _engine(
    spec: EngineSpec,
    folder: Path,
    gaps: dict[str, str],
    verdicts: dict[str, Results],
    versions: dict[str, dict[str, str]],
) -> dict[str, Any]:
    gap = gaps.get(spec.name)
    return {
        "label": spec.label,
        "precision": spec.precision,
        "gap": gap,
        "versions": versions.get(spec.name, {}),
        "bytes": None if gap else artifact_bytes(folder / spec.artifact),
        "cold_start": {"gap": spec.no_cold_start},
        "shared": {"gap": spec.no_cold_start or "not measured"},
        "results": verdicts.get(spec.name, {}),
    }


def _model(name: str, config: dict[str, Any]) -> dict[str, Any]:
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    return {"name": name, "head": "cls", "labels": len(config["id2label"]), **{key: config[key] for key in sizes}}


def write_workloads(path: Path, workloads: list[Workload]) -> Path:
    """Write what the workers read; return where."""
    content = {w.name: {"rows": w.rows, "checked": w.checked, "batch_size": w.batch_size} for w in workloads}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def commit() -> str:
    """Which state of the code is measured."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _options(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer engines and rounds")
    parser.add_argument("--model", help="random:base, random:tiny, random:large or small; default random:base")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--engines", help=f"comma-separated, of {', '.join(ENGINES)}")
    parser.add_argument("--workloads", help=f"comma-separated, of {', '.join(ALL)}")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(argv)
    engines = _chosen(parser, given.engines, QUICK if given.quick else tuple(ENGINES), tuple(ENGINES))
    workloads = _chosen(parser, given.workloads, QUICK_WORKLOADS if given.quick else ALL, ALL)
    return Options(
        model=given.model or ("small" if given.quick else "random:base"),
        threads=given.threads,
        rounds=given.rounds or (3 if given.quick else 7),
        cold_rounds=1 if given.quick else 5,
        engines=tuple({REFERENCE: None, **dict.fromkeys(engines)}),
        workloads=tuple({processes.FIRST: None, **dict.fromkeys(workloads)}),
        quick=given.quick,
        output=given.output or RESULTS / ("bench-quick.json" if given.quick else "bench.json"),
    )


def _chosen(
    parser: argparse.ArgumentParser, given: str | None, default: tuple[str, ...], known: tuple[str, ...]
) -> tuple[str, ...]:
    names = tuple(given.split(",")) if given else default
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"{', '.join(unknown)} not known; expected some of {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
