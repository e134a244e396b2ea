"""The gate's report: differences, decisions and the verdict, as JSON and as a table for a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from erniem_export.gate.measures import Difference, Thresholds

__all__ = ["Agreement", "Report", "Weights", "format_report"]

_NAMED = 3
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
        return f"{_first_few(names)} ({len(names)} of {total}, limit 0)"

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
        return "no decision to compare, for the model makes none that is clear in this precision; "
    return f"{found['agreed']} of {found['compared']} decisions the same; "


def _first_few(names: Sequence[str]) -> str:
    """Return the first few names, for a message."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
