"""The steps of an export, from a checkpoint to a folder that passed the gate."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from erniem_export.bundle import (
    build_manifest,
    check_room,
    copy_companions,
    files_of,
    install,
    lay_out_for_optimum,
    limits_of,
    note_of_settings,
    staging,
)
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import EngineBuildError, ExportError, ParityError, PrecisionError
from erniem_export.gate.accuracy import AccuracyCheck
from erniem_export.gate.cases import build_cases
from erniem_export.gate.measures import thresholds_of
from erniem_export.gate.parity import judge, with_bf16
from erniem_export.gate.rounding import sensitive_parts
from erniem_export.gate.task_set import task_set_of
from erniem_export.heads import graph_inputs, graph_outputs
from erniem_export.mask_mode import UIE_M, mask_mode_of, note_of_mask
from erniem_export.onnx_export import trace, write
from erniem_export.options import HALVES, OPTIMUM, PORTABLE, GraphOptions, Precision, flag_of
from erniem_export.passes.embedding import bytes_of_row
from erniem_export.passes.targets import optimize_for
from erniem_export.precision import apply_precision
from erniem_export.quantization.quantize import check_int8, quantize, quantize_for_engine
from erniem_export.sources import tokenizer_files
from erniem_export.tensorrt.library import AUTO, load_library
from erniem_export.tensorrt.plan import add_plan
from erniem_export.tensorrt.profiles import resolve_profiles
from erniem_export.tokenizer_check import check_tokenizer
from erniem_export.vocabulary.pruning import prune, prune_like
from erniem_rt.batching import are_by_row
from erniem_rt.errors import ArtifactError
from erniem_rt.locations import find_artifact, manifest_of
from erniem_rt.manifest import OPTIMUM_GRAPH, Limits, Manifest, TensorSpec

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import onnx_ir as ir

    from erniem_export.checkpoint import Checkpoint
    from erniem_export.gate.task_set import TaskSet
    from erniem_export.options import ExportOptions
    from erniem_export.progress import Progress
    from erniem_export.tensorrt.library import Library
    from erniem_export.vocabulary.pruning import Vocabulary
    from erniem_rt.manifest import FileRecord, Plan

__all__ = ["export", "verify"]

# Differs from the gate's seed: calibration and gate must not use the same inputs.
_CALIBRATION_SEED = 1
# The type of TensorRT's operations other than int8 matmuls.
_BETWEEN_INT8 = "fp16"
# If half precision fails the gate, the parts of the layers that cause this share of the error stay in float32: first
# half of it, then more, until the artifact passes.
_KEPT = (0.5, 0.75, 0.9)
# Sensitive parts are found on cases of at most this length, in tokens.
_SHORT = 64


def export(options: ExportOptions, progress: Progress) -> tuple[Path, Manifest]:
    """Export a checkpoint; return the path of the artifact and its manifest, with the parity report.

    Raises:
        ErnieMError: A step failed; ``options.output`` is then unchanged.
    """
    options = options.resolved()
    library = _builder(options)
    flavour = None if library is None else library.flavour
    if options.precision.weights == "int8":
        check_int8(options.int8, flavour, target=options.target)
    with staging(options.output) as stage:
        progress.step(f"loading {options.model}")
        checkpoint = load_checkpoint(options.model, options.head, base=options.base, tokenizer=options.tokenizer)
        options = options.with_mask(mask_mode_of(options, checkpoint))
        _refuse_early(checkpoint, options, flavour)
        library = _builder_for_mask(library, options, progress)
        for note in (*checkpoint.notes, check_tokenizer(checkpoint), note_of_mask(options, checkpoint)):
            if note:
                progress.note(note)
        task_set = task_set_of(checkpoint, options.task_set, takes_ids=not options.graph.inputs_embeds)
        vocabulary = None
        if options.keep:
            checkpoint, vocabulary = prune(checkpoint, options.keep, stage)
            progress.step(f"vocabulary: {vocabulary}")
        checkpoint = copy_companions(
            checkpoint, stage, drop_lone_marks=_drops_lone_marks(checkpoint, options.graph.mask_mode)
        )
        if options.layout == OPTIMUM and (note := note_of_settings(stage)):
            progress.note(note)
        graph = [OPTIMUM_GRAPH] if options.layout == OPTIMUM else []
        check_room(stage, options.output, checkpoint.head, [*files_of(stage), *graph])
        manifest = build_manifest(checkpoint, options.graph, stage)
        library = _builder_for(manifest, library, options, progress)
        accuracy = _accuracy(task_set, checkpoint, progress)
        manifest = _keep_until_passed(stage, manifest, checkpoint, vocabulary, options, library, progress, accuracy)
        if options.layout == OPTIMUM:
            manifest = lay_out_for_optimum(stage, manifest)
        manifest.save(stage / f"{checkpoint.head}.json")
        install(stage, options.output, manifest)
    return options.output / manifest.artifact, manifest


def _keep_until_passed(
    stage: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    vocabulary: Vocabulary | None,
    options: ExportOptions,
    library: Library | None,
    progress: Progress,
    accuracy: AccuracyCheck | None,
) -> Manifest:
    """Run :func:`_write_and_judge`; in half precision keep more sensitive parts in float32 until it passes."""
    keep: list[str] = []
    for share in _KEPT if options.precision.weights in HALVES else ():
        try:
            return _write_and_judge(stage, manifest, checkpoint, vocabulary, options, library, progress, accuracy, keep)
        except PrecisionError as error:
            for name in (f"{manifest.head}.json", f"{manifest.head}.plan"):  # the next attempt writes them again
                (stage / name).unlink(missing_ok=True)
            keep = _sensitive(checkpoint, manifest, options.precision, share)
            progress.note(f"{str(error).partition('. ')[0]}; so these stay in fp32: {', '.join(keep)}")
    return _write_and_judge(stage, manifest, checkpoint, vocabulary, options, library, progress, accuracy, keep)


def _write_and_judge(
    stage: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    vocabulary: Vocabulary | None,
    options: ExportOptions,
    library: Library | None,
    progress: Progress,
    accuracy: AccuracyCheck | None,
    keep: Sequence[str],
) -> Manifest:
    """Write the artifact and, with a builder, a plan, with the parts ``keep`` in float32; run the gate on both."""
    manifest = _write(stage, manifest, checkpoint, vocabulary, options, library, progress, keep)
    progress.step("comparing with PyTorch")
    gate: dict[str, Any] = {
        "tokenizer_dir": checkpoint.tokenizer_dir,
        "scratch": stage,
        "progress": lambda cases: progress.track(cases, "case"),
        "accuracy": accuracy,
        "original": checkpoint.original,
    }
    artifact = stage / manifest.artifact
    manifest = dataclasses.replace(manifest, parity=judge(artifact, checkpoint.model, **gate))
    manifest = with_bf16(manifest, artifact, checkpoint.model, progress.note, **gate)
    if library is None:
        return manifest
    plan, record = _build_plan(stage, manifest, checkpoint, options, library, progress, keep)
    return dataclasses.replace(manifest, plan=plan, files={**manifest.files, plan.file: record})


def _sensitive(checkpoint: Checkpoint, manifest: Manifest, precision: Precision, share: float) -> list[str]:
    """Return the parts of the layers to keep in float32, found on other inputs than the gate's."""
    cases = build_cases(manifest, checkpoint.tokenizer_dir, seed=_CALIBRATION_SEED)
    short = [case for case in cases if case.attend.shape[-1] <= _SHORT]
    return sensitive_parts(checkpoint.model, precision.to_json(), short, share)


