"""Why did the gate fail? Looked for in the outputs and in the weights, in the order of likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_export.parity.cases import Case
    from erniem_export.parity.gate import Report

    Result = tuple[Case, Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]

__all__ = ["diagnose"]


def diagnose(artifact: Path, model: ErnieMPreTrainedModel, report: Report, results: Sequence[Result]) -> list[str]:
    """Return sentences on what is wrong and what to try; never empty."""
    swapped = _swapped_outputs(report, results)
    weights = _changed_weights(artifact, model)
    padding = _padding(report, results)
    return [text for text in (swapped, weights, padding) if text] or [
        "All weights that can be matched by name are the checkpoint's, and padding plays no part: the graph itself "
        "differs. Try another version of torch or onnxruntime, and report it with the versions in the manifest."
    ]


def _swapped_outputs(report: Report, results: Sequence[Result]) -> str:
    """Does one output carry what belongs to another?"""
    for name in results[0][2] if results else ():
        for other in results[0][2]:
            if name != other and all(_equal(found[name], expected[other], report) for _, found, expected in results):
                return f"{name} carries the values of {other}: the outputs are swapped."
    return ""


def _equal(a: NDArray[Any], b: NDArray[Any], report: Report) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=10 * report.limits.largest))


def _changed_weights(artifact: Path, model: ErnieMPreTrainedModel) -> str:
    """Which parameters are not the checkpoint's? The canonical graph names them as the checkpoint does."""
    initializers = ir.load(artifact).graph.initializers
    changed = []
    for name, parameter in model.state_dict().items():
        values = parameter.numpy()
        for stored_name, expected in ((name, values), (f"{name}.T", values.T)):
            stored = initializers.get(stored_name)
            if stored is None or stored.const_value is None:
                continue
            array = stored.const_value.numpy()
            if array.shape != expected.shape or not np.allclose(array, expected, rtol=1e-5, atol=1e-7):
                changed.append(name)
    if not changed:
        return ""
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return (
        f"These weights are not the checkpoint's: {', '.join(changed[:3])}{more}. "
        "Export again, or pass the checkpoint that the artifact was exported from."
    )


def _padding(report: Report, results: Sequence[Result]) -> str:
    """Do exactly the batches fail in which something is masked?"""
    masked = {case.name for case, _, _ in results if not case.attend.all()}
    failing = {case for (_, case), difference in report.differences.items() if difference.excess(report.limits) > 1.0}
    if failing and failing <= masked:
        return f"Only batches with padding fail ({', '.join(sorted(failing))}): the attention mask is lost or wrong."
    if any(difference.excess(report.limits) > 1.0 for difference in report.invariance.values()) and not failing:
        return "The same row alone and in a padded batch differs: something is computed across rows or from padding."
    return ""
