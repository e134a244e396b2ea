"""TensorRT and TensorRT for RTX: runs a plan on a GPU, from numpy to numpy, in up to four lanes."""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
import weakref
from collections import OrderedDict
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.batching import RowBatch, are_by_row, plan_runs
from erniem_rt.engines.cuda import OutOfMemoryError
from erniem_rt.engines.tensorrt_plan import LoadedPlan
from erniem_rt.errors import ArtifactError, EngineError, InvalidInputError
from erniem_rt.processes import keep_for_good, renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_rt.engines import PlanOptions
    from erniem_rt.manifest import Manifest


class TensorRTEngine:
    """A plan. Sorts rows into buckets of similar length, and splits batches that fit no profile.

    Attributes:
        inputs: The inputs as the plan declares them, whose dtypes may be narrower than the manifest's.
        outputs: The outputs, likewise.
        max_length: Number of positions in the longest row of any profile.

    Raises:
        ArtifactError: See :class:`LoadedPlan`.
        EngineUnavailableError: See there.
        EngineError: See there.
    """

    def __init__(self, path: Path, manifest: Manifest, options: PlanOptions) -> None:
        if not are_by_row(manifest):
            raise ArtifactError(
                f"{path} has inputs or outputs that cannot be split into rows: open the .onnx file instead."
            )
        plan = LoadedPlan(path, manifest, options)
        try:
            self._pool = LanePool(plan)
        except BaseException:
            plan.release()
            raise
        self._manifest = manifest
        self._profiles = plan.profiles
        self.inputs, self.outputs = plan.inputs, plan.outputs
        self.max_length = max(profile.max[-1] for profile in plan.profiles)
        # Free the GPU's memory even if the session is dropped without close().
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
        """Free the GPU's memory after runs in other threads finish. May be called twice."""
        self._finalizer()

    def after_fork(self) -> None:
        """Free nothing: the GPU's memory is the parent's, and CUDA does not work in a forked child."""
        self._finalizer.detach()
        keep_for_good(self._pool)


# Each lane has its own buffers and scratch memory; four streams keep a GPU busy.
LANES = 4


