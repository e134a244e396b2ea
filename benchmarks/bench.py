"""Measures every engine on every workload and writes the results as JSON; see docs/benchmarks.md.

Usage: python -m benchmarks.bench [--device cpu|cuda|cuda:N] [--quick] [--engines NAME,NAME] [--workloads NAME,NAME]
       [--models NAME,NAME] [--rounds N] [--threads N] [--budget SECONDS] [--output FILE] [--dry-run]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import bars, engines, measure, trained, workloads
from benchmarks.artifacts import artifact_bytes, last_line, prepare
from benchmarks.client import Client, WorkerError
from benchmarks.documents import RESULTS_DIR, ROOT
from benchmarks.engines import EngineSpec
from benchmarks.machine import cpu_name, describe_machine, missing
from benchmarks.measure import FIRST, Budget, Pace, Results, Say
from benchmarks.tables import markdown
from benchmarks.workloads import Workload
from erniem_rt.machine import cpu_class

_WORKERS = 4
_BUSY = 0.5
_LEFT_OUT = "left out of this run"
_NO_BF16 = "this CPU has no instructions for bf16"
_PEAK_SIZE, _PEAK_SIZE_QUICK = 8192, 256
_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
# The share of the remaining time reserved for measuring a model after preparing its artifacts, and the share of the
# whole budget below which no further model starts.
_TO_MEASURE, _LEAST = 0.4, 0.25


@dataclass(frozen=True)
class Suite:
    """The settings that differ between CPU and GPU; each ``quick`` is for ``--quick``."""

    folder: str
    engines: dict[str, EngineSpec]
    reference: str
    chosen: dict[bool, tuple[str, ...]]
    workloads: dict[bool, tuple[str, ...]]
    models: dict[bool, str]
    pace: dict[bool, Pace]
    output: dict[bool, str]
    # Timeouts in seconds: of a worker's answer, and of the run.
    patience: float
    budget: float | None
    # Number of workers that start in parallel.
    at_once: int


CPU = Suite(
    folder="bench",
    engines=engines.ENGINES,
    reference=engines.REFERENCE,
    chosen={False: tuple(engines.ENGINES), True: engines.QUICK},
    workloads={False: workloads.ALL, True: workloads.QUICK},
    models={False: "random:base", True: "small"},
    pace={False: Pace(7), True: Pace(3)},
    output={False: "bench-{cpu}.json", True: "bench-quick.json"},
    patience=600,
    budget=None,
    at_once=1,
)
GPU = Suite(
    folder="bench-gpu",
    engines=engines.GPU_ENGINES,
    reference=engines.GPU_REFERENCE,
    chosen={False: tuple(engines.GPU_ENGINES), True: tuple(engines.GPU_ENGINES)},
    workloads={False: workloads.GPU_ALL, True: workloads.GPU_QUICK},
    models={False: "random:base,random:large", True: "random:tiny"},
    pace={False: Pace(5, turn=0.2, pause=0.05, latency_calls=300), True: Pace(2, latency_calls=20)},
    output={False: "bench-gpu.json", True: "bench-gpu-quick.json"},
    patience=90,
    budget=440,
    at_once=4,
)


@dataclass(frozen=True)
class Options:
    """The options of a run."""

    suite: Suite
    device: str
    models: tuple[str, ...]
    engines: tuple[str, ...]
    workloads: tuple[str, ...]
    pace: Pace
    threads: int
    budget: float | None
    quick: bool
    output: Path

    def folder(self, model: str) -> Path:
        """Return the folder of a model's artifacts."""
        return ROOT / "build" / self.suite.folder / model.replace(":", "-")

    def build_workloads(self, vocab_size: int) -> list[Workload]:
        if self.suite is GPU:
            return workloads.build_gpu_workloads(self.workloads, vocab_size, quick=self.quick)
        return workloads.build_workloads(self.workloads, vocab_size)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 without the device, or if the reference cannot be measured."""
    options = _options(argv)
    lack = missing(options.device) if options.suite is GPU else None
    if lack is not None:
        print(f"error: the benchmark cannot run on {options.device}: {lack}", file=sys.stderr)
        return 1
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    try:
        results = (_run_on_gpu if options.suite is GPU else _run_on_cpu)(options, say)
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"wrote {options.output}")
    if results.get("left_out"):
        say(
            f"left out, because the time budget of {options.budget:.0f} s was used up: {', '.join(results['left_out'])}"
        )
    print(markdown(results))
    return 0


def _run_on_cpu(options: Options, say: Say) -> dict[str, Any]:
    """Measure one model, then cold starts, memory and trained weights; return all results."""
    machine, budget = describe_machine(), Budget(options.budget)
    if machine["load_before"] > _BUSY:
        say(f"the machine is busy (load {machine['load_before']}); the times will be inaccurate, the ratios less so")
    (model,) = options.models
    results = {
        "format": 1,
        "quick": options.quick,
        "commit": _commit(),
        "machine": machine,
        "threads": options.threads,
        "rounds": options.pace.rounds,
        **measure_model(model, options, budget, say),
        "end_to_end": {"gap": _LEFT_OUT},
        "accuracy": {"gap": _LEFT_OUT},
    }
    _save(results, options)  # keep the results so far
    folder = options.folder(model)

    def open_client(spec: EngineSpec, rows: Path = folder / "workloads.json") -> Client:
        return Client(spec, folder, rows, options.threads)

    _add_processes(results, options, open_client, say)
    _save(results, options)
    if not options.quick:
        say("from text to answer")
        results["end_to_end"] = trained.end_to_end(folder, open_client, options.pace, say)
        results["accuracy"] = trained.accuracy(
            ROOT / "build" / "bench" / trained.MODEL,
            [name for name in options.engines if results["engines"][name]["gap"] is None],
            lambda spec, place, rows: Client(spec, place, rows, options.threads),
            options.pace,
            say,
        )
    _save(results, options)
    return results


def _save(results: dict[str, Any], options: Options) -> None:
    results["ratios"] = bars.ratios(results)
    _write(results, options.output)


def _run_on_gpu(options: Options, say: Say) -> dict[str, Any]:
    """Measure the device's peak, then every model within the budget; return all results."""
    budget = Budget(options.budget)
    say("measuring the peak of matrix products")
    peak = measure_peak(options.device, _PEAK_SIZE_QUICK if options.quick else _PEAK_SIZE)
    results: dict[str, Any] = {
        "format": 1,
        "quick": options.quick,
        "commit": _commit(),
        "machine": describe_machine(),
        "device": options.device,
        "peak": peak,
        "rounds": options.pace.rounds,
        "models": {},
        "left_out": budget.left_out,
    }
    for model in options.models:
        if results["models"] and not budget.allows(model, _LEAST * (budget.seconds or 0)):
            _write(results, options.output)
            continue
        found = measure_model(model, options, budget, say)
        bars.shares(found, peak["flops_per_second"])
        results["models"][model] = found
        results["bars"] = bars.gpu_bars(results)
        _write(results, options.output)  # keep the results so far
    return results


