"""Differences of outputs, their thresholds, the decisions made from them, and the gate's report: JSON, or a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erniem_export.errors import listed
from erniem_rt.errors import ArtifactError
from erniem_rt.manifest import Manifest


@dataclass(frozen=True)
class Thresholds:
    """The largest differences allowed in a precision.

    ``largest`` bounds the largest absolute difference, in units of the reference's largest value where that is
    above 1; ``relative_l2`` and ``cosine`` are over all values of an output on one case; ``agreement`` is the share
    of decisions (labels, spans) that must not change. ``alone_cosine`` compares a row alone with the same row in a
    batch, where that has a stricter threshold than the precision.
    """

    largest: float
    relative_l2: float
    cosine: float
    agreement: float
    tie: float | None = None
    alone_cosine: float | None = None

    @property
    def margin(self) -> float:
        """Return the least lead of a reference decision that counts: ``tie``, or twice ``largest``.

        It is in units of the reference's largest value.
        """
        return 2 * self.largest if self.tie is None else self.tie

    @property
    def alone(self) -> Thresholds:
        """Return the thresholds for a row alone against the same row in a batch: ``alone_cosine`` where it is set."""
        if self.alone_cosine is None:
            return self
        chord = math.sqrt(2 * (1 - self.alone_cosine))
        return dataclasses.replace(self, relative_l2=chord, cosine=self.alone_cosine)


# fp32: 20 times the difference of ONNX Runtime and torch after 12 layers (largest 4e-6, relative L2 1e-6), and a tenth
# of the error from replacing erf by tanh in the Gelu of two layers.
# fp16, bf16 and the embedding's precisions: two to three times the worst error measured on random models of 2 and 12
# layers (heads base, cls and qa, three seeds each). Their sharp attention amplifies errors more than a trained model's.
#             largest  relative L2  1 - cosine
# fp16         7.7e-3       2.0e-3      8.0e-6
# bf16         6.7e-2       2.9e-2      1.0e-3
# embedding
# fp16         1.0e-3       3.7e-4      9.1e-8
# bf16         1.0e-2       3.3e-3      1.3e-5
# int8         4.1e-2       2.0e-2      2.1e-4
# int8: the worst of nano's six checkpoints and of a random model of 2 layers with each head: 3.7e-1 (in a pooler's
# tanh, without VNNI; 2.6e-1 with it), 9.3e-2 and 4.0e-3. With static scales, a row alone and in a batch differ by
# 2.6e-8 (1 - cosine: 2e-15).
# ``alone_cosine`` is guaranteed to users; one scale for a whole batch gives 0.96 at worst (docs/benchmarks.md).
THRESHOLDS = {
    "fp32": Thresholds(largest=1e-4, relative_l2=2e-5, cosine=0.999999, agreement=1.0),
    "fp16": Thresholds(largest=2e-2, relative_l2=6e-3, cosine=0.99998, agreement=1.0),
    "bf16": Thresholds(largest=1.5e-1, relative_l2=7e-2, cosine=0.997, agreement=1.0),
    "int8": Thresholds(largest=0.4, relative_l2=0.2, cosine=0.97, agreement=0.9, tie=0.1, alone_cosine=0.9995),
}
EMBEDDING_THRESHOLDS = {
    "fp32": THRESHOLDS["fp32"],
    "fp16": Thresholds(largest=3e-3, relative_l2=1e-3, cosine=0.999999, agreement=1.0),
    "bf16": Thresholds(largest=3e-2, relative_l2=1e-2, cosine=0.99996, agreement=1.0),
    "int8": Thresholds(largest=1e-1, relative_l2=5e-2, cosine=0.9994, agreement=1.0),
}

# Models differ in how much they amplify rounding (sharp attention, sums that nearly cancel). So an artifact may differ
# by _FACTOR times the error of the same model rounded in PyTorch (by its square for 1 - cosine, which is quadratic)
# where that is above the thresholds, but by no more than these caps: beyond them, answers begin to change. The factor
# covers the variance of rounding errors: the worst of 55 random models of 2 layers had 1.6 times the error of the
# rounded PyTorch model, and 3.0 times on an output of three values.
_FACTOR = 5.0
_MOST = {
    "fp16": Thresholds(largest=1e-1, relative_l2=5e-2, cosine=0.998, agreement=1.0),
    "bf16": Thresholds(largest=0.4, relative_l2=0.2, cosine=0.97, agreement=1.0),
    "int8": Thresholds(largest=0.4, relative_l2=0.2, cosine=0.97, agreement=1.0),
}

# Below this root mean square, rounding dominates an output's direction.
_DIRECTION_FROM = 0.1


def thresholds_of(precision: Mapping[str, str]) -> Thresholds:
    """Return the thresholds of a precision (``weights`` and ``embedding``, as in the manifest).

    Raises:
        ArtifactError: One of the two has no thresholds.
    """
    rows = []
    for part, table in (("weights", THRESHOLDS), ("embedding", EMBEDDING_THRESHOLDS)):
        name = precision.get(part)
        if name not in table:
            raise ArtifactError(f"the artifact has {part} in {name}; expected one of {', '.join(table)}")
        rows.append(table[name])
    return max(rows, key=lambda row: row.largest)


def is_judged_by_rounding(precision: Mapping[str, str]) -> bool:
    """Return whether the thresholds follow from rounding the model in PyTorch.

    Not in fp32, which has no rounding to emulate, nor in int8, whose error depends on the calibration.
    """
    kinds = precision.get("weights"), precision.get("embedding")
    return "int8" not in kinds[:1] and kinds != ("fp32", "fp32")


def widened(limits: Thresholds, precision: Mapping[str, str], costs: Iterable[Difference]) -> Thresholds:
    """Return ``limits`` widened for a model whose rounding in PyTorch causes the differences ``costs``."""
    costs = [cost for cost in costs if cost.values and not cost.nonfinite]
    most = max((_MOST[kind] for kind in precision.values() if kind in _MOST), key=lambda row: row.largest)
    largest = max((cost.max_abs / cost.scale for cost in costs), default=0.0)
    relative = max((cost.relative_l2 for cost in costs), default=0.0)
    turned = max((cost.turned for cost in costs), default=0.0)
    return dataclasses.replace(
        limits,
        largest=max(limits.largest, min(most.largest, _FACTOR * largest)),
        relative_l2=max(limits.relative_l2, min(most.relative_l2, _FACTOR * relative)),
        cosine=min(limits.cosine, max(most.cosine, 1 - _FACTOR**2 * turned)),
    )


@dataclass(frozen=True)
class Difference:
    """One output on one case, against the reference.

    ``scale`` is the reference's largest magnitude and ``rms`` its root mean square. As divisors both are at least 1, so
    that an output near 0, such as a single logit, is not compared beyond its precision. ``nonfinite`` counts the NaN
    and infinity in the artifact's values; if there are any, the measures are 0.
    """

    values: int
    max_abs: float
    mean_abs: float
    p99_abs: float
    relative_l2: float
    cosine: float
    nonfinite: int
    scale: float
    rms: float

    @property
    def turned(self) -> float:
        """1 - cosine similarity; 0 for a single value, or where rounding dominates the direction."""
        return 1.0 - self.cosine if self.values > 1 and self.rms >= _DIRECTION_FROM else 0.0

    def excess(self, limits: Thresholds) -> float:
        """Return the worst ratio of a measure to its threshold; up to 1 passes."""
        if self.nonfinite or not self.values:
            return float("inf")
        return max(
            self.max_abs / self.scale / limits.largest,
            self.relative_l2 / limits.relative_l2,
            self.turned / (1.0 - limits.cosine),
        )


def measure(found: NDArray[Any], expected: NDArray[Any]) -> Difference:
    """Compare two arrays of the same shape, any float dtype, in float64; ``expected`` must be finite."""
    found, expected = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    nonfinite = int(found.size - np.isfinite(found).sum())
    if nonfinite or not found.size:
        return Difference(found.size, 0.0, 0.0, 0.0, 0.0, 0.0, nonfinite, 1.0, 0.0)
    gap = np.abs(found - expected)
    norms = float(np.linalg.norm(found)), float(np.linalg.norm(expected))
    root = math.sqrt(found.size)
    return Difference(
        values=found.size,
        max_abs=float(gap.max()),
        mean_abs=float(gap.mean()),
        p99_abs=float(np.percentile(gap, 99)),
        relative_l2=float(np.linalg.norm(gap)) / max(norms[1], root),
        cosine=float(found @ expected) / (norms[0] * norms[1]) if all(norms) else float(norms[0] == norms[1]),
        nonfinite=0,
        scale=max(1.0, float(np.abs(expected).max())),
        rms=norms[1] / root,
    )


def compare_decisions(
    manifest: Manifest,
    found: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    attend: NDArray[np.bool_],
    tie: float,
) -> Agreement:
    """Compare the decisions of one batch.

    Ignores decisions that the reference makes by less than ``tie``, and rows that are all padding.
    """
    live = attend.any(axis=-1)
    head, total = manifest.head, Agreement()
    if head in ("qa", "ie"):
        for name in ("start_logits", "end_logits"):
            a, b = found[name], expected[name]
            if head == "ie":
                total += _signs(a[attend], b[attend], tie)
            else:
                masked = [np.where(attend, logits, -np.inf)[live] for logits in (a, b)]
                total += _winners(masked[0], masked[1], tie)
    elif head == "ner":
        total += _winners(found["logits"][attend], expected["logits"][attend], tie)
    elif head == "mc":
        rows = live.all(axis=-1)
        total += _winners(found["logits"][rows], expected["logits"][rows], tie)
    elif head == "cls":
        compare = _signs if manifest.problem_type == "multi_label_classification" else _winners
        total += compare(found["logits"][live], expected["logits"][live], tie)
    return total


def _winners(found: NDArray[Any], expected: NDArray[Any], tie: float) -> Agreement:
    """Compare the argmax of the last axis; a single column (regression, one token) decides nothing."""
    if expected.shape[-1] < 2 or not expected.size:
        return Agreement()
    second, best = np.sort(expected, axis=-1)[..., -2:].reshape(-1, 2).T
    clear = (best - second > tie) & np.isfinite(second)  # a single unmasked token is no choice either
    same = (found.argmax(-1) == expected.argmax(-1)).ravel()
    return Agreement(int(clear.sum()), int((same & clear).sum()))


def _signs(found: NDArray[Any], expected: NDArray[Any], tie: float) -> Agreement:
    """Compare which values are above 0 (the logit of probability 0.5)."""
    clear = np.abs(expected) > tie
    same = (found > 0) == (expected > 0)
    return Agreement(int(clear.sum()), int((same & clear).sum()))


_COLUMNS = ("output", "max", "mean", "p99", "rel. L2", "cosine", "NaN/inf", "padding", "worst case")


@dataclass(frozen=True)
class Agreement:
    """How many decisions were compared, and how many were the same."""

    compared: int = 0
    agreed: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.compared + other.compared, self.agreed + other.agreed)

    @property
    def share(self) -> float:
        """The share of equal decisions, from 0 to 1; 1 if there were none."""
        return self.agreed / self.compared if self.compared else 1.0


@dataclass(frozen=True)
class Weights:
    """The number of parameters found in the graph, and the names of those that changed or are missing."""

    compared: int = 0
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def are_right(self) -> bool:
        """Whether all parameters are there with the right values."""
        return bool(self.compared) and not self.changed and not self.missing


@dataclass
class Report:
    """The result of one comparison; ``differences`` maps output and case name to their difference.

    An ``agreement`` without decisions is no failure: a zero or untrained head may decide nothing beyond the tolerance.
    The report says so.
    """

    precision: str
    limits: Thresholds
    differences: dict[tuple[str, str], Difference] = field(default_factory=dict)
    agreement: Agreement = field(default_factory=Agreement)
    invariance: dict[str, Difference] = field(default_factory=dict)
    decides: bool = False
    weights: Weights = field(default_factory=Weights)

    def worst(self) -> tuple[str, str, float]:
        """Return output, case and excess of the worst difference."""
        rows = [
            (output, case, difference.excess(self.limits)) for (output, case), difference in self.differences.items()
        ]
        return max(rows, key=lambda row: row[2])

    def failing_cases(self) -> set[str]:
        """Return the cases in which an output exceeds a threshold."""
        return {case for (_, case), difference in self.differences.items() if difference.excess(self.limits) > 1.0}

    def failures(self) -> list[str]:
        """Return a sentence for each failure, the worst first; empty if the artifact passed."""
        if not self.differences or not self.invariance:
            return ["nothing was compared"]
        problems = []
        if not self.weights.compared:
            problems.append("no weight was compared")
        if self.weights.changed:
            problems.append(f"these weights are not the checkpoint's: {self._counted(self.weights.changed)}")
        if self.weights.missing:
            missing = self._counted(self.weights.missing)
            problems.append(f"these weights of the checkpoint are not in the graph: {missing}")
        output, case, excess = self.worst()
        if excess > 1.0:
            problems.append(
                f"{output} on the case {case!r} {self._amount(self.differences[output, case], self.limits)}"
            )
        for output, difference in self.invariance.items():
            if difference.excess(self.limits.alone) > 1.0:
                amount = self._amount(difference, self.limits.alone)
                problems.append(f"{output} of a row changes with the padding and the rows beside it: it {amount}")
        if self.agreement.share < self.limits.agreement:
            problems.append(
                f"only {self.agreement.agreed} of {self.agreement.compared} decisions are the same "
                f"({self.agreement.share:.2%}, limit {self.limits.agreement:.0%})"
            )
        return problems

    def _counted(self, names: tuple[str, ...]) -> str:
        total = self.weights.compared + len(self.weights.missing)
        return f"{listed(names)} ({len(names)} of {total}, limit 0)"

    @staticmethod
    def _amount(difference: Difference, limits: Thresholds) -> str:
        if difference.nonfinite:
            return f"has {difference.nonfinite} values that are NaN or infinite (limit 0)"
        if not difference.values:
            return "was empty"
        limit = limits.largest * difference.scale
        return (
            f"differs by up to {difference.max_abs:.2e} (limit {limit:.1e}), relative L2 "
            f"{difference.relative_l2:.1e} (limit {limits.relative_l2:.1e}), "
            f"cosine {difference.cosine:.6f} (limit {limits.cosine:.6f})"
        )

    def by_output(self) -> dict[str, dict[str, Any]]:
        """Return the worst of every measure per output, over all cases."""
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
        """Return the report as the manifest stores it."""
        import torch  # not above: the command line imports this module, and --help must not load torch

        return {
            "precision": self.precision,
            "reference": f"PyTorch {torch.__version__.split('+')[0]}, float32",
            "cases": list(dict.fromkeys(case for _, case in self.differences)),
            "outputs": self.by_output(),
            "decisions": asdict(self.agreement) if self.decides else None,
            "weights": asdict(self.weights),
            "thresholds": asdict(self.limits),
            "passed": not self.failures(),
        }


def format_report(parity: Mapping[str, Any]) -> str:
    """Return a table of a report from a manifest, with one line above and one below."""
    rows = [_COLUMNS]
    for name, row in parity["outputs"].items():
        invariance = row["padding_invariance"]
        rows.append(
            (
                name,
                f"{row['max_abs']:.1e}",
                f"{row['mean_abs']:.1e}",
                f"{row['p99_abs']:.1e}",
                f"{row['relative_l2']:.1e}",
                f"{row['cosine']:.7f}",
                str(row["nonfinite"]),
                "-" if invariance is None else f"{invariance:.1e}",
                row["worst_case"],
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    table.insert(1, "  ".join("-" * width for width in widths))
    how = f", {parity['method']}" if "method" in parity else ""
    head = f"{parity['precision']} against {parity['reference']}, {len(parity['cases'])} cases{how}"
    return "\n".join([head, *table, *_accuracy(parity.get("accuracy")), _verdict(parity)])


def _accuracy(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    figures = ", ".join(
        f"{name} {pair['found']:.2f} (PyTorch {pair['reference']:.2f})" for name, pair in found["metrics"].items()
    )
    same = "" if found["same_answers"] is None else f"; {found['same_answers']} answers the same"
    return [f"{found['file']}, {found['examples']} examples: {figures}{same}"]


def _verdict(parity: Mapping[str, Any]) -> str:
    weights = parity["weights"]
    same = weights["compared"] - len(weights["changed"])
    exact = f"{same} of {weights['compared'] + len(weights['missing'])} weights the same; "
    graph = parity.get("without_rounding")
    if graph is not None:
        exact += f"without rounding {graph['max_abs']:.1e} from PyTorch with the same weights; "
    return f"{exact}{_decisions(parity['decisions'])}{'passed' if parity['passed'] else 'FAILED'}"


def _decisions(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if not found["compared"]:
        return "no decisions compared, because the model makes none that is clear in this precision; "
    return f"{found['agreed']} of {found['compared']} decisions the same; "
