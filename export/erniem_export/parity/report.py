"""The gate's report as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["format_report"]

_COLUMNS = ("output", "max", "mean", "p99", "rel. L2", "cosine", "NaN/inf", "padding", "worst case")


def format_report(parity: Mapping[str, Any]) -> str:
    """Return the table of a report as it stands in the manifest, with one line above and one below."""
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
