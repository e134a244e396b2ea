"""Runs an artifact and the PyTorch model on the same inputs, and passes or refuses the artifact."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from erniem_export.bundle import files_of
from erniem_export.errors import ParityError, PrecisionError
from erniem_export.gate.accuracy import AccuracyCheck
from erniem_export.gate.cases import Case, build_cases
from erniem_export.gate.diagnosis import Rounding, diagnose, holding, remedy, without_rounding
from erniem_export.gate.measures import (
    THRESHOLDS,
    Difference,
    Report,
    Thresholds,
    Weights,
    compare_decisions,
    is_judged_by_rounding,
    measure,
    thresholds_of,
    widened,
)
from erniem_export.gate.weights import compare_weights, stored_parameters
from erniem_export.mask_mode import UIE_M, at_full_width
from erniem_export.modeling import ErnieMPreTrainedModel
from erniem_export.onnx_export import read, write
from erniem_export.options import arithmetic_of
from erniem_export.passes.precision import HALF_TYPES, emulate_half, to_half
from erniem_export.xlm_roberta import Original
from erniem_rt.errors import EngineError, ErnieMError
from erniem_rt.locations import manifest_of
from erniem_rt.machine import cpu_class
from erniem_rt.manifest import HEADS, Manifest
from erniem_rt.session import Session

# The case whose rows also run one by one: with right padding, positions do not depend on the padding.
_INVARIANCE_CASE = "padding on the right"
_opened = partial(Session, engine="onnxruntime")
# The ``method`` of a report: how the artifact was run.
_EMULATED = "every result in {precision} rounded as a GPU rounds it, by a float32 graph on CPU"
_ON_CPU = "as onnxruntime runs it on CPU"
_BF16_BY_OPENVINO = "in bf16 on a CPU, as OpenVINO computes it"
_BF16_EMULATED = "in bf16 on a CPU, every result rounded by a float32 graph"
# onnxruntime has no arithmetic in this type on a CPU, and does not load such a graph.
_NOT_ON_CPU = "bf16"
# The targets whose artifacts can run in bf16 on a CPU.
_BF16_TARGETS = ("onnxruntime-cpu", "openvino", "portable")


class Reference:
    """The reference model: caches its float32 outputs and the thresholds from its own rounding.

    Args:
        model: The model that an artifact was exported from.
        original: What gives the outputs where that is another class: transformers' own, of an XLM-R checkpoint.
    """

    def __init__(self, model: ErnieMPreTrainedModel, original: Original | None = None) -> None:
        self.model = model
        self.original = original
        self._outputs: dict[str, dict[str, NDArray[Any]]] = {}
        self._limits: dict[str, Thresholds] = {}

    def outputs(self, manifest: Manifest, case: Case) -> dict[str, NDArray[Any]]:
        """Return the outputs of a case by the graph's names."""
        if case.name not in self._outputs:
            self._outputs[case.name] = reference_outputs(self.original or self.model, manifest, case)
        return dict(self._outputs[case.name])

    def limits(self, manifest: Manifest, precision: Mapping[str, str], cases: list[Case]) -> Thresholds:
        """Return the thresholds of a precision: fixed, or wider where rounding this model in PyTorch costs more."""
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
    """Run an artifact as its users do and compare it with the PyTorch model in float32.

    Args:
        artifact: ``HEAD.onnx``, beside its weights and its manifest, whose ``precision`` selects the thresholds.
        model: The model that it was exported from.
        tokenizer_dir: Folder of the tokenizer's files, for real text.
        progress: Wraps the list of cases, for a progress bar.
        open_session: Opens the artifact; by default in ONNX Runtime on the CPU.
        reference: The model's outputs, if already computed.
        weights: The result of comparing the weights, for graphs derived from an artifact, which store them otherwise.
        unrounded: True if rounding was removed from the graph, which then has the thresholds of fp32. False if such a
            graph has passed, so that a failure can only come from rounding. None if rounding is not judged apart.

    Raises:
        ParityError: The outputs are not the model's. Names the worst output and case, and the likely cause.
        PrecisionError: Rounding alone is the cause.
        ArtifactError: The artifact cannot be loaded, or its precision has no thresholds.
    """
    reference = reference or Reference(model)
    with open_session(artifact) as session:
        manifest = session.manifest
        precision = _precision(session)
        cases = build_cases(dataclasses.replace(manifest, limits=session.limits), tokenizer_dir)
        named = _named(precision)
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
    if weights is None:  # in the graph's precision, even if a plan of another one ran
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
    """Return the precision of the graph or plan; with fp32 weights in a bf16 session, ``weights`` is bf16."""
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
    """Return the outputs without hidden states and attentions, which are many and large."""
    return {name: outputs[name] for name in HEADS[manifest.head].outputs if name in outputs}


