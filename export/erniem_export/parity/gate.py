"""Run an artifact and the PyTorch model side by side and judge."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from erniem_export.errors import ParityError
from erniem_export.parity.cases import Case, build_cases
from erniem_export.parity.decisions import Agreement, compare_decisions
from erniem_export.parity.diagnosis import diagnose
from erniem_export.parity.measures import THRESHOLDS, Difference, Thresholds, measure
from erniem_rt.manifest import Manifest
from erniem_rt.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_export.modeling import ErnieMPreTrainedModel

__all__ = ["Report", "check_parity"]

# The case whose rows are also run one by one: right padding, where positions do not depend on it.
_INVARIANCE_CASE = "padding on the right"


@dataclass
class Report:
    """The gate's findings; ``differences`` maps output and case name to their difference."""

    precision: str
    limits: Thresholds
    differences: dict[tuple[str, str], Difference] = field(default_factory=dict)
    agreement: Agreement = field(default_factory=Agreement)
    invariance: dict[str, Difference] = field(default_factory=dict)
    decides: bool = False

    def worst(self) -> tuple[str, str, float]:
        """Output, case and excess of the worst difference."""
        rows = [
            (output, case, difference.excess(self.limits)) for (output, case), difference in self.differences.items()
        ]
        return max(rows, key=lambda row: row[2])

    def failures(self) -> list[str]:
        """Every way in which the artifact failed, the worst first; empty if it passed."""
        if not self.differences or not self.invariance:
            return ["nothing was compared"]
        problems = []
        output, case, excess = self.worst()
        if excess > 1.0:
            problems.append(f"{output} on the case {case!r} {self._amount(self.differences[output, case])}")
        for output, difference in self.invariance.items():
            if difference.excess(self.limits) > 1.0:
                problems.append(f"{output} of a row depends on the padding around it: {self._amount(difference)}")
        if self.decides and not self.agreement.compared:
            problems.append("no decision was compared")
        if self.agreement.share < self.limits.agreement:
            problems.append(f"only {self.agreement.agreed} of {self.agreement.compared} decisions are the same")
        return problems

    def _amount(self, difference: Difference) -> str:
        if difference.nonfinite:
            return f"has {difference.nonfinite} values that are NaN or infinite"
        if not difference.values:
            return "was empty"
        limit = self.limits.largest * difference.scale
        return (
            f"differs by up to {difference.max_abs:.2e} (limit {limit:.0e}), relative L2 "
            f"{difference.relative_l2:.1e} (limit {self.limits.relative_l2:.0e}), cosine {difference.cosine:.6f}"
        )

    def by_output(self) -> dict[str, dict[str, Any]]:
        """The worst of every measure per output, over all cases."""
        rows: dict[str, dict[str, Any]] = {}
        for output in dict.fromkeys(name for name, _ in self.differences):
            cases = {case: diff for (name, case), diff in self.differences.items() if name == output}
            values = sum(diff.values for diff in cases.values())
            rows[output] = {
                "max_abs": max(diff.max_abs for diff in cases.values()),
                "mean_abs": sum(diff.mean_abs * diff.values for diff in cases.values()) / max(values, 1),
                "p99_abs": max(diff.p99_abs for diff in cases.values()),
                "relative_l2": max(diff.relative_l2 for diff in cases.values()),
                "cosine": min(diff.cosine for diff in cases.values()),
                "nonfinite": sum(diff.nonfinite for diff in cases.values()),
                "padding_invariance": self.invariance[output].max_abs if output in self.invariance else None,
                "worst_case": max(cases, key=lambda case: cases[case].excess(self.limits)),
                "values": values,
            }
        return rows

    def to_json(self) -> dict[str, Any]:
        """The report as it stands in the manifest."""
        return {
            "precision": self.precision,
            "reference": f"PyTorch {torch.__version__.split('+')[0]}, float32",
            "cases": list(dict.fromkeys(case for _, case in self.differences)),
            "outputs": self.by_output(),
            "decisions": asdict(self.agreement) if self.decides else None,
            "thresholds": asdict(self.limits),
            "passed": not self.failures(),
        }


