"""The project's performance targets (bars) on a CPU and on a GPU, computed from the results of one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.engines import GPU_EAGER
from benchmarks.workloads import FIXED, workload_label

Results = dict[str, Any]

OURS, OURS_INT8 = "erniem-rt", "erniem-rt-int8"
# Our engines in each precision, of which the fastest counts.
_FP32 = (OURS, "erniem-rt-openvino")
_BF16 = ("erniem-rt-openvino-bf16",)
_INT8 = (
    OURS_INT8,
    "erniem-rt-openvino-int8",
    "erniem-rt-openvino-int8-bf16",
    "erniem-rt-target-openvino-int8",
    "erniem-rt-target-openvino-int8-bf16",
)
_INT8_PEERS = ("ctranslate2-int8", "openvino-int8", "openvino-int8-bf16", "ort-int8")
_SORTED = ("mixed", "mixed-sorted")
# (bar, our engines, our workload, rivals, their workloads, at least): the least speed of our fastest engine, as a
# multiple of the fastest rival's in its fastest set-up.
_SpeedBar = tuple[str, tuple[str, ...], str, tuple[str, ...], tuple[str, ...], float]
_EVERYWHERE: list[_SpeedBar] = [
    ("int8", _INT8, "mixed", ("ctranslate2-int8",), ("mixed",), 1.5),
    ("int8", _INT8, "mixed", ("torch-eager",), ("mixed",), 5.0),
    ("int8", _INT8, "mixed", ("optimum",), ("mixed",), 4.5),
    ("fp32", _FP32, "mixed", ("ctranslate2",), ("mixed",), 1.2),
    ("fp32", _FP32, "mixed", ("optimum",), ("mixed",), 2.5),
    *(("fp32", _FP32, name, ("ort-plain",), (name,), 1.0) for name in FIXED),
]
_WITHOUT_BF16: list[_SpeedBar] = [
    ("int8", _INT8, name, ("ctranslate2-int8", "openvino-int8"), (name,), 1.0) for name in FIXED
]
_WITH_BF16: list[_SpeedBar] = [
    *(("int8", _INT8, name, _INT8_PEERS, (name,), 1.05) for name in FIXED),
    ("int8", _INT8, "mixed", _INT8_PEERS, _SORTED, 1.4),
    *(("int8", _INT8, name, (OURS_INT8,), (name,), 1.4) for name in ("8x128", "1x512")),
    *(("bf16", _BF16, name, ("openvino-bf16",), (name,), 1.0) for name in FIXED),
    ("bf16", _BF16, "mixed", ("openvino-bf16",), ("mixed",), 2.3),
    ("bf16", _BF16, "mixed", ("openvino-bf16",), ("mixed-sorted",), 1.3),
    ("bf16", _BF16, "8x128", (OURS,), ("8x128",), 2.1),
]
# Tokens per second on mixed lengths, relative to a batch without padding.
_PADDING_BAR = 0.95
_COLD_START_BAR, _COLD_SECONDS, _COLD_MB = 8.0, 0.6, 300.0
# The size limit of an artifact with int8 matmuls and word embeddings, at base size.
_DISK_MB = 290.0
_TEXT_BAR = 5.0
# Limits for the worst of our int8 engines: the measure, the limit without bf16, and with it (which implies VNNI).
_ACCURACY = {
    "relative_l2": ("relative L2 of the hidden states", "at_most", 0.08, 0.046),
    "same_neighbour": ("nearest neighbour unchanged", "at_least", 0.95, 0.965),
    "worst_alone": ("a text alone and in a batch, worst cosine", "at_least", 0.9995, 0.9995),
}

_GPU_MODEL, _GPU_BATCH, _GPU_ROW = "random:base", "128x128", "1x128"
_PEAK_BAR, _EAGER_BAR, _LATENCY_BAR = 0.55, 2.0, 1e-3


class _MissingError(Exception):
    """A figure is missing; the message says which and why."""


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return our speed relative to theirs: the median over rounds of the ratio within a round."""
    return statistics.median(their / our for our, their in zip(ours, theirs, strict=True))