def reference_outputs(
    model: ErnieMPreTrainedModel | Original, manifest: Manifest, case: Case
) -> dict[str, NDArray[Any]]:
    """Run the PyTorch model on a case; return the outputs by the graph's names."""
    names = [spec.name for spec in manifest.outputs]
    feeds = {name: torch.from_numpy(array) for name, array in case.feeds.items()}
    if isinstance(model, Original) and "head_mask" in feeds:  # transformers 5 has no head_mask
        model = model.model
    if isinstance(model, Original):  # which masks nothing by itself
        feeds["attention_mask"] = torch.from_numpy(case.attend.astype(np.int64))
    elif manifest.mask_mode == UIE_M:
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
    """Return the outputs that the artifact should give: a packed graph gives zeros at padding."""
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
    """Return whether the outputs lead to decisions; hidden states, regression and a single column do not."""
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
    """Run every row alone, without its padding, and compare it with the same row in the batch."""
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


def judge(
    artifact: Path,
    model: ErnieMPreTrainedModel,
    *,
    tokenizer_dir: Path | None = None,
    scratch: Path | None = None,
    progress: Callable[[list[Case]], Iterable[Case]] = iter,
    accuracy: AccuracyCheck | None = None,
    original: Original | None = None,
) -> dict[str, Any]:
    """Compare an artifact with the PyTorch model; return the manifest's ``parity``.

    In lower precision the graph must first pass without its rounding (:func:`without_rounding`) at the thresholds of
    fp32. In half precision onnxruntime skips most of the rounding on a CPU, or cannot run the graph. So the report
    under the artifact's name comes from :func:`emulate_half`; fp16 must also pass as onnxruntime runs it.

    Args:
        artifact: ``HEAD.onnx``, beside its manifest and weights.
        model: The model that it was exported from, in float32.
        tokenizer_dir: As for :func:`check_parity`, like ``progress``.
        scratch: Folder for a copy of the artifact; by default the system's temporary folder.
        accuracy: Compares the answers to the task set, if there is one.
        original: As for :class:`Reference`.

    Raises:
        ErnieMError: See :func:`check_parity` and :meth:`AccuracyCheck.compare`.
    """
    facts = Manifest.load(manifest_of(artifact)).precision
    precision = arithmetic_of(facts)
    check = partial(
        check_parity,
        model=model,
        tokenizer_dir=tokenizer_dir,
        progress=progress,
        reference=Reference(model, original),
    )
    if {facts.get("weights"), facts.get("embedding")} == {"fp32"}:
        report = check(artifact).to_json()
        return {artifact.name: report if accuracy is None else accuracy.compare(artifact, report)}
    extra: dict[str, Any] = {}
    separable = "products" not in facts  # int8 for TensorRT rounds inside Q/DQ pairs

    def compare(path: Path) -> dict[str, Any]:
        report = check(path, weights=weights, unrounded=False if separable else None).to_json()
        try:
            report = report if accuracy is None else accuracy.compare(path, report)
        except ParityError as error:
            raise PrecisionError(str(error), error.report) from error
        return report | extra

    thresholds_of(facts)  # refuses an unknown precision early
    weights = compare_weights(artifact, model, facts)
    if separable:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            extra["without_rounding"] = _check_unrounded(artifact, model, Path(folder), tokenizer_dir, weights)
    if precision not in HALF_TYPES:
        return {artifact.name: compare(artifact)}
    reports = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        emulated = _write_emulation(artifact, Path(folder))
        reports[artifact.name] = {**compare(emulated), "method": _EMULATED.format(precision=precision)}
    if precision != _NOT_ON_CPU:
        reports[f"{artifact.name} {_ON_CPU}"] = {**compare(artifact), "method": _ON_CPU}
    return reports


