"""The tables of ``tokenizer_speed.json``, and the documents that have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.tables import ROOT, block, load

RESULTS = ROOT / "benchmarks" / "results" / "tokenizer_speed.json"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
_LOADED = {
    "sentencepiece": "sentencepiece alone, a checkpoint's file",
    "checkpoint": "`Tokenizer.from_dir`, a checkpoint's files",
    "exported": "`Tokenizer.from_dir`, an exported folder's",
}


def tables(result: dict[str, Any]) -> str:
    """Speed, loading and long texts."""
    parts = [
        _conditions(result),
        _speed(result["ways"]),
        _loading(result["loading"]),
        _long_texts(result["long_texts"]),
    ]
    return "\n".join(parts)


def write_document(result: dict[str, Any], document: Path = DOCUMENT) -> None:
    """Replace what stands between the markers ``tokenizer``."""
    content = document.read_text(encoding="utf-8")
    span = block(content, "tokenizer")
    if span is not None:
        document.write_text(content[: span.start] + tables(result) + content[span.stop :], encoding="utf-8")


def _conditions(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    return (
        f"{result['texts']:,} texts, {result['characters']:,} characters, {result['texts_per_call']:,} texts a call; "
        f"medians of {result['rounds']} interleaved rounds{load(machine['load_average'])}; vocabulary: "
        f"{result['vocabulary']}. {machine['cpu']}, "
        f"{machine['cores']} cores, Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".\n"
    )


def _speed(ways: dict[str, dict[str, Any]]) -> str:
    lines = ["| | seconds | CPU seconds | × transformers | × one thread |", "| --- | --- | --- | --- | --- |"]
    for name, row in ways.items():
        if row["correct"]:
            seconds = f"{row['seconds']:.3f} | {row['cpu_seconds']:.3f}"
            lines.append(f"| {name} | {seconds} | {row['times_reference']:.1f} | {row['times_one_thread']:.2f} |")
        else:
            lines.append(f"| {name} | wrong ids | | | |")
    return "\n".join(lines) + "\n"


def _loading(loading: dict[str, dict[str, float]]) -> str:
    lines = ["| loading 250,002 tokens | seconds | fastest | CPU seconds | memory |", "| --- | --- | --- | --- | --- |"]
    for what, row in loading.items():
        seconds = f"{row['seconds']:.2f} | {row['least_seconds']:.2f} | {row['cpu_seconds']:.2f}"
        lines.append(f"| {_LOADED[what]} | {seconds} | {row['added_mb']:.0f} MB |")
    return "\n".join(lines) + "\n"


def _long_texts(rows: list[dict[str, float]]) -> str:
    lines = ["| one text of so many characters | seconds | microseconds a character |", "| --- | --- | --- |"]
    for row in rows:
        each = row["seconds"] / row["characters"] * 1e6
        lines.append(f"| {row['characters']:,} | {row['seconds']:.3f} | {each:.2f} |")
    return "\n".join(lines) + "\n"
