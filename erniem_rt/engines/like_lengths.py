"""Rows of like length run together: packed graphs spare the products their padding, and this spares the attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.manifest import HEADS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from erniem_rt.engines.base import Engine
    from erniem_rt.manifest import Manifest, TensorSpec

__all__ = ["LikeLengths", "can_be_divided"]

# Attention over a row of n positions costs as much as n² / 1000 tokens cost in the products, and a further run of the
# engine as much as 48 tokens: estimates from a profile of base size in int8 on AVX2; 6 to 48 tokens made no difference.
_POSITIONS_PER_TOKEN, _RUN = 1000, 48


class LikeLengths:
    """An engine on a CPU whose batches are divided where that is less work; their parts run one after the other."""

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        self._engine = engine
        self._axes = HEADS[manifest.head].axes
        self._specs = {spec.name: spec for spec in manifest.outputs}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The engine's."""
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The engine's."""
        return self._engine.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Compute ``outputs`` as the engine would of the whole batch; zero where a row was cut short."""
        lengths = _lengths(feeds["attention_mask"])
        groups = list(_divided(lengths))
        if len(groups) == 1:
            return self._engine.run(feeds, outputs)
        results: list[NDArray[Any]] = []
        for rows in groups:
            length = int(lengths[rows[0]])
            found = self._engine.run({name: self._part(name, feeds[name], rows, length) for name in feeds}, outputs)
            if not results:
                shapes = [self._whole(feeds, name, part) for name, part in zip(outputs, found, strict=True)]
                results = [np.zeros(shape, part.dtype) for shape, part in zip(shapes, found, strict=True)]
            for result, part, name in zip(results, found, outputs, strict=True):
                index: Any = (rows, *self._cut(name, length))
                result[index] = part
        return results

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _part(self, name: str, array: NDArray[Any], rows: NDArray[np.intp], length: int) -> NDArray[Any]:
        if name == "head_mask":
            return array
        index: Any = (rows, *[slice(None)] * (len(self._axes) - 2), slice(length))
        return np.ascontiguousarray(array[index])

    def _cut(self, name: str, length: int) -> list[slice]:
        return [slice(length) if axis == "sequence" else slice(None) for axis in self._specs[name].shape[1:]]

    def _whole(self, feeds: Mapping[str, NDArray[Any]], name: str, part: NDArray[Any]) -> tuple[int, ...]:
        sizes = dict(zip(self._axes, feeds["attention_mask"].shape, strict=True))
        axes = self._specs[name].shape
        return tuple(sizes[axis] if axis in self._axes else size for axis, size in zip(axes, part.shape, strict=True))


def can_be_divided(manifest: Manifest) -> bool:
    """Whether this graph leaves out padding, and all that a row has comes with the axes of the head first."""
    axes = HEADS[manifest.head].axes
    inputs = (spec.shape for spec in manifest.inputs if spec.name != "head_mask")
    outputs = [spec.shape for spec in manifest.outputs]
    return (
        manifest.packed
        and all(shape[: len(axes)] == axes for shape in inputs)
        and all(shape[0] == axes[0] and "sequence" not in shape[len(axes) :] for shape in outputs)
    )


def _lengths(mask: NDArray[Any]) -> NDArray[np.intp]:
    """Positions up to the last attended one of each row, or of its longest choice; all where there is padding alone."""
    attend = mask != 0
    width = mask.shape[-1]
    lengths = np.where(attend.any(-1), width - np.argmax(attend[..., ::-1], axis=-1), width)
    found: NDArray[np.intp] = lengths.reshape(len(mask), -1).max(axis=1)
    return found


def _divided(lengths: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Indices of rows that run together, the longest first in each and among them."""
    pending = [np.argsort(-lengths, kind="stable")]
    while pending:
        rows = pending.pop()
        at = _best_cut(lengths[rows].astype(np.int64))
        if at == 0:
            yield rows
        else:
            pending += [rows[at:], rows[:at]]


def _best_cut(lengths: NDArray[np.int64]) -> int:
    """How many of the rows, from the longest on, are better run by themselves; 0 if it does not pay."""
    counts = np.arange(len(lengths))
    spared = (len(lengths) - counts) * (lengths[0] ** 2 - lengths**2)
    at = int(spared.argmax())
    return at if spared[at] > _RUN * _POSITIONS_PER_TOKEN else 0
