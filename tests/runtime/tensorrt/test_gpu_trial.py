"""The trial of a plan that ``make test-gpu`` makes, with every outcome that it tells apart."""

from __future__ import annotations

import numpy as np
import pytest

from erniem_rt import EngineError, EngineUnavailableError
from tests.gpu.trial import Outcome, try_plan

from .fake_tensorrt import IExecutionContext
from .support import install

UNSUPPORTED = 2


@pytest.fixture
def hopper(monkeypatch):
    """A GPU that no plan for RTX lists."""
    made = install(monkeypatch, rtx=True, capability=(9, 0))
    yield made
    made.check()


@pytest.fixture
def plan(heads, plan_of):
    return plan_of(heads["qa"].path, flavour="tensorrt-rtx")


def test_a_gpu_that_is_listed(rtx, plan):
    outcome = try_plan(plan, "cuda:1")
    assert outcome == Outcome(listed=True)
    assert str(outcome) == "the plan runs on this GPU"
    assert len(rtx.trt.executions) == 1
    assert rtx.gpu.used == {1}


def test_a_gpu_that_is_not_listed_and_runs_it(hopper, plan):
    outcome = try_plan(plan, "cuda:0")
    assert outcome == Outcome(listed=False)
    assert str(outcome) == "the plan runs on this GPU, which its manifest does not list"
    assert len(hopper.trt.executions) == 1


def test_a_gpu_that_does_not_run_it_has_the_words_of_tensorrt(hopper, plan):
    hopper.trt.diagnostics = UNSUPPORTED
    outcome = try_plan(plan, "cuda:0")
    assert not outcome.listed
    assert str(outcome).startswith(f"does not run here: {plan} was built for other GPUs, says tensorrt_rtx ")


def test_a_plan_that_loads_there_and_fails_does_not_run(hopper, plan):
    hopper.trt.failing = {"execute_async_v3": "no kernel image is available"}
    assert "no kernel image is available" in try_plan(plan, "cuda:0").refusal


def test_a_failure_on_a_gpu_that_is_listed_is_no_outcome(rtx, plan):
    """Or what is broken on every GPU would be skipped."""
    rtx.trt.failing = {"execute_async_v3": "no kernel image is available"}
    with pytest.raises(EngineError, match="no kernel image is available"):
        try_plan(plan, "cuda:0")


def test_what_could_not_be_tried_is_no_outcome(rtx, plan):
    with pytest.raises(EngineUnavailableError, match="'cuda:2' is not there"):
        try_plan(plan, "cuda:2")


def test_answers_that_are_no_numbers_are_no_success(hopper, plan, monkeypatch):
    real = IExecutionContext._numpy
    session_run = IExecutionContext._execute

    def spoil(context, places, profile, shapes):
        session_run(context, places, profile, shapes)
        address, shape = places["start_logits"]
        memory = context.gpu.at(address, "device", 0).memory
        content = np.full(shape, np.nan, real(context, "start_logits")).tobytes()
        memory[: len(content)] = content

    monkeypatch.setattr(IExecutionContext, "_execute", spoil)
    with pytest.raises(AssertionError, match="start_logits with values that are not finite"):
        try_plan(plan, "cuda:0")
