"""Batching of rows of different lengths: sorts, cuts, pads and runs them, and restores the order of the outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from erniem_rt.manifest import HEADS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from erniem_rt.engines import Engine
    from erniem_rt.manifest import Manifest, Profile, TensorSpec
    from erniem_rt.session import Session


_T = TypeVar("_T")

Outputs = dict[str, "NDArray[Any]"]

# On a CPU, attention over a row of n positions takes as long as the matmuls of n² / 1000 tokens, and another run of the
# engine as long as 24 tokens: estimates from profiles of base size in int8. On AVX2, 6 to 48 tokens made no difference;
# on AVX-512 with VNNI, 24 took 0.88 of the CPU time of 48 in ONNX Runtime, and 0.97 in OpenVINO.
_POSITIONS_PER_TOKEN, _RUN = 1000, 24
# For a plan, lengths are rounded up to a multiple of this: fewer shapes, so that CUDA graphs are reused.
BUCKET = 16
# The cost of one more run of a plan, in positions: below that, padding is cheaper. An estimate, not measured.
LAUNCH = 1024


def run_rows(session: Session, rows: Sequence[Sequence[int]], *, batch_size: int = 16) -> Iterator[tuple[int, Outputs]]:
    """Run rows of ids of any lengths; yield each row's outputs as soon as they are computed.

    Args:
        session: The model. With head ``mc`` each row is one choice, scored alone.
        rows: Ids with special tokens and without padding, at least one per row.
        batch_size: Largest number of rows in one run of the engine.

    Yields:
        ``(row, outputs)`` for each row, the longest rows first: the index of the row and its outputs by name, without
        batch axis and padding: ``(sequence,)`` or ``(sequence, labels)`` for an output per token, ``(labels,)`` for one
        per row. They are views: each keeps the outputs of its whole batch in memory.
    """
    specs = session.manifest.outputs
    has_choices = "choices" in HEADS[session.manifest.head].axes
    batches = list(_batches(rows, batch_size))

    def feeds(batch: list[int]) -> dict[str, NDArray[np.int64]]:
        ids, mask = _padded([rows[i] for i in batch], session.manifest.limits.pad_token_id)
        if has_choices:
            ids, mask = ids[:, None], mask[:, None]
        return {"input_ids": ids, "attention_mask": mask}

    for batch, outputs in zip(batches, session.run_all(map(feeds, batches)), strict=True):
        for position, row in enumerate(batch):
            kept = {spec.name: tuple(_kept(spec.shape[1:], len(rows[row]))) for spec in specs}
            yield row, {name: outputs[name][position][index] for name, index in kept.items()}


def _batches(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of rows of similar length that run together, the longest first.

    So a batch that is too large for the memory fails at once and not at the end.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def _kept(axes: Sequence[int | str], length: int) -> list[slice]:
    """Return slices of the first ``length`` positions along every axis ``sequence``."""
    return [slice(length) if axis == "sequence" else slice(None) for axis in axes]


def take(source: Iterator[_T], count: int) -> tuple[list[_T], Exception | None]:
    """Return up to ``count`` items, and the error that the source raised instead of the next one, if any."""
    taken: list[_T] = []
    try:
        while len(taken) < count:
            taken.append(next(source))
    except StopIteration:
        return taken, None
    except Exception as error:
        return taken, error
    return taken, None


@dataclass(frozen=True)
class Run:
    """One run of an engine.

    ``rows`` are the indices of its rows; ``shape`` is the ids' shape, whose leading axes have room for at least these
    rows (the rest is filled up); ``profile`` is the index of the plan's profile.
    """

    rows: NDArray[np.intp]
    shape: tuple[int, ...]
    profile: int = 0

    @property
    def length(self) -> int:
        """Number of positions in each row."""
        return self.shape[-1]


class RowBatch:
    """One batch that an engine computes in one or more runs; each choice of a question is a row.

    Args:
        manifest: The artifact's; its inputs and outputs must be by row (:func:`are_by_row`).
        feeds: The graph's inputs, as for :meth:`erniem_rt.engines.Engine.run`.
        outputs: The names of the wanted outputs.

    Attributes:
        width: Number of positions in each row.
        choices: Number of choices in each question; None for heads without choices.
        lengths: ``(rows,)``, the positions up to the last attended one; 0 for a row of padding only.
    """

    def __init__(self, manifest: Manifest, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> None:
        self._axes = HEADS[manifest.head].axes
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        self._wanted = {spec.name: spec for spec in manifest.outputs if spec.name in outputs}
        self._pad_id = manifest.limits.pad_token_id
        self._feeds = feeds
        mask = feeds["attention_mask"]
        self._lead, self.width = mask.shape[:-1], mask.shape[-1]
        self.choices = self._lead[1] if len(self._lead) > 1 else None
        self._attend = (mask != 0).reshape(-1, self.width)
        ends = self.width - np.argmax(self._attend[:, ::-1], axis=1)
        self.lengths: NDArray[np.intp] = np.where(self._attend.any(axis=1), ends, 0)
        self._results: dict[str, NDArray[Any]] = {}

    def shapes(self, run: Run) -> dict[str, tuple[int, ...]]:
        """Return the shape of each input in a run."""
        sizes = dict(zip(self._axes, run.shape, strict=True))
        return {
            name: tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape)
            for name, spec in self._inputs.items()
        }

    def taken(self, run: Run) -> dict[str, NDArray[Any]]:
        """Return the inputs of a run, in new arrays of the graph's dtypes."""
        shapes = self.shapes(run)
        arrays = {name: np.empty(shapes[name], array.dtype) for name, array in self._feeds.items()}
        for name, array in arrays.items():
            self.fill(run, name, array)
        return arrays

    def fill(self, run: Run, name: str, buffer: NDArray[Any]) -> None:
        """Write an input of a run into ``buffer``, which has the run's shape and the engine's dtype."""
        array = self._feeds[name]
        if name == "head_mask":
            buffer[...] = array
            return
        tail = array.shape[len(self._axes) :]
        source = array.reshape(-1, self.width, *tail)
        target = buffer.reshape(-1, run.length, *tail)
        count, kept = len(run.rows), min(run.length, self.width)
        target[:count, :kept] = source[self._index(run), :kept]
        target[:count, kept:] = self._pad_id if name == "input_ids" else 0
        target[count:] = target[:1]  # a real row: one of padding only could give NaN

    def collect(self, run: Run, name: str, buffer: NDArray[Any]) -> None:
        """Copy a run's output from ``buffer``, if it is a wanted one."""
        spec = self._wanted.get(name)
        if spec is None:
            return
        axes = spec.shape[len(self._lead) :]
        rows = buffer.reshape(math.prod(run.shape[:-1]), *buffer.shape[len(self._lead) :])
        if name not in self._results:
            sizes = [
                self.width if axis == "sequence" else size for axis, size in zip(axes, rows.shape[1:], strict=True)
            ]
            self._results[name] = np.zeros((len(self._attend), *sizes), spec.dtype)
        kept = _kept(axes, min(run.length, self.width))
        target: Any = (self._index(run), *kept)
        source: Any = (slice(len(run.rows)), *kept)
        self._results[name][target] = rows[source]

    def clear_padding(self) -> None:
        """Set outputs to zero at padding (see :class:`erniem_rt.Session`), for engines that compute values there."""
        padding = ~self._attend & self._attend.any(axis=1, keepdims=True)
        padding[:, 0] = False
        for name, spec in self._wanted.items():
            if spec.shape[len(self._lead) :][:1] == ("sequence",) and padding.any():
                self._results[name][padding] = 0

    def results(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return the outputs in the caller's shape, zero where a row was cut."""
        found = (self._results[name] for name in outputs)
        return [rows.reshape(*self._lead, *rows.shape[1:]) for rows in found]

    def _index(self, run: Run) -> Any:
        """Return the index of a run's rows; a slice for all rows, which saves a copy."""
        return slice(None) if len(run.rows) == len(self._attend) else run.rows


def are_by_row(manifest: Manifest) -> bool:
    """Return whether all inputs and outputs start with the head's axes, so that they can be split by row."""
    axes = HEADS[manifest.head].axes
    inputs = (spec for spec in manifest.inputs if spec.name != "head_mask")
    return all(spec.shape[: len(axes)] == axes for spec in inputs) and all(
        spec.shape[: len(axes) - 1] == axes[:-1] for spec in manifest.outputs
    )


class LengthBucketing:
    """Wraps a CPU engine of a packed graph: splits a batch into rows of similar length, if that saves work.

    A packed graph skips padding in the matmuls; the split also skips it in attention.
    """

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        self._engine = engine
        self._manifest = manifest

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The engine's."""
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The engine's."""
        return self._engine.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Compute ``outputs`` of the whole batch, in parts; zero where a row was cut."""
        batch = RowBatch(self._manifest, feeds, outputs)
        lengths = np.where(batch.lengths == 0, batch.width, batch.lengths)
        parts = list(_divided(lengths))
        if len(parts) == 1:
            return self._engine.run(feeds, outputs)
        for rows in parts:
            choices = () if batch.choices is None else (1,)
            run = Run(rows, (len(rows), *choices, int(lengths[rows[0]])))
            for name, array in zip(outputs, self._engine.run(batch.taken(run), outputs), strict=True):
                batch.collect(run, name, array)
        return batch.results(outputs)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


def _divided(lengths: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Yield the indices of rows that run together, the longest first."""
    pending = [np.argsort(-lengths, kind="stable")]
    while pending:
        rows = pending.pop()
        at = _best_cut(lengths[rows].astype(np.int64))
        if at == 0:
            yield rows
        else:
            pending += [rows[at:], rows[:at]]


def _best_cut(lengths: NDArray[np.int64]) -> int:
    """Return how many of the longest rows to run separately; 0 if that saves nothing."""
    counts = np.arange(len(lengths))
    spared = (len(lengths) - counts) * (lengths[0] ** 2 - lengths**2)
    at = int(spared.argmax())
    return at if spared[at] > _RUN * _POSITIONS_PER_TOKEN else 0


def plan_runs(
    lengths: NDArray[np.intp], width: int, profiles: Sequence[Profile], *, choices: int | None = None
) -> list[Run]:
    """Divide rows into runs, the longest rows first, so that a run too large for the memory fails at once.

    Args:
        lengths: ``(rows,)``, the positions that each row needs. 0 for a row of padding only: it attends to all its
            positions, so it keeps exactly ``width``, unless every profile needs longer rows.
        width: The rows' given number of positions, which at least one profile covers.
        profiles: The plan's profiles.
        choices: For plans with three axes, the given number of choices per question. Choices are scored independently,
            so they may be regrouped.
    """
    # A row of padding only must keep its width, so no row beside it gets wider.
    limit = width if not lengths.all() else max(profile.max[-1] for profile in profiles)
    rounded = np.where(lengths == 0, width, np.minimum(-(-lengths // BUCKET) * BUCKET, limit))
    runs = []
    for rows in _buckets(rounded):
        needed = np.where(lengths[rows] == 0, width, lengths[rows]).max()
        group = _Group(int(needed), int(rounded[rows].max()), bool((lengths[rows] == 0).any()))
        runs += _divide(rows, group, profiles, choices)
    return runs


@dataclass(frozen=True)
class _Group:
    """Rows of similar length: the longest row's positions, exact and rounded, and whether ``needed`` is required."""

    needed: int
    rounded: int
    exact: bool


def _buckets(lengths: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Group rows by length, longest first; merge buckets if the padding costs less than another run."""
    groups: list[list[NDArray[np.intp]]] = []
    longest = padding = 0
    for length in np.unique(lengths)[::-1].tolist():
        rows = np.flatnonzero(lengths == length)
        padding += len(rows) * (longest - length)
        if groups and padding <= LAUNCH:
            groups[-1].append(rows)
        else:
            groups.append([rows])
            longest, padding = length, 0
    return [np.sort(np.concatenate(rows)) for rows in groups]


def _divide(rows: NDArray[np.intp], group: _Group, profiles: Sequence[Profile], choices: int | None) -> list[Run]:
    """Split a group into runs of one shape, in the profile that computes the fewest positions."""
    candidates = [
        _Layout.of(index, profile, len(rows), group, choices)
        for index, profile in enumerate(profiles)
        if profile.max[-1] >= group.needed
    ]
    layout = min(candidates, key=lambda layout: layout.cost)
    held = math.prod(layout.shape[:-1])
    parts = [rows[start : start + held] for start in range(0, len(rows), held)]
    return [Run(part, layout.shape, layout.profile) for part in parts]


@dataclass(frozen=True)
class _Layout:
    """A way to run rows in a profile; the lowest ``cost`` is the best."""

    profile: int
    shape: tuple[int, ...]
    cost: tuple[bool, float, float, int]

    @classmethod
    def of(cls, index: int, profile: Profile, rows: int, group: _Group, choices: int | None) -> _Layout:
        inner = 1 if choices is None else min(max(choices, profile.min[1]), profile.max[1])
        runs = -(-rows // (profile.max[0] * inner))
        # Even parts share one shape, and none is left with a single row.
        batch = max(-(-rows // (runs * inner)), profile.min[0])
        length = min(max(group.rounded, profile.min[-1]), profile.max[-1])
        shape = (batch, *(() if choices is None else (inner,)), length)
        distance = sum(abs(math.log(size / best)) for size, best in zip(shape, profile.opt, strict=True))
        changed = group.exact and length != group.needed
        return cls(index, shape, (changed, runs * (math.prod(shape) + LAUNCH), distance, index))
