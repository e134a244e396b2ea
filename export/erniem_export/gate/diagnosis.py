"""Finds why the gate failed, from the outputs, the weights and the output of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import nn

from erniem_export.gate.measures import Thresholds, measure
from erniem_export.onnx_export import open_session
from erniem_export.quantization.quantize import DRAWN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_export.gate.cases import Case
    from erniem_export.gate.measures import Report
    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_rt.manifest import Manifest

    Result = tuple[Case, Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]

__all__ = ["diagnose", "remedy"]

# Up to this multiple of its threshold, a difference may still be rounding alone.
_NARROW = 2.0


def diagnose(artifact: Path, model: ErnieMPreTrainedModel, report: Report, results: Sequence[Result]) -> list[str]:
    """Return sentences on the cause and the remedy, in addition to the report's own failures.

    Args:
        artifact: The graph that failed.
        model: The reference model.
        report: The comparison's result.
        results: Every case with the artifact's and the reference's outputs.
    """
    if not results:
        return []
    causes = [_swapped_outputs(results), _swapped_columns(results)]
    if report.weights.changed:
        causes.append("Export again, or pass the checkpoint that the artifact was exported from.")
    if not any(causes):
        if _is_narrow(report):
            causes.append(_precision(report))
        else:
            causes += [_padding(report, results), _graph(artifact, model, report, results)]
    return [cause for cause in causes if cause]


def _swapped_outputs(results: Sequence[Result]) -> str:
    """Return a sentence if one output holds the values of another, else an empty string."""
    names = list(results[0][2])
    for name in names:
        for other in names:
            if other != name and not _same(results, name, name) and _same(results, name, other):
                return f"{name} carries the values of {other}: the outputs are swapped."
    return ""


def _swapped_columns(results: Sequence[Result]) -> str:
    """Return a sentence if a classifier's labels, or the choices, are in another order, else an empty string."""
    widths = {expected["logits"].shape[-1] for _, _, expected in results if "logits" in expected}
    if len(widths) != 1:
        return ""
    width = widths.pop()
    sources = [[i for i in range(width) if _same(results, "logits", "logits", (i, j))] for j in range(width)]
    order = [matches[0] for matches in sources if len(matches) == 1]
    if sorted(order) != list(range(width)) or order == sorted(order):
        return ""
    return f"The columns of logits are in another order: those of {list(range(width))} are found at {order}."


def _same(results: Sequence[Result], name: str, other: str, columns: tuple[int, int] | None = None) -> bool:
    """Return whether output ``name`` (or one of its columns) equals the reference's ``other`` on every case."""
    for _, found, expected in results:
        a, b = found[name], expected[other]
        if columns is not None:
            a, b = a[..., columns[0]], b[..., columns[1]]
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-3, atol=1e-3):
            return False
    return True


def _is_narrow(report: Report) -> bool:
    """Return whether a lower precision misses by so little that rounding explains it; a wrong mask misses by far."""
    alone = all(difference.excess(report.limits.alone) <= 1.0 for difference in report.invariance.values())
    return report.precision != "fp32" and report.weights.are_right and alone and report.worst()[2] < _NARROW


def remedy(manifest: Manifest) -> str:
    """Return what to do about an artifact that fails because of rounding alone."""
    weights, embedding = manifest.precision.get("weights", ""), manifest.precision.get("embedding", "")
    start = "Without rounding the graph gives the numbers of PyTorch, so nothing else is wrong."
    if weights == "int8":
        source = str(((manifest.engine or {}).get("int8") or {}).get("calibration", "other text"))
        if source.startswith(DRAWN):
            return (
                f"{start} The static scales of int8 were calibrated on {source}: put the tokenizer's files "
                "(sentencepiece.bpe.model, vocab.txt) beside the weights and give text like that to be served with "
                "--calibration, or leave out --int8."
            )
        return (
            f"{start} The static scales of int8 were calibrated on {source}: give text like that to be served with "
            "--calibration, or leave out --int8."
        )
    if weights == "fp32":
        return (
            f"{start} Word embeddings in {embedding} cost this model more than is allowed: take a larger --embedding."
        )
    kept = manifest.precision.get("kept_in_fp32")
    though = f", even with {len(kept.split(', '))} matmuls and operations in fp32" if kept else ""
    finer = "with --fp16, or in " if weights == "bf16" else "in "
    costs = f"{weights} costs this model more than is allowed{though}"
    return f"{start} {costs}: export {finer}fp32 (leave out --{weights})."


