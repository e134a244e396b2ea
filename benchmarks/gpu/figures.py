"""What follows from the timed rounds: latency, shares of the roofline, and the bars that the project sets itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.client import Client, WorkerError
from benchmarks.gpu.engines import EAGER
from benchmarks.gpu.workloads import LATENCY_LENGTHS
from benchmarks.measure import Results
from benchmarks.summary import median_ratio
from benchmarks.workloads import Workload

Found = dict[str, Any]

_UNTIMED = 20
_MODEL, _THROUGHPUT, _ONE_ROW = "random:base", f"128x{LATENCY_LENGTHS[0]}", f"1x{LATENCY_LENGTHS[0]}"
_PEAK_BAR, _EAGER_BAR, _LATENCY_BAR = 0.55, 2.0, 1e-3


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least ``share`` of all do not exceed."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def add_latency(
    clients: dict[str, Client], workloads: Sequence[Workload], verdicts: dict[str, Results], calls: int
) -> None:
    """Add p50 and p99 over ``calls`` calls, one after another, to each correct verdict on one row of equal length."""
    for workload in workloads:
        if len(workload.rows) != 1:
            continue
        for name, client in clients.items():
            verdict = verdicts[name][workload.name]
            if not verdict["correct"]:
                continue
            try:
                seconds = client.ask("time", workload=workload.name, untimed=_UNTIMED, calls=calls)["seconds"]
            except WorkerError as error:
                verdict |= {"correct": False, "gap": f"failed while its latency was taken: {error}"}
                for key in ("seconds", "samples"):
                    verdict.pop(key, None)
                continue
            verdict["latency"] = {"p50": percentile(seconds, 0.5), "p99": percentile(seconds, 0.99), "calls": calls}


def shares(found: Found, peaks: dict[str, float]) -> None:
    """Add to each timed verdict the share of the measured peak, in its engine's precision, that it reached."""
    for engine in found["engines"].values():
        for name, verdict in engine["results"].items():
            if "seconds" in verdict and engine["precision"] in peaks:
                rate = found["workloads"][name]["flops"] / verdict["seconds"]["median"]
                verdict["share_of_peak"] = rate / peaks[engine["precision"]]


def bars(results: Found) -> list[dict[str, Any]]:
    """Every bar as ``{"bar", "at_least" or "at_most", "value", "met", "engine", "gap"}``: the best of our engines."""
    found = results["models"].get(_MODEL)
    rows = [
        (f"share of the measured matrix peak, fp16, {_THROUGHPUT}", "at_least", _PEAK_BAR, _best_share),
        (f"speed against PyTorch eager fp16, {_THROUGHPUT}", "at_least", _EAGER_BAR, _best_speed),
        (f"p50 of one row, {_ONE_ROW}, seconds", "at_most", _LATENCY_BAR, _best_latency),
    ]
    return [_bar(*row, found) for row in rows]


def _bar(title: str, kind: str, limit: float, values: Any, found: Found | None) -> dict[str, Any]:
    candidates: dict[str, float] = values(found) if found is not None else {}
    if not candidates:
        gap = f"{_MODEL} was not measured" if found is None else "no engine of ours, or not what it is held against"
        return {"bar": title, kind: limit, "value": None, "met": None, "engine": None, "gap": gap}
    best = (max if kind == "at_least" else min)(candidates, key=lambda name: candidates[name])
    value = candidates[best]
    met = value >= limit if kind == "at_least" else value <= limit
    return {"bar": title, kind: limit, "value": value, "met": met, "engine": best, "gap": None}


def _best_share(found: Found) -> dict[str, float]:
    return {name: verdict["share_of_peak"] for name, verdict in _ours(found, _THROUGHPUT) if "share_of_peak" in verdict}


def _best_speed(found: Found) -> dict[str, float]:
    eager = found["engines"][EAGER]["results"].get(_THROUGHPUT, {})
    if "samples" not in eager:
        return {}
    return {
        name: median_ratio(verdict["samples"], eager["samples"])
        for name, verdict in _ours(found, _THROUGHPUT)
        if "samples" in verdict
    }


def _best_latency(found: Found) -> dict[str, float]:
    return {name: verdict["latency"]["p50"] for name, verdict in _ours(found, _ONE_ROW) if "latency" in verdict}


def _ours(found: Found, workload: str) -> list[tuple[str, Found]]:
    return [
        (name, engine["results"][workload])
        for name, engine in found["engines"].items()
        if name.startswith("erniem-rt") and engine["precision"] == "fp16" and workload in engine["results"]
    ]
