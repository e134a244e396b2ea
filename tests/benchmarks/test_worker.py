"""The protocol from both ends: the worker on streams, and the client on real processes."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import adapters
from benchmarks.client import Client, WorkerError
from benchmarks.engines import ENGINES, EngineSpec
from benchmarks.worker import serve

SPEC = ENGINES["ort-plain"]


class Echo:
    """Answers each row with its sum; notes how often it ran."""

    versions = {"echo": "1"}

    def __init__(self, artifact: Path, threads: int, factor: int = 1) -> None:
        self.artifact, self.threads, self.factor = artifact, threads, factor
        self.states: list[tuple[int, int]] = []
        self.runs: list[tuple[int, int]] = []

    def run(self, rows: list[list[int]], batch_size: int) -> Any:
        self.runs.append((len(rows), batch_size))
        return np.array([[self.factor * sum(row)] for row in rows], dtype=np.float32)

    def hidden_states(self, rows: list[list[int]], batch_size: int) -> Any:
        self.states.append((len(rows), batch_size))
        return [np.array([[token] for token in row], dtype=np.float32) for row in rows]


@pytest.fixture
def workloads(tmp_path: Path) -> Path:
    path = tmp_path / "workloads.json"
    checked = [[1, 2], [3], [4], [5], [6]]
    path.write_text(json.dumps({"two": {"rows": checked[:2], "checked": checked, "batch_size": 2}}))
    return path


def converse(monkeypatch: pytest.MonkeyPatch, workloads: Path, *requests: dict[str, Any]) -> tuple[Echo, list[Any]]:
    """Run a worker with the echo engine on these requests."""
    engines = []

    def load(*arguments: Any, **options: Any) -> Echo:
        engines.append(Echo(*arguments, **options))
        return engines[0]

    monkeypatch.setattr(adapters, "Echo", load, raising=False)
    start = {"adapter": "Echo", "artifact": "x", "threads": 3, "options": {"factor": 2}, "workloads": str(workloads)}
    answers = io.StringIO()
    serve(io.StringIO("".join(json.dumps(line) + "\n" for line in (start, *requests))), answers)
    return engines[0], [json.loads(line) for line in answers.getvalue().splitlines()]


def test_the_engine_is_loaded_as_the_first_line_says(monkeypatch: pytest.MonkeyPatch, workloads: Path) -> None:
    engine, answers = converse(monkeypatch, workloads)
    assert (engine.artifact, engine.threads, engine.factor) == (Path("x"), 3, 2)
    assert answers == [{"ready": True}]


def test_first_answers_one_row(monkeypatch: pytest.MonkeyPatch, workloads: Path) -> None:
    engine, answers = converse(monkeypatch, workloads, {"do": "first", "workload": "two"})
    assert answers[1] == {"logits": [6.0], "versions": {"echo": "1"}}
    assert engine.runs == [(1, 1)]


def test_check_answers_all_rows_in_calls_of_the_timed_size(monkeypatch: pytest.MonkeyPatch, workloads: Path) -> None:
    engine, answers = converse(monkeypatch, workloads, {"do": "check", "workload": "two"})
    assert answers[1] == {"logits": [[6.0], [6.0], [8.0], [10.0], [12.0]]}
    assert engine.runs == [(2, 2), (2, 2), (1, 2)]


def test_time_tells_the_seconds_of_the_timed_calls_only(monkeypatch: pytest.MonkeyPatch, workloads: Path) -> None:
    request = {"do": "time", "workload": "two", "untimed": 2, "calls": 3}
    engine, answers = converse(monkeypatch, workloads, request)
    assert len(answers[1]["seconds"]) == 3
    assert all(seconds >= 0 for seconds in answers[1]["seconds"])
    assert engine.runs == [(2, 2)] * 5


def test_hidden_states_are_timed_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch, workloads: Path) -> None:
    request = {"do": "time", "workload": "two", "untimed": 1, "calls": 1, "states": True}
    engine, answers = converse(monkeypatch, workloads, request)
    assert len(answers[1]["seconds"]) == 1
    assert (engine.runs, engine.states) == ([], [(2, 2)] * 2)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read as Linux tells it")
def test_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch, workloads: Path) -> None:
    _, answers = converse(monkeypatch, workloads, {"do": "memory"})
    assert answers[1].keys() == {"resident", "private", "peak", "proportional"}
    assert 1e6 < answers[1]["private"] <= answers[1]["resident"] <= answers[1]["peak"] < 1e11


def open_client(tmp_path: Path, script: str | None = None, timeout: float = 30, spec: EngineSpec = SPEC) -> Client:
    command = {} if script is None else {"command": [sys.executable, "-c", script]}
    return Client(spec, tmp_path, tmp_path / "workloads.json", 1, timeout=timeout, **command)


def test_a_package_that_is_missing_is_named(tmp_path: Path, workloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino.py").write_text("import a_package_nobody_has")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with pytest.raises(WorkerError, match="No module named 'a_package_nobody_has'"):
        open_client(tmp_path, spec=ENGINES["openvino"])


def test_an_engine_that_dies_says_why(tmp_path: Path) -> None:
    script = "input(); print('{\"ready\": true}', flush=True); input(); raise MemoryError('no room')"
    with open_client(tmp_path, script) as client:
        for _ in range(2):  # whoever asks later is told the same
            with pytest.raises(WorkerError, match="MemoryError: no room"):
                client.ask("check", workload="two")


def test_an_engine_that_dies_silently_has_its_exit_code_told(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="ended with exit code 7"):
        open_client(tmp_path, "import os; input(); os._exit(7)")


def test_an_engine_that_died_between_two_requests_says_why(tmp_path: Path) -> None:
    script = "import os, sys; input(); print('{\"ready\": true}', flush=True); "
    script += "print('killed', file=sys.stderr, flush=True); os._exit(9)"
    with open_client(tmp_path, script) as client:
        client._process.wait(timeout=30)
        for _ in range(2):
            with pytest.raises(WorkerError, match="killed"):
                client.ask("check", workload="two")


def test_an_engine_that_was_closed_is_asked_in_vain(tmp_path: Path, workloads: Path) -> None:
    client = open_client(tmp_path, "input(); print('{\"ready\": true}', flush=True); input()")
    client.close()
    with pytest.raises(WorkerError, match="its worker was closed"):
        client.ask("check", workload="two")


def test_an_engine_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="no answer within 1 s"):
        open_client(tmp_path, "import time; time.sleep(60)", timeout=1)


def test_what_an_engine_prints_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    script = (
        "import os, sys, benchmarks.worker as worker\n"
        "def serve(requests, answers):\n"
        "    print('loading'); os.system('echo from C'); answers.write('{\"ready\": true}\\n'); answers.flush()\n"
        "    requests.readline(); requests.readline(); answers.write('{\"fine\": 1}\\n'); answers.flush()\n"
        "worker.serve = serve\n"
        "worker.main()\n"
    )
    with open_client(tmp_path, script) as client:
        assert client.ask("check") == {"fine": 1}
