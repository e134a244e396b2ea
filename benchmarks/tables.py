"""Makes Markdown tables from the results of the benchmark.

Usage: python -m benchmarks.tables [--results FILE] [--write-docs]
``--write-docs`` (or ``--write-readme``) replaces the marked blocks in README.md and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.documents import BENCHMARKS, EMPTY, README, RESULTS_DIR, ROOT, Blocks, load, table, write_blocks
from benchmarks.machine import cpu_name

Results = dict[str, Any]
Engine = dict[str, Any]
Verdict = dict[str, Any]

_TOGETHER = "4 processes together"
# Not in the README's short table.
_ONLY_IN_DOCS = ("torch-compile", "ort-optimized")
_CLASSES = {
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "vnni": "VNNI",
    "bf16": "BF16",
    "amx": "AMX",
    "amd": "(AMD)",
    "intel": "(Intel)",
}


def is_gpu(results: Results) -> bool:
    """Return whether these are the results of a run on a GPU, which has several models."""
    return "models" in results


def blocks(*runs: Results) -> Blocks:
    """Return the text of each marked block, from runs on CPUs of several classes or from one on a GPU."""
    if is_gpu(runs[0]):
        return {(BENCHMARKS, "bench-gpu"): markdown(runs[0])}
    full = "\n".join(f"### {class_name(run)}\n\n{_markdown(run, '####')}\n{_pictures(run)}" for run in runs)
    return {(README, "bench"): "\n".join(map(headline, runs)), (BENCHMARKS, "bench-full"): full}


def committed() -> list[Path]:
    """Return the committed results of CPUs, one file per class and maker, the most instruction sets first."""
    return sorted(RESULTS_DIR.glob("bench-avx*.json"), key=lambda path: (-path.stem.count("-"), path.stem))


def class_name(results: Results) -> str:
    """Return the class of CPU and its maker in words, such as ``AVX-512, VNNI, BF16 (Intel)``."""
    words = ", ".join(_CLASSES.get(part, part) for part in cpu_name(results["machine"]).split("-"))
    return words.replace(", (", " (")


def pictures(results: Results) -> dict[str, str]:
    """Return the file and the caption of each picture of a run on a CPU."""
    cpu = cpu_name(results["machine"])
    return {
        f"bench-{cpu}-workloads.svg": "Time per workload",
        f"bench-{cpu}-padding.svg": "Throughput against padding",
        f"bench-{cpu}-accuracy.svg": "Accuracy against size",
    }


def _pictures(results: Results) -> str:
    from benchmarks.plots import drawn  # which imports this module

    captions = pictures(results)
    return "\n\n".join(f"![{captions[name]}](images/{name})" for name in drawn(results)) + "\n"


def markdown(results: Results) -> str:
    """Return all tables."""
    return _markdown(results, "###")


def _markdown(results: Results, heading: str) -> str:
    parts = (_gpu_parts if is_gpu(results) else _cpu_parts)(results)
    return "\n\n".join(f"{heading} {title}\n\n{text}" if title else text for title, text in parts) + "\n"


def _cpu_parts(results: Results) -> list[tuple[str, str]]:
    return [
        ("", _conditions(results)),
        ("Time per workload, ms", times(results)),
        ("Size, memory, cold start", costs(results)),
        ("From text to answer", text_to_answer(results)),
        ("Accuracy on trained weights", accuracy(results)),
        ("Bars", bars(results["ratios"])),
        ("Gaps", gaps(results)),
    ]


def _gpu_parts(results: Results) -> list[tuple[str, str]]:
    parts = [("", _gpu_conditions(results))]
    for name, found in results["models"].items():
        parts += [
            (f"{name}: time per workload, ms", times(found, digits=3)),
            (f"{name}: share of the measured matrix peak", shares(found)),
            (f"{name}: latency of one row, p50 / p99, ms", latency(found)),
        ]
    return [*parts, ("Bars", bars(results["bars"])), ("Gaps", gaps(results))]


def headline(results: Results) -> str:
    """Return the README's table: a typical server workload, latency, start and size."""
    mixed = results["workloads"]["mixed"]["texts"]
    rows = []
    shown = {name: engine for name, engine in results["engines"].items() if name not in _ONLY_IN_DOCS}
    for engine in _measured({"engines": shown}):
        seconds = _seconds(engine, "mixed")
        rows.append(
            [
                engine["label"],
                EMPTY if seconds is None else f"{mixed / seconds:.1f}",
                *(_milliseconds(engine, name) for name in ("1x32", "8x128")),
                *_start_and_size(engine),
            ]
        )
    columns = ["64 texts of mixed length, texts/s", "1×32, ms", "8×128, ms", "first answer", "resident", "on disk"]
    note = f"{_conditions(results)} More, and what was left out and why: [docs/benchmarks.md](docs/benchmarks.md)."
    return f"{table([class_name(results), *columns], rows)}\n\n{note}\n"