def ratios(results: Results) -> list[dict[str, Any]]:
    """Return every bar as ``{"bar", "at_least" or "at_most", "value", "met", "gap"}``.

    A missing value is None, and ``gap`` has the reason; if only one of two rivals is missing, the value is against the
    other and ``gap`` names the missing one.
    """
    with_bf16 = "bf16" in results["machine"]["class"]
    bars = [_speed_bar(results, bar) for bar in (*_EVERYWHERE, *(_WITH_BF16 if with_bf16 else _WITHOUT_BF16))]
    for what, ours in (("fp32", _FP32), *([("bf16", _BF16)] if with_bf16 else []), ("int8", _INT8)):
        title = f"tokens/s on mixed lengths against 8×128: {what}"
        bars.append(_bar(title, "at_least", _PADDING_BAR, _mixed_against_full, results, ours))
    label = results["engines"][OURS_INT8]["label"]
    title = f"cold start: {label} against transformers + torch"
    bars.append(_bar(title, "at_least", _COLD_START_BAR, _cold_start_ratio, results))
    bars.append(_bar(f"cold start, s: {label}", "at_most", _COLD_SECONDS, _cold_start_seconds, results))
    bars.append(_bar(f"resident after the first answer, MB: {label}", "at_most", _COLD_MB, _resident_mb, results))
    bars.append(_bar(f"on disk, MB: {label}", "at_most", _DISK_MB, _disk_mb, results))
    title = "text to answer on nano: erniem-rt's pipeline against transformers'"
    bars.append(_bar(title, "at_least", _TEXT_BAR, _text_to_answer, results))
    for key, (what, kind, *limits) in _ACCURACY.items():
        title = f"trained weights, {what}: int8"
        bars.append(_bar(title, kind, limits[with_bf16], _accuracy, results, key, max if kind == "at_most" else min))
    return bars


