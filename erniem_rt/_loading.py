"""From files to an engine: everything that an artifact is checked for on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erniem_rt._signature import check_signature
from erniem_rt._threads import threads_or_default
from erniem_rt._workers import Workers
from erniem_rt.engines import open_engine, open_plan
from erniem_rt.errors import ArtifactError, EngineUnavailableError, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_rt.engines.base import Device, Engine, GraphOptions, PlanEngine, PlanOptions
    from erniem_rt.manifest import Manifest

__all__ = ["load_graph", "load_plan"]


def load_graph(path: Path, manifest: Manifest, device: Device, options: GraphOptions, verify: bool) -> Engine:
    """Import and open the engine while other threads compute the hashes, which takes a core about a second per GB."""
    # Sizes first: reading past the end of a mapped file that was truncated kills the process.
    others = () if manifest.plan is None else (manifest.plan.file,)
    manifest.verify(path.parent, hashes=False, without=others)
    with Workers(1) as pool:
        threads = threads_or_default(options.threads)
        hashes = pool.submit(manifest.verify, path.parent, without=others, threads=threads) if verify else None
        try:
            checked = (lambda: None) if hashes is None else hashes.result
            engine = open_engine(path, manifest, device=device, options=options, checked=checked)
        except ArtifactError as error:
            if hashes is not None:
                hashes.result()  # A file that was changed is the better explanation.
            if device.kind == "cpu" and options.engine == "onnxruntime" and "bf16" in manifest.precision.values():
                raise EngineUnavailableError(
                    f"{path} is in bfloat16, and ONNX Runtime has no bfloat16 arithmetic on a CPU: open it with "
                    'device="cuda" or, with pip install "erniem-rt[openvino]", engine="openvino", or export with '
                    "--fp16 or in float32."
                ) from error
            raise
        try:
            if hashes is not None:
                hashes.result()
            check_signature(path, manifest, engine)
        except ArtifactError:
            engine.close()
            raise
    return _divided(engine, manifest) if device.kind == "cpu" else engine


def _divided(engine: Engine, manifest: Manifest) -> Engine:
    # Here, for it needs numpy, and hashing starts before that is imported.
    from erniem_rt.batching import LikeLengths, are_by_row

    return LikeLengths(engine, manifest) if manifest.packed and are_by_row(manifest) else engine


def load_plan(
    path: Path, manifest: Manifest, device: Device, threads: int | None, verify: bool, options: PlanOptions
) -> PlanEngine:
    """Open a plan, which checks its own content; the graph beside it need not be there."""
    if threads is not None:
        raise InvalidInputError(f"threads is for a CPU, and {path} runs on a GPU: leave it out.")
    graph = {manifest.artifact, f"{manifest.artifact}.data"}
    unchecked = {*graph, path.name} if options.trust else graph
    manifest.verify(path.parent, hashes=False, without=unchecked)
    if verify:
        manifest.verify(path.parent, without={*graph, path.name})
    return open_plan(path, manifest, device=device, options=options)