def times(found: Results, digits: int = 2) -> str:
    """Return the median and the range over the rounds, per engine and workload."""
    return _per_workload(found, lambda verdict: _with_range(verdict, digits), list(found["workloads"]))


def shares(found: Results) -> str:
    """Return each engine's share of the peak in its precision."""

    def cell(verdict: Verdict) -> str:
        return f"{100 * verdict['share_of_peak']:.1f} %" if "share_of_peak" in verdict else EMPTY

    return _per_workload(found, cell, list(found["workloads"]))


def latency(found: Results) -> str:
    """Return p50 and p99 of single rows."""

    def cell(verdict: Verdict) -> str:
        taken = verdict.get("latency")
        return f"{taken['p50'] * 1e3:.3g} / {taken['p99'] * 1e3:.3g}" if taken else EMPTY

    single = [name for name, workload in found["workloads"].items() if workload["texts"] == 1]
    return _per_workload(found, cell, single) if single else "No workload of one row in this run."


def _per_workload(found: Results, cell: Callable[[Verdict], str], names: Sequence[str]) -> str:
    rows = [
        [engine["label"], *(cell(engine["results"].get(name, {"gap": "not measured"})) for name in names)]
        for engine in _measured(found)
    ]
    return table(["", *(found["workloads"][name]["label"] for name in names)], rows)


def costs(results: Results) -> str:
    """Return each engine's memory and disk size, and its time to the first answer."""
    rows = []
    for engine in _measured(results):
        shared = engine["shared"]
        together = EMPTY if shared["gap"] else f"{shared['proportional'] / 1e6:,.0f} MB"
        rows.append([engine["label"], *_start_and_size(engine), together])
    return table(["", "first answer", "resident", "on disk", _TOGETHER], rows)


def text_to_answer(results: Results) -> str:
    """Return the times of both pipelines on text."""
    section = results["end_to_end"]
    if section["gap"]:
        return f"Not measured: {section['gap']}."
    rows = [
        [
            engine["label"],
            f"{section['texts'] / engine['seconds']['median']:.1f}"
            if "seconds" in engine
            else engine["gap"] or "wrong",
        ]
        for engine in section["engines"].values()
    ]
    return table([f"{section['texts']} pairs of texts, {section['model']}", "texts/s"], rows)


def accuracy(results: Results) -> str:
    """Return the accuracy of hidden states and nearest neighbours on trained weights, against fp32."""
    section = results["accuracy"]
    if section["gap"]:
        return f"Not measured: {section['gap']}."
    count = section["timed_texts"]

    def speed(found: Results) -> str:
        return f"{count / found['seconds']['median']:.1f}"

    rows = [[section["reference"]["label"], EMPTY, EMPTY, EMPTY, speed(section["reference"])]]
    for name, found in section["engines"].items():
        label = results["engines"][name]["label"]
        if found["gap"]:
            rows.append([label, found["gap"], EMPTY, EMPTY, EMPTY])
            continue
        neighbour = f"{100 * found['same_neighbour']:.1f} %"
        rows.append([label, f"{found['relative_l2']:.4f}", neighbour, f"{found['worst_alone']:.5f}", speed(found)])
    header = [
        "",
        "relative L2 of hidden states",
        "nearest neighbour unchanged",
        "alone and in a batch, worst cosine",
        f"{count} of the texts, texts/s",
    ]
    return f"{section['model']} on {section['texts']} texts: {section['source']}.\n\n{table(header, rows)}"


def bars(found: Sequence[Results]) -> str:
    """Return every bar with its target and value, and on a GPU the engine."""
    rows = []
    for bar in found:
        limit = f"≥ {bar['at_least']:g}" if "at_least" in bar else f"≤ {bar['at_most']:g}"
        reached = EMPTY if bar["value"] is None else f"{bar['value']:.4g}"
        verdict = {True: "met", False: "missed", None: ""}[bar["met"]]
        by = [bar["engine"] or EMPTY] if "engine" in bar else []
        rows.append([bar["bar"], limit, reached, *by, "; without ".join(filter(None, (verdict, bar["gap"])))])
    return table(["", "bar", "reached", *(["by"] if found and "engine" in found[0] else []), ""], rows)


