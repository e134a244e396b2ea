"""All the comparisons that an artifact must pass, by its precision."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniem_export.errors import ParityError, PrecisionError
from erniem_export.onnx_export import read, write
from erniem_export.options import arithmetic_of
from erniem_export.parity.gate import Reference, check_parity
from erniem_export.parity.measures import thresholds_of
from erniem_export.parity.rounding import holding
from erniem_export.parity.unrounded import stored_parameters, without_rounding
from erniem_export.parity.weights import compare_weights
from erniem_export.passes.emulation import emulate_half
from erniem_export.passes.half import HALF_TYPES
from erniem_rt.manifest import Manifest, hash_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir as ir

    from erniem_export.accuracy.gate import AccuracyGate
    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_export.parity.cases import Case
    from erniem_export.parity.weights import Weights

__all__ = ["judge"]

_EMULATED = "every result in {precision} rounded as a GPU rounds it, by a float32 graph on CPU"
_ON_CPU = "as onnxruntime runs it on CPU"
# Without arithmetic in this type, onnxruntime does not load such a graph on a CPU.
_NOT_ON_CPU = "bf16"


def judge(
    artifact: Path,
    model: ErnieMPreTrainedModel,
    *,
    tokenizer_dir: Path | None = None,
    scratch: Path | None = None,
    progress: Callable[[list[Case]], Iterable[Case]] = iter,
    accuracy: AccuracyGate | None = None,
) -> dict[str, Any]:
    """Compare an artifact with the PyTorch model; return the manifest's ``parity``.

    In lower precision the graph must first pass :func:`without_rounding`, to the digits of fp32. In half precision a
    CPU alone proves little: onnxruntime skips most of the rounding there, or cannot run the graph. So what counts,
    under the artifact's name, is :func:`emulate_half`; fp16 must also pass as onnxruntime runs it.

    Args:
        artifact: ``HEAD.onnx``, beside its manifest and weights.
        model: The model that it was exported from, in float32.
        tokenizer_dir: As for :func:`check_parity`, and so is ``progress``.
        scratch: Folder for a copy of the artifact; the system's for temporary files if left out.
        accuracy: Asks it for answers too, where there is a task set.

    Raises:
        ErnieMError: As :func:`check_parity` and :meth:`AccuracyGate.compare`.
    """
    facts = Manifest.load(artifact.with_suffix(".json")).precision
    precision = arithmetic_of(facts)
    if {facts.get("weights"), facts.get("embedding")} == {"fp32"}:
        report = check_parity(artifact, model, tokenizer_dir=tokenizer_dir, progress=progress).to_json()
        return {artifact.name: report if accuracy is None else accuracy.compare(artifact, report)}
    reference = Reference(model)
    extra: dict[str, Any] = {}
    separable = "products" not in facts  # int8 for TensorRT has its rounding inside of Q/DQ pairs

    def compare(path: Path) -> dict[str, Any]:
        report = check_parity(
            path,
            model,
            tokenizer_dir=tokenizer_dir,
            progress=progress,
            reference=reference,
            weights=weights,
            unrounded=False if separable else None,
        ).to_json()
        try:
            report = report if accuracy is None else accuracy.compare(path, report)
        except ParityError as error:
            raise PrecisionError(str(error), error.report) from error
        return report | extra

    thresholds_of(facts)  # an unknown one before anything is made of it
    weights = compare_weights(artifact, model, facts)
    if separable:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            extra["without_rounding"] = _check_unrounded(artifact, model, Path(folder), tokenizer_dir, weights)
    if precision not in HALF_TYPES:
        return {artifact.name: compare(artifact)}
    reports = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        graph = read(artifact)
        emulate_half(graph)
        emulated = _write_like(artifact, graph, Path(folder))
        reports[artifact.name] = {**compare(emulated), "method": _EMULATED.format(precision=precision)}
    if precision != _NOT_ON_CPU:
        reports[f"{artifact.name} {_ON_CPU}"] = {**compare(artifact), "method": _ON_CPU}
    return reports


def _check_unrounded(
    artifact: Path, model: ErnieMPreTrainedModel, folder: Path, tokenizer_dir: Path | None, weights: Weights
) -> dict[str, float]:
    """Compare the graph without its rounding, and the model with the weights that it stores; return the differences."""
    graph, config = read(artifact), model.config
    stored = stored_parameters(graph.graph, model)
    without_rounding(graph, config.hidden_size // config.num_attention_heads)
    path = _write_like(artifact, graph, folder)
    with holding(model, stored):
        report = check_parity(path, model, tokenizer_dir=tokenizer_dir, weights=weights, unrounded=True)
    outputs = report.by_output().values()
    return {name: max(row[name] for row in outputs) for name in ("max_abs", "relative_l2")}


def _write_like(artifact: Path, graph: ir.Model, folder: Path) -> Path:
    """Write a graph made of the artifact's into ``folder``, with a manifest that differs in its files only."""
    path = folder / artifact.name
    write(graph, path)
    files = {file.name: hash_file(file) for file in sorted(folder.iterdir())}
    manifest = Manifest.load(artifact.with_suffix(".json"))
    dataclasses.replace(manifest, files=files, plan=None).save(path.with_suffix(".json"))
    return path
