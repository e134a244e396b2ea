"""Run an artifact and the PyTorch model side by side and judge."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from erniem_export.errors import ParityError, PrecisionError
from erniem_export.mask_mode import UIE_M, at_full_width
from erniem_export.parity.cases import Case, build_cases
from erniem_export.parity.decisions import compare_decisions
from erniem_export.parity.diagnosis import diagnose, remedy
from erniem_export.parity.findings import Report
from erniem_export.parity.measures import (
    THRESHOLDS,
    Difference,
    Thresholds,
    is_judged_by_rounding,
    measure,
    thresholds_of,
    widened,
)
from erniem_export.parity.rounding import Rounding
from erniem_export.parity.weights import Weights, compare_weights
from erniem_rt.errors import EngineError
from erniem_rt.manifest import HEADS
from erniem_rt.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_rt.manifest import Manifest

__all__ = ["Reference", "check_parity", "reference_outputs"]

# The case whose rows are also run one by one: right padding, where positions do not depend on it.
_INVARIANCE_CASE = "padding on the right"
_opened = partial(Session, engine="onnxruntime")


class Reference:
    """The PyTorch model: its outputs in float32, and what its own rounding costs. Each is computed once.

    Args:
        model: The model that an artifact was exported from.
    """

    def __init__(self, model: ErnieMPreTrainedModel) -> None:
        self.model = model
        self._outputs: dict[str, dict[str, NDArray[Any]]] = {}
        self._limits: dict[str, Thresholds] = {}

    def outputs(self, manifest: Manifest, case: Case) -> dict[str, NDArray[Any]]:
        """Outputs of a case by the graph's names."""
        if case.name not in self._outputs:
            self._outputs[case.name] = reference_outputs(self.model, manifest, case)
        return dict(self._outputs[case.name])

    def limits(self, manifest: Manifest, precision: Mapping[str, str], cases: list[Case]) -> Thresholds:
        """What an artifact of this precision may differ by: a fixed amount, or what rounding does to this model."""
        precision = {part: precision.get(part, "") for part in ("weights", "embedding")}
        fixed, key = thresholds_of(precision), str(precision)
        if not is_judged_by_rounding(precision):
            return fixed
        if key not in self._limits:
            costs = []
            for case in cases:
                expected = self.outputs(manifest, case)
                with Rounding(self.model, precision):
                    rounded = reference_outputs(self.model, manifest, case)
                costs += [measure(rounded[name], array) for name, array in expected.items()]
            self._limits[key] = widened(fixed, precision, costs)
        return self._limits[key]


def check_parity(
    artifact: Path,
    model: ErnieMPreTrainedModel,
    *,
    tokenizer_dir: Path | None = None,
    progress: Callable[[list[Case]], Iterable[Case]] = iter,
    open_session: Callable[[Path], AbstractContextManager[Session]] = _opened,
    reference: Reference | None = None,
    weights: Weights | None = None,
    unrounded: bool | None = None,
) -> Report:
    """Compare an artifact, run as its users run it, with the PyTorch model in float32.

    Args:
        artifact: ``HEAD.onnx``, beside its weights and its manifest, whose ``precision`` says what to judge by.
        model: The model that it was exported from.
        tokenizer_dir: Folder of the tokenizer's files, for real text.
        progress: Wraps the list of cases, for a progress bar.
        open_session: Opens the artifact, in ONNX Runtime on the CPU unless it is told otherwise.
        reference: The model's outputs, where they are already there.
        weights: How they compare, if it is known: in what was derived from an artifact they have other forms.
        unrounded: True: this is a graph without its rounding, held to the digits of fp32. False: such a graph has
            passed, so that only rounding can be wrong. None: neither.

    Raises:
        ParityError: The numbers are not the model's. Names the worst output and case and what may be wrong.
        PrecisionError: Only its rounding is to blame.
        ArtifactError: The artifact cannot be loaded, or is of a precision that has no thresholds.
    """
    reference = reference or Reference(model)
    with open_session(artifact) as session:
        manifest = session.manifest
        precision = _precision(session)
        cases, named = build_cases(replace(manifest, limits=session.limits), tokenizer_dir), _named(precision)
        limits = THRESHOLDS["fp32"] if unrounded else reference.limits(manifest, precision, cases)
        report = Report(f"{named} without rounding" if unrounded else named, limits, decides=_decides(manifest))
        results = []
        for case in progress(cases):
            found = _run(session, case.name, case.feeds)  # before PyTorch, which checks no ids
            expected = _as_promised(session, case, reference.outputs(manifest, case))
            _compare(report, manifest, case, found, expected)
            results.append((case, _plain(manifest, found), _plain(manifest, expected)))
            if case.name == _INVARIANCE_CASE:
                report.invariance = _invariance(session, case, found)
    if weights is None:  # the graph's, where what ran is a plan of another precision
        weights = compare_weights(artifact, model, manifest.precision)
    report.weights = weights
    problems = report.failures()
    if not problems:
        return report
    missed = "; ".join(problems)
    if unrounded is False and weights.are_right:
        raise PrecisionError(
            f"{artifact.name} in {named} is too far from the PyTorch model: {missed}. {remedy(manifest)}",
            report.to_json(),
        )
    causes = " ".join(diagnose(artifact, model, report, results))
    how = ", even without rounding" if unrounded else ""
    raise ParityError(
        f"{artifact.name} does not compute what the PyTorch model computes{how}: {missed}. {causes}", report.to_json()
    )


