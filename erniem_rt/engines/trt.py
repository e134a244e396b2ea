"""TensorRT and TensorRT for RTX: a plan on a GPU, from numpy to numpy."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from erniem_rt._processes import keep_for_good, renew_after_fork
from erniem_rt.batching import RowBatch, are_by_row, plan_runs
from erniem_rt.engines.trt_library import LoadedPlan
from erniem_rt.engines.trt_pool import LanePool
from erniem_rt.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_rt.engines.base import Device, PlanOptions
    from erniem_rt.manifest import Manifest

__all__ = ["TensorRTEngine"]


class TensorRTEngine:
    """A plan. Rows are sorted into buckets of like length, and batches that no profile takes are run in parts.

    Attributes:
        inputs: The inputs as the plan declares them, whose dtypes may be narrower than the manifest's.
        outputs: The outputs, likewise.
        max_length: Positions of the longest row that a profile takes.

    Raises:
        ArtifactError: See :class:`LoadedPlan`.
        EngineUnavailableError: See there.
        EngineError: See there.
    """

    def __init__(self, path: Path, manifest: Manifest, *, device: Device, options: PlanOptions) -> None:
        if not are_by_row(manifest):
            raise ArtifactError(f"{path} has inputs or outputs that are not by row: open the .onnx file instead.")
        plan = LoadedPlan(path, manifest, device, options)
        try:
            self._pool = LanePool(plan)
        except BaseException:
            plan.release()
            raise
        self._manifest = manifest
        self._profiles = plan.profiles
        self.inputs, self.outputs = plan.inputs, plan.outputs
        self.max_length = max(profile.max[-1] for profile in plan.profiles)
        # A session that is dropped without close() must not keep the GPU's memory.
        self._finalizer = weakref.finalize(self, self._pool.close)
        renew_after_fork(self)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Compute ``outputs`` in the order given; :class:`EngineError` if TensorRT or CUDA cannot."""
        batch = RowBatch(self._manifest, feeds, outputs)
        with self._pool.lane() as lane:
            for run in plan_runs(batch.lengths, batch.width, self._profiles, choices=batch.choices):
                shapes = batch.shapes(run)
                for name, shape in shapes.items():
                    batch.fill(run, name, lane.input(name, shape))
                lane.run(run.profile, shapes)
                for spec in self.outputs:
                    batch.collect(run, spec.name, lane.output(spec.name))
        batch.clear_padding()
        return batch.results(outputs)

    def close(self) -> None:
        """Give the GPU's memory back; runs under way in other threads finish first. Closing twice is fine."""
        self._finalizer()

    def after_fork(self) -> None:
        """Let go of nothing: the GPU's memory is the parent's, and CUDA does not work in a forked child."""
        self._finalizer.detach()
        keep_for_good(self._pool)
