"""Pictures from the results of the GPU benchmark, and nothing in them that is not in the results.

Usage: python -m benchmarks.gpu.plots [--results FILE] [--output FOLDER] (needs matplotlib)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.tables import RESULTS
from benchmarks.plots import OUTPUT, digest

Results = dict[str, Any]
# Per panel its title, and per bar the engine and its value.
Panels = dict[str, list[tuple[str, float]]]

_OURS, _OTHERS = "#1f6f5c", "#c4c4c4"


def throughput_panels(results: Results) -> Panels:
    """Per model and workload of more than one text: texts per second of each engine that has a time."""
    return _panels(
        results,
        lambda workload: workload["texts"] > 1,
        lambda workload, verdict: workload["texts"] / verdict["seconds"]["median"] if "seconds" in verdict else None,
    )


def latency_panels(results: Results) -> Panels:
    """Per model and workload of one text: p50 in milliseconds."""
    return _panels(
        results,
        lambda workload: workload["texts"] == 1,
        lambda _, verdict: verdict["latency"]["p50"] * 1e3 if "latency" in verdict else None,
    )


def _panels(
    results: Results, chosen: Callable[[Results], bool], value: Callable[[Results, Results], float | None]
) -> Panels:
    panels: Panels = {}
    for model, found in results["models"].items():
        for name, workload in found["workloads"].items():
            if not chosen(workload):
                continue
            values = [
                (key, value(workload, engine["results"].get(name, {}))) for key, engine in found["engines"].items()
            ]
            panels[f"{model}, {workload['label']}"] = [(key, number) for key, number in values if number is not None]
    return panels


def draw(results: Results, panels: Panels, unit: str) -> Any:
    """One panel of horizontal bars per entry."""
    from matplotlib.figure import Figure

    labels = {key: engine["label"] for found in results["models"].values() for key, engine in found["engines"].items()}
    columns = 2
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(12, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, found) in zip(axes, panels.items(), strict=False):
        colors = [_OURS if key.startswith("erniem-rt") else _OTHERS for key, _ in found]
        bars = axis.barh([labels[key] for key, _ in found], [number for _, number in found], color=colors)
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=7)
        axis.invert_yaxis()
        axis.margins(x=0.18)
        axis.set_title(f"{title}, {unit}", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


DRAWINGS: dict[str, tuple[Callable[[Results], Panels], str]] = {
    "bench-gpu-throughput.svg": (throughput_panels, "texts/s"),
    "bench-gpu-latency.svg": (latency_panels, "p50, ms"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(argv)
    import matplotlib

    matplotlib.rcParams.update({"svg.hashsalt": "erniem-rt", "svg.fonttype": "none", "font.family": "sans-serif"})
    content = options.results.read_bytes()
    results = json.loads(content)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, (panels, unit) in DRAWINGS.items():
        metadata = {"Date": None, "Description": digest(content)}
        draw(results, panels(results), unit).savefig(options.output / name, metadata=metadata)
        print(f"wrote {options.output / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