def _refuse_early(checkpoint: Checkpoint, options: ExportOptions, flavour: str | None) -> None:
    """Raise errors that would otherwise appear only after the long work."""
    if options.precision.weights == "int8" and checkpoint.tokenizer_dir is not None:
        check_int8(options.int8, flavour, checkpoint.calibration, options.target)
    resolve_profiles(options.engine.profiles, checkpoint.head, limits_of(checkpoint.config).max_length)
    graph_inputs(checkpoint.head, checkpoint.config, options.graph)


def verify(
    artifact: str | os.PathLike[str],
    model: str,
    progress: Progress,
    task_set: Path | None = None,
    *,
    base: str | None = None,
    tokenizer: str | None = None,
) -> Manifest:
    """Run the gate again on an exported artifact, its folder or a hub id; return its manifest with the new report.

    ``task_set`` is a file of labelled examples; by default the checkpoint's own. ``base`` and ``tokenizer`` are as in
    :class:`~erniem_export.options.ExportOptions`. For a checkpoint without tokenizer, the artifact's is used.

    Raises:
        ErnieMError: The artifact or the checkpoint cannot be loaded, or their numbers differ.
    """
    artifact = find_artifact(artifact)
    if artifact.suffix == ".plan":
        graph = artifact.with_suffix(".onnx")
        raise ArtifactError(
            f"{artifact} is a plan, and comparing it needs a GPU (make test-gpu); give {graph}, the graph beside it"
        )
    where = manifest_of(artifact)
    manifest, folder = Manifest.load(where), where.parent
    thresholds_of(manifest.precision)  # refuses an unknown precision before loading anything large
    progress.step(f"loading {model}")
    checkpoint = load_checkpoint(model, manifest.head, base=base, tokenizer=tokenizer)
    if checkpoint.tokenizer_dir is None and tokenizer_files(folder):
        checkpoint = dataclasses.replace(checkpoint, tokenizer_dir=folder)
    if "vocabulary" in manifest.checkpoint:
        checkpoint = prune_like(checkpoint, folder)
    _refuse_other_sizes(artifact, manifest, checkpoint)
    if checkpoint.tokenizer_dir is not None and _drops_lone_marks(checkpoint, manifest.mask_mode):
        checkpoint = dataclasses.replace(checkpoint, tokenizer_dir=folder)
    takes_ids = any(spec.name == "input_ids" for spec in manifest.inputs)
    examples = task_set_of(checkpoint, task_set, takes_ids=takes_ids)
    progress.step(f"comparing {manifest.artifact} with PyTorch")
    parity = judge(
        folder / manifest.artifact,
        checkpoint.model,
        tokenizer_dir=checkpoint.tokenizer_dir,
        progress=lambda cases: progress.track(cases, "case"),
        accuracy=_accuracy(examples, checkpoint, progress),
        original=checkpoint.original,
    )
    return dataclasses.replace(manifest, parity=parity)