class LanePool:
    """At most :data:`LANES` lanes, created on demand; if memory is short, runs wait for existing lanes.

    Raises:
        EngineError: The first lane could not be created.
    """

    def __init__(self, plan: LoadedPlan) -> None:
        self._plan = plan
        self._changed = threading.Condition()
        self._limit = LANES
        self._closed = False
        self._idle = [Lane(plan)]
        self._count = 1

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """Lend a lane. After any failure a lane is discarded, since its state is unknown."""
        self._plan.cuda.use()
        lane = self._taken()
        try:
            yield lane
        except BaseException:
            with suppress(EngineError):  # the first failure explains more
                self._retire(lane)
            raise
        self._give_back(lane)

    def close(self) -> None:
        """Free idle lanes now, busy ones after their runs, and then the plan. May be called twice.

        Tries everything before it raises the first failure: after a sticky CUDA error, every call fails.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            idle, self._idle = self._idle, []
            none_left = self._count == 0
            self._changed.notify_all()
        steps: list[Callable[[], None]] = [self._plan.cuda.use]
        steps += [partial(self._retire, lane) for lane in reversed(idle)]
        failures = []
        for step in steps:
            try:
                step()
            except EngineError as error:
                failures.append(error)
        if none_left:  # all lanes failed before, so none releases the plan
            self._plan.release()
        if failures:
            raise failures[0]

    def _taken(self) -> Lane:
        while True:
            with self._changed:
                while not self._closed and not self._idle and self._count >= self._limit:
                    self._changed.wait()
                if self._closed:
                    raise InvalidInputError("the engine is closed; open the artifact again.")
                if self._idle:
                    return self._idle.pop()  # the last one used: its graphs are the most likely to match
                self._count += 1
            try:
                return Lane(self._plan)
            except BaseException as error:
                others = self._forget()
                if not (isinstance(error, OutOfMemoryError) and others):
                    raise
                with self._changed:
                    self._limit = min(self._limit, others)

    def _give_back(self, lane: Lane) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(lane)
                self._changed.notify()
                return
        self._retire(lane)

    def _retire(self, lane: Lane) -> None:
        try:
            lane.close()
        finally:
            self._forget()

    def _forget(self) -> int:
        """Count one lane less and return the remaining number; the last lane of a closed pool releases the plan."""
        with self._changed:
            self._count -= 1
            left = self._count
            self._changed.notify()
            last = self._closed and left == 0
        if last:
            self._plan.release()
        return left


Shapes = dict[str, tuple[int, ...]]
# The key of a graph: the profile and the shapes of the inputs.
_Key = tuple[int, tuple[tuple[int, ...], ...]]

# Number of CUDA graphs that a lane keeps, and of shapes seen once that it remembers. Each graph has its own context.
GRAPHS = 8
SEEN = 64


@dataclass
class _Buffer:
    """One input or output: memory on the host and on the device for its largest shape."""

    dtype: np.dtype[Any]
    host: int
    device: int
    content: NDArray[np.uint8]

    def size(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self.dtype.itemsize

    def view(self, shape: tuple[int, ...]) -> NDArray[Any]:
        return self.content[: self.size(shape)].view(self.dtype).reshape(shape)


@dataclass
class _Graph:
    """A recorded run; its context must not be used for anything else."""

    context: Any
    handle: Any
    outputs: Shapes


class Lane:
    """A stream of a plan with its buffers and execution contexts, for one run at a time.

    The calling thread must have selected the device (:meth:`Cuda.use`).

    Raises:
        EngineError: Memory is full, or TensorRT refuses shapes that the plan declares.
    """

    def __init__(self, plan: LoadedPlan) -> None:
        self._plan = plan
        self._cuda = plan.cuda
        self._buffers: dict[str, _Buffer] = {}
        self._graphs: OrderedDict[_Key, _Graph] = OrderedDict()
        self._seen: OrderedDict[_Key, None] = OrderedDict()
        self._records = plan.records_graphs
        self._context: Any = None
        self._scratch = 0
        self._profile = 0
        self._outputs: Shapes = {}
        self._stream: Any = self._cuda.create_stream()
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def input(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the buffer of an input of this shape, to be filled before :meth:`run`."""
        return self._buffers[name].view(shape)

    def output(self, name: str) -> NDArray[Any]:
        """Return an output of the last run, a view that the next run overwrites."""
        return self._buffers[name].view(self._outputs[name])

    def run(self, profile: int, shapes: Shapes) -> None:
        """Compute from the input buffers, in a profile that covers these shapes; return when done."""
        key = (profile, tuple(shapes[spec.name] for spec in self._plan.inputs))
        if key in self._graphs:
            self._graphs.move_to_end(key)
            graph = self._graphs[key]
            self._outputs = graph.outputs
            self._cuda.launch(graph.handle, self._stream)
        elif self._records and key in self._seen:
            self._run_and_record(key, profile, shapes)
        else:
            self._seen[key] = None
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            self._run_eagerly(profile, shapes)
        self._cuda.synchronize(self._stream)

    def close(self) -> None:
        """Free everything after the run in progress; tries all before it raises the first failure."""
        if self._stream is None:
            return
        cuda, failures = self._cuda, []
        steps: list[tuple[Any, ...]] = [(cuda.synchronize, self._stream)]
        steps += [(cuda.destroy_graph, graph.handle) for graph in self._graphs.values()]
        steps += [(self._drop_contexts,)]
        steps += [(cuda.free, self._scratch)] if self._scratch else []
        for buffer in self._buffers.values():
            steps += [(cuda.free, buffer.device)] if buffer.device else []
            steps += [(cuda.free_pinned, buffer.host)] if buffer.host else []
        steps += [(cuda.destroy_stream, self._stream)]
        for step, *arguments in steps:
            try:
                step(*arguments)
            except EngineError as error:
                failures.append(error)
        self._buffers.clear()
        self._stream, self._scratch = None, 0
        if failures:
            raise failures[0]

    def _drop_contexts(self) -> None:
        self._graphs.clear()
        self._context = None

    def _allocate(self) -> None:
        if self._plan.scratch_size:
            self._scratch = self._cuda.allocate(self._plan.scratch_size)
        self._context = self._plan.create_context(self._scratch)
        for name, (dtype, size) in self._largest().items():
            buffer = self._buffers[name] = _Buffer(dtype, 0, 0, np.empty(0, np.uint8))
            buffer.device = self._cuda.allocate(size)
            buffer.host, buffer.content = self._cuda.allocate_pinned(size)
        self._bind(self._context)

    def _largest(self) -> dict[str, tuple[np.dtype[Any], int]]:
        """Return the dtype and the largest size in bytes of each input and output over all profiles."""
        plan = self._plan
        found = {spec.name: (np.dtype(spec.dtype), 1) for spec in (*plan.inputs, *plan.outputs)}
        for profile, largest in enumerate(plan.largest_shapes):
            self._select(self._context, profile)
            shapes = largest | self._infer(self._context, largest)
            found = {
                name: (dtype, max(size, math.prod(shapes[name]) * dtype.itemsize))
                for name, (dtype, size) in found.items()
            }
        self._profile = len(plan.largest_shapes) - 1
        self._cuda.synchronize(self._stream)
        return found

    def _select(self, context: Any, profile: int) -> None:
        done = context.set_optimization_profile_async(profile, int(self._stream))
        self._plan.require(done, f"select profile {profile}")

    def _infer(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
        """Set the shapes of a context's inputs; return those of its outputs."""
        for name, shape in shapes.items():
            self._plan.require(context.set_input_shape(name, shape), f"take {name} of shape {shape}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise EngineError(f"{self._plan.path} does not tell the shapes of its outputs: {error}.") from error
        self._plan.require(not missing, f"infer the shapes of its outputs: {', '.join(missing)} is not known")
        return {spec.name: tuple(context.get_tensor_shape(spec.name)) for spec in self._plan.outputs}

    def _bind(self, context: Any) -> None:
        for name, buffer in self._buffers.items():
            self._plan.require(context.set_tensor_address(name, buffer.device), f"take the address of {name}")

    def _enqueue(self, context: Any, shapes: Shapes) -> Shapes:
        """Enqueue the whole run: upload of inputs, the network, download of outputs."""
        outputs = self._infer(context, shapes)
        self._enqueue_steps(context, shapes, outputs)
        return outputs

    def _enqueue_steps(self, context: Any, shapes: Shapes, outputs: Shapes) -> None:
        for name, shape in shapes.items():
            buffer = self._buffers[name]
            self._cuda.upload(buffer.device, buffer.host, buffer.size(shape), self._stream)
        self._plan.require(context.execute_async_v3(int(self._stream)), "run")
        for name, shape in outputs.items():
            buffer = self._buffers[name]
            self._cuda.download(buffer.host, buffer.device, buffer.size(shape), self._stream)

    def _run_eagerly(self, profile: int, shapes: Shapes) -> None:
        if profile != self._profile:
            self._select(self._context, profile)
            self._bind(self._context)
            self._profile = profile
        self._outputs = self._enqueue(self._context, shapes)

    def _run_and_record(self, key: _Key, profile: int, shapes: Shapes) -> None:
        """Run a shape that was seen before in a new context, which warms it up, then record it."""
        while len(self._graphs) >= GRAPHS:
            # Between runs, so the old graph is idle.
            self._cuda.destroy_graph(self._graphs.popitem(last=False)[1].handle)
        try:
            context = self._plan.create_context(self._scratch)
        except EngineError as error:
            self._stop_recording(error)
            self._run_eagerly(profile, shapes)
            return
        self._select(context, profile)
        self._bind(context)
        self._outputs = self._enqueue(context, shapes)
        self._cuda.synchronize(self._stream)
        try:
            handle = self._record(context, shapes, self._outputs)
        except EngineError as error:
            self._stop_recording(error)
        else:
            self._graphs[key] = _Graph(context, handle, self._outputs)

    def _stop_recording(self, error: EngineError) -> None:
        self._records = False
        warnings.warn(
            f"{self._plan.path} runs without CUDA graphs from now on, because one could not be made: {error} "
            "Open it with cuda_graphs=False to skip the attempt.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _record(self, context: Any, shapes: Shapes, outputs: Shapes) -> Any:
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue_steps(context, shapes, outputs)
        except BaseException:
            with contextlib.suppress(EngineError):  # the first failure explains more
                self._cuda.destroy_graph(self._cuda.end_capture(self._stream))
            raise
        return self._cuda.end_capture(self._stream)