def check_parity(
    artifact: Path,
    model: ErnieMPreTrainedModel,
    *,
    precision: str = "fp32",
    tokenizer_dir: Path | None = None,
    progress: Callable[[list[Case]], Iterable[Case]] = iter,
) -> Report:
    """Compare an artifact, run as its users run it, with the PyTorch model in float32.

    Args:
        artifact: ``HEAD.onnx``, beside its manifest and weights.
        model: The model that it was exported from.
        precision: Row of :data:`THRESHOLDS` to judge by.
        tokenizer_dir: Folder of the tokenizer's files, for real text.
        progress: Wraps the list of cases, for a progress bar.

    Raises:
        ParityError: The numbers are not the model's. Names the worst output and case and what may be wrong.
        ArtifactError: The artifact cannot be loaded.
    """
    limits = THRESHOLDS[precision]
    with Session(artifact) as session:
        manifest = session.manifest
        report = Report(precision, limits, decides=manifest.head != "base" and not _is_regression(manifest))
        results = []
        for case in progress(build_cases(manifest, tokenizer_dir)):
            expected = reference_outputs(model, manifest, case)
            found = session.run(case.feeds)
            results.append((case, found, expected))
            _compare(report, manifest, case, found, expected)
            if case.name == _INVARIANCE_CASE:
                report.invariance = _invariance(session, case, found)
    problems = report.failures()
    if problems:
        causes = diagnose(artifact, model, report, results)
        raise ParityError(
            f"{artifact.name} does not compute what the PyTorch model computes: {'; '.join(problems)}. "
            f"{' '.join(causes)}",
            report.to_json(),
        )
    return report


def reference_outputs(model: ErnieMPreTrainedModel, manifest: Manifest, case: Case) -> dict[str, NDArray[Any]]:
    """Run the PyTorch model on a case; outputs by the graph's names."""
    names = [spec.name for spec in manifest.outputs]
    with torch.no_grad():
        result = model(
            **{name: torch.from_numpy(array) for name, array in case.feeds.items()},
            output_hidden_states=any(name.startswith("hidden_states.") for name in names),
            output_attentions=any(name.startswith("attentions.") for name in names),
            return_dict=True,
        )
    outputs = {}
    for name in names:
        field_name, _, index = name.partition(".")
        outputs[name] = (result[field_name][int(index)] if index else result[field_name]).numpy()
        if not np.isfinite(outputs[name]).all():
            raise ParityError(
                f"the PyTorch model itself yields NaN or infinity in {name} on the case {case.name!r}: "
                "the checkpoint's weights are damaged"
            )
    return outputs


def _is_regression(manifest: Manifest) -> bool:
    return manifest.head == "cls" and manifest.outputs[0].shape[-1] == 1


def _compare(
    report: Report,
    manifest: Manifest,
    case: Case,
    found: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
) -> None:
    for name, reference in expected.items():
        if found[name].shape != reference.shape:
            raise ParityError(f"{name} has shape {found[name].shape} on {case.name!r}, expected {reference.shape}")
        report.differences[name, case.name] = measure(found[name], reference)
    tie = 2 * report.limits.largest * max(1.0, *(float(np.abs(array).max()) for array in expected.values()))
    report.agreement += compare_decisions(manifest, found, expected, case.attend, tie)


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
        result = session.run(feeds)
        attended = case.attend[row : row + 1, ..., :length]
        for name, spec in plain.items():
            per_token = "sequence" in spec.shape and rank == 2
            whole = batch[name][row : row + 1, :length] if per_token else batch[name][row : row + 1]
            alone[name].append(result[name][attended] if per_token else result[name].ravel())
            within[name].append(whole[attended] if per_token else whole.ravel())
    return {name: measure(np.concatenate(within[name]), np.concatenate(alone[name])) for name in plain}
