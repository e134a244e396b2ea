"""Compares engines with the reference and times the correct ones, each in its own process, in turns.

A sample is the time of one workload in one round, in seconds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.client import Client, WorkerError
from benchmarks.engines import REFERENCE, EngineSpec, Precision
from benchmarks.workloads import Workload

Results = dict[str, dict[str, Any]]
Logits = Sequence[Sequence[float]]
Say = Callable[[str], None]
Open = Callable[[EngineSpec], Client]

# The largest difference of a logit, relative to the largest logit; for fp16 and bf16 the parity gate's thresholds.
MAX_RELATIVE_DIFFERENCE = {"fp32": 5e-4, "fp16": 2e-2, "bf16": 1.5e-1}
# int8: the cosine similarity over all logits, both centred by the reference's mean of each label; otherwise the biases
# alone would make any engine look correct. Random weights amplify coarse rounding, most in long rows: an int8 engine
# that is correct on trained weights had a cosine of 0.34. Unrelated outputs have about 0.05 (8 rows of 64 logits). The
# accuracy of int8 is measured on trained weights (trained.py).
MIN_COSINE = 0.3
# The workload whose first row a new process runs.
FIRST = "1x32"
_UNTIMED = 20  # warm-up calls before those for latency


@dataclass(frozen=True)
class Pace:
    """How a workload is timed: a turn measures for about ``turn`` seconds, after ``pause`` seconds of rest.

    Shorter workloads are repeated, up to ``most_calls`` times. The pause is needed because thread pools spin after
    their work (OpenMP's by default 0.2 s) and would occupy the next engine's cores. ``latency_calls`` is the number of
    calls for p50 and p99 of single rows, 0 for none.
    """

    rounds: int
    turn: float = 0.4
    pause: float = 0.3
    most_calls: int = 16
    latency_calls: int = 0


class Budget:
    """The time limit of a run in seconds; None for no limit. ``left_out`` names the parts skipped for lack of time."""

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._end = math.inf if seconds is None else clock() + seconds
        self.left_out: list[str] = []

    @property
    def left(self) -> float:
        return self._end - self._clock()

    @property
    def timeout(self) -> float | None:
        """Return the timeout for a process."""
        return None if self.seconds is None else max(1.0, self.left)

    def allows(self, what: str, reserve: float = 0.0) -> bool:
        """Return whether more than ``reserve`` seconds remain; if not, record ``what`` as left out."""
        if self.left > reserve:
            return True
        self.left_out.append(what)
        return False


def compare(found: Logits, expected: Logits, precision: Precision) -> dict[str, Any]:
    """Compare logits ``(rows, labels)`` with the reference's."""
    ours, theirs = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return {"correct": False, "max_relative_difference": None, "cosine": None}
    difference = float(np.abs(ours - theirs).max() / max(1e-9, np.abs(theirs).max()))
    cosine = _centred_cosine(ours, theirs)
    limit = MAX_RELATIVE_DIFFERENCE.get(precision)
    correct = cosine >= MIN_COSINE if limit is None else difference <= limit
    return {"correct": bool(correct), "max_relative_difference": difference, "cosine": cosine}


def _centred_cosine(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    center = theirs.mean(axis=0)
    a, b = (ours - center).ravel(), (theirs - center).ravel()
    return float(a @ b / max(1e-30, np.linalg.norm(a) * np.linalg.norm(b)))


def measure_workloads(
    clients: dict[str, Client],
    workloads: Sequence[Workload],
    pace: Pace,
    say: Say,
    reference: str = REFERENCE,
    budget: Budget | None = None,
    of: str = "",
) -> dict[str, Results]:
    """Compare and time every engine on every workload within the budget, in order; ``of`` is the model's name.

    Returns ``{engine: {workload: verdict}}``; an incorrect verdict has no time.
    """
    budget = budget or Budget()
    verdicts: dict[str, Results] = {name: {} for name in clients}
    for workload in workloads:
        if not budget.allows(f"{of}{workload.label}"):
            continue
        for name, verdict in check(clients, workload, say, reference).items():
            verdicts[name][workload.name] = verdict
        time_rounds(clients, workload, verdicts, pace, say)
        if pace.latency_calls and len(workload.rows) == 1:
            add_latency(clients, workload, verdicts, pace.latency_calls)
    return verdicts


def check(clients: dict[str, Client], workload: Workload, say: Say, reference: str = REFERENCE) -> Results:
    """Compare every engine with the reference, which also warms it up."""
    verdicts: Results = {}
    expected = _logits(clients[reference], workload)
    if isinstance(expected, str):
        raise WorkerError(f"the reference cannot be measured on {workload.name}: {expected}")
    for name, client in clients.items():
        found = expected if name == reference else _logits(client, workload)
        if isinstance(found, str):
            verdicts[name] = {"correct": False, "gap": found}
            say(f"{name} on {workload.name}: {found}")
            continue
        verdict = compare(found, expected, client.spec.precision)
        verdicts[name] = {**verdict, "gap": None, "first_logits": found[0]}
        if not verdict["correct"]:
            say(f"{name} on {workload.name} is wrong: {verdict}")
    return verdicts


def time_rounds(
    clients: dict[str, Client], workload: Workload, verdicts: dict[str, Results], pace: Pace, say: Say
) -> None:
    """Add to each correct verdict its samples, one per round, and their median and range."""
    names = [name for name in clients if verdicts[name][workload.name]["correct"]]
    calls: dict[str, tuple[int, int]] = {}
    for name in names:
        try:
            calls[name] = _calls(clients[name], workload, pace)
        except WorkerError as error:
            _give_up(verdicts[name][workload.name], "it was timed", error)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(pace.rounds):
        for name in turn_order([name for name in names if name in calls], number):
            timed, untimed = calls[name]
            time.sleep(pace.pause)
            try:
                seconds = clients[name].ask("time", workload=workload.name, untimed=untimed, calls=timed)["seconds"]
            except WorkerError as error:
                del calls[name]
                _give_up(verdicts[name][workload.name], "it was timed", error)
                continue
            samples[name].append(statistics.median(seconds))
    for name in calls:
        verdicts[name][workload.name] |= {"samples": samples[name], "seconds": spread(samples[name])}
    medians = {name: statistics.median(samples[name]) * 1e3 for name in calls}
    say(f"{workload.label}: " + ", ".join(f"{n} {ms:.{0 if ms >= 100 else 2}f} ms" for n, ms in medians.items()))


def _calls(client: Client, workload: Workload, pace: Pace) -> tuple[int, int]:
    """Return the numbers of timed calls in a turn and of warm-up calls before them."""
    (seconds,) = client.ask("time", workload=workload.name, untimed=1, calls=1)["seconds"]
    return min(pace.most_calls, max(1, math.ceil(pace.turn / seconds))), int(seconds < pace.turn)


def add_latency(clients: dict[str, Client], workload: Workload, verdicts: dict[str, Results], calls: int) -> None:
    """Add p50 and p99 over ``calls`` sequential calls to each correct verdict."""
    for name, client in clients.items():
        verdict = verdicts[name][workload.name]
        if not verdict["correct"]:
            continue
        try:
            seconds = client.ask("time", workload=workload.name, untimed=_UNTIMED, calls=calls)["seconds"]
        except WorkerError as error:
            _give_up(verdict, "its latency was taken", error)
            continue
        verdict["latency"] = {"p50": percentile(seconds, 0.5), "p99": percentile(seconds, 0.99), "calls": calls}


def _give_up(verdict: dict[str, Any], moment: str, error: WorkerError) -> None:
    verdict |= {"correct": False, "gap": f"failed while {moment}: {error}"}
    for key in ("seconds", "samples"):
        verdict.pop(key, None)


def close_all(clients: dict[str, Client]) -> None:
    """End all workers."""
    for client in clients.values():
        client.close()


def open_all(
    specs: Sequence[EngineSpec], open_client: Open, gaps: dict[str, str], say: Say, at_once: int = 1
) -> dict[str, Client]:
    """Start a worker for each engine without a gap, ``at_once`` in parallel; record failures as gaps."""

    def start(spec: EngineSpec) -> Client | str:
        say(f"starting {spec.label}")
        try:
            return open_client(spec)
        except WorkerError as error:
            return f"could not be loaded: {error}"

    wanted = [spec for spec in specs if spec.name not in gaps]
    clients = {}
    with ThreadPoolExecutor(at_once) as pool:
        for spec, started in zip(wanted, pool.map(start, wanted), strict=True):
            if isinstance(started, str):
                gaps[spec.name] = started
                say(f"{spec.name} {started}")
            else:
                clients[spec.name] = started
    return clients


def first_answers(
    clients: dict[str, Client], workload: str, gaps: dict[str, str], say: Say
) -> dict[str, dict[str, str]]:
    """Let each worker run one row; return its versions. A worker that fails is closed and becomes a gap."""
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
    """Raise :class:`WorkerError` if the reference has a gap: every comparison needs it."""
    if reference in gaps:
        raise WorkerError(f"the reference cannot be measured: {gaps[reference]}")


def _logits(client: Client, workload: Workload) -> list[list[float]] | str:
    """Return the engine's logits, or the reason for a failure."""
    try:
        logits: list[list[float]] = client.ask("check", workload=workload.name)["logits"]
    except WorkerError as error:
        return str(error)
    return logits


def cold_starts(
    specs: Sequence[EngineSpec], open_client: Open, expected: dict[str, list[float]], pace: Pace
) -> dict[str, dict[str, Any]]:
    """Measure the time from the start of a process to its first answer, with the files in the system's cache.

    ``expected`` are each engine's earlier, checked logits of that row.
    """
    runs: dict[str, list[dict[str, Any]]] = {spec.name: [] for spec in specs}
    by_name = {spec.name: spec for spec in specs}
    gaps: dict[str, dict[str, Any]] = {}
    for number in range(pace.rounds + 1):
        for name in turn_order(list(by_name), number):
            time.sleep(pace.pause)
            try:
                runs[name].append(_first_answer(by_name[name], open_client))
            except WorkerError as error:
                gaps[name] = {"gap": f"a fresh process gives no first answer: {error}"}
                del by_name[name]
    found = {name: _summary(runs[name][1:], expected[name]) for name in by_name}  # the first run fills the cache
    return found | gaps


def shared_memory(spec: EngineSpec, open_client: Open, count: int) -> dict[str, Any]:
    """Run ``count`` workers on the same artifact in parallel and return their total memory."""
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
    # Only rounding may differ between processes.
    correct = all(np.allclose(run["logits"], expected, rtol=1e-3, atol=1e-3) for run in runs)
    samples = [run["seconds"] for run in runs]
    memory = {key: statistics.median(run[key] for run in runs) for key in ("resident", "private", "peak")}
    timed = {"samples": samples, "seconds": spread(samples)} if correct else {}
    return {"correct": correct, **timed, **memory}


def turn_order(names: Sequence[str], round_number: int) -> list[str]:
    """Return the order of a round: every other round reverses the previous one, and each pair starts one engine later.

    So each engine runs first and last and after each neighbour, and a drift of the machine affects all of them.
    """
    if not names:
        return []
    start = round_number // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if round_number % 2 else order


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Return the median with the lowest and highest sample."""
    return {"median": statistics.median(samples), "lowest": min(samples), "highest": max(samples)}


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that is at least as large as ``share`` of all samples."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]