def _drops_lone_marks(checkpoint: Checkpoint, mask_mode: str) -> bool:
    """Return whether a checkpoint was trained on the ids of PaddleNLP's tokenizer."""
    return checkpoint.paddle or mask_mode == UIE_M


def _builder_for_mask(library: Library | None, options: ExportOptions, progress: Progress) -> Library | None:
    """Return ``library`` if plans support the mask, else None."""
    if library is None or options.graph.mask_mode != UIE_M:
        return library
    progress.note(f"no TensorRT plan: plans do not support --mask {UIE_M}")
    return None


def _accuracy(task_set: TaskSet | None, checkpoint: Checkpoint, progress: Progress) -> AccuracyCheck | None:
    if task_set is None or checkpoint.tokenizer_dir is None:
        return None
    return AccuracyCheck(task_set, checkpoint.model, checkpoint.tokenizer_dir, progress.phase)


def _builder(options: ExportOptions) -> Library | None:
    """Return the library that builds the plan; None if no plan is wanted."""
    engine, precision = options.engine.engine, options.precision
    if engine == "none" or (engine == AUTO and (precision.weights not in HALVES or options.layout == OPTIMUM)):
        return None
    if precision.embedding == "int8":
        if engine == AUTO:
            return None
        raise EngineBuildError(
            f"--engine {engine}: TensorRT looks up no word embeddings in int8; take --embedding fp16"
        )
    library = load_library(engine)
    if library is None and (given := next(options.engine.details(), None)):
        raise EngineBuildError(
            f"{flag_of(given)} applies to TensorRT plans only, and no builder is installed: "
            'pip install "erniem-rt[tensorrt-rtx]"'
        )
    return library


def _builder_for(
    manifest: Manifest, library: Library | None, options: ExportOptions, progress: Progress
) -> Library | None:
    """Return ``library`` if a session can run its plan, whose outputs must be by row; else None."""
    if library is None or are_by_row(manifest):
        return library
    reason = (
        f"the hidden states and attentions of head {manifest.head} are not by row, and a plan runs rows: leave out "
        "--with-hidden-states and --with-attentions"
    )
    if options.engine.engine != AUTO:
        raise EngineBuildError(f"--engine {options.engine.engine}: {reason}")
    progress.note(f"no TensorRT plan: {reason}")
    return None


