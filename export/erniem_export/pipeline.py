"""The steps of an export, from a checkpoint to a folder that passed the gate."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
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
from erniem_export.checkpoint import Checkpoint, load_checkpoint
from erniem_export.errors import EngineBuildError, ExportError, FusionError, ParityError, PrecisionError
from erniem_export.gate.accuracy import AccuracyCheck, TaskSet, task_set_of
from erniem_export.gate.cases import Case, build_cases
from erniem_export.gate.diagnosis import sensitive_parts
from erniem_export.gate.measures import thresholds_of
from erniem_export.gate.parity import judge, with_bf16
from erniem_export.heads import graph_inputs, graph_outputs
from erniem_export.mask_mode import UIE_M, mask_mode_of, note_of_mask
from erniem_export.onnx_export import ONNXRUNTIME_BFLOAT16, trace, write
from erniem_export.options import (
    HALVES,
    OPTIMUM,
    PORTABLE,
    ExportOptions,
    GraphOptions,
    Precision,
    flag_of,
    resolve_profiles,
)
from erniem_export.passes.attention import fuse_attention
from erniem_export.passes.padding import align_rows, keep_first_tokens, pack_tokens
from erniem_export.passes.precision import apply_precision, bytes_of_row
from erniem_export.progress import Terminal
from erniem_export.quantization.quantize import check_int8, quantize, quantize_for_engine
from erniem_export.sources import tokenizer_files
from erniem_export.tensorrt.builder import AUTO, Library, load_library
from erniem_export.tensorrt.plan import add_plan
from erniem_export.tokenizer import check_tokenizer
from erniem_export.vocabulary import Vocabulary, prune, prune_like
from erniem_rt.batching import are_by_row
from erniem_rt.errors import ArtifactError
from erniem_rt.files import FileRecord
from erniem_rt.locations import find_artifact, manifest_of
from erniem_rt.manifest import OPTIMUM_GRAPH, Limits, Manifest, Plan, TensorSpec

# Differs from the gate's seed: calibration and gate must not use the same inputs.
_CALIBRATION_SEED = 1
# The type of TensorRT's operations other than int8 matmuls.
_BETWEEN_INT8 = "fp16"
# If half precision fails the gate, the parts of the layers that cause this share of the error stay in float32: first
# half of it, then more, until the artifact passes.
_KEPT = (0.5, 0.75, 0.9)
# Sensitive parts are found on cases of at most this length, in tokens.
_SHORT = 64


def export(options: ExportOptions, progress: Terminal) -> tuple[Path, Manifest]:
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
        about_tokenizer = check_tokenizer(checkpoint, pads_matter=options.graph.mask_mode == UIE_M)
        for note in (*checkpoint.notes, about_tokenizer, note_of_mask(options, checkpoint)):
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
        writer = _Writer(stage, checkpoint, vocabulary, options, library, progress, accuracy)
        manifest = writer.keep_until_passed(manifest)
        if options.layout == OPTIMUM:
            manifest = lay_out_for_optimum(stage, manifest)
        manifest.save(stage / f"{checkpoint.head}.json")
        install(stage, options.output, manifest)
    return options.output / manifest.artifact, manifest


def _refuse_early(checkpoint: Checkpoint, options: ExportOptions, flavour: str | None) -> None:
    """Raise errors that would otherwise appear only after the long work."""
    if options.precision.weights == "int8" and checkpoint.tokenizer_dir is not None:
        check_int8(options.int8, flavour, checkpoint.calibration, options.target)
    resolve_profiles(options.engine.profiles, checkpoint.head, limits_of(checkpoint.config).max_length)
    graph_inputs(checkpoint.head, checkpoint.config, options.graph)


def verify(
    artifact: str | os.PathLike[str],
    model: str,
    progress: Terminal,
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


def _accuracy(task_set: TaskSet | None, checkpoint: Checkpoint, progress: Terminal) -> AccuracyCheck | None:
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
    manifest: Manifest, library: Library | None, options: ExportOptions, progress: Terminal
) -> Library | None:
    """Return ``library`` if a session can run its plan, which masks padding and gives outputs by row; else None."""
    if library is None:
        return None
    if manifest.mask_mode == UIE_M:
        reason = f"plans do not support --mask {UIE_M}"
    elif not are_by_row(manifest):
        reason = (
            f"the hidden states and attentions of head {manifest.head} are not by row, and a plan runs rows: leave out "
            "--with-hidden-states and --with-attentions"
        )
    else:
        return library
    if options.engine.engine != AUTO:
        raise EngineBuildError(f"--engine {options.engine.engine}: {reason}")
    progress.note(f"no TensorRT plan: {reason}")
    return None


@dataclass(frozen=True)
class _Writer:
    """Writes the artifact of a checkpoint to ``stage`` and, with a builder, a plan; runs the gate on both."""

    stage: Path
    checkpoint: Checkpoint
    vocabulary: Vocabulary | None
    options: ExportOptions
    library: Library | None
    progress: Terminal
    accuracy: AccuracyCheck | None

    def keep_until_passed(self, manifest: Manifest) -> Manifest:
        """Write and judge; in half precision keep more sensitive parts in float32 until the artifact passes.

        ``manifest`` has the graph's inputs and outputs; the result has the rest, with the parity report.
        """
        keep: list[str] = []
        for share in _KEPT if self.options.precision.weights in HALVES else ():
            try:
                return self._write_and_judge(manifest, keep)
            except PrecisionError as error:
                for name in (f"{manifest.head}.json", f"{manifest.head}.plan"):  # the next attempt writes them again
                    (self.stage / name).unlink(missing_ok=True)
                keep = self._sensitive(manifest, share)
                self.progress.note(f"{str(error).partition('. ')[0]}; so these stay in fp32: {', '.join(keep)}")
        return self._write_and_judge(manifest, keep)

    def _sensitive(self, manifest: Manifest, share: float) -> list[str]:
        """Return the parts of the layers to keep in float32, found on other inputs than the gate's."""
        short = [case for case in self._cases(manifest) if case.attend.shape[-1] <= _SHORT]
        return sensitive_parts(self.checkpoint.model, self.options.precision.to_json(), short, share)

    def _cases(self, manifest: Manifest) -> list[Case]:
        return build_cases(manifest, self.checkpoint.tokenizer_dir, seed=_CALIBRATION_SEED)

    def _write_and_judge(self, manifest: Manifest, keep: Sequence[str]) -> Manifest:
        """Write artifact and plan with the parts ``keep`` in float32, and run the gate."""
        manifest = self._write(manifest, keep)
        self.progress.step("comparing with PyTorch")
        model = self.checkpoint.model
        gate: dict[str, Any] = {
            "tokenizer_dir": self.checkpoint.tokenizer_dir,
            "scratch": self.stage,
            "progress": lambda cases: self.progress.track(cases, "case"),
            "accuracy": self.accuracy,
            "original": self.checkpoint.original,
        }
        artifact = self.stage / manifest.artifact
        manifest = dataclasses.replace(manifest, parity=judge(artifact, model, **gate))
        manifest = with_bf16(manifest, artifact, model, self.progress.note, **gate)
        if self.library is None:
            return manifest
        plan, record = self._build_plan(manifest, self.library, keep)
        return dataclasses.replace(manifest, plan=plan, files={**manifest.files, plan.file: record})

    def _write(self, manifest: Manifest, keep: Sequence[str]) -> Manifest:
        """Write the artifact and its manifest, without a parity report."""
        options, config, wanted = self.options, self.checkpoint.config, self.options.precision
        self.progress.step(f"tracing {self.checkpoint.architecture} (head {manifest.head})")
        graph = _traced(self.checkpoint, options.graph)
        engine = optimize_for(options.target, graph, manifest.head, config.num_hidden_layers, options.graph)
        packed, cpu = bool(engine and engine.pop("packed")), None
        int8 = (graph, self.checkpoint, Path(options.model), options.int8, manifest.limits)
        if wanted.weights == "int8" and engine is not None:
            done = quantize(*int8, self.progress, mask_mode=manifest.mask_mode, target=options.target)
            cpu, engine["int8"] = done.pop("cpu"), done
        if wanted.weights == "int8" and self.library is not None:
            between = Precision(_BETWEEN_INT8, wanted.embedding or _BETWEEN_INT8)
            precision = self._convert(graph, between, manifest, self.stage)
            precision |= {"weights": "int8", "products": _BETWEEN_INT8}
            flavour = self.library.flavour
            engine = {"name": flavour, "int8": quantize_for_engine(*int8, flavour, self.progress)}
        else:
            precision = self._convert(graph, wanted, manifest, self.stage, keep)
        self.progress.step(f"writing {manifest.artifact} and its weights")
        write(graph, self.stage / manifest.artifact)
        manifest = dataclasses.replace(
            manifest,
            precision=precision,
            files=files_of(self.stage),
            onnxruntime=ONNXRUNTIME_BFLOAT16 if wanted.weights == "bf16" else manifest.onnxruntime,
            target=options.target,
            engine=engine,
            packed=packed,
            cpu=cpu,
        )
        if self.vocabulary is not None:
            vocabulary = self.vocabulary.in_files(_size(manifest), _bytes_of_token(manifest, config.hidden_size))
            identity = {**manifest.checkpoint, "vocabulary": dataclasses.asdict(vocabulary)}
            manifest = dataclasses.replace(manifest, checkpoint=identity)
        manifest.save(self.stage / f"{manifest.head}.json")
        return manifest

    def _convert(
        self, graph: ir.Model, precision: Precision, manifest: Manifest, scratch: Path, keep: Sequence[str] = ()
    ) -> dict[str, str]:
        """Convert the graph to a precision; return the manifest's record of it."""
        return apply_precision(graph, precision, self._cases(manifest), scratch, keep)

    def _build_plan(self, manifest: Manifest, library: Library, keep: Sequence[str]) -> tuple[Plan, FileRecord]:
        """Build the plan from the graph in ``stage`` or, if that is not portable, from one in standard operators."""
        with tempfile.TemporaryDirectory(dir=self.stage, prefix=".portable-") as folder:
            source = self.stage
            if manifest.target != PORTABLE:
                source = Path(folder)
                graph = _traced(self.checkpoint, self.options.graph)
                precision = self._convert(graph, self.options.precision, manifest, source, keep)
                write(graph, source / manifest.artifact)
                manifest = dataclasses.replace(
                    manifest, precision=precision, target=PORTABLE, engine=None, packed=False
                )
            return add_plan(self.stage, source, manifest, self.checkpoint, library, self.options.engine, self.progress)


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


