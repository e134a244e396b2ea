"""What is measured in fresh processes, with clients that are none."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import processes
from benchmarks.client import WorkerError
from benchmarks.engines import ENGINES, EngineSpec
from benchmarks.processes import cold_starts, shared_memory

FAST, SLOW = ENGINES["erniem-rt"], ENGINES["torch-eager"]
LOGITS = [1.0, 2.0]


class Fresh:
    """A process that takes ``seconds`` to its first answer on the clock of the test, and dies in ``dies_in``."""

    def __init__(self, clock: list[float], seconds: float, logits: list[float], resident: int, dies_in: str) -> None:
        self.started, self._clock, self._seconds = clock[0], clock, seconds
        self._logits, self._resident, self._dies_in = logits, resident, dies_in
        self.closed = False

    def ask(self, do: str, **_: Any) -> dict[str, Any]:
        if do == self._dies_in:
            raise WorkerError("no room")
        if do == "first":
            self._clock[0] += self._seconds
            return {"logits": self._logits, "versions": {}}
        resident = self._resident
        return {"resident": resident, "private": resident // 2, "peak": 2 * resident, "proportional": resident // 4}

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Opener:
    """Opens clients and keeps them; ``dies_in`` is what ends the ones from number ``healthy`` on."""

    def __init__(self, seconds: dict[str, list[float]], healthy: int = 99, dies_in: str = "first") -> None:
        self.clock = [0.0]
        self._seconds, self._healthy, self._dies_in = seconds, healthy, dies_in
        self.opened: list[tuple[str, Fresh]] = []
        self.logits = dict.fromkeys(seconds, LOGITS)

    def __call__(self, spec: EngineSpec) -> Any:
        number = sum(name == spec.name for name, _ in self.opened)
        dies_in = self._dies_in if number >= self._healthy else ""
        seconds = self._seconds[spec.name][number]
        self.opened.append((spec.name, Fresh(self.clock, seconds, self.logits[spec.name], 1000 + number, dies_in)))
        return self.opened[-1][1]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PAUSE", 0)


def start(monkeypatch: pytest.MonkeyPatch, opener: Opener, rounds: int) -> dict[str, dict[str, Any]]:
    monkeypatch.setattr(processes.time, "perf_counter", lambda: opener.clock[0])
    return cold_starts([FAST, SLOW], opener, {FAST.name: LOGITS, SLOW.name: LOGITS}, rounds)


def test_a_cold_start_is_from_the_process_to_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    opener = Opener({FAST.name: [50, 0.5, 0.75, 0.625], SLOW.name: [90, 4, 6, 5]})
    found = start(monkeypatch, opener, 3)
    assert found[FAST.name]["samples"] == [0.5, 0.75, 0.625]  # the first, which fills the cache, does not count
    assert found[FAST.name]["seconds"] == {"median": 0.625, "lowest": 0.5, "highest": 0.75}
    assert found[SLOW.name]["seconds"]["median"] == 5
    assert (found[FAST.name]["resident"], found[FAST.name]["peak"]) == (1002, 2004)
    order = [name for name, _ in opener.opened]
    assert [sorted(order[i : i + 2]) for i in range(0, 8, 2)] == [sorted((FAST.name, SLOW.name))] * 4
    assert order[:2] != order[2:4]
    assert all(client.closed for _, client in opener.opened)


def test_a_fresh_process_that_answers_otherwise_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    opener = Opener({FAST.name: [1.0] * 3, SLOW.name: [1.0] * 3})
    opener.logits[FAST.name] = [1.0, 2.1]
    found = start(monkeypatch, opener, 2)
    assert found[FAST.name]["correct"] is False
    assert "seconds" not in found[FAST.name]
    assert found[SLOW.name]["correct"] is True


def test_a_fresh_process_that_dies_is_a_gap_and_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class FastDies(Opener):
        def __call__(self, spec: EngineSpec) -> Any:
            self._dies_in = "first" if spec is FAST else ""
            return super().__call__(spec)

    opener = FastDies({FAST.name: [1.0] * 4, SLOW.name: [1.0] * 4}, healthy=1)
    found = start(monkeypatch, opener, 3)
    assert found[FAST.name] == {"gap": "a fresh process gives no first answer: no room"}
    assert [name for name, _ in opener.opened].count(FAST.name) == 2
    assert len(found[SLOW.name]["samples"]) == 3
    assert all(client.closed for _, client in opener.opened)


def test_workers_side_by_side_are_added_up() -> None:
    opener = Opener({FAST.name: [1.0] * 4})
    found = shared_memory(FAST, opener, 4)
    assert found == {"gap": None, "processes": 4, "proportional": 1000, "private": 2002, "resident_of_one": 1000}
    assert all(client.closed for _, client in opener.opened)


@pytest.mark.parametrize("dies_in", ["first", "memory"])
def test_one_worker_too_many_is_a_gap_and_all_are_ended(dies_in: str) -> None:
    opener = Opener({FAST.name: [1.0] * 4}, healthy=3, dies_in=dies_in)
    assert shared_memory(FAST, opener, 4) == {"gap": "no room"}
    assert len(opener.opened) == 4
    assert all(client.closed for _, client in opener.opened)


def test_workers_side_by_side_share_what_the_engine_can_share() -> None:
    opened: list[dict[str, Any]] = []

    def refuse(spec: EngineSpec) -> Any:
        opened.append(spec.options)
        raise WorkerError("seen")

    assert shared_memory(FAST, refuse, 4) == {"gap": "seen"}
    assert opened == [{"share_weights": True}]
