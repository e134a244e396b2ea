"""Where the command line reads and writes: lines as they come in, and a file that is there when it is complete."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from erniem_rt._lanes import take
from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator
    from typing import IO

__all__ = ["chunks", "refuse_same_file", "replaced"]

_BLOCK = 1 << 20


def chunks(source: io.BufferedReader, size: int) -> Iterator[list[tuple[int, bytes]]]:
    """Yield lines with their numbers, from 1, without blank ones: as many as have come in, at most ``size`` at once.

    A program at the other end of a pipe may thus wait for an answer before it writes its next line. Where the source
    fails, the whole lines before that come first.
    """
    chunk: list[tuple[int, bytes]] = []
    number = 0
    lines = _lines(source)
    failure: Exception | None = None
    while failure is None:
        taken, failure = take(lines, 1)
        line = taken[0] if taken else None
        if line is not None:
            number += 1
            if line.strip():
                chunk.append((number, line))
        if chunk and (line is None or len(chunk) == size):
            yield chunk
            chunk = []
        if not taken:
            break
    if failure is not None:
        raise failure


def refuse_same_file(source: str, target: str) -> None:
    """Raise :class:`InvalidInputError` if both paths are one file; ``-`` is none."""
    with contextlib.suppress(FileNotFoundError):
        if "-" not in (source, target) and Path(source).samefile(target):
            raise InvalidInputError(f"--input and --output are both {target}: write the answers to another file.")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to be written; it takes the place of ``path`` when all went well, and is gone otherwise."""
    if path.exists() and not path.is_file():  # a device or a pipe, which is written as it is
        with path.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))  # a link stays one
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _made(part) as file:
            if path.exists():
                shutil.copymode(path, part)
            yield file
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _made(part: Path) -> IO[bytes]:
    """Open a file that is not there yet; an error is about its folder, for nobody gave its name."""
    try:
        return part.open("xb")
    except OSError as error:
        if not part.parent.is_dir():
            raise InvalidInputError(
                f"--output: there is no folder {part.parent}: make it, or choose another."
            ) from error
        raise InvalidInputError(
            f"--output: no file can be made in {part.parent}: {error.strerror}; choose another."
        ) from error


def _lines(source: io.BufferedReader) -> Iterator[bytes | None]:
    """Yield lines without their ends, and None where the next one has yet to come."""
    begun: list[bytes] = []
    while block := source.read1(_BLOCK):
        *ends, last = block.split(b"\n")
        for end in ends:
            yield b"".join([*begun, end])
            begun.clear()
        begun.append(last)
        if not _is_ready(source):
            yield None
    yield b"".join(begun)


def _is_ready(source: io.BufferedReader) -> bool:
    """Whether something can be read without waiting; False where the system cannot tell."""
    try:
        return bool(select.select([source], [], [], 0)[0])
    except (OSError, ValueError):
        return False
