"""The steps of an export, from a checkpoint to a folder that passed the gate."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from erniem_export.bundle import build_manifest, copy_companions, install, staging
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import ExportError
from erniem_export.onnx_export import trace, write
from erniem_export.parity.gate import check_parity
from erniem_rt.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_export.options import ExportOptions
    from erniem_export.progress import Progress

__all__ = ["export", "verify"]


def export(options: ExportOptions, progress: Progress) -> tuple[Path, Manifest]:
    """Export a checkpoint; return the path of the artifact and its manifest, with the parity report.

    Raises:
        ErnieMError: Whatever went wrong; nothing new is left in ``options.output`` then.
    """
    with staging(options.output) as stage:
        progress.step(f"loading {options.model}")
        checkpoint = load_checkpoint(options.model, options.head)
        head, model = checkpoint.head, checkpoint.model
        if options.graph.head_mask and model.config.pruned_heads:
            raise ExportError("a head mask needs the same number of heads in every layer; this checkpoint is pruned")
        progress.step(f"tracing {checkpoint.architecture} (head {head})")
        graph = trace(model, head, options.graph)
        progress.step(f"writing {head}.onnx and its weights")
        write(graph, stage / f"{head}.onnx")
        del graph
        copy_companions(checkpoint, stage)
        manifest = build_manifest(checkpoint, options.graph, stage)
        manifest.save(stage / f"{head}.json")
        progress.step("comparing with PyTorch")
        report = check_parity(
            stage / manifest.artifact,
            model,
            tokenizer_dir=checkpoint.tokenizer_dir,
            progress=lambda cases: progress.track(cases, "case"),
        )
        manifest = dataclasses.replace(manifest, parity={manifest.artifact: report.to_json()})
        manifest.save(stage / f"{head}.json")
        install(stage, options.output, manifest)
    return options.output / manifest.artifact, manifest


def verify(artifact: Path, model: str, progress: Progress) -> Manifest:
    """Run the gate again on an exported artifact; return its manifest with the new report.

    Raises:
        ErnieMError: The artifact or the checkpoint cannot be loaded, or their numbers differ.
    """
    manifest = Manifest.load(artifact.with_suffix(".json"))
    progress.step(f"loading {model}")
    checkpoint = load_checkpoint(model, manifest.head)
    progress.step(f"comparing {artifact.name} with PyTorch")
    report = check_parity(
        artifact.with_name(manifest.artifact),
        checkpoint.model,
        precision=manifest.precision["weights"],
        tokenizer_dir=checkpoint.tokenizer_dir,
        progress=lambda cases: progress.track(cases, "case"),
    )
    return dataclasses.replace(manifest, parity={manifest.artifact: report.to_json()})
