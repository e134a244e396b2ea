"""``python -m erniem_rt``: what becomes of the files, and of a program that waits for each answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import pytest

from erniem_rt import _cli, _cli_files
from erniem_rt._cli import main
from erniem_rt._cli_files import chunks, replaced

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
def test_wrong_options_leave_the_output_as_it_is(artifact, source, tmp_path, capsys, options, existing) -> None:
    target = tmp_path / "out.jsonl"
    if existing is not None:
        target.write_bytes(existing)
    before = sorted(tmp_path.iterdir())

    assert main([str(artifact), "--input", str(source), "--output", str(target), *options]) == 1

    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert existing is None or target.read_bytes() == existing


@pytest.mark.parametrize("name", ["in.jsonl", "./in.jsonl", "link.jsonl"])
def test_the_input_is_no_output(artifact, source, tmp_path, capsys, name) -> None:
    (tmp_path / "link.jsonl").symlink_to(source)

    assert main([str(artifact), "--input", str(source), "--output", f"{tmp_path}/{name}"]) == 1

    assert capsys.readouterr().err.startswith("error: --input and --output are both ")
    assert source.read_text() == '"one"\n"two"\n'


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("disk full"), RuntimeError("a fault of ours")])
def test_an_output_that_was_not_finished_replaces_nothing(artifact, source, tmp_path, monkeypatch, failure) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("from before\n")
    before = sorted(tmp_path.iterdir())

    def fail(pipeline: Any, options: Any, lines: Any, file: Any) -> int:
        file.write(b"half an ans")
        file.flush()
        assert target.read_text() == "from before\n"
        raise failure

    monkeypatch.setattr(_cli, "_answer_lines", fail)
    command = [str(artifact), "--input", str(source), "--output", str(target)]
    if isinstance(failure, RuntimeError):
        with pytest.raises(RuntimeError, match="a fault of ours"):
            main(command)
    else:
        assert main(command) == 1

    assert target.read_text() == "from before\n"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/out.jsonl", "there is no folder {}/none: make it, or choose another."),
        ("a" * 250, "no file can be made in {}: File name too long; choose another."),
    ],
)
def test_an_output_that_cannot_be_made(artifact, source, tmp_path, capsys, name, message) -> None:
    assert main([str(artifact), "--input", str(source), "--output", str(tmp_path / name)]) == 1
    assert capsys.readouterr().err == f"error: --output: {message.format(tmp_path.resolve())}\n"


def test_an_output_keeps_its_mode_and_its_link(tmp_path) -> None:
    (tmp_path / "real").write_text("from before")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    with replaced(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_device_stays_one() -> None:
    with replaced(Path(os.devnull)) as file:
        file.write(b"x")
    assert Path(os.devnull).is_char_device()


def test_a_pipe_is_written_as_it_is() -> None:
    """Such as ``--output /dev/stdout``."""
    reading, writing = os.pipe()
    with replaced(Path(f"/dev/fd/{writing}")) as file:
        file.write(b"x")
    os.close(writing)
    with os.fdopen(reading, "rb") as source:
        assert source.read() == b"x"


def test_a_program_may_wait_for_each_answer(artifact) -> None:
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
def test_an_output_that_takes_nothing_ends_in_one_line(artifact, source, output) -> None:
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


def test_lines_before_a_failure_of_the_source_come_first(monkeypatch) -> None:
    """Where a pipe is ready and cannot be read on."""

    class Broken(BytesIO):
        blocks = [b'"one"\n"two"\n"thr', OSError("the disk is gone")]

        def read1(self, size=-1):
            block = self.blocks.pop(0)
            if isinstance(block, OSError):
                raise block
            return block

    monkeypatch.setattr(_cli_files, "_is_ready", lambda source: True)
    found = chunks(Broken(), 8)
    assert next(found) == [(1, b'"one"'), (2, b'"two"')]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_what_has_come_in_is_taken_together() -> None:
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
def test_no_line_is_lost(tmp_path, content, in_memory) -> None:
    (tmp_path / "lines").write_bytes(content)
    expected = [(i, line) for i, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    with BufferedReader(BytesIO(content)) if in_memory else (tmp_path / "lines").open("rb") as source:
        found = list(chunks(source, 2))
    assert [item for chunk in found for item in chunk] == expected
    assert all(0 < len(chunk) <= 2 for chunk in found)
    assert in_memory or all(len(chunk) == 2 for chunk in found[:-1])
