"""What needs fresh processes: cold start, resident memory, and several workers on the same weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.client import Client, WorkerError
from benchmarks.engines import EngineSpec
from benchmarks.measure import PAUSE
from benchmarks.summary import spread, turn_order

Open = Callable[[EngineSpec], Client]

# The workload whose first row a fresh process answers.
FIRST = "1x32"


def cold_starts(
    specs: Sequence[EngineSpec], open_client: Open, expected: dict[str, list[float]], rounds: int
) -> dict[str, dict[str, Any]]:
    """Measure from the start of a process to its first answer, with the files in the system's cache.

    ``expected`` are the logits that each engine gave for that row when it was checked.
    """
    runs: dict[str, list[dict[str, Any]]] = {spec.name: [] for spec in specs}
    by_name = {spec.name: spec for spec in specs}
    gaps: dict[str, dict[str, Any]] = {}
    for number in range(rounds + 1):
        for name in turn_order(list(by_name), number):
            time.sleep(PAUSE)
            try:
                runs[name].append(_first_answer(by_name[name], open_client))
            except WorkerError as error:
                gaps[name] = {"gap": f"a fresh process gives no first answer: {error}"}
                del by_name[name]
    found = {name: _summary(runs[name][1:], expected[name]) for name in by_name}  # the first run fills the cache
    return found | gaps


def shared_memory(spec: EngineSpec, open_client: Open, count: int) -> dict[str, Any]:
    """Run ``count`` workers on the same artifact at once and add up what they occupy together."""
    spec = replace(spec, options={**spec.options, **spec.sharing})
    clients: list[Client] = []
    try:
        for _ in range(count):
            clients.append(open_client(spec))
            clients[-1].ask("first", workload=FIRST)
        memory = [client.ask("memory") for client in clients]
    except WorkerError as error:
        return {"gap": str(error)}
    finally:
        for client in clients:
            client.close()
    return {
        "gap": None,
        "processes": count,
        "proportional": sum(sizes["proportional"] for sizes in memory),
        "private": sum(sizes["private"] for sizes in memory),
        "resident_of_one": memory[0]["resident"],
    }


def _first_answer(spec: EngineSpec, open_client: Open) -> dict[str, Any]:
    with open_client(spec) as client:
        answer = client.ask("first", workload=FIRST)
        seconds = time.perf_counter() - client.started
        return {"seconds": seconds, "logits": answer["logits"], **client.ask("memory")}


def _summary(runs: list[dict[str, Any]], expected: list[float]) -> dict[str, Any]:
    # Rounding may differ from one process to the next, never the answer.
    correct = all(np.allclose(run["logits"], expected, rtol=1e-3, atol=1e-3) for run in runs)
    samples = [run["seconds"] for run in runs]
    memory = {key: statistics.median(run[key] for run in runs) for key in ("resident", "private", "peak")}
    timed = {"samples": samples, "seconds": spread(samples)} if correct else {}
    return {"correct": correct, **timed, **memory}
