"""The timed rounds: every engine in a process of its own, all alive, taking turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.client import Client, WorkerError
from benchmarks.correctness import compare
from benchmarks.engines import REFERENCE, EngineSpec
from benchmarks.summary import spread, turn_order
from benchmarks.workloads import Workload

Results = dict[str, dict[str, Any]]
Say = Callable[[str], None]

# A turn measures for about this long, in seconds; shorter workloads are repeated.
TURN, MOST_CALLS = 0.4, 16
# Thread pools spin for a while after their work (OpenMP's by default 0.2 s) and would take the next engine's cores.
PAUSE = 0.3


def check_all(
    clients: dict[str, Client], workloads: Sequence[Workload], say: Say, reference: str = REFERENCE
) -> dict[str, Results]:
    """Compare every engine with the reference on every workload; this also warms each of them up.

    Returns ``{engine: {workload: verdict}}``; a verdict that is not correct says so and has no time.
    """
    verdicts: dict[str, Results] = {name: {} for name in clients}
    for workload in workloads:
        expected = _logits(clients[reference], workload)
        if isinstance(expected, str):
            raise WorkerError(f"the reference cannot be measured on {workload.name}: {expected}")
        for name, client in clients.items():
            found = expected if name == reference else _logits(client, workload)
            if isinstance(found, str):
                verdicts[name][workload.name] = {"correct": False, "gap": found}
                say(f"{name} on {workload.name}: {found}")
                continue
            verdict = compare(found, expected, client.spec.precision)
            verdicts[name][workload.name] = {**verdict, "gap": None, "first_logits": found[0]}
            if not verdict["correct"]:
                say(f"{name} on {workload.name} is wrong: {verdict}")
    return verdicts


def time_rounds(
    clients: dict[str, Client], workloads: Sequence[Workload], verdicts: dict[str, Results], rounds: int, say: Say
) -> dict[str, Results]:
    """Add to each correct verdict its samples, one per round, and their median and range, in seconds."""
    for workload in workloads:
        names = [name for name in clients if verdicts[name][workload.name]["correct"]]
        calls: dict[str, tuple[int, int]] = {}
        for name in names:
            try:
                calls[name] = _calls(clients[name], workload)
            except WorkerError as error:
                _give_up(verdicts[name][workload.name], error)
        samples: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for name in turn_order(names, number):
                if name in calls:
                    _turn(clients[name], workload, calls, samples, verdicts[name][workload.name])
        for name in calls:
            verdicts[name][workload.name] |= {"samples": samples[name], "seconds": spread(samples[name])}
        say(f"{workload.label}: " + ", ".join(f"{n} {spread(samples[n])['median'] * 1e3:.0f} ms" for n in calls))
    return verdicts


def close_all(clients: dict[str, Client]) -> None:
    """End all workers."""
    for client in clients.values():
        client.close()


def open_all(
    specs: Sequence[EngineSpec], open_client: Callable[[EngineSpec], Client], gaps: dict[str, str], say: Say
) -> dict[str, Client]:
    """Start a worker for each engine that has no gap yet; note why one could not start."""
    clients = {}
    for spec in specs:
        if spec.name in gaps:
            continue
        say(f"starting {spec.label}")
        try:
            clients[spec.name] = open_client(spec)
        except WorkerError as error:
            gaps[spec.name] = f"could not be loaded: {error}"
            say(f"{spec.name} {gaps[spec.name]}")
    return clients


def first_answers(
    clients: dict[str, Client], workload: str, gaps: dict[str, str], say: Say
) -> dict[str, dict[str, str]]:
    """Ask each for one row; return the versions behind it. One that does not answer is closed and becomes a gap."""
    versions = {}
    for name in list(clients):
        try:
            versions[name] = clients[name].ask("first", workload=workload)["versions"]
        except WorkerError as error:
            gaps[name] = f"gives no first answer: {error}"
            say(f"{name} {gaps[name]}")
            clients.pop(name).close()
    return versions


def require_reference(gaps: dict[str, str], reference: str = REFERENCE) -> None:
    """Raise :class:`WorkerError` where the reference has a gap: nothing can be compared without it."""
    if reference in gaps:
        raise WorkerError(f"the reference cannot be measured: {gaps[reference]}")


def _logits(client: Client, workload: Workload) -> list[list[float]] | str:
    """What the engine answers, or why it does not."""
    try:
        logits: list[list[float]] = client.ask("check", workload=workload.name)["logits"]
    except WorkerError as error:
        return str(error)
    return logits


def _calls(client: Client, workload: Workload) -> tuple[int, int]:
    """How often a turn does the workload on the clock, and how often before it, to get the caches back."""
    (seconds,) = client.ask("time", workload=workload.name, untimed=1, calls=1)["seconds"]
    return min(MOST_CALLS, max(1, math.ceil(TURN / seconds))), int(seconds < TURN)


def _turn(
    client: Client,
    workload: Workload,
    calls: dict[str, tuple[int, int]],
    samples: dict[str, list[float]],
    verdict: dict[str, Any],
) -> None:
    name = client.spec.name
    timed, untimed = calls[name]
    time.sleep(PAUSE)
    try:
        seconds = client.ask("time", workload=workload.name, untimed=untimed, calls=timed)["seconds"]
    except WorkerError as error:
        del calls[name]
        _give_up(verdict, error)
        return
    samples[name].append(spread(seconds)["median"])


def _give_up(verdict: dict[str, Any], error: WorkerError) -> None:
    verdict |= {"correct": False, "gap": f"failed while it was timed: {error}"}