def measure_model(model: str, options: Options, budget: Budget, say: Say) -> dict[str, Any]:
    """Prepare, check and time every engine with one model; return the model, the workloads and the engines."""
    folder, suite = options.folder(model), options.suite
    folder.mkdir(parents=True, exist_ok=True)
    specs = [spec for spec in suite.engines.values() if spec.name in options.engines]
    if suite is GPU:
        specs = [spec.on(options.device) for spec in specs]
    gaps = {name: _LEFT_OUT for name in suite.engines if name not in options.engines}
    gaps |= {spec.name: _NO_BF16 for spec in specs if spec.bf16 and suite is CPU and "bf16" not in cpu_class()}
    gaps |= _prepare_all(model, [spec for spec in specs if spec.name not in gaps], folder, budget, say)
    measure.require_reference(gaps, suite.reference)
    config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    work = options.build_workloads(config["vocab_size"])
    rows = workloads.write_workloads(folder / "workloads.json", work)

    def open_client(spec: EngineSpec) -> Client:
        return Client(
            spec, folder, rows, options.threads, timeout=min(suite.patience, budget.timeout or suite.patience)
        )

    clients = measure.open_all(specs, open_client, gaps, say, suite.at_once)
    try:
        versions = measure.first_answers(clients, work[0].name, gaps, say)
        measure.require_reference(gaps, suite.reference)
        say("comparing with PyTorch, and timing")
        verdicts = measure.measure_workloads(
            clients, work, options.pace, say, suite.reference, budget, of="" if suite is CPU else f"{model}: "
        )
    finally:
        measure.close_all(clients)
    described = {key: config[key] for key in _SIZES}
    labels = {"labels": len(config["id2label"])} if suite is CPU else {}
    return {
        "model": {"name": model, "head": "cls", **labels, **described},
        "workloads": {
            w.name: {**w.description(), **({} if suite is CPU else {"flops": workloads.flops(w, described)})}
            for w in work
        },
        "engines": {
            spec.name: _engine(spec, suite, folder, gaps.get(spec.name), verdicts, versions)
            for spec in suite.engines.values()
        },
    }


def _prepare_all(model: str, specs: Sequence[EngineSpec], folder: Path, budget: Budget, say: Say) -> dict[str, str]:
    """Make the artifacts, but reserve time for measuring; return why engines have none."""
    reserve = 0.0 if budget.seconds is None else _TO_MEASURE * budget.left
    found: dict[str, str | None] = {}
    for spec in specs:
        if spec.artifact in found:
            continue
        say(f"{model}: preparing {spec.label}")
        if budget.left > reserve:
            timeout = None if budget.timeout is None else max(1.0, budget.timeout - reserve / 2)
            found[spec.artifact] = prepare(spec.artifact, folder, model, timeout)
        else:
            found[spec.artifact] = "left out, because the time budget for preparing was used up"
        if found[spec.artifact] is not None:
            say(f"{spec.artifact}: {found[spec.artifact]}")
    return {spec.name: gap for spec in specs if (gap := found[spec.artifact]) is not None}