def _precision(session: Session) -> dict[str, str]:
    """What to judge by: the parts of the graph or plan, and bf16 where that is computed in and not in int8."""
    plan = session.manifest.plan if session.engine == "tensorrt" else None
    parts = dict(session.manifest.precision if plan is None else plan.precision)
    if session.precision == "bf16" and parts.get("weights") == "fp32":
        parts["weights"] = "bf16"
    return parts


def _named(precision: Mapping[str, str]) -> str:
    weights, embedding = precision.get("weights", ""), precision.get("embedding", "")
    return weights if weights == embedding else f"{weights}, embedding {embedding},"


def _run(session: Session, name: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    try:
        return session.run(feeds)
    except EngineError as error:
        raise ParityError(f"{session.manifest.artifact} cannot run the case {name!r}: {error}") from error


def _plain(manifest: Manifest, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Leave out hidden states and attentions, which are many and large."""
    return {name: outputs[name] for name in HEADS[manifest.head].outputs if name in outputs}


def reference_outputs(model: ErnieMPreTrainedModel, manifest: Manifest, case: Case) -> dict[str, NDArray[Any]]:
    """Run the PyTorch model on a case; outputs by the graph's names."""
    names = [spec.name for spec in manifest.outputs]
    feeds = {name: torch.from_numpy(array) for name, array in case.feeds.items()}
    if manifest.mask_mode == UIE_M:
        feeds = at_full_width(case.feeds["input_ids"], case.attend, model.config)
    with torch.no_grad():
        result = model(
            **feeds,
            output_hidden_states=any(name.startswith("hidden_states.") for name in names),
            output_attentions=any(name.startswith("attentions.") for name in names),
            return_dict=True,
        )
    outputs = {}
    for name in names:
        field_name, _, index = name.partition(".")
        outputs[name] = (result[field_name][int(index)] if index else result[field_name]).numpy()
        if manifest.mask_mode == UIE_M:
            outputs[name] = outputs[name][:, : case.attend.shape[1]]
        if not np.isfinite(outputs[name]).all():
            raise ParityError(
                f"the PyTorch model itself yields NaN or infinity in {name} on the case {case.name!r}: "
                "the checkpoint's weights are damaged"
            )
    return outputs


def _as_promised(session: Session, case: Case, outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the artifact promises to give: a packed graph leaves padding out, and gives zeros there."""
    if not session.packed:
        return outputs
    attend = case.attend
    first = np.arange(attend.shape[-1]) == 0
    kept = attend | first
    if session.manifest.mask_mode != UIE_M:
        kept |= ~attend.any(axis=-1, keepdims=True)
    for spec in session.manifest.outputs:
        if "sequence" in spec.shape:
            array = outputs[spec.name]
            outputs[spec.name] = np.where(kept.reshape(kept.shape + (1,) * (array.ndim - kept.ndim)), array, 0.0)
    return outputs


def _decides(manifest: Manifest) -> bool:
    """Whether outputs lead to decisions; numbers, and a single column, are the answer themselves."""
    if manifest.problem_type == "regression":
        return False
    if manifest.problem_type == "multi_label_classification":
        return True
    return manifest.head != "base" and manifest.outputs[0].shape[-1] != 1


def _compare(
    report: Report,
    manifest: Manifest,
    case: Case,
    found: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
) -> None:
    for name, reference in expected.items():
        if found[name].shape != reference.shape:
            raise ParityError(
                f"{manifest.artifact} gives {name} of shape {found[name].shape} on the case {case.name!r}, "
                f"expected {reference.shape}"
            )
        report.differences[name, case.name] = measure(found[name], reference)
    if report.decides:
        largest = max(float(np.abs(array).max()) for array in _plain(manifest, expected).values())
        report.agreement += compare_decisions(manifest, found, expected, case.attend, report.limits.margin * largest)


def _invariance(session: Session, case: Case, batch: Mapping[str, NDArray[Any]]) -> dict[str, Difference]:
    """Run every row alone, without its padding, and compare it with itself in the batch."""
    plain = {spec.name: spec for spec in session.manifest.outputs if "." not in spec.name}
    alone: dict[str, list[NDArray[Any]]] = {name: [] for name in plain}
    within: dict[str, list[NDArray[Any]]] = {name: [] for name in plain}
    rank = case.attend.ndim
    for row in range(len(case.attend)):
        length = int(case.attend[row].sum(-1).max())
        feeds = {
            name: array if name == "head_mask" else array[row : row + 1, ..., :length]
            for name, array in case.feeds.items()
            if name != "inputs_embeds"
        }
        if "inputs_embeds" in case.feeds:
            feeds["inputs_embeds"] = case.feeds["inputs_embeds"][row : row + 1, ..., :length, :]
        result = _run(session, f"{case.name}, row {row} alone", feeds)
        attended = case.attend[row : row + 1, ..., :length]
        for name, spec in plain.items():
            per_token = "sequence" in spec.shape and rank == 2
            whole = batch[name][row : row + 1, :length] if per_token else batch[name][row : row + 1]
            alone[name].append(result[name][attended] if per_token else result[name].ravel())
            within[name].append(whole[attended] if per_token else whole.ravel())
    return {name: measure(np.concatenate(within[name]), np.concatenate(alone[name])) for name in plain}