def _write(
    stage: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    vocabulary: Vocabulary | None,
    options: ExportOptions,
    library: Library | None,
    progress: Progress,
    keep: Sequence[str],
) -> Manifest:
    """Write the artifact and its manifest, without a parity report; ``manifest`` has its inputs and outputs."""
    head, config, wanted = checkpoint.head, checkpoint.config, options.precision
    progress.step(f"tracing {checkpoint.architecture} (head {head})")
    graph = _traced(checkpoint, options.graph)
    int8 = wanted.weights == "int8"
    engine = optimize_for(options.target, graph, head, config.num_hidden_layers, options.graph)
    packed, cpu = bool(engine and engine.pop("packed")), None
    source, limits = Path(options.model), manifest.limits
    if int8 and engine is not None:
        engine["int8"] = quantize(
            graph,
            checkpoint,
            source,
            options.int8,
            limits,
            progress,
            mask_mode=manifest.mask_mode,
            target=options.target,
        )
        cpu = engine["int8"].pop("cpu")
    if int8 and library is not None:
        between = Precision(_BETWEEN_INT8, wanted.embedding or _BETWEEN_INT8)
        precision = _apply(between, graph, manifest, checkpoint, stage)
        precision |= {"weights": "int8", "products": _BETWEEN_INT8}
        done = quantize_for_engine(graph, checkpoint, source, options.int8, limits, library.flavour, progress)
        engine = {"name": library.flavour, "int8": done}
    else:
        precision = _apply(wanted, graph, manifest, checkpoint, stage, keep)
    progress.step(f"writing {head}.onnx and its weights")
    write(graph, stage / f"{head}.onnx")
    files = files_of(stage)
    manifest = dataclasses.replace(manifest, precision=precision, files=files, target=options.target, engine=engine)
    manifest = dataclasses.replace(manifest, packed=packed, cpu=cpu)
    if vocabulary is not None:
        vocabulary = vocabulary.in_files(_size(manifest), _bytes_of_token(manifest, config.hidden_size))
        identity = {**manifest.checkpoint, "vocabulary": dataclasses.asdict(vocabulary)}
        manifest = dataclasses.replace(manifest, checkpoint=identity)
    manifest.save(stage / f"{head}.json")
    return manifest


def _apply(
    precision: Precision,
    graph: ir.Model,
    manifest: Manifest,
    checkpoint: Checkpoint,
    scratch: Path,
    keep: Sequence[str] = (),
) -> dict[str, str]:
    """Convert the graph to a precision; return the manifest's record of it."""
    cases = build_cases(manifest, checkpoint.tokenizer_dir, seed=_CALIBRATION_SEED)
    return apply_precision(graph, precision, cases, scratch, keep)


def _build_plan(
    stage: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    options: ExportOptions,
    library: Library,
    progress: Progress,
    keep: Sequence[str],
) -> tuple[Plan, FileRecord]:
    """Build the plan from the graph in ``stage`` or, if that is not portable, from one in standard operators."""
    with tempfile.TemporaryDirectory(dir=stage, prefix=".portable-") as folder:
        source = stage
        if manifest.target != PORTABLE:
            source = Path(folder)
            graph = _traced(checkpoint, options.graph)
            precision = _apply(options.precision, graph, manifest, checkpoint, source, keep)
            write(graph, source / manifest.artifact)
            manifest = dataclasses.replace(manifest, precision=precision, target=PORTABLE, engine=None, packed=False)
        return add_plan(stage, source, manifest, checkpoint, library, options.engine, progress)


def _size(manifest: Manifest) -> int:
    """Return the size in bytes of the graph and its weights."""
    return sum(record.size for name, record in manifest.files.items() if name.startswith(manifest.artifact))


def _bytes_of_token(manifest: Manifest, columns: int) -> int:
    """Return a token's size in the artifact in bytes: a row of embeddings, or 0 if the graph has no table."""
    if all(spec.name != "input_ids" for spec in manifest.inputs):
        return 0
    return bytes_of_row(manifest.precision["embedding"], columns)


def _traced(checkpoint: Checkpoint, graph: GraphOptions) -> ir.Model:
    try:
        return trace(checkpoint.model, checkpoint.head, graph)
    except torch.onnx.OnnxExporterError as error:
        cause = next((line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()), "")
        raise ExportError(f"torch cannot trace this model: {cause}; is its hidden_act one of PyTorch's?") from error


def _refuse_other_sizes(artifact: Path, manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise :class:`ParityError` if artifact and checkpoint differ in limits, inputs or outputs."""
    options = GraphOptions.of(manifest)
    config, head = checkpoint.config, manifest.head
    for name, expected, found in (
        ("limits", limits_of(config), manifest.limits),
        ("inputs", graph_inputs(head, config, options), manifest.inputs),
        ("outputs", graph_outputs(head, checkpoint.model, options), manifest.outputs),
    ):
        if found != expected:
            raise ParityError(
                f"{artifact} was exported from another checkpoint: its {name} are {_shown(found)}, "
                f"and those of {checkpoint.source} are {_shown(expected)}"
            )


def _shown(found: Limits | tuple[TensorSpec, ...]) -> str:
    if isinstance(found, Limits):
        return ", ".join(f"{key} = {value}" for key, value in dataclasses.asdict(found).items())
    return ", ".join(f"{spec.name} ({', '.join(map(str, spec.shape))})" for spec in found)
