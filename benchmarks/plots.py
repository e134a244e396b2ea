"""Draws pictures from the results of the benchmark.

Usage: python -m benchmarks.plots [--results FILE] [--output FOLDER] (needs matplotlib)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.documents import ROOT
from benchmarks.tables import committed, is_gpu, pictures

Results = dict[str, Any]
Points = list[tuple[float, float]]
# Per panel its title, and per bar the engine and its value.
Panels = dict[str, list[tuple[str, float]]]

OUTPUT = ROOT / "docs" / "images"
_OURS, _INT8, _OTHERS = "#1f6f5c", "#8a8a8a", "#c4c4c4"
_MARKERS = "osD^vP*X<>hd"


def bar_panels(results: Results) -> Panels:
    """Return per workload the texts per second of each timed engine, in the order of the results."""
    return _panels(
        results,
        lambda name, _: not name.startswith("padding-"),
        lambda workload, verdict: workload["texts"] / verdict["seconds"]["median"] if "seconds" in verdict else None,
    )


def throughput_panels(results: Results) -> Panels:
    """Return the same for a GPU, per model, for workloads of more than one text."""
    return _per_model(
        results,
        lambda _, workload: workload["texts"] > 1,
        lambda workload, verdict: workload["texts"] / verdict["seconds"]["median"] if "seconds" in verdict else None,
    )


def latency_panels(results: Results) -> Panels:
    """Return per model and workload of one text the p50 latency in milliseconds."""
    return _per_model(
        results,
        lambda _, workload: workload["texts"] == 1,
        lambda _, verdict: verdict["latency"]["p50"] * 1e3 if "latency" in verdict else None,
    )


def _per_model(results: Results, *how: Any) -> Panels:
    return {
        f"{model}, {title}": bars
        for model, found in results["models"].items()
        for title, bars in _panels(found, *how).items()
    }


def _panels(
    found: Results, chosen: Callable[[str, Results], bool], value: Callable[[Results, Results], float | None]
) -> Panels:
    panels: Panels = {}
    for name, workload in found["workloads"].items():
        if chosen(name, workload):
            values = [(key, value(workload, e["results"].get(name, {}))) for key, e in found["engines"].items()]
            panels[workload["label"]] = [(key, number) for key, number in values if number is not None]
    return panels


def padding_lines(results: Results) -> dict[str, Points]:
    """Return per engine the percentage of padding in a batch of 8×128, and the real tokens per second."""
    lines: dict[str, Points] = {}
    for name, workload in results["workloads"].items():
        if name.startswith("padding-"):
            for key, seconds in _timed(results, name).items():
                lines.setdefault(key, []).append((100 * workload["padding_share"], workload["tokens"] / seconds))
    return lines


def accuracy_points(results: Results) -> dict[str, tuple[float, float]]:
    """Return per engine the MB on disk (base size) and the hidden states' relative L2 to fp32 (trained weights)."""
    judged = results["accuracy"].get("engines", {})
    return {
        key: (engine["bytes"] / 1e6, judged[key]["relative_l2"])
        for key, engine in results["engines"].items()
        if engine["bytes"] and key in judged and judged[key]["gap"] is None
    }


def digest(content: bytes) -> str:
    """Return the digest of the results that a picture contains."""
    return f"drawn from results with SHA-256 {hashlib.sha256(content).hexdigest()}"


def _timed(results: Results, workload: str) -> dict[str, float]:
    verdicts = {key: engine["results"].get(workload, {}) for key, engine in results["engines"].items()}
    return {key: verdict["seconds"]["median"] for key, verdict in verdicts.items() if "seconds" in verdict}


def _color(results: Results, key: str) -> str:
    if key.startswith("erniem-rt"):
        return _OURS
    return _INT8 if results["engines"][key]["precision"] == "int8" else _OTHERS


def draw_panels(results: Results, panels: Panels, unit: str, width: float, height: float) -> Any:
    """Draw a panel of horizontal bars per entry."""
    from matplotlib.figure import Figure

    columns = 2
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, found) in zip(axes, panels.items(), strict=False):
        labels = [results["engines"][key]["label"] for key, _ in found]
        bars = axis.barh(labels, [value for _, value in found], color=[_color(results, key) for key, _ in found])
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.18)
        axis.set_title(f"{title}, {unit}", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def draw_bars(results: Results) -> Any:
    return draw_panels(results, bar_panels(results), "texts/s", 11, 2.9)


def draw_throughput(results: Results) -> Any:
    return draw_panels(_first_model(results), throughput_panels(results), "texts/s", 12, 3.2)


def draw_latency(results: Results) -> Any:
    return draw_panels(_first_model(results), latency_panels(results), "p50, ms", 12, 3.2)


def _first_model(results: Results) -> Results:
    """Return the first model's results, for labels and precisions, which are the same for every model."""
    found: Results = next(iter(results["models"].values()))
    return found


def draw_padding(results: Results) -> Any:
    """Draw a line per engine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for (key, points), marker in zip(padding_lines(results).items(), _MARKERS, strict=False):
        ours = key.startswith("erniem-rt")
        axis.plot(
            *zip(*points, strict=True),
            marker=marker,
            linewidth=2.5 if ours else 1.2,
            linestyle="--" if results["engines"][key]["precision"] == "int8" else "-",
            color=_OURS if ours else None,
            label=results["engines"][key]["label"],
        )
    axis.set(xlabel="padding in a batch of 8×128, %", ylabel="real tokens per second", ylim=(0, None))
    return _finish(figure, axis)


def draw_accuracy(results: Results) -> Any:
    """Draw a point per engine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for (key, (size, distance)), marker in zip(accuracy_points(results).items(), _MARKERS, strict=False):
        color = _OURS if key.startswith("erniem-rt") else None
        axis.scatter(size, distance, marker=marker, s=70, color=color, label=results["engines"][key]["label"])
    axis.set(xlabel="base model on disk, MB", xlim=(0, None), ylim=(-0.01, None))
    axis.set_ylabel("relative L2 of hidden states to fp32, trained weights")
    return _finish(figure, axis)


def _finish(figure: Any, axis: Any) -> Any:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


DRAWINGS: tuple[Callable[[Results], Any], ...] = (draw_bars, draw_padding, draw_accuracy)
GPU_DRAWINGS: dict[str, Callable[[Results], Any]] = {
    "bench-gpu-throughput.svg": draw_throughput,
    "bench-gpu-latency.svg": draw_latency,
}


def drawn(results: Results) -> dict[str, Callable[[Results], Any]]:
    """Return the drawings that have results."""
    if is_gpu(results):
        return GPU_DRAWINGS
    empty = {draw_padding: not padding_lines(results), draw_accuracy: not accuracy_points(results)}
    return {name: draw for name, draw in zip(pictures(results), DRAWINGS, strict=True) if not empty.get(draw)}


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="default: the committed files of all classes of CPU")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(argv)
    import matplotlib

    # Reproducible bytes, and text as text instead of paths.
    matplotlib.rcParams.update({"svg.hashsalt": "erniem-rt", "svg.fonttype": "none", "font.family": "sans-serif"})
    options.output.mkdir(parents=True, exist_ok=True)
    for path in [options.results] if options.results else committed():
        content = path.read_bytes()
        results = json.loads(content)
        for name, draw in drawn(results).items():
            metadata = {"Date": None, "Description": digest(content)}
            draw(results).savefig(options.output / name, metadata=metadata)
            print(f"wrote {options.output / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
