"""``HEAD.plan`` beside ``HEAD.onnx``: derive, compare, build, prove, describe."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from erniem_export.onnx_export import read, write
from erniem_export.parity.judge import judge
from erniem_export.passes.attention import keep_masks_alive, to_attention
from erniem_export.passes.half import HALF_TYPES
from erniem_export.passes.rewriter import name_products
from erniem_export.tensorrt.attention import ATTENTION, PRIMITIVES, choose_attention
from erniem_export.tensorrt.builder import add_profiles, build, configure, make_builder
from erniem_export.tensorrt.library import gpu_capability
from erniem_export.tensorrt.network import parse
from erniem_export.tensorrt.profiles import resolve_profiles
from erniem_export.tensorrt.proof import inspect, prove
from erniem_rt.manifest import FileRecord, Manifest, Plan, hash_file

if TYPE_CHECKING:
    from erniem_export.checkpoint import Checkpoint
    from erniem_export.options import EngineOptions
    from erniem_export.progress import Progress
    from erniem_export.tensorrt.library import Library
    from erniem_rt.manifest import Profile

__all__ = ["add_plan"]

# TensorRT for RTX without --compute-capability: "8.6, 8.9, 12.0, 12.1, and later"; here the known ones.
_RTX_DEFAULT = ("8.6", "8.9", "12.0", "12.1")
_AMPERE_PLUS = ("8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
_ENGINE_NOT_RUN = "built, not run: the figures are of the graph that went into the builder, run on a CPU"


def add_plan(
    stage: Path,
    source: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    library: Library,
    options: EngineOptions,
    progress: Progress,
) -> tuple[Plan, FileRecord]:
    """Build ``HEAD.plan`` in ``stage``; return what it is, and the record of its file.

    Args:
        stage: Where the plan goes.
        source: Folder of the graph that it is built from, in standard operators.
        manifest: What that graph is.
        checkpoint: What it was made from.
        library: What builds.
        options: What is asked of the build.
        progress: Where to say how far it is.

    Raises:
        EngineBuildError: It cannot be built, or is not what was asked for.
        ParityError: The graph for TensorRT does not compute what the PyTorch model computes.
    """
    profiles = resolve_profiles(options.profiles, manifest.head, manifest.limits.max_length)
    config, started = checkpoint.config, time.monotonic()
    progress.step(f"trying attention on {library}")
    heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    attention = choose_attention(library, options, profiles, heads, _computed_in(manifest), progress)
    with tempfile.TemporaryDirectory(dir=stage, prefix=".plan-") as folder:
        scratch = Path(folder)
        products, replaced = _derive(source / manifest.artifact, scratch, attention["form"], config.num_hidden_layers)
        attention |= replaced
        reports = _compare(scratch, manifest, checkpoint, stage, progress)
        progress.step(f"building {manifest.head}.plan with {library}")
        built = scratch / manifest.artifact
        layers = config.num_hidden_layers
        plan, proof = _built(built, manifest, library, options, profiles, (products, layers), progress)
    file = (stage / manifest.artifact).with_suffix(".plan")
    file.write_bytes(plan)
    described = _describe(file.name, manifest, library, options, profiles)
    seconds = round(time.monotonic() - started, 3)
    described = dataclasses.replace(
        described,
        attention=attention,
        proof=proof,
        build={**described.build, "seconds": seconds, "bytes": plan.nbytes},
        parity={"engine": _ENGINE_NOT_RUN, "graph": reports},
    )
    return described, hash_file(file)


def _computed_in(manifest: Manifest) -> ir.DataType:
    precision = manifest.precision
    return HALF_TYPES.get(precision.get("products", precision["weights"]), ir.DataType.FLOAT)


def _derive(artifact: Path, scratch: Path, form: str, layers: int) -> tuple[dict[str, ir.Node], dict[str, Any]]:
    """Write TensorRT's graph into ``scratch``, under the artifact's name."""
    graph = read(artifact)
    attentions = keep_masks_alive(graph, layers)
    done: dict[str, Any] = {"layers": layers}
    if form == ATTENTION:
        replaced, declined = to_attention(graph, attentions)
        done = {"layers": replaced, **({"left_as_primitives": declined} if declined else {})}
        if not replaced:
            done |= {"form": PRIMITIVES, "layers": layers}
    products = name_products(graph)
    write(graph, scratch / artifact.name)
    return products, done


def _compare(
    scratch: Path, manifest: Manifest, checkpoint: Checkpoint, stage: Path, progress: Progress
) -> dict[str, Any]:
    progress.step("comparing the graph for TensorRT with PyTorch")
    files = {file.name: hash_file(file) for file in sorted(scratch.iterdir())}
    derived = dataclasses.replace(manifest, files=files, parity={})
    derived.save((scratch / manifest.artifact).with_suffix(".json"))
    return judge(
        scratch / manifest.artifact,
        checkpoint.model,
        tokenizer_dir=checkpoint.tokenizer_dir,
        scratch=stage,
        progress=lambda cases: progress.track(cases, "case"),
    )


def _built(
    path: Path,
    manifest: Manifest,
    library: Library,
    options: EngineOptions,
    profiles: tuple[Profile, ...],
    graph: tuple[dict[str, ir.Node], int],
    progress: Progress,
) -> tuple[memoryview, dict[str, Any]]:
    """Parse, prove and build; ``graph`` are its products by name, and how many layers it has."""
    products, layers = graph
    builder = make_builder(library)
    network = parse(library, builder, path)
    whole = library.flavour == "tensorrt"
    proof = prove(network, manifest.precision, products, layers, whole=whole)
    config = configure(library, builder, options)
    add_profiles(library, builder, config, manifest, profiles)
    plan = build(library, builder, network, config, options, progress)
    return plan, {**proof, "inspector": inspect(library, plan, manifest.precision, whole=whole)}


def _describe(
    name: str, manifest: Manifest, library: Library, options: EngineOptions, profiles: tuple[Profile, ...]
) -> Plan:
    here = gpu_capability()
    if library.flavour == "tensorrt-rtx":
        capabilities = options.compute_capabilities or _RTX_DEFAULT
    else:
        capabilities = _AMPERE_PLUS if options.hardware_compatible else (str(here),)
    return Plan(
        file=name,
        flavour=library.flavour,
        version=library.version,
        precision=manifest.precision,
        compute_capabilities=capabilities,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
        profiles=profiles,
        attention={},
        proof={},
        build={
            "on": f"a GPU of compute capability {here}" if here else "a machine without a GPU",
            "workspace_mib": options.workspace,
            "timing_cache": None if options.timing_cache is None else options.timing_cache.name,
        },
        parity={},
    )
