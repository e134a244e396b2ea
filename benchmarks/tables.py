"""Markdown from the results, and nothing in it that is not computed from them.

Usage: python benchmarks/tables.py [--results FILE] [--write-readme]
``--write-readme`` replaces what stands between the markers in README.md and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Results = dict[str, Any]
Engine = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "bench.json"
EMPTY = "–"
_TOGETHER = "4 processes together"
_TOLD_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")


def markdown(results: Results) -> str:
    """All tables."""
    parts = [
        ("", _conditions(results)),
        ("### Time per workload, ms", times(results)),
        ("### Size, memory, cold start", costs(results)),
        ("### From text to answer", text_to_answer(results)),
        ("### Accuracy on trained weights", accuracy(results)),
        ("### Bars", bars(results)),
        ("### Gaps", gaps(results)),
    ]
    return "\n\n".join(f"{title}\n\n{text}" if title else text for title, text in parts) + "\n"


def headline(results: Results) -> str:
    """The table of the README: the workload that servers see, start and size."""
    mixed = results["workloads"]["mixed"]["texts"]
    rows = []
    for engine in _measured(results):
        seconds = _seconds(engine, "mixed")
        rows.append(
            [
                engine["label"],
                EMPTY if seconds is None else f"{mixed / seconds:.1f}",
                *(_milliseconds(engine, name) for name in ("1x32", "8x128")),
                *_start_and_size(engine),
            ]
        )
    header = ["", "64 texts of mixed length, texts/s", "1×32, ms", "8×128, ms", "first answer", "resident", "on disk"]
    note = f"{_conditions(results)} Left out, with reasons: [docs/benchmarks.md](docs/benchmarks.md)."
    return f"{table(header, rows)}\n\n{note}\n"


def times(results: Results) -> str:
    """The median and the range over the rounds, per engine and workload."""
    names = list(results["workloads"])
    rows = [[engine["label"], *(_with_range(engine, name) for name in names)] for engine in _measured(results)]
    return table(["", *(results["workloads"][name]["label"] for name in names)], rows)


def costs(results: Results) -> str:
    """What an engine occupies, and how long its process takes to the first answer."""
    rows = []
    for engine in _measured(results):
        shared = engine["shared"]
        together = EMPTY if shared["gap"] else f"{shared['proportional'] / 1e6:,.0f} MB"
        rows.append([engine["label"], *_start_and_size(engine), together])
    return table(["", "first answer", "resident", "on disk", _TOGETHER], rows)


def text_to_answer(results: Results) -> str:
    """Both pipelines on text."""
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
    """Hidden states and neighbours on trained weights, against fp32."""
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


def bars(results: Results) -> str:
    """Every bar: what was asked, what was reached."""
    rows = []
    for bar in results["ratios"]:
        limit = f"≥ {bar['at_least']:g}" if "at_least" in bar else f"≤ {bar['at_most']:g}"
        reached = EMPTY if bar["value"] is None else f"{bar['value']:.4g}"
        verdict = {True: "met", False: "missed", None: ""}[bar["met"]]
        rows.append([bar["bar"], limit, reached, "; without ".join(filter(None, (verdict, bar["gap"])))])
    return table(["", "bar", "reached", ""], rows)


def gaps(results: Results) -> str:
    """Everything that has no figure, by name, with the reason."""
    lines = []
    for engine in results["engines"].values():
        if engine["gap"]:
            lines.append(f"* {engine['label']}: {engine['gap']}")
            continue
        if "seconds" not in engine["cold_start"]:
            lines.append(f"* {engine['label']}, cold start: {engine['cold_start'].get('gap') or 'wrong answer'}")
        if engine["shared"]["gap"]:
            lines.append(f"* {engine['label']}, {_TOGETHER}: {engine['shared']['gap']}")
        for name, verdict in engine["results"].items():
            if "seconds" not in verdict:
                lines.append(f"* {engine['label']} on {results['workloads'][name]['label']}: {_reason(verdict)}")
    return "\n".join(lines) or "None."


def write_documents(results: Results, root: Path = ROOT) -> list[Path]:
    """Replace the blocks between the markers; return the documents that have them."""
    written = []
    for document, (name, text) in documents(results, root).items():
        content = document.read_text(encoding="utf-8") if document.exists() else ""
        span = block(content, name)
        if span is not None:
            document.write_text(content[: span.start] + text + content[span.stop :], encoding="utf-8")
            written.append(document)
    return written


def documents(results: Results, root: Path = ROOT) -> dict[Path, tuple[str, str]]:
    """Which document holds which block, and what must stand in it."""
    return {
        root / "README.md": ("bench", headline(results)),
        root / "docs" / "benchmarks.md": ("bench-full", markdown(results)),
    }


def block(content: str, name: str) -> slice | None:
    """Where the text between the markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` is; None without them."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    if begin not in content or end not in content:
        return None
    return slice(content.index(begin) + len(begin), content.index(end))


def _conditions(results: Results) -> str:
    machine, model = results["machine"], results["model"]
    flags = " ".join(
        flag for flag in machine["flags"] if flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
    )
    versions = dict(sorted({k: v for e in results["engines"].values() for k, v in e["versions"].items()}.items()))
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    size = f"{model['num_hidden_layers']} layers × {model['hidden_size']}"
    return (
        f"{'Quick run. ' if results['quick'] else ''}{machine['cpu']} ({flags}), {results['threads']} threads on "
        f"{machine['cores']} cores; {size}, head `{model['head']}`, seeded weights; medians over {results['rounds']} "
        f"interleaved rounds{load(machine.get('load_before'))}. {listed}."
    )


def load(before: float | None) -> str:
    """What to say of the load when the run began: the average number of processes that wanted a core."""
    return "" if before is None else f"; load {before:.2g} before the run"


def _measured(results: Results) -> list[Engine]:
    return [engine for engine in results["engines"].values() if not engine["gap"]]


def _seconds(engine: Engine, workload: str) -> float | None:
    verdict = engine["results"].get(workload, {})
    return verdict["seconds"]["median"] if "seconds" in verdict else None


def _milliseconds(engine: Engine, workload: str) -> str:
    seconds = _seconds(engine, workload)
    return EMPTY if seconds is None else _rounded(seconds * 1e3)


def _with_range(engine: Engine, workload: str) -> str:
    verdict = engine["results"].get(workload, {})
    if "seconds" not in verdict:
        return EMPTY if verdict.get("gap") else "wrong"
    median, lowest, highest = (verdict["seconds"][key] * 1e3 for key in ("median", "lowest", "highest"))
    return f"{_rounded(median)} ({_rounded(lowest)}–{_rounded(highest)})"


def _rounded(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


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


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join([_line(header), _line(["---"] * len(header)), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def main(argv: Sequence[str] | None = None) -> int:
    """Print all tables, or write them into the documents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write-readme", action="store_true")
    options = parser.parse_args(argv)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    if not options.write_readme:
        print(markdown(results))
        return 0
    for document in write_documents(results):
        print(f"wrote {document.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