def _check_unrounded(
    artifact: Path, model: ErnieMPreTrainedModel, folder: Path, tokenizer_dir: Path | None, weights: Weights
) -> dict[str, float]:
    """Compare the graph without rounding with the model on the graph's stored weights; return the differences."""
    graph, config = read(artifact), model.config
    stored = stored_parameters(graph.graph, model)
    without_rounding(graph, config.hidden_size // config.num_attention_heads)
    path = _write_like(artifact, graph, folder)
    with holding(model, stored):
        report = check_parity(path, model, tokenizer_dir=tokenizer_dir, weights=weights, unrounded=True)
    outputs = report.by_output().values()
    return {name: max(row[name] for row in outputs) for name in ("max_abs", "relative_l2")}


def with_bf16(
    manifest: Manifest, artifact: Path, model: ErnieMPreTrainedModel, note: Callable[[str], None], **gate: Any
) -> Manifest:
    """Return ``manifest`` with the result of :func:`_prove_bf16`, and pass a line about it to ``note``.

    Takes the arguments of :func:`judge` as ``gate``; ``manifest`` must be saved beside ``artifact``.
    """
    if manifest.target not in _BF16_TARGETS or manifest.precision["weights"] not in ("fp32", "int8"):
        return manifest
    try:
        method, report = _prove_bf16(artifact, model, **gate)
    except ErnieMError as error:
        note(f"bf16 on a CPU is not proven: {error}")
        return dataclasses.replace(manifest, proven=("fp32",))
    largest = max(figures["relative_l2"] for figures in report["outputs"].values())
    note(f"passed the gate {method}: relative L2 {largest:.1e}")
    return dataclasses.replace(
        manifest, proven=("fp32", "bf16"), parity={**manifest.parity, f"{artifact.name} in bf16": report}
    )


def _prove_bf16(
    artifact: Path,
    model: ErnieMPreTrainedModel,
    *,
    tokenizer_dir: Path | None = None,
    scratch: Path | None = None,
    progress: Callable[[list[Case]], Iterable[Case]] = iter,
    accuracy: AccuracyCheck | None = None,
    original: Original | None = None,
) -> tuple[str, dict[str, Any]]:
    """Run the gate in bf16 on an artifact in fp32 or int8 that passed it; return the method and the report.

    Takes the arguments of :func:`judge`. OpenVINO computes bf16 if it is installed and this CPU has bf16. Otherwise a
    graph in fp32 is emulated.

    Raises:
        ErnieMError: The artifact fails, or bf16 can neither be computed nor emulated here.
    """
    manifest = Manifest.load(manifest_of(artifact))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        copy = Path(folder) / artifact.name
        if importlib.util.find_spec("openvino") is not None and {"bf16", "amx"} & set(cpu_class().split("-")):
            method = _BF16_BY_OPENVINO
            for name in manifest.files:
                _link(artifact.with_name(name), copy.with_name(name))
            dataclasses.replace(manifest, proven=("bf16",)).save(copy.with_suffix(".json"))
            opened = partial(Session, engine="openvino", precision="bf16", cache=False, verify=False)
        elif manifest.precision["weights"] == "fp32":
            method = _BF16_EMULATED
            _write_emulation(artifact, copy.parent, "bf16")
            opened = partial(Session, engine="onnxruntime", verify=False)
        else:
            raise ErnieMError("int8 needs OpenVINO and a CPU with bf16")
        report = check_parity(
            copy,
            model,
            tokenizer_dir=tokenizer_dir,
            progress=progress,
            open_session=opened,
            reference=Reference(model, original),
        ).to_json()
        report = {**report, "method": method}
        return method, report if accuracy is None else accuracy.compare(copy, report, opened)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_emulation(artifact: Path, folder: Path, half: str | None = None) -> Path:
    """Convert the graph to ``half`` if given, then write it in float32 with every result rounded as on a GPU."""
    graph, changes = read(artifact), {}
    if half is not None:
        to_half(graph, half, {})
        changes["weights"] = half
    emulate_half(graph)
    return _write_like(artifact, graph, folder, **changes)


def _write_like(artifact: Path, graph: ir.Model, folder: Path, **precision: str) -> Path:
    """Write ``graph``, derived from the artifact, into ``folder`` with its manifest; ``precision`` updates that."""
    path = folder / artifact.name
    write(graph, path)
    manifest = Manifest.load(manifest_of(artifact))
    precision = {**manifest.precision, **precision}
    manifest = dataclasses.replace(manifest, artifact=path.name, files=files_of(folder), plan=None, precision=precision)
    manifest.save(path.with_suffix(".json"))
    return path
