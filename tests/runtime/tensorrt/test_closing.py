"""Closing gives the GPU back, whatever failed before or fails meanwhile."""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

import erniem_rt.processes
from erniem_rt import EngineError, EngineUnavailableError, Session

from .fake_cuda import cudaError_t

NOTHING = {"Runtime": 0, "ICudaEngine": 0, "IExecutionContext": 0}
BROKEN = cudaError_t.cudaErrorIllegalAddress


def fail_once(machine, session):
    """The only lane of the session fails, and is not used again."""
    machine.trt.failing = {"execute_async_v3": "something broke"}
    with pytest.raises(EngineError, match="something broke"):
        session.run(input_ids=[[5, 6]])
    machine.trt.failing = {}
    gc.collect()


def occupy(machine, session, lanes):
    """Leave so many lanes behind, idle."""
    barrier = Barrier(lanes)
    machine.trt.on_execute = lambda: barrier.wait(10)
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(session.run, [{"input_ids": [[5, 6]]}] * lanes))
    assert machine.trt.alive["IExecutionContext"] == lanes


def test_a_plan_goes_although_its_only_lane_failed(machine, heads, plan_of):
    """While the session, which is closed, is still at hand."""
    session = Session(plan_of(heads["qa"].path))
    fail_once(machine, session)
    session.close()
    gc.collect()
    assert machine.trt.alive == NOTHING
    assert session.manifest.head == "qa"


def test_kernels_are_kept_although_the_only_lane_failed(rtx, heads, plan_of, tmp_path):
    session = Session(plan_of(heads["qa"].path, flavour="tensorrt-rtx"), runtime_cache=tmp_path / "kernels")
    session.run(input_ids=[[5, 6]])
    fail_once(rtx, session)
    session.close()
    assert len(json.loads((tmp_path / "kernels").read_bytes())) == 1


@pytest.mark.parametrize("name", ["cudaStreamSynchronize", "cudaSetDevice"])
def test_all_lanes_and_the_plan_go_although_cuda_fails(machine, heads, plan_of, name):
    """An error of CUDA that stays until the process ends; it is raised when all else is done."""
    session = Session(plan_of(heads["qa"].path))
    occupy(machine, session, 2)
    machine.gpu.failing = {name: [BROKEN] * 9}
    with pytest.raises(EngineError, match="the words for cudaErrorIllegalAddress"):
        session.close()
    gc.collect()
    assert machine.trt.alive == NOTHING
    assert machine.gpu.leaks() == []
    session.close()


def test_a_forked_child_is_told_and_touches_no_gpu(machine, heads, plan_of, monkeypatch):
    """Played in one process: what Python calls in a child is called here, and the parent is said to be another one."""
    path = plan_of(heads["qa"].path)
    session = Session(path)
    session.run(input_ids=[[5, 6]])
    engine, pool, alive = session._engine, session._engine._pool, dict(machine.trt.alive)
    monkeypatch.setattr(erniem_rt.processes, "_gpu_process", erniem_rt.processes._gpu_process + 1)
    engine.after_fork()
    session.after_fork()
    refused = pytest.raises(EngineUnavailableError, match="cuda:0 cannot be used here: this process was forked from")
    with refused:
        session.run(input_ids=[[5, 6]])
    with refused:
        Session(path)
    with refused:
        Session(heads["qa"].path, device="cuda")
    Session(heads["qa"].path).close()
    session.close()
    del engine, session
    gc.collect()
    assert machine.trt.alive == alive
    pool.close()  # what the parent would do
