"""The passes that put a graph into the precision that was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erniem_export.passes.embedding import store_embedding
from erniem_export.passes.half import HALF_TYPES, to_half
from erniem_export.ranges import measure_ranges

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    import onnx_ir as ir

    from erniem_export.options import Precision
    from erniem_export.parity.cases import Case

__all__ = ["apply_precision"]


def apply_precision(
    model: ir.Model, precision: Precision, cases: Iterable[Case], scratch: Path, keep: Collection[str] = ()
) -> dict[str, str]:
    """Rewrite the canonical graph, in place; return what the manifest says of its precision.

    Args:
        model: The canonical graph, in float32.
        precision: What to make of it.
        cases: Calibration data: what does not fit the half type on these stays in float32.
        scratch: Folder for temporary files, with room for the weights.
        keep: Parts of the layers that stay in float32 in any case, as for :func:`to_half`.
    """
    facts = precision.to_json()
    if precision.weights in HALF_TYPES:
        batches = [{"attention_mask": case.attend.astype("int64"), **case.feeds} for case in cases]
        kept = to_half(model, precision.weights, measure_ranges(model, batches, scratch), keep)
        if kept:
            facts["kept_in_fp32"] = ", ".join(kept)
    if any(value.name == "input_ids" for value in model.graph.inputs) or precision.embedding is not None:
        store_embedding(model, facts["embedding"])
    return facts
