"""The command line and the system: files, standard streams, signals."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import pytest

from erniem_rt import cli
from erniem_rt.cli import _chunks as chunks
from erniem_rt.cli import _replaced as replaced
from erniem_rt.cli import main
from erniem_rt.processes import stopped_by_signals

LABELS = ("good", "bad")


@pytest.fixture
def artifact(make_text_artifact) -> Path:
    return make_text_artifact("cls", labels=LABELS).path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('"one"\n"two"\n')
    return path


@pytest.mark.parametrize("existing", [None, b"from before\n"])
@pytest.mark.parametrize("options", [["--stride", "3"], ["--candidate-labels", "a,b"], ["--top-k", "0"]])
def test_wrong_options_leave_the_output_as_it_is(artifact, source, tmp_path, capsys, options, existing):
    target = tmp_path / "out.jsonl"
    if existing is not None:
        target.write_bytes(existing)
    before = sorted(tmp_path.iterdir())

    assert main([str(artifact), "--input", str(source), "--output", str(target), *options]) == 1

    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert existing is None or target.read_bytes() == existing


@pytest.mark.parametrize("name", ["in.jsonl", "./in.jsonl", "link.jsonl"])
def test_the_input_is_no_output(artifact, source, tmp_path, capsys, name):
    (tmp_path / "link.jsonl").symlink_to(source)

    assert main([str(artifact), "--input", str(source), "--output", f"{tmp_path}/{name}"]) == 1

    assert capsys.readouterr().err.startswith("error: --input and --output are both ")
    assert source.read_text() == '"one"\n"two"\n'


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("disk full"), RuntimeError("a fault of ours")])
def test_an_output_that_was_not_finished_replaces_nothing(artifact, source, tmp_path, monkeypatch, failure):
    target = tmp_path / "out.jsonl"
    target.write_text("from before\n")
    before = sorted(tmp_path.iterdir())

    def fail(pipeline: Any, options: Any, lines: Any, file: Any) -> int:
        file.write(b"half an ans")
        file.flush()
        assert target.read_text() == "from before\n"
        raise failure

    monkeypatch.setattr(cli, "_answer_lines", fail)
    command = [str(artifact), "--input", str(source), "--output", str(target)]
    if isinstance(failure, RuntimeError):
        with pytest.raises(RuntimeError, match="a fault of ours"):
            main(command)
    else:
        assert main(command) == (130 if isinstance(failure, KeyboardInterrupt) else 1)

    assert target.read_text() == "from before\n"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/out.jsonl", "there is no folder {}/none: make it, or choose another."),
        ("a" * 250, "no file can be made in {}: File name too long; choose another."),
    ],
)
def test_an_output_that_cannot_be_made(artifact, source, tmp_path, capsys, name, message):
    assert main([str(artifact), "--input", str(source), "--output", str(tmp_path / name)]) == 1
    assert capsys.readouterr().err == f"error: --output: {message.format(tmp_path.resolve())}\n"


def test_an_output_keeps_its_mode_and_its_link(tmp_path):
    (tmp_path / "real").write_text("from before")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    with replaced(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_device_stays_one():
    with replaced(Path(os.devnull)) as file:
        file.write(b"x")
    assert Path(os.devnull).is_char_device()


def test_a_pipe_is_written_as_it_is():
    """Such as ``--output /dev/stdout``."""
    reading, writing = os.pipe()
    with replaced(Path(f"/dev/fd/{writing}")) as file:
        file.write(b"x")
    os.close(writing)
    with os.fdopen(reading, "rb") as source:
        assert source.read() == b"x"


def test_a_program_may_wait_for_each_answer(artifact):
    """It writes a line, reads the answer, and only then writes the next."""
    command = [sys.executable, "-m", "erniem_rt", str(artifact)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        too_long = threading.Timer(60, process.kill)
        too_long.start()
        try:
            for text in ("one", "two", "three"):
                process.stdin.write(json.dumps(text).encode() + b"\n")
                assert json.loads(process.stdout.readline())["label"] in LABELS
            process.stdin.close()
            assert process.stdout.read() == b""
            assert process.wait() == 0
        finally:
            too_long.cancel()
            process.kill()


@pytest.mark.parametrize("output", ["closed pipe", "/dev/full"])
def test_an_output_that_takes_nothing_ends_in_one_line(artifact, source, output):
    """As in ``python -m erniem_rt ... | head -1``. Python would try what was not written again, and exit with 120."""
    if output == "closed pipe":
        reading, target = os.pipe()
        os.close(reading)
    else:
        target = os.open(output, os.O_WRONLY)
    command = [sys.executable, "-m", "erniem_rt", str(artifact), "--input", str(source)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

    done = subprocess.run(command, stdout=target, stderr=subprocess.PIPE, text=True, env=buffered, timeout=60)

    os.close(target)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("error: [Errno ")


def test_lines_before_a_failure_of_the_source_come_first(monkeypatch):
    """Where a pipe is ready and cannot be read on."""

    class Broken(BytesIO):
        blocks = [b'"one"\n"two"\n"thr', OSError("the disk is gone")]

        def read1(self, size=-1):
            block = self.blocks.pop(0)
            if isinstance(block, OSError):
                raise block
            return block

    monkeypatch.setattr(cli, "_is_ready", lambda source: True)
    found = chunks(Broken(), 8)
    assert next(found) == [(1, b'"one"'), (2, b'"two"')]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_what_has_come_in_is_taken_together():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source:
        found = chunks(source, 3)
        os.write(writing, b"1\n2\n\n4\n5\n6")
        assert next(found) == [(1, b"1"), (2, b"2"), (4, b"4")]
        assert next(found) == [(5, b"5")]
        os.write(writing, b"!\n")
        assert next(found) == [(6, b"6!")]
        os.write(writing, b"without an end")
        os.close(writing)
        assert list(found) == [[(7, b"without an end")]]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a", b"a\n", b"a\r\n\nb", b"x" * 3_000_000 + b"\ny\n" * 7])
@pytest.mark.parametrize("in_memory", [True, False])  # of which the system cannot tell whether it is ready
def test_no_line_is_lost(tmp_path, content, in_memory):
    (tmp_path / "lines").write_bytes(content)
    expected = [(i, line) for i, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    with BufferedReader(BytesIO(content)) if in_memory else (tmp_path / "lines").open("rb") as source:
        found = list(chunks(source, 2))
    assert [item for chunk in found for item in chunk] == expected
    assert all(0 < len(chunk) <= 2 for chunk in found)
    assert in_memory or all(len(chunk) == 2 for chunk in found[:-1])


LINES = '"one"\nbad\n"two"\n'


@pytest.fixture
def run(artifact: Path, tmp_path: Path):
    """``run(redirection, *options)``: as a shell starts it with that redirection, with three lines to answer."""
    (tmp_path / "in.jsonl").write_text(LINES)

    def start(redirection: str, *options: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "erniem_rt", str(artifact), *options]
        command = ["sh", "-c", f'"$@" {redirection}', "sh", *program]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        return subprocess.run(
            command, cwd=tmp_path, env=buffered, input=LINES, capture_output=True, text=True, check=False, timeout=60
        )

    return start


def assert_answered(text: str) -> None:
    assert ["error" in json.loads(line) for line in text.splitlines()] == [False, True, False]


def assert_reported(text: str) -> None:
    bad, total = text.splitlines()
    assert bad.startswith("line 2: expected a JSON string")
    assert total == "error: 1 of 3 lines could not be answered"


def test_input_from_a_file_needs_no_standard_input(run):
    result = run("<&-", "--input", "in.jsonl")
    assert result.returncode == 1
    assert_answered(result.stdout)
    assert_reported(result.stderr)


def test_output_to_a_file_needs_no_standard_output(run, tmp_path):
    result = run(">&-", "--output", "out.jsonl")
    assert result.returncode == 1
    assert_answered((tmp_path / "out.jsonl").read_text())
    assert_reported(result.stderr)


def test_a_warning_is_one_line(run, tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "file").write_text("")
    result = run("", "--engine", "openvino", "--cache", "file/inner")
    assert_answered(result.stdout)
    warning, *others = result.stderr.splitlines()
    assert warning.startswith("warning: the compiled model was not kept in ")
    assert_reported("\n".join(others))


def test_an_error_needs_no_standard_output(run):
    result = run(">&-", "--input", "none.jsonl", "--output", "out.jsonl")
    assert (result.returncode, result.stderr) == (1, "error: [Errno 2] No such file or directory: 'none.jsonl'\n")


@pytest.mark.parametrize(
    "redirection",
    [
        "2>&-",
        pytest.param("2>/dev/full", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")),
    ],
)
def test_answers_need_no_standard_error(run, redirection):
    result = run(redirection)
    assert result.returncode == 1
    assert_answered(result.stdout)


@pytest.mark.parametrize(("redirection", "name"), [("<&-", "input"), (">&-", "output")])
def test_a_stream_that_is_needed_is_named(run, redirection, name):
    result = run(redirection)
    message = f"error: standard {name} is closed: open it, or name a file with --{name}.\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", message)


EXIT_CODE = 143  # 128 and SIGTERM
# Tests that nohup runs have children that ignore SIGHUP, until they say otherwise.
PROGRAM = """
import runpy, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
runpy.run_module("erniem_rt", run_name="__main__", alter_sys=True)
"""


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
def test_no_half_of_an_output_is_left(artifact, tmp_path, number, before):
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


def test_a_reader_that_has_stopped_holds_nothing_up(artifact, tmp_path):
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


def test_another_signal_does_not_interrupt_the_cleaning():
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


def test_a_handler_that_is_there_stays():
    def of_the_host(*_: object) -> None:
        raise LookupError

    signal.signal(signal.SIGTERM, of_the_host)
    try:
        with pytest.raises(LookupError), stopped_by_signals():
            terminate()
        assert signal.getsignal(signal.SIGTERM) is of_the_host
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_another_thread_sets_no_handler():
    def enter() -> None:
        with stopped_by_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_main_alone_sets_no_handler(artifact, tmp_path, monkeypatch):
    found: list[object] = []
    monkeypatch.setattr(cli, "_answer_lines", lambda *_: found.append(signal.getsignal(signal.SIGTERM)) or 0)
    assert main([str(artifact), "--input", os.devnull, "--output", str(tmp_path / "out.jsonl")]) == 0
    assert found == [signal.SIG_DFL]