def _precision(report: Report) -> str:
    kind = report.precision.partition(",")[0]
    remedy = "calibrate on text like that to be served (--calibration), or " if kind == "int8" else ""
    return f"Nothing else is wrong: {kind} costs this model more than is allowed; {remedy}export in a higher precision."


def _padding(report: Report, results: Sequence[Result]) -> str:
    """Return a sentence if only batches with masked positions fail, else an empty string."""
    masked = {case.name for case, _, _ in results if not case.attend.all()}
    unattended = {case.name for case, _, _ in results if not case.attend.any(-1).all()}
    failing = report.failing_cases()
    if failing and failing <= unattended:
        return "Only rows that are all padding fail: the value that masks must be finite, as in PyTorch."
    if failing and failing <= masked:
        return (
            f"Only batches with padding fail ({', '.join(sorted(failing))}): "
            "the attention mask, or what follows from it, is wrong."
        )
    if not failing and any(difference.excess(report.limits.alone) > 1.0 for difference in report.invariance.values()):
        return "A row alone differs from the same row in a batch: something is computed across rows or from padding."
    return ""


def _graph(artifact: Path, model: ErnieMPreTrainedModel, report: Report, results: Sequence[Result]) -> str:
    """Return a sentence that names the part of the graph that differs, if the weights do not."""
    _, worst, excess = report.worst()
    if excess <= 1.0:
        return "Export again." if report.weights.missing else ""
    case = next(case for case, _, _ in results if case.name == worst)
    where = _first_difference(artifact, model, case, report.limits)
    start = "The graph" if report.weights.missing else "The weights are the checkpoint's; the graph"
    return (
        f"{start} itself differs{where}. Export again with other versions of torch "
        "and onnxruntime, and report it with the versions in the manifest."
    )


def _first_difference(artifact: Path, model: ErnieMPreTrainedModel, case: Case, limits: Thresholds) -> str:
    """Return the first part of the model whose output differs, as the end of a sentence; empty if unknown.

    Every part of the encoder ends in a LayerNorm, whose weight has the same name in the graph and the model.
    """
    expected = _model_norms(model, case)
    try:
        found = _graph_norms(artifact, case)
    # An engine error on the edited graph must not hide the gate's findings.
    except Exception:
        return ""
    if not found:
        return ""
    for name, values in expected.items():
        if name not in found:
            return f": it has no {name}"
        if found[name].shape != values.shape:
            return ""
        if measure(found[name], values).excess(limits) > 1.0:
            return f", first in {_part(name)}"
    return ", after the encoder"


def _part(norm: str) -> str:
    """Name the part that ends in a LayerNorm: ``encoder.layers.3.norm1`` follows the self-attention of layer 3."""
    *_, layer, last = norm.split(".")
    if last == "layer_norm":
        return "the embeddings"
    return f"the {'self-attention' if last == 'norm1' else 'feed-forward part'} of layer {layer}"


def _model_norms(model: ErnieMPreTrainedModel, case: Case) -> dict[str, NDArray[Any]]:
    """Run the model; return the output of each LayerNorm by its name, in the order of computation."""
    outputs: dict[str, NDArray[Any]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            outputs[name] = output.numpy()

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
    ]
    try:
        with torch.no_grad():
            model(**{name: torch.from_numpy(array) for name, array in case.feeds.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _graph_norms(artifact: Path, case: Case) -> dict[str, NDArray[Any]]:
    """Run the graph; return the output of each LayerNormalization by its weight's name without ``.weight``."""
    graph = onnx.load(artifact, load_external_data=False)
    norms = {
        node.input[1].removesuffix(".weight"): node.output[0]
        for node in graph.graph.node
        if node.op_type == "LayerNormalization" and node.input[1].endswith(".weight")
    }
    known = {value.name for value in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=value) for value in norms.values() if value not in known)
    session = open_session(graph.SerializeToString(), weights=artifact.parent)
    feeds = {"attention_mask": case.attend.astype("int64"), **case.feeds}
    return dict(zip(norms, session.run(list(norms.values()), feeds), strict=True))
