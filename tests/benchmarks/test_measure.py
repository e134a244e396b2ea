"""What is right, what is timed, in which order, and what is not: with clients that note what they are asked."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from benchmarks import measure
from benchmarks.client import WorkerError
from benchmarks.engines import ENGINES, REFERENCE, EngineSpec
from benchmarks.measure import Budget, Pace, compare, percentile, turn_order
from benchmarks.workloads import build_workloads

from .conftest import LOGITS, World

ROWS, LABELS = 8, 64
# Each label has a bias of its own, larger than what tells the rows apart.
BIASES = np.random.default_rng(2).normal(scale=3.0, size=LABELS)
EXPECTED = (BIASES + np.random.default_rng(0).normal(size=(ROWS, LABELS))).tolist()
FAST, SLOW = ENGINES["erniem-rt"], ENGINES[REFERENCE]


@pytest.mark.parametrize(
    ("noise", "precision", "correct"),
    [
        (1e-4, "fp32", True),
        (1e-2, "fp32", False),
        (1e-2, "fp16", True),
        (1e-1, "fp16", False),
        (1e-1, "bf16", True),
        (1.0, "bf16", False),
        (1.0, "int8", True),
    ],
)
def test_verdicts(noise: float, precision: Any, correct: bool) -> None:
    found = np.array(EXPECTED) + noise * np.random.default_rng(1).normal(size=(ROWS, LABELS))
    assert compare(found.tolist(), EXPECTED, precision)["correct"] is correct


def test_what_is_not_int8() -> None:
    others = [BIASES + np.random.default_rng(10 + seed).normal(size=(ROWS, LABELS)) for seed in range(20)]
    mean = np.tile(np.mean(EXPECTED, axis=0), (ROWS, 1))
    for wrong in (*others, EXPECTED[::-1], mean):
        assert compare(np.asarray(wrong).tolist(), EXPECTED, "int8")["correct"] is False


@pytest.mark.parametrize("found", [EXPECTED[:5], [[*row[:2], float("nan")] for row in EXPECTED]])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_wrong_shapes_and_numbers_that_are_none_are_wrong(found: list[list[float]], precision: Any) -> None:
    assert compare(found, EXPECTED, precision)["correct"] is False


def test_every_engine_comes_first_and_last_and_on_both_sides_of_its_neighbours() -> None:
    names = ["a", "b", "c", "d"]
    orders = [turn_order(names, number) for number in range(8)]
    assert all(sorted(order) == names for order in orders)
    assert {order[0] for order in orders} == {order[-1] for order in orders} == set(names)
    neighbours = Counter(pair for order in orders for pair in pairwise(order))
    assert all((b, a) in neighbours for a, b in neighbours)
    assert turn_order([], 3) == []


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_are_samples(share: float, expected: int) -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1, 101)).tolist()
    assert percentile(samples, share) == expected


def run(world: World, names: list[str], *workloads: str, pace: Pace | None = None, budget: Budget | None = None) -> Any:
    clients = {name: world.client(ENGINES[name]) for name in names}
    work = build_workloads(workloads or ("1x32",), 1000)
    return measure.measure_workloads(clients, work, pace or Pace(3), lambda _: None, budget=budget)


def test_engines_take_turns_and_a_wrong_one_has_none(world: World) -> None:
    world.logits["optimum"] = [[1.0, 2.0, 3.5], [3.0, 1.0, 2.0]]
    found = run(world, [REFERENCE, "ort-plain", "optimum"])
    timed = world.turns[2:]  # each was asked once before, to see how long it takes
    assert [sorted(timed[i : i + 2]) for i in (0, 2, 4)] == [sorted((REFERENCE, "ort-plain"))] * 3
    assert timed[:2] != timed[2:4]
    assert found["ort-plain"]["1x32"]["samples"] == [0.5] * 3
    assert found["optimum"]["1x32"]["correct"] is False
    assert "seconds" not in found["optimum"]["1x32"]


def test_an_engine_that_dies_in_one_workload_is_a_gap_there_and_later(world: World) -> None:
    world.dies = {"ort-plain": ("time", "1x128"), "optimum": ("check", "1x32")}
    found = run(world, [REFERENCE, "ort-plain", "optimum"], "1x32", "1x128", "8x128")
    assert "seconds" in found["ort-plain"]["1x32"]
    assert found["ort-plain"]["1x128"]["gap"] == "failed while it was timed: Killed"
    assert found["ort-plain"]["8x128"] == found["optimum"]["1x32"] == {"correct": False, "gap": "Killed"}
    assert all("seconds" in found[REFERENCE][name] for name in ("1x32", "1x128", "8x128"))


def test_latency_is_of_single_rows(world: World) -> None:
    found = run(world, [REFERENCE], "1x32", "8x128", pace=Pace(1, latency_calls=10))[REFERENCE]
    assert found["1x32"]["latency"] == {"p50": 0.5, "p99": 0.5, "calls": 10}
    assert "latency" not in found["8x128"]


def test_what_the_budget_has_no_time_for_is_left_out_and_named(world: World) -> None:
    budget = Budget(10, clock=lambda: 6.0 * len({*world.turns}) + len(world.turns))
    found = run(world, [REFERENCE], "1x32", "1x128", "8x128", budget=budget)
    assert list(found[REFERENCE]) == ["1x32"]
    assert budget.left_out == ["1×128", "8×128"]
    assert (Budget().timeout, Budget().allows("anything", 1e9)) == (None, True)


def test_an_engine_that_does_not_start_or_answer_is_a_gap(world: World) -> None:
    world.dies = {"openvino": ("start", None), "torch-compile": ("first", "1x32")}
    gaps = {"optimum": "preparing it failed"}
    specs = [ENGINES[name] for name in ("ort-plain", "optimum", "openvino", "torch-compile")]
    clients = measure.open_all(specs, world.client, gaps, lambda _: None, at_once=2)
    assert measure.first_answers(clients, "1x32", gaps, lambda _: None) == {"ort-plain": {"ort-plain": "1"}}
    assert gaps == {
        "optimum": "preparing it failed",
        "openvino": "could not be loaded: no such module",
        "torch-compile": "gives no first answer: Killed",
    }
    assert (list(clients), +world.open) == (["ort-plain"], {"ort-plain": 1})


def test_a_cold_start_is_from_the_process_to_its_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {FAST.name: iter([50, 0.5, 0.75, 0.625]), SLOW.name: iter([90, 4, 6, 5])}
    clock = [0.0]

    def open_client(spec: EngineSpec) -> Any:
        client = world.client(spec)
        client.started, clock[0] = clock[0], clock[0] + next(seconds[spec.name])
        return client

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    expected = {FAST.name: LOGITS[0], SLOW.name: [1.0, 2.0, 4.1]}
    found = measure.cold_starts([FAST, SLOW], open_client, expected, Pace(3))
    assert found[FAST.name]["samples"] == [0.5, 0.75, 0.625]  # the first, which fills the cache, does not count
    assert found[FAST.name]["seconds"] == {"median": 0.625, "lowest": 0.5, "highest": 0.75}
    assert found[FAST.name]["resident"] == 1000
    assert found[SLOW.name]["correct"] is False
    assert "seconds" not in found[SLOW.name]
    assert not +world.open


def test_a_fresh_process_that_dies_is_a_gap_and_is_not_started_again(world: World) -> None:
    world.dies[FAST.name] = ("memory", None)
    found = measure.cold_starts([FAST, SLOW], world.client, {SLOW.name: LOGITS[0]}, Pace(3))
    assert found[FAST.name] == {"gap": "a fresh process gives no first answer: Killed"}
    assert len(world.options) == 1 + 4
    assert len(found[SLOW.name]["samples"]) == 3
    assert not +world.open


def test_workers_side_by_side_share_what_they_can_and_are_added_up(world: World) -> None:
    found = measure.shared_memory(FAST, world.client, 4)
    assert found == {"gap": None, "processes": 4, "proportional": 4000, "private": 4000, "resident_of_one": 1000}
    assert world.options == [{"share_weights": True}] * 4
    world.dies[FAST.name] = ("memory", None)
    assert measure.shared_memory(FAST, world.client, 4) == {"gap": "Killed"}
    assert not +world.open


def test_without_the_reference_nothing_is_compared(world: World) -> None:
    world.dies[REFERENCE] = ("check", "1x32")
    with pytest.raises(WorkerError, match="the reference cannot be measured on 1x32: Killed"):
        run(world, [REFERENCE, "ort-plain"])