_POOLED_HEADS = ("cls", "mc")


def optimize_for(target: str, model: ir.Model, head: str, layers: int, options: GraphOptions) -> dict[str, Any] | None:
    """Rewrite the canonical graph for a target, in place; return the manifest's record of the passes.

    The passes are exact except at padding, where a packed graph gives zeros.

    Raises:
        FusionError: The passes do not support an input or output of the graph, or the graph is not as expected.
    """
    if target == PORTABLE:
        return None
    done: dict[str, Any] = {"name": target, "fused_attention": fuse_attention(model, layers)}
    moves = options.position_ids or options.inputs_embeds or options.hidden_states
    pooled = head in _POOLED_HEADS and not options.hidden_states
    if target == "onnxruntime-cuda":
        align_rows(model, pooled=pooled)
        return {**done, "packed": False, "first_token_layer": pooled, "mask": "key lengths"}
    if target == "onnxruntime-cuda-packed":
        if moves:
            raise FusionError("packing needs ids alone, and outputs that it can unpack: use --target onnxruntime-cuda")
        pack_tokens(model, by_length=True)
    elif moves:
        if target == "openvino":
            raise FusionError("--target openvino packs tokens, and needs ids alone: use --target onnxruntime-cpu")
        return {**done, "packed": False, "first_token_layer": False}
    else:
        pack_tokens(model)
    if pooled:
        keep_first_tokens(model)
    mask = {"mask": "key lengths"} if target == "onnxruntime-cuda-packed" else {}
    return {**done, "packed": True, "first_token_layer": pooled, **mask}
