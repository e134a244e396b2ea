"""The order in which CUDA and TensorRT are used; and each fault in it is noticed by the tests of plans."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest

from erniem_rt import EngineError, Session
from erniem_rt.batching import RowBatch
from erniem_rt.engines.cuda import Cuda
from erniem_rt.engines.tensorrt import Lane, LanePool
from erniem_rt.engines.tensorrt_plan import LoadedPlan

from .support import assert_same, expected, install

pytestmark = pytest.mark.slow

SMALL_THEN_LARGE = [[[1, 1], [1, 4], [1, 8]], [[1, 1], [4, 16], [4, 16]]]


def work(machine, heads, plan_of, device="cuda:1"):
    """Runs of several shapes in two profiles, again and again, from one thread; everything is looked at."""
    onnx = heads["qa"].path
    plan = plan_of(onnx, SMALL_THEN_LARGE, dtypes={"attention_mask": "INT32"})
    with Session(plan, device=device) as session:
        for rows, width in [(1, 5), (3, 16), (1, 5), (3, 16), (1, 5), (3, 16), (2, 3), (6, 11), (1, 5)]:
            ids = np.random.default_rng(rows).integers(2, 50, (rows, width))
            assert_same(session.run(input_ids=ids), expected(onnx, ids, np.ones_like(ids)))
    machine.check()
    assert machine.gpu.used == {1}
    assert_order(machine.gpu.events)


def assert_order(events):
    """Whatever is used by something else goes after it."""
    kinds = [event.rsplit(" ", 1)[0] if event.startswith("free") else event for event in events]
    order = ["destroy graph", "destroy IExecutionContext", "free device", "destroy stream", "destroy ICudaEngine"]
    order = [kind for kind in order if kind in kinds]
    first = [kinds.index(kind) for kind in order]
    last = [len(kinds) - 1 - kinds[::-1].index(kind) for kind in order]
    assert all(end < start for end, start in zip(last, first[1:], strict=False))
    assert kinds[-1] == "destroy Runtime"


def test_all_is_done_in_order(machine, heads, plan_of):
    work(machine, heads, plan_of)
    assert {"cudaGraphLaunch", "cudaFreeHost", "cudaGraphExecDestroy"} <= set(machine.gpu.calls)


def skip(owner, name):
    return lambda patch: patch.setattr(owner, name, lambda *_, **__: None)


def around(owner, name, change):
    """Replace a method by ``change(original)``."""
    return lambda patch: patch.setattr(owner, name, change(getattr(owner, name)))


def run_with(before):
    """Lane.run that does something first."""

    def change(original):
        def run(lane, profile, shapes):
            before(lane)
            original(lane, profile, shapes)

        return run

    return around(Lane, "run", change)


def default_stream(original):
    return lambda cuda: 0 if original is None else original(cuda) * 0


def early_free(original):
    """The scratch memory goes before the contexts that compute in it."""

    def close(lane):
        scratch, lane._scratch = lane._scratch, 0
        if scratch:
            lane._cuda.free(scratch)
        original(lane)

    return close


def overwrite(original):
    """Upload, and reuse the buffer before the copy is done."""

    def upload(cuda, device, host, size, stream):
        original(cuda, device, host, size, stream)
        allocation = cuda._runtime.gpu.allocations[host]
        for position in range(size):
            allocation.memory[position] ^= 1

    return upload


def change_graphs_context(lane):
    for graph in lane._graphs.values():
        shapes = graph.context.shapes
        graph.context.set_input_shape("input_ids", shapes["input_ids"])


def one_scratch_for_all(original):
    shared = []

    def allocate(lane):
        original(lane)
        shared.append(lane._scratch)
        lane._context.set_device_memory(shared[0], lane._plan.scratch_size)

    return allocate


FAULTS = {
    "outputs are read before they are there": skip(Cuda, "synchronize"),
    "an input is not uploaded": skip(Cuda, "upload"),
    "an output is not downloaded": skip(Cuda, "download"),
    "the device of the thread is not set": skip(Cuda, "use"),
    "device memory is not freed": skip(Cuda, "free"),
    "pinned memory is not freed": skip(Cuda, "free_pinned"),
    "a stream is not destroyed": skip(Cuda, "destroy_stream"),
    "a graph is not destroyed": skip(Cuda, "destroy_graph"),
    "a graph is not launched": skip(Cuda, "launch"),
    "contexts outlive the lane": skip(Lane, "_drop_contexts"),
    "the profile is not selected": skip(Lane, "_select"),
    "addresses are not set": skip(Lane, "_bind"),
    "the plan is kept": skip(LoadedPlan, "release"),
    "lanes are kept": skip(LanePool, "_retire"),
    "the default stream": around(Cuda, "create_stream", default_stream),
    "scratch memory goes first": around(Lane, "close", early_free),
    "a host buffer is reused while its copy is under way": around(Cuda, "upload", overwrite),
    "the context of a graph is used for something else": run_with(change_graphs_context),
    "buffers for the smallest shapes": around(
        Lane, "_largest", lambda original: lambda lane: {k: (d, 8) for k, (d, _) in original(lane).items()}
    ),
    "a capture without a warm run": around(
        Lane,
        "_enqueue",
        lambda original: (
            lambda lane, context, shapes: (
                original(lane, context, shapes) if context is lane._context else lane._infer(context, shapes)
            )
        ),
    ),
    "rows are not cut to their length": around(
        RowBatch, "collect", lambda original: lambda batch, run, name, buffer: None
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_noticed(monkeypatch, heads, plan_of, fault):
    machine = install(monkeypatch)
    FAULTS[fault](monkeypatch)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            work(machine, heads, plan_of)
        except Exception as error:  # The control is that the same work without a fault raises nothing.
            seen.append(error)
    assert seen, f"nobody noticed: {fault}"
    gc.collect()


def test_two_lanes_do_not_share_scratch_memory(monkeypatch, heads, plan_of):
    """The fault that needs two threads."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    machine = install(monkeypatch)
    around(Lane, "_allocate", one_scratch_for_all)(monkeypatch)
    barrier = threading.Barrier(2)

    def meet():
        with pytest.MonkeyPatch.context():
            barrier.wait(5)

    machine.trt.on_execute = meet
    with Session(plan_of(heads["qa"].path)) as session, ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(session.run, {"input_ids": [[5, 6]]}) for _ in range(2)]
        errors = [job.exception(20) for job in jobs]
    assert any(errors)
    assert "two streams compute in the same memory" in machine.gpu.violations


