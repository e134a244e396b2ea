"""Measures the build time, memory and size of TensorRT for RTX plans in fp32 and in fp16.

Usage: python -m benchmarks.plan_sizes [--model random:base] [--output FILE]
Separate processes make the graph and build the plan, so that time and memory are only those of the build.
Writes a JSON file, and its table into docs/tensorrt.md. Needs no GPU, and skips the gate.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.documents import RESULTS_DIR, ROOT, Blocks, load, table, write_blocks
from benchmarks.machine import describe_machine
from benchmarks.worker import read_memory
from erniem_export.options import EngineOptions, resolve_profiles
from erniem_export.progress import Terminal
from erniem_export.tensorrt.builder import Library, add_profiles, build, configure, load_library, make_builder, parse
from erniem_rt.manifest import Manifest

RESULTS = RESULTS_DIR / "plan_sizes.json"
DOCUMENT = ROOT / "docs" / "tensorrt.md"
HEAD, PRECISIONS = "cls", ("fp32", "fp16")
OPTIONS = EngineOptions("tensorrt-rtx")
_VERSIONS = ("tensorrt-rtx", "torch", "onnx")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; or, in a child process, run one step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random:base")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--step", choices=("graph", "build"), help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=PRECISIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.step == "graph":
        write_graph(given.model, given.precision, given.folder)
    elif given.step == "build":
        print(json.dumps(build_plan(given.folder)))
    else:
        results = measure(given.model)
        given.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        if given.output == RESULTS:
            write_blocks(blocks(results))
        print(markdown(results))
    return 0


def measure(model: str) -> dict[str, Any]:
    """Build in each precision; return sizes, times, memory and versions."""
    machine, plans = describe_machine(), {}
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            common = ["--model", model, "--precision", precision, "--folder", folder]
            _run("graph", *common)
            plans[precision] = json.loads(_run("build", *common).splitlines()[-1])
    return {
        "model": {"name": model, "head": HEAD},
        "machine": machine,
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "plans": plans,
        "fp16_of_fp32": plans["fp16"]["bytes"] / plans["fp32"]["bytes"],
    }


def _run(step: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.plan_sizes", "--step", step, *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def write_graph(model: str, precision: str, folder: Path) -> None:
    """Write the same graph for the builder as an export, and its manifest."""
    # Imported here, to keep them out of the memory of the process that builds.
    from erniem_export.bundle import build_manifest, files_of
    from erniem_export.checkpoint import load_checkpoint
    from erniem_export.gate.cases import build_cases
    from erniem_export.onnx_export import trace, write
    from erniem_export.options import GraphOptions, Precision
    from erniem_export.passes.attention import keep_masks_alive
    from erniem_export.passes.precision import apply_precision
    from erniem_export.passes.rewriter import name_products

    progress = Terminal()
    progress.step(f"{precision}: the graph of {model}")
    checkpoint = load_checkpoint(model, HEAD)
    graph = trace(checkpoint.model, HEAD, GraphOptions())
    manifest = build_manifest(checkpoint, GraphOptions(), folder)
    facts = apply_precision(graph, Precision(precision), build_cases(manifest, None, seed=1), folder)
    manifest = dataclasses.replace(manifest, precision=facts)
    found = keep_masks_alive(graph, checkpoint.config.num_hidden_layers)
    _fuse_attention(graph, found, manifest, checkpoint.config, progress)
    name_products(graph)
    write(graph, folder / f"{HEAD}.onnx")
    dataclasses.replace(manifest, files=files_of(folder)).save(folder / f"{HEAD}.json")


def _fuse_attention(graph: Any, found: Any, manifest: Manifest, config: Any, progress: Terminal) -> None:
    import onnx_ir as ir

    from erniem_export.passes.attention import to_attention
    from erniem_export.passes.precision import HALF_TYPES
    from erniem_export.tensorrt.plan import ATTENTION, choose_attention

    heads = config.num_attention_heads
    dtype = HALF_TYPES.get(manifest.precision["weights"], ir.DataType.FLOAT)
    library, profiles = _library(), resolve_profiles((), HEAD, manifest.limits.max_length)
    sizes = (heads, config.hidden_size // heads)
    if choose_attention(library, OPTIONS, profiles, sizes, dtype, progress)["form"] == ATTENTION:
        to_attention(graph, found)


def build_plan(folder: Path) -> dict[str, Any]:
    """Build from the graph of :func:`write_graph`; return seconds, this process's peak memory, and the plan's size."""
    progress, library, manifest = Terminal(), _library(), Manifest.load(folder / f"{HEAD}.json")
    progress.step(f"{manifest.precision['weights']}: building with {library}")
    started = time.perf_counter()
    builder = make_builder(library)
    network = parse(library, builder, folder / manifest.artifact)
    config = configure(library, builder, OPTIONS)
    add_profiles(library, builder, config, manifest, resolve_profiles((), HEAD, manifest.limits.max_length))
    plan = build(library, builder, network, config, OPTIONS, progress)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_memory": read_memory()["peak"], "bytes": plan.nbytes}


def _library() -> Library:
    library = load_library(OPTIONS.engine)
    if library is None:
        raise RuntimeError("TensorRT for RTX was asked for by name and is not there")
    return library


def markdown(results: dict[str, Any]) -> str:
    """Return the table and the versions."""
    of_fp32 = f" ({results['fp16_of_fp32']:.2f} of fp32's)"
    rows = [
        [
            precision,
            f"{plan['seconds']:.1f} s",
            f"{plan['peak_memory'] / 1e9:.1f} GB",
            f"{plan['bytes'] / 1e6:,.0f} MB{'' if precision == 'fp32' else of_fp32}",
        ]
        for precision, plan in results["plans"].items()
    ]
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    conditions = (
        f"`{results['model']['name']}`, head `{results['model']['head']}`, two profiles; {machine['cpu']}, "
        f"{machine['cores']} cores{load(machine['load_before'])}; {versions}."
    )
    return f"{table(['', 'builds in', 'peak memory of the build', 'plan'], rows)}\n\n{conditions}\n"


def blocks(results: dict[str, Any]) -> Blocks:
    """Return the text of each marked block."""
    return {(DOCUMENT, "plan-sizes"): markdown(results)}


if __name__ == "__main__":
    sys.exit(main())
