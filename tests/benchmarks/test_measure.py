"""What is measured, in which order, and what is not: with clients that note what they are asked."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.client import WorkerError
from benchmarks.engines import ENGINES, REFERENCE, EngineSpec
from benchmarks.measure import check_all, first_answers, open_all, time_rounds
from benchmarks.workloads import build_workloads

WORKLOADS = build_workloads(("1x32",), 1000)
LOGITS = [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]


class FakeClient:
    """Answers ``logits`` and takes a second for everything; fails from a call of ``time`` on, or in ``dies_in``.

    Once it has failed it fails always, as a process does that has ended.
    """

    def __init__(
        self, name: str, turns: list[str], logits: Any = LOGITS, fails_at: int = 99, dies_in: str | None = None
    ) -> None:
        self.spec, self._turns, self._logits, self._fails_at = ENGINES[name], turns, logits, fails_at
        self._dies_in, self.closed = dies_in, False

    def close(self) -> None:
        self.closed = True

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        if self._dies_in in (do, arguments["workload"]):
            self._fails_at, self._dies_in = 0, do
            raise WorkerError("Segmentation fault")
        if do == "first":
            return {"versions": {"engine": "1"}}
        if do == "check":
            return {"logits": self._logits}
        self._turns.append(self.spec.name)
        if self._turns.count(self.spec.name) >= self._fails_at:
            raise WorkerError("Segmentation fault")
        return {"seconds": [1.0] * arguments["calls"]}


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.PAUSE", 0)


def measure(clients: list[FakeClient], rounds: int = 3, workloads: Any = WORKLOADS) -> dict[str, Any]:
    by_name: Any = {client.spec.name: client for client in clients}
    verdicts = check_all(by_name, workloads, lambda _: None)
    return time_rounds(by_name, workloads, verdicts, rounds, lambda _: None)


def test_engines_take_turns() -> None:
    turns: list[str] = []
    results = measure([FakeClient(name, turns) for name in (REFERENCE, "ort-plain", "optimum")])
    timed = turns[3:]  # each was asked once before, to see how long it takes
    assert [sorted(timed[i : i + 3]) for i in (0, 3, 6)] == [sorted((REFERENCE, "ort-plain", "optimum"))] * 3
    assert timed[:3] != timed[3:6]
    for name in (REFERENCE, "ort-plain", "optimum"):
        assert results[name]["1x32"]["samples"] == [1.0, 1.0, 1.0]
        assert results[name]["1x32"]["seconds"]["median"] == 1.0


def test_a_wrong_engine_has_no_time_and_no_turn() -> None:
    turns: list[str] = []
    wrong = [[1.0, 2.0, 3.5], [3.0, 1.0, 2.0]]
    results = measure([FakeClient(REFERENCE, turns), FakeClient("ort-plain", turns, logits=wrong)])
    assert "ort-plain" not in turns
    assert results["ort-plain"]["1x32"]["correct"] is False
    assert "seconds" not in results["ort-plain"]["1x32"]
    assert "seconds" in results[REFERENCE]["1x32"]


def test_an_engine_that_fails_on_the_way_is_a_gap_with_its_reason() -> None:
    turns: list[str] = []
    results = measure([FakeClient(REFERENCE, turns), FakeClient("ort-plain", turns, fails_at=3)])
    verdict = results["ort-plain"]["1x32"]
    assert verdict["gap"] == "failed while it was timed: Segmentation fault"
    assert "seconds" not in verdict
    assert len(results[REFERENCE]["1x32"]["samples"]) == 3


def test_an_engine_that_does_not_start_is_a_gap_with_its_reason() -> None:
    def open_client(spec: EngineSpec) -> Any:
        if spec.name == "openvino":
            raise WorkerError("ModuleNotFoundError: No module named 'openvino'")
        return FakeClient(spec.name, [])

    gaps = {"optimum": "preparing it failed"}
    specs = [ENGINES[name] for name in ("ort-plain", "optimum", "openvino")]
    assert list(open_all(specs, open_client, gaps, lambda _: None)) == ["ort-plain"]
    assert gaps["openvino"] == "could not be loaded: ModuleNotFoundError: No module named 'openvino'"
    assert gaps["optimum"] == "preparing it failed"


def test_an_engine_that_dies_in_one_workload_is_a_gap_in_the_later_ones_too() -> None:
    two = build_workloads(("1x32", "1x128"), 1000)
    turns: list[str] = []
    # Asked once and timed three times on the first workload; then once on the second, and it dies there.
    late = FakeClient("ort-plain", turns, fails_at=5)
    early = FakeClient("optimum", turns, dies_in="1x32")
    results = measure([FakeClient(REFERENCE, turns), late, early], workloads=two)
    assert "seconds" in results["ort-plain"]["1x32"]
    assert results["ort-plain"]["1x128"]["gap"] == "failed while it was timed: Segmentation fault"
    assert "seconds" not in results["ort-plain"]["1x128"]
    assert [results["optimum"][name] for name in ("1x32", "1x128")] == [
        {"correct": False, "gap": "Segmentation fault"}
    ] * 2
    assert "optimum" not in turns
    for workload in two:
        assert len(results[REFERENCE][workload.name]["samples"]) == 3


def test_an_engine_without_a_first_answer_is_closed_and_a_gap() -> None:
    dead = FakeClient("torch-compile", [], dies_in="first")
    clients: Any = {REFERENCE: FakeClient(REFERENCE, []), "torch-compile": dead}
    gaps: dict[str, str] = {}
    assert first_answers(clients, "1x32", gaps, lambda _: None) == {REFERENCE: {"engine": "1"}}
    assert gaps == {"torch-compile": "gives no first answer: Segmentation fault"}
    assert list(clients) == [REFERENCE]
    assert dead.closed
