"""Markdown from the results of the GPU benchmark, and nothing in it that is not computed from them.

Usage: python -m benchmarks.gpu.tables [--results FILE] [--write-docs]
``--write-docs`` replaces what stands between the markers in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import EMPTY, ROOT, block, table

Results = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results" / "bench-gpu.json"
DOCUMENT, MARKER = ROOT / "docs" / "benchmarks.md", "bench-gpu"


def markdown(results: Results) -> str:
    """All tables."""
    parts = [("", conditions(results))]
    for name, found in results["models"].items():
        parts += [
            (f"### {name}: milliseconds per workload", times(found)),
            (f"### {name}: share of the measured matrix peak", shares(found)),
            (f"### {name}: latency of one row, ms", latency(found)),
        ]
    parts += [("### Bars", bars(results)), ("### Gaps", gaps(results))]
    return "\n\n".join(f"{title}\n\n{text}" if title else text for title, text in parts) + "\n"


def conditions(results: Results) -> str:
    """Where the figures come from."""
    device, machine = results["peak"]["device"], results["machine"]
    versions = {
        name: version
        for found in results["models"].values()
        for engine in found["engines"].values()
        for name, version in engine["versions"].items()
    }
    facts = [f"{key.replace('_', ' ')} {value}" for key, value in device.items() if key != "name" and value is not None]
    peaks = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in results["peak"]["flops_per_second"].items())
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    quick = "Quick run, for the harness alone. " if results["quick"] else ""
    return (
        f"{quick}{'; '.join([device['name'], *facts])}; {machine['cpu']}, {machine['cores']} cores, Python "
        f"{machine['python']}. Measured peak of matrix products, TFLOP/s: {peaks}. Medians over {results['rounds']} "
        f"interleaved rounds, from numpy to numpy. {listed}."
    )


def times(found: Results) -> str:
    """The median time of each engine on each workload."""

    def cell(verdict: Results) -> str:
        if "seconds" in verdict:
            return f"{verdict['seconds']['median'] * 1e3:.3g}"
        return EMPTY if verdict.get("gap") else "wrong"

    return _per_workload(found, cell, list(found["workloads"]))


def shares(found: Results) -> str:
    """How near each engine came to the peak in its precision."""

    def cell(verdict: Results) -> str:
        return f"{100 * verdict['share_of_peak']:.1f} %" if "share_of_peak" in verdict else EMPTY

    return _per_workload(found, cell, list(found["workloads"]))


def latency(found: Results) -> str:
    """p50 and p99 of single rows."""

    def cell(verdict: Results) -> str:
        taken = verdict.get("latency")
        return f"{taken['p50'] * 1e3:.3g} / {taken['p99'] * 1e3:.3g}" if taken else EMPTY

    single = [name for name, workload in found["workloads"].items() if workload["texts"] == 1]
    return _per_workload(found, cell, single) if single else "No workload of one row in this run."


def _per_workload(found: Results, cell: Any, names: Sequence[str]) -> str:
    rows = [
        [engine["label"], *(cell(engine["results"].get(name, {"gap": "not measured"})) for name in names)]
        for engine in found["engines"].values()
        if not engine["gap"]
    ]
    return table(["", *(found["workloads"][name]["label"] for name in names)], rows)


def bars(results: Results) -> str:
    """What was asked, what was reached, and by which engine."""
    rows = []
    for bar in results["bars"]:
        limit = f"≥ {bar['at_least']:g}" if "at_least" in bar else f"≤ {bar['at_most']:g}"
        reached = EMPTY if bar["value"] is None else f"{bar['value']:.4g}"
        verdict = {True: "met", False: "missed", None: bar["gap"]}[bar["met"]]
        rows.append([bar["bar"], limit, reached, bar["engine"] or EMPTY, verdict])
    return table(["", "bar", "reached", "by", ""], rows)


def gaps(results: Results) -> str:
    """Everything that has no figure, by name, with the reason."""
    lines = []
    for model, found in results["models"].items():
        for engine in found["engines"].values():
            if engine["gap"]:
                lines.append(f"* {model}, {engine['label']}: {engine['gap']}")
            for name, verdict in engine["results"].items():
                if "seconds" not in verdict:
                    reason = verdict.get("gap") or (
                        f"wrong answers, so no time (largest relative difference {verdict['max_relative_difference']})"
                    )
                    lines.append(f"* {model}, {engine['label']} on {found['workloads'][name]['label']}: {reason}")
    return "\n".join(lines) or "None."


def write_document(results: Results, document: Path = DOCUMENT) -> bool:
    """Put the tables between the markers; False if the document has none."""
    content = document.read_text(encoding="utf-8")
    span = block(content, MARKER)
    if span is None:
        return False
    document.write_text(content[: span.start] + markdown(results) + content[span.stop :], encoding="utf-8")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables, or write them into the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args(argv)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    if not options.write_docs:
        print(markdown(results))
    elif write_document(results):
        print(f"wrote {DOCUMENT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
