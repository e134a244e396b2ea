"""Results with one engine of each fate, and clients that are no processes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import workloads
from benchmarks.bars import ratios
from benchmarks.client import WorkerError
from benchmarks.engines import ENGINES, GPU_EAGER, GPU_ENGINES, GPU_OURS, GPU_OURS_GRAPHS, GPU_REFERENCE, EngineSpec

LOGITS = [[1.0, 2.0, 4.0], [3.0, 1.0, 2.0]]
BASE = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 250002}
WRONG = {"correct": False, "gap": None, "max_relative_difference": 0.5, "cosine": 0.5}


def timed(median: float, **more: Any) -> dict[str, Any]:
    """A verdict with three samples around the median."""
    samples = [0.9 * median, median, 1.1 * median]
    spread = {"median": median, "lowest": samples[0], "highest": samples[2]}
    return {"correct": True, "gap": None, "samples": samples, "seconds": spread, **more}


# Seconds on 1x32, 8x128, mixed, and on 8x128 with half of it padding.
_SECONDS = {
    "torch-eager": (0.1, 1.4, 8.0, 1.4),
    "ctranslate2": (0.05, 0.4, 2.0, 0.3),
    "erniem-rt": (0.016, 0.32, 1.6, 0.32),
    "ctranslate2-int8": (0.05, 0.3, 2.0, 0.2),
    "erniem-rt-int8": (0.04, 0.2, 1.6, 0.1),
}
_NAMES = ("1x32", "8x128", "mixed", "padding-50")


@pytest.fixture
def results() -> dict[str, Any]:
    """A run on a CPU: most engines measured, one wrong, one that crashed in a workload, others with a gap."""
    engines = {}
    for name, spec in ENGINES.items():
        verdicts = dict(zip(_NAMES, map(timed, _SECONDS.get(name, ())), strict=False))
        measured = name in _SECONDS
        start = timed({"torch-eager": 5.0, "erniem-rt-int8": 0.5}.get(name, 1.0))
        engines[name] = {
            "label": spec.label,
            "precision": spec.precision,
            "gap": None if measured else "could not be loaded: no such module",
            "versions": {"torch": "2.13.0"} if name == "torch-eager" else {},
            "bytes": (280 if spec.precision == "int8" else 1112) * 10**6 if measured else None,
            "cold_start": {**start, "resident": 2e8} if measured else {"gap": "not measured"},
            "shared": {"gap": None, "proportional": 10**9} if measured else {"gap": "not measured"},
            "results": verdicts,
        }
    engines["ort-int8"] |= {"gap": None, "bytes": 280 * 10**6, "results": {"1x32": WRONG}}
    engines["ctranslate2"]["results"]["8x128"] = {"correct": False, "gap": "failed while it was timed: out of memory"}
    judged = {"gap": None, "relative_l2": 0.04, "same_neighbour": 0.9495, "worst_alone": 0.9996, **timed(1.6)}
    found: dict[str, Any] = {
        "quick": False,
        "rounds": 3,
        "threads": 2,
        "machine": {"cpu": "a CPU", "class": "avx2", "date": "2026-01-02", "cores": 2, "load_before": 1.34},
        "model": {**BASE, "head": "cls"},
        "workloads": {w.name: w.description() for w in workloads.build_workloads(_NAMES, 1000)},
        "engines": engines,
        "end_to_end": {
            "gap": None,
            "model": "nano",
            "texts": 96,
            "engines": {
                "pipeline-transformers": {"label": "transformers' pipeline", "gap": None, **timed(0.6)},
                "pipeline-erniem-rt": {"label": "erniem-rt's pipeline", "gap": None, **timed(0.1)},
            },
        },
        "accuracy": {
            "gap": None,
            "model": "MiniLM",
            "texts": 343,
            "source": "somewhere",
            "timed_texts": 128,
            "reference": {"label": "PyTorch, eager", "seconds": timed(2.0)["seconds"]},
            "engines": {"erniem-rt-int8": judged, "openvino-int8": {"gap": "no room"}},
        },
    }
    found["ratios"] = ratios(found)
    return found


@pytest.fixture
def gpu_results() -> dict[str, Any]:
    """A run on a GPU: the reference, a slow engine, ours, one that was wrong, and others that could not be had."""
    built = workloads.build_gpu_workloads(("1x128", "128x128"), 1000)
    measured = {
        GPU_REFERENCE: {"1x128": timed(0.01), "128x128": timed(0.2)},
        GPU_EAGER: {"1x128": timed(0.004, latency={"p50": 0.004, "p99": 0.005}), "128x128": timed(0.02)},
        GPU_OURS: {"1x128": timed(0.002, latency={"p50": 0.002, "p99": 0.003}), "128x128": timed(0.005)},
        GPU_OURS_GRAPHS: {"1x128": timed(0.001, latency={"p50": 0.0009, "p99": 0.001}), "128x128": dict(WRONG)},
    }
    engines = {
        name: {
            "label": spec.label,
            "precision": spec.precision,
            "gap": None if name in measured else "No module named 'tensorrt'",
            "versions": {"torch": "2.13.0"} if name in measured else {},
            "results": measured.get(name, {}),
        }
        for name, spec in GPU_ENGINES.items()
    }
    described = {w.name: {**w.description(), "flops": workloads.flops(w, BASE)} for w in built}
    return {
        "quick": False,
        "rounds": 3,
        "machine": {"cpu": "a CPU", "cores": 2, "python": "3.12.1"},
        "peak": {"device": {"name": "a GPU", "driver": None}, "flops_per_second": {"fp16": 1e15, "fp32": 1e14}},
        "models": {"random:base": {"workloads": described, "engines": engines}},
        "left_out": ["random:large"],
    }


class World:
    """What a run finds: steps that fail, engines that answer otherwise or die when they are asked ``do`` on a workload.

    ``open`` counts the clients of each engine that were not closed, ``turns`` who was timed, ``sharing`` the options.
    """

    def __init__(self) -> None:
        self.lost_steps: dict[str, str] = {}
        self.logits: dict[str, list[list[float]]] = {}
        self.dies: dict[str, tuple[str, str | None]] = {}
        self.open: Counter[str] = Counter()
        self.turns: list[str] = []
        self.options: list[dict[str, Any]] = []

    def prepare(self, step: str, folder: Path, model: str, timeout: float | None = None) -> str | None:
        """As ``artifacts.prepare``."""
        config = {**BASE, "num_attention_heads": 12, "id2label": {"0": "a", "1": "b", "2": "c"}}
        (folder / step).mkdir(parents=True, exist_ok=True)
        (folder / step / "config.json").write_text(json.dumps(config))
        return self.lost_steps.get(step)

    def client(self, spec: EngineSpec, *_: Any, **__: Any) -> Any:
        """As ``client.Client``."""
        if self.dies.get(spec.name) == ("start", None):
            raise WorkerError("no such module")
        return FakeClient(self, spec)


class FakeClient:
    """Takes half a second for everything; once it has died it fails always, as a process does that has ended."""

    def __init__(self, world: World, spec: EngineSpec) -> None:
        self.spec, self.started, self._world, self._dead = spec, 0.0, world, False
        world.open[spec.name] += 1
        world.options.append(spec.options)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        name = self.spec.name
        self._dead = self._dead or self._world.dies.get(name) == (do, request.get("workload"))
        if self._dead:
            raise WorkerError("Killed")
        if do == "time":
            self._world.turns.append(name)
        logits = self._world.logits.get(name, LOGITS)
        return {
            "first": {"logits": logits[0], "versions": {name: "1"}},
            "check": {"logits": logits},
            "time": {"seconds": [0.5] * request.get("calls", 0)},
            "memory": dict.fromkeys(("resident", "private", "peak", "proportional"), 1000),
        }[do]

    def close(self) -> None:
        self._world.open[self.spec.name] -= 1

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Without pauses."""
    monkeypatch.setattr("benchmarks.measure.time.sleep", lambda _: None)
    return World()
