"""From a batch to the buffers of runs and back: rows are laid out, padded, and put in their places again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.engines.trt_shapes import Run, plan_runs
from erniem_rt.manifest import HEADS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from erniem_rt.manifest import Manifest
    from erniem_rt.plan import Profile

__all__ = ["RowBatch", "are_by_row"]


class RowBatch:
    """One batch on its way through the engine; each choice of a question is a row of its own.

    Args:
        manifest: Of the artifact.
        feeds: What the graph takes, as :meth:`erniem_rt.engines.base.Engine.run` gets it.
        outputs: The names of what is wanted.
    """

    def __init__(self, manifest: Manifest, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> None:
        self._axes = HEADS[manifest.head].axes
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        self._wanted = {spec.name: spec for spec in manifest.outputs if spec.name in outputs}
        self._pad_id = manifest.limits.pad_token_id
        self._feeds = feeds
        mask = feeds["attention_mask"]
        self._lead, self._width = mask.shape[:-1], mask.shape[-1]
        self._attend = (mask != 0).reshape(-1, self._width)
        self._results: dict[str, NDArray[Any]] = {}

    def runs(self, profiles: Sequence[Profile]) -> list[Run]:
        """How the rows are divided among the profiles of a plan."""
        ends = self._width - np.argmax(self._attend[:, ::-1], axis=1)
        lengths = np.where(self._attend.any(axis=1), ends, 0)
        return plan_runs(lengths, self._width, profiles, choices=self._lead[1] if len(self._lead) > 1 else None)

    def shapes(self, run: Run) -> dict[str, tuple[int, ...]]:
        """The shape of each input in a run."""
        sizes = dict(zip(self._axes, run.shape, strict=True))
        return {
            name: tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape)
            for name, spec in self._inputs.items()
        }

    def fill(self, run: Run, name: str, buffer: NDArray[Any]) -> None:
        """Write an input of a run into ``buffer``, which has its shape and the dtype of the engine."""
        array = self._feeds[name]
        if name == "head_mask":
            buffer[...] = array
            return
        tail = array.shape[len(self._axes) :]
        source = array.reshape(-1, self._width, *tail)
        target = buffer.reshape(-1, run.length, *tail)
        count, kept = len(run.rows), min(run.length, self._width)
        target[:count, :kept] = source[self._index(run), :kept]
        target[:count, kept:] = self._pad_id if name == "input_ids" else 0
        target[count:] = target[:1]  # A real row: one that attends to nothing could turn into NaN.

    def collect(self, run: Run, name: str, buffer: NDArray[Any]) -> None:
        """Copy an output of a run out of ``buffer``; outputs that were not asked for are left."""
        spec = self._wanted.get(name)
        if spec is None:
            return
        axes = spec.shape[len(self._lead) :]
        rows = buffer.reshape(math.prod(run.shape[:-1]), *buffer.shape[len(self._lead) :])
        if name not in self._results:
            sizes = [
                self._width if axis == "sequence" else size for axis, size in zip(axes, rows.shape[1:], strict=True)
            ]
            self._results[name] = np.zeros((len(self._attend), *sizes), spec.dtype)
        kept: list[Any] = [slice(min(run.length, self._width)) if axis == "sequence" else slice(None) for axis in axes]
        target, source = (self._index(run), *kept), (slice(len(run.rows)), *kept)
        self._results[name][target] = rows[source]

    def results(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """The outputs in the caller's shape, zero at padding (see :class:`erniem_rt.Session`)."""
        padding = ~self._attend & self._attend.any(axis=1, keepdims=True)
        padding[:, 0] = False
        for name, spec in self._wanted.items():
            if spec.shape[len(self._lead) :][:1] == ("sequence",) and padding.any():
                self._results[name][padding] = 0
        return [self._shaped(self._results[name]) for name in outputs]

    def _index(self, run: Run) -> Any:
        """The rows of a run; all of them as a slice, which copies once and not twice."""
        return slice(None) if len(run.rows) == len(self._attend) else run.rows

    def _shaped(self, rows: NDArray[Any]) -> NDArray[Any]:
        return rows.reshape(*self._lead, *rows.shape[1:])


def are_by_row(manifest: Manifest) -> bool:
    """Whether all that a row has comes with the axes of the head first, so that rows can be told apart."""
    axes = HEADS[manifest.head].axes
    inputs = (spec for spec in manifest.inputs if spec.name != "head_mask")
    return all(spec.shape[: len(axes)] == axes for spec in inputs) and all(
        spec.shape[: len(axes) - 1] == axes[:-1] for spec in manifest.outputs
    )