ONCE = {"cudaSetDevice", "cudaStreamCreateWithFlags"}
OFTEN = {"cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync", "cudaStreamSynchronize"}


@pytest.mark.parametrize(
    ("name", "after"), [(name, 0) for name in sorted(ONCE)] + [(n, i) for n in sorted(OFTEN) for i in range(3)]
)
def test_whatever_cuda_refuses_nothing_is_left(machine, heads, plan_of, name, after):
    from .fake_cuda import cudaError_t

    machine.gpu.failing = {name: [cudaError_t.cudaSuccess] * after + [cudaError_t.cudaErrorIllegalAddress]}
    with pytest.raises(EngineError, match="the words for cudaErrorIllegalAddress"):
        work(machine, heads, plan_of)
    machine.gpu.failing = {}
    machine.check()


@pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_graph_that_cannot_be_made_is_a_warning(machine, heads, plan_of, name):
    from .fake_cuda import cudaError_t

    machine.gpu.failing = {name: [cudaError_t.cudaErrorStreamCaptureInvalidated]}
    with pytest.warns(RuntimeWarning, match=r"qa\.plan runs without CUDA graphs from now on, because one could not"):
        work(machine, heads, plan_of)
    assert "cudaGraphLaunch" not in machine.gpu.calls


def test_a_graph_whose_context_cannot_be_made_is_a_warning(machine, heads, plan_of):
    with Session(plan_of(heads["qa"].path)) as session:
        session.run(input_ids=[[5, 6]])
        machine.trt.failing = {"create_execution_context": "out of memory"}
        with pytest.warns(RuntimeWarning, match="ran out of GPU memory: out of memory"):
            found = session.run(input_ids=[[5, 6]])
        assert_same(found, expected(heads["qa"].path, [[5, 6]], [[1, 1]]))
        assert_same(session.run(input_ids=[[5, 6]]), found)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("set_optimization_profile_async", "select profile 0"),
        ("set_input_shape", r"take \w+ of shape \(1, 8\)"),
        ("infer_shapes", "infer the shapes of its outputs: start_logits is not known"),
        ("set_tensor_address", r"take the address of \w+"),
        ("execute_async_v3", "run"),
    ],
)
def test_every_answer_of_tensorrt_is_looked_at(machine, heads, plan_of, name, what):
    machine.trt.failing = {name: "Error Code 7: no"}
    with pytest.raises(EngineError, match=rf"^tensorrt could not {what}: Error Code 7: no\. Open the artifact again"):
        work(machine, heads, plan_of)


def test_a_cache_that_is_not_taken_is_an_error(rtx, heads, plan_of):
    rtx.trt.failing = {"set_runtime_cache": "Error Code 7: no"}
    with pytest.raises(EngineError, match=r"^tensorrt_rtx could not take a runtime cache: Error Code 7: no\. Open"):
        Session(plan_of(heads["qa"].path, flavour="tensorrt-rtx"))