def _bar(title: str, kind: str, limit: float, value: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    gap = None
    try:
        found = value(*arguments)
    except _MissingError as error:
        return {"bar": title, kind: limit, "value": None, "met": None, "gap": str(error)}
    if isinstance(found, tuple):
        found, gap = found
    met = found >= limit if kind == "at_least" else found <= limit
    return {"bar": title, kind: limit, "value": found, "met": met, "gap": gap}


def _speed_bar(results: Results, bar: _SpeedBar) -> dict[str, Any]:
    what, ours, workload, rivals, set_ups, limit = bar
    names = " or ".join(results["engines"].get(name, {"label": name})["label"] for name in rivals)
    how = "" if set_ups == (workload,) else f" ({' or '.join(workload_label(name) for name in set_ups)})"
    title = f"{workload_label(workload)}: {what} against {names}{how}"
    return _bar(title, "at_least", limit, _speed, results, ours, workload, rivals, set_ups)


def _speed(
    results: Results, ours: tuple[str, ...], workload: str, rivals: tuple[str, ...], set_ups: tuple[str, ...]
) -> tuple[float, str | None]:
    best, _ = _fastest(results, ours, (workload,))
    rival, gap = _fastest(results, rivals, set_ups)
    return median_ratio(best, rival), gap


def _fastest(results: Results, names: tuple[str, ...], workloads: tuple[str, ...]) -> tuple[list[float], str | None]:
    """Return the samples with the lowest median, and the names of missing results."""
    found, missing = [], []
    for name in names:
        for workload in workloads:
            try:
                found.append(_samples(results, name, workload))
            except _MissingError as error:
                missing.append(str(error))
    if not found:
        raise _MissingError("; ".join(dict.fromkeys(missing)))
    return min(found, key=statistics.median), "; ".join(dict.fromkeys(missing)) or None


def _mixed_against_full(results: Results, ours: tuple[str, ...]) -> float:
    (mixed, _), (full, _) = (_fastest(results, ours, (name,)) for name in ("mixed", "8x128"))
    tokens = {name: results["workloads"][name]["tokens"] for name in ("mixed", "8x128")}
    return median_ratio(mixed, full) * float(tokens["mixed"]) / float(tokens["8x128"])


def _cold_start_ratio(results: Results) -> float:
    return median_ratio(_cold(results, OURS_INT8)["samples"], _cold(results, "torch-eager")["samples"])


def _cold_start_seconds(results: Results) -> float:
    seconds: float = _cold(results, OURS_INT8)["seconds"]["median"]
    return seconds


def _resident_mb(results: Results) -> float:
    resident: float = _cold(results, OURS_INT8)["resident"]
    return resident / 1e6


def _disk_mb(results: Results) -> float:
    size: float = _engine(results, OURS_INT8)["bytes"]
    return size / 1e6


def _text_to_answer(results: Results) -> float:
    section = results["end_to_end"]
    if section.get("gap"):
        raise _MissingError(section["gap"])
    ours, theirs = (section["engines"][name] for name in ("pipeline-erniem-rt", "pipeline-transformers"))
    for engine in (ours, theirs):
        if "samples" not in engine:
            raise _MissingError(f"{engine['label']}: {engine['gap'] or 'wrong answers'}")
    return median_ratio(ours["samples"], theirs["samples"])


def _accuracy(results: Results, key: str, worst: Callable[[list[float]], float]) -> float:
    section = results["accuracy"]
    if section["gap"]:
        raise _MissingError(section["gap"])
    judged = [section["engines"][name] for name in _INT8 if name in section["engines"]]
    values = [found[key] for found in judged if not found["gap"]]
    if not values:
        raise _MissingError("; ".join(dict.fromkeys(found["gap"] for found in judged)))
    return worst(values)


def _samples(results: Results, name: str, workload: str) -> list[float]:
    engine = _engine(results, name)
    verdict = engine["results"].get(workload)
    if verdict is None:
        raise _MissingError(f"{engine['label']} was not measured on {workload}")
    if "samples" not in verdict:
        raise _MissingError(f"{engine['label']} on {workload}: {verdict['gap'] or 'wrong answers'}")
    samples: list[float] = verdict["samples"]
    return samples


def _cold(results: Results, name: str) -> dict[str, Any]:
    engine = _engine(results, name)
    cold: dict[str, Any] = engine["cold_start"]
    if "samples" not in cold:
        raise _MissingError(f"{engine['label']}, cold start: {cold.get('gap') or 'wrong answers'}")
    return cold


def _engine(results: Results, name: str) -> dict[str, Any]:
    engine: dict[str, Any] = results["engines"].get(name, {"label": name, "gap": "not in this run"})
    if engine["gap"]:
        raise _MissingError(f"{engine['label']}: {engine['gap']}")
    return engine


def shares(found: Results, peaks: dict[str, float]) -> None:
    """Add to each timed verdict its share of the measured peak in its engine's precision."""
    for engine in found["engines"].values():
        for name, verdict in engine["results"].items():
            if "seconds" in verdict and engine["precision"] in peaks:
                rate = found["workloads"][name]["flops"] / verdict["seconds"]["median"]
                verdict["share_of_peak"] = rate / peaks[engine["precision"]]


def gpu_bars(results: Results) -> list[dict[str, Any]]:
    """Return every bar as ``{"bar", "at_least" or "at_most", "value", "met", "engine", "gap"}`` of our best engine."""
    found = results["models"].get(_GPU_MODEL)
    rows = [
        (f"share of the measured matrix peak, fp16, {_GPU_BATCH}", "at_least", _PEAK_BAR, _best_share),
        (f"speed against PyTorch eager fp16, {_GPU_BATCH}", "at_least", _EAGER_BAR, _best_speed),
        (f"p50 of one row, {_GPU_ROW}, seconds", "at_most", _LATENCY_BAR, _best_latency),
    ]
    return [_best_bar(*row, found) for row in rows]


def _best_bar(title: str, kind: str, limit: float, values: Any, found: Results | None) -> dict[str, Any]:
    candidates: dict[str, float] = values(found) if found is not None else {}
    if not candidates:
        gap = f"{_GPU_MODEL} was not measured" if found is None else "no engine of ours, or not what it is held against"
        return {"bar": title, kind: limit, "value": None, "met": None, "engine": None, "gap": gap}
    best = (max if kind == "at_least" else min)(candidates, key=lambda name: candidates[name])
    value = candidates[best]
    met = value >= limit if kind == "at_least" else value <= limit
    return {"bar": title, kind: limit, "value": value, "met": met, "engine": best, "gap": None}


def _best_share(found: Results) -> dict[str, float]:
    return {name: verdict["share_of_peak"] for name, verdict in _ours(found, _GPU_BATCH) if "share_of_peak" in verdict}


def _best_speed(found: Results) -> dict[str, float]:
    eager = found["engines"][GPU_EAGER]["results"].get(_GPU_BATCH, {})
    if "samples" not in eager:
        return {}
    return {
        name: median_ratio(verdict["samples"], eager["samples"])
        for name, verdict in _ours(found, _GPU_BATCH)
        if "samples" in verdict
    }


def _best_latency(found: Results) -> dict[str, float]:
    return {name: verdict["latency"]["p50"] for name, verdict in _ours(found, _GPU_ROW) if "latency" in verdict}


def _ours(found: Results, workload: str) -> list[tuple[str, Results]]:
    return [
        (name, engine["results"][workload])
        for name, engine in found["engines"].items()
        if name.startswith("erniem-rt") and engine["precision"] == "fp16" and workload in engine["results"]
    ]