def _engine(
    spec: EngineSpec,
    suite: Suite,
    folder: Path,
    gap: str | None,
    verdicts: dict[str, Results],
    versions: dict[str, dict[str, str]],
) -> dict[str, Any]:
    results = verdicts.get(spec.name, {})
    found = {
        "label": spec.label,
        "precision": spec.precision,
        "gap": gap,
        "versions": versions.get(spec.name, {}),
        "bytes": None if gap else artifact_bytes(folder / spec.artifact),
    }
    if suite is CPU:
        found["cold_start"] = {"gap": spec.no_cold_start or "not measured"}
        found["shared"] = {"gap": spec.no_cold_start or "not measured"}
    return {**found, "results": results}


def _add_processes(
    results: dict[str, Any], options: Options, open_client: Callable[[EngineSpec], Client], say: Say
) -> None:
    """Add cold starts and, unless the run is quick, the memory of several workers, for correct engines."""
    found = results["engines"]
    specs = [
        spec
        for spec in options.suite.engines.values()
        if spec.no_cold_start is None and found[spec.name]["results"].get(FIRST, {}).get("correct")
    ]
    say("cold starts")
    expected = {spec.name: found[spec.name]["results"][FIRST]["first_logits"] for spec in specs}
    pace = replace(options.pace, rounds=1 if options.quick else 5)
    for name, start in measure.cold_starts(specs, open_client, expected, pace).items():
        found[name]["cold_start"] = start
    for spec in [] if options.quick else specs:
        say(f"{_WORKERS} workers of {spec.label}")
        found[spec.name]["shared"] = measure.shared_memory(spec, open_client, _WORKERS)


def measure_peak(device: str, size: int) -> dict[str, Any]:
    """Measure the device's peak with ``machine.py`` in another process: this one must not use its memory."""
    command = [sys.executable, "-m", "benchmarks.machine", "--peak", device, str(size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"the peak of the device cannot be measured: {last_line(done.stderr)}")
    peak: dict[str, Any] = json.loads(done.stdout)
    return peak


def _write(results: dict[str, Any], output: Path) -> None:
    results = copy.deepcopy(results)
    models = results.get("models", {"": results})
    for verdict in (v for m in models.values() for e in m["engines"].values() for v in e["results"].values()):
        verdict.pop("first_logits", None)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _commit() -> str:
    """Return the commit that is measured."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _options(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default cpu")
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer workloads and rounds")
    parser.add_argument("--dry-run", action="store_true", help="with --device cuda: try it out on the CPU")
    parser.add_argument("--models", "--model", help="comma-separated, of random:base, random:large, random:tiny, small")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--engines", help="comma-separated; a wrong name lists them")
    parser.add_argument("--workloads", help="comma-separated; on a GPU any BATCHxLENGTH, and mixed")
    parser.add_argument("--budget", type=float, help="seconds; what does not fit is left out and named. 0: no limit")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(argv)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", given.device):
        parser.error(f"--device {given.device} is not known; expected cpu, cuda or cuda:N")
    suite, quick = CPU if given.device == "cpu" else GPU, given.quick
    models = tuple((given.models or suite.models[quick]).split(","))
    if suite is CPU and (len(models) > 1 or given.dry_run):
        parser.error("--device cpu takes one model, and no --dry-run")
    chosen = _chosen(parser, given.engines, suite.chosen[quick], tuple(suite.engines))
    shape = r"\d+x\d+" if suite is GPU else None
    work = _chosen(parser, given.workloads, suite.workloads[quick], suite.workloads[False], shape)
    pace = suite.pace[quick]
    budget = suite.budget if given.budget is None else given.budget or None
    return Options(
        suite=suite,
        device="cpu" if given.dry_run else given.device,
        models=models,
        engines=tuple({suite.reference: None, **dict.fromkeys(chosen)}),
        workloads=work if suite is GPU else tuple({FIRST: None, **dict.fromkeys(work)}),
        pace=replace(pace, rounds=given.rounds or pace.rounds),
        threads=given.threads,
        budget=budget,
        quick=quick,
        output=given.output or RESULTS_DIR / suite.output[quick].format(cpu=cpu_name(describe_machine())),
    )


def _chosen(
    parser: argparse.ArgumentParser,
    given: str | None,
    default: tuple[str, ...],
    known: tuple[str, ...],
    pattern: str | None = None,
) -> tuple[str, ...]:
    names = tuple(given.split(",")) if given else default
    unknown = [n for n in names if n not in (*known, *default) and not (pattern and re.fullmatch(pattern, n))]
    if unknown:
        parser.error(f"{', '.join(unknown)} not known; expected some of {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
