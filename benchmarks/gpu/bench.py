"""Measure every engine on a GPU and write the figures as JSON; see docs/benchmarks.md, "On a GPU".

Usage: python -m benchmarks.gpu.bench [--quick] [--device cuda|cuda:N|cpu] [--models NAME,NAME] [--engines NAME,NAME]
       [--workloads NAME,NAME] [--rounds N] [--output FILE]
--device cpu tries the harness out where there is no GPU; with --quick, in a few minutes.
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

from benchmarks.bench import RESULTS, commit, write_workloads
from benchmarks.client import Client, WorkerError
from benchmarks.engines import EngineSpec
from benchmarks.gpu import workloads as work
from benchmarks.gpu.device import missing
from benchmarks.gpu.engines import ENGINES, REFERENCE, on_device
from benchmarks.gpu.figures import add_latency, bars, shares
from benchmarks.gpu.tables import markdown
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
from benchmarks.prepare import ROOT, artifact_bytes, last_line, prepare
from benchmarks.workloads import Workload

_PEAK_SIZE, _PEAK_SIZE_QUICK = 8192, 256


@dataclass(frozen=True)
class Options:
    """What is measured, how often, and where the figures go. ``latency_calls`` are those behind p50 and p99."""

    device: str
    models: tuple[str, ...]
    engines: tuple[str, ...]
    workloads: tuple[str, ...]
    rounds: int
    latency_calls: int
    quick: bool
    output: Path

    def folder(self, model: str) -> Path:
        """Where the artifacts of a model are."""
        return ROOT / "build" / "bench-gpu" / model.replace(":", "-")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 without the device, or if the reference cannot be measured."""
    options = _options(argv)
    lack = missing(options.device)
    if lack is not None:
        print(f"error: bench-gpu cannot run: {lack}", file=sys.stderr)
        return 1
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
    """Measure the device, then every model; return everything that was found."""
    say("measuring the peak of matrix products")
    peak = measure_peak(options.device, _PEAK_SIZE_QUICK if options.quick else _PEAK_SIZE)
    results: dict[str, Any] = {
        "format": 1,
        "quick": options.quick,
        "commit": commit(),
        "machine": describe_machine(),
        "device": options.device,
        "peak": peak,
        "rounds": options.rounds,
        "models": {model: measure(model, options, say) for model in options.models},
    }
    for found in results["models"].values():
        shares(found, peak["flops_per_second"])
    results["bars"] = bars(results)
    return results


def measure(model: str, options: Options, say: Say) -> dict[str, Any]:
    """Prepare, check and time every engine with one model."""
    folder = options.folder(model)
    folder.mkdir(parents=True, exist_ok=True)
    gaps = {name: "left out of this run" for name in ENGINES if name not in options.engines}
    specs = [on_device(ENGINES[name], options.device) for name in ENGINES if name in options.engines]
    for spec in specs:
        say(f"{model}: preparing {spec.label}")
        gap = prepare(spec.artifact, folder, model)
        if gap is not None:
            gaps[spec.name] = gap
            say(gap)
    require_reference(gaps, REFERENCE)
    config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    workloads = work.build(options.workloads, config["vocab_size"], quick=options.quick)
    path = write_workloads(folder / "workloads.json", workloads)
    verdicts, versions = _timed(options, specs, workloads, path, gaps, say)
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    described = {key: config[key] for key in sizes}
    return {
        "model": {"name": model, "head": "cls", **described},
        "workloads": {w.name: {**w.description(), "flops": work.flops(w, described)} for w in workloads},
        "engines": {
            spec.name: {
                "label": spec.label,
                "precision": spec.precision,
                "gap": gaps.get(spec.name),
                "versions": versions.get(spec.name, {}),
                "bytes": None if spec.name in gaps else artifact_bytes(folder / spec.artifact),
                "results": verdicts.get(spec.name, {}),
            }
            for spec in ENGINES.values()
        },
    }


def _timed(
    options: Options,
    specs: Sequence[EngineSpec],
    workloads: Sequence[Workload],
    path: Path,
    gaps: dict[str, str],
    say: Say,
) -> tuple[dict[str, Results], dict[str, dict[str, str]]]:
    folder, threads = path.parent, os.cpu_count() or 1
    clients = open_all(specs, lambda spec: Client(spec, folder, path, threads), gaps, say)
    try:
        versions = first_answers(clients, workloads[0].name, gaps, say)
        require_reference(gaps, REFERENCE)
        say("comparing with PyTorch in fp32")
        verdicts = check_all(clients, workloads, say, REFERENCE)
        time_rounds(clients, workloads, verdicts, options.rounds, say)
        say("latency of one row")
        add_latency(clients, workloads, verdicts, options.latency_calls)
    finally:
        close_all(clients)
    for found in verdicts.values():
        for verdict in found.values():
            verdict.pop("first_logits", None)
    return verdicts, versions


def measure_peak(device: str, size: int) -> dict[str, Any]:
    """What :mod:`benchmarks.gpu.peak` says of the device."""
    command = [sys.executable, "-m", "benchmarks.gpu.peak", device, str(size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"the peak of the device cannot be measured: {last_line(done.stderr)}")
    peak: dict[str, Any] = json.loads(done.stdout)
    return peak


def _options(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a toy model, small batches, few rounds")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the harness out")
    parser.add_argument("--models", help="comma-separated, of random:base, random:large, random:tiny, small")
    parser.add_argument("--engines", help=f"comma-separated, of {', '.join(ENGINES)}")
    parser.add_argument("--workloads", help=f"comma-separated, BATCHxLENGTH or {work.MIXED}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(argv)
    engines = tuple(given.engines.split(",")) if given.engines else tuple(ENGINES)
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        parser.error(f"{', '.join(unknown)} not known; expected some of {', '.join(ENGINES)}")
    models = given.models or ("random:tiny" if given.quick else "random:base,random:large")
    chosen = given.workloads.split(",") if given.workloads else (work.QUICK if given.quick else work.ALL)
    return Options(
        device=given.device,
        models=tuple(models.split(",")),
        engines=tuple({REFERENCE: None, **dict.fromkeys(engines)}),
        workloads=tuple(chosen),
        rounds=given.rounds or (2 if given.quick else 7),
        latency_calls=20 if given.quick else 300,
        quick=given.quick,
        output=given.output or RESULTS / ("bench-gpu-quick.json" if given.quick else "bench-gpu.json"),
    )


if __name__ == "__main__":
    sys.exit(main())
