"""``python -m erniem_rt``: SIGTERM, as ``timeout``, ``docker stop`` and systemd send it, and SIGHUP."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from erniem_rt import _cli
from erniem_rt._cli import main
from erniem_rt._signals import stopped_by_signals

EXIT_CODE = 143  # 128 and SIGTERM
# Tests that nohup runs have children that ignore SIGHUP, until they say otherwise.
PROGRAM = """
import runpy, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
runpy.run_module("erniem_rt", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def artifact(make_text_artifact) -> Path:
    return make_text_artifact("cls", labels=("good", "bad")).path


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "before"), [(signal.SIGTERM, None), (signal.SIGTERM, "from before\n"), (signal.SIGHUP, None)]
)
def test_no_half_of_an_output_is_left(artifact, tmp_path, number, before) -> None:
    target = tmp_path / "answers" / "out.jsonl"
    target.parent.mkdir()
    if before is not None:
        target.write_text(before)
    command = [sys.executable, "-c", PROGRAM, str(artifact), "--output", str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdin.write('"one"\n')
        process.stdin.flush()
        wait_until(lambda: any(file.suffix == ".part" and file.stat().st_size for file in target.parent.iterdir()))
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]

    assert (process.returncode, said) == (128 + number, "")
    assert [file.read_text() for file in target.parent.iterdir()] == ([] if before is None else [before])


def test_a_reader_that_has_stopped_holds_nothing_up(artifact, tmp_path) -> None:
    (tmp_path / "in.jsonl").write_text('"one"\n' * 5000)
    command = [sys.executable, "-m", "erniem_rt", str(artifact), "--input", str(tmp_path / "in.jsonl")]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    with subprocess.Popen(command, stdout=writing, env=buffered) as process:
        try:
            wait_until(lambda: not select.select([], [writing], [], 0)[1])  # the pipe is full
            time.sleep(0.5)  # and another write waits
            process.terminate()
            assert process.wait(timeout=30) == EXIT_CODE
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)


def test_another_signal_does_not_interrupt_the_cleaning() -> None:
    """``timeout`` sends two: to its child and to the group."""
    cleaned = []

    def stop() -> None:
        try:
            terminate()
        finally:
            terminate()
            cleaned.append(True)

    with pytest.raises(SystemExit) as exit_, stopped_by_signals():
        stop()
    assert (exit_.value.code, cleaned) == (EXIT_CODE, [True])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_that_is_there_stays() -> None:
    def of_the_host(*_: object) -> None:
        raise LookupError

    signal.signal(signal.SIGTERM, of_the_host)
    try:
        with pytest.raises(LookupError), stopped_by_signals():
            terminate()
        assert signal.getsignal(signal.SIGTERM) is of_the_host
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_another_thread_sets_no_handler() -> None:
    def enter() -> None:
        with stopped_by_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_main_alone_sets_no_handler(artifact, tmp_path, monkeypatch) -> None:
    found: list[object] = []
    monkeypatch.setattr(_cli, "_answer_lines", lambda *_: found.append(signal.getsignal(signal.SIGTERM)) or 0)
    assert main([str(artifact), "--input", os.devnull, "--output", str(tmp_path / "out.jsonl")]) == 0
    assert found == [signal.SIG_DFL]