def gaps(results: Results) -> str:
    """Return the names of missing results, with the reasons."""
    lines = [f"* {what}: left out, because the time budget was used up" for what in results.get("left_out", [])]
    if is_gpu(results):
        for model, found in results["models"].items():
            lines += _gaps(found, f"{model}, ")
    else:
        lines += _gaps(results, "")
    return "\n".join(lines) or "None."


def _gaps(found: Results, of: str) -> list[str]:
    lines = []
    for engine in found["engines"].values():
        label = f"* {of}{engine['label']}"
        if engine["gap"]:
            lines.append(f"{label}: {engine['gap']}")
            continue
        cold, shared = engine.get("cold_start"), engine.get("shared")
        if cold is not None and "seconds" not in cold:
            lines.append(f"{label}, cold start: {cold.get('gap') or 'wrong answer'}")
        if shared is not None and shared["gap"]:
            lines.append(f"{label}, {_TOGETHER}: {shared['gap']}")
        for name, verdict in engine["results"].items():
            if "seconds" not in verdict:
                lines.append(f"{label} on {found['workloads'][name]['label']}: {_reason(verdict)}")
    return lines


def _conditions(results: Results) -> str:
    machine, model = results["machine"], results["model"]
    size = f"{model['num_hidden_layers']} layers × {model['hidden_size']}"
    sets, _, _ = class_name(results).partition(" (")  # the CPU's name has its maker
    return (
        f"{'Quick run. ' if results['quick'] else ''}{machine['cpu']} with {sets}, "
        f"{results['threads']} threads on {machine['cores']} cores, {machine['date']}; {size}, head `{model['head']}`, "
        f"seeded weights; medians over {results['rounds']} interleaved rounds{load(machine.get('load_before'))}. "
        f"{_versions([results])}."
    )


def _gpu_conditions(results: Results) -> str:
    device, machine = results["peak"]["device"], results["machine"]
    facts = [f"{key.replace('_', ' ')} {value}" for key, value in device.items() if key != "name" and value is not None]
    peaks = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in results["peak"]["flops_per_second"].items())
    quick = "Quick run, which only tests the harness. " if results["quick"] else ""
    return (
        f"{quick}{'; '.join([device['name'], *facts])}; {machine['cpu']}, {machine['cores']} cores, Python "
        f"{machine['python']}. Measured peak of matrix products, TFLOP/s: {peaks}. Medians over {results['rounds']} "
        f"interleaved rounds, from numpy to numpy. {_versions(list(results['models'].values()))}."
    )


def _versions(models: Sequence[Results]) -> str:
    engines = [engine for found in models for engine in found["engines"].values()]
    versions = {name: version for engine in engines for name, version in engine["versions"].items()}
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _measured(results: Results) -> list[Engine]:
    return [engine for engine in results["engines"].values() if not engine["gap"]]


def _seconds(engine: Engine, workload: str) -> float | None:
    verdict = engine["results"].get(workload, {})
    return verdict["seconds"]["median"] if "seconds" in verdict else None


def _milliseconds(engine: Engine, workload: str) -> str:
    seconds = _seconds(engine, workload)
    return EMPTY if seconds is None else _rounded(seconds * 1e3)


def _with_range(verdict: Verdict, digits: int) -> str:
    if "seconds" not in verdict:
        return EMPTY if verdict.get("gap") else "wrong"
    median, lowest, highest = (
        _rounded(verdict["seconds"][key] * 1e3, digits) for key in ("median", "lowest", "highest")
    )
    return f"{median} ({lowest}–{highest})"


def _rounded(value: float, digits: int = 2) -> str:
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _start_and_size(engine: Engine) -> list[str]:
    cold, size = engine["cold_start"], f"{engine['bytes'] / 1e6:,.0f} MB"
    if "seconds" not in cold:
        return [EMPTY, EMPTY, size]
    return [f"{cold['seconds']['median']:.2f} s", f"{cold['resident'] / 1e6:,.0f} MB", size]


def _reason(verdict: dict[str, Any]) -> str:
    if verdict.get("gap"):
        return str(verdict["gap"])
    figures = f"cosine {verdict['cosine']:.4f}, largest relative difference {verdict['max_relative_difference']:.1e}"
    return f"wrong answers, so no time ({figures})" if verdict["cosine"] is not None else "wrong shape or not finite"


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables, or write them into the documents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="default: the committed files of all classes of CPU")
    parser.add_argument("--write-docs", "--write-readme", action="store_true")
    options = parser.parse_args(argv)
    paths = [options.results] if options.results else committed()
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if not options.write_docs:
        print("\n".join(map(markdown, runs)))
        return 0
    for document in write_blocks(blocks(*runs)):
        print(f"wrote {document.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
