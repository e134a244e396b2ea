"""The standard streams of the command line. Python has None for one that was closed when the program started."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, cast

from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    import io
    from typing import IO, TextIO

__all__ = [
    "discard_output",
    "drop_what_cannot_be_written",
    "say",
    "show_progress",
    "standard_input",
    "standard_output",
]


def standard_input() -> io.BufferedReader:
    """Standard input as bytes."""
    return cast("io.BufferedReader", _opened(sys.stdin, "input").buffer)


def standard_output() -> IO[bytes]:
    """Standard output as bytes."""
    return _opened(sys.stdout, "output").buffer


def say(message: str) -> None:
    """Print a line to standard error, in place of the progress where a terminal shows it."""
    _print_error(f"\r\x1b[K{message}\n" if _on_terminal() else f"{message}\n")


def show_progress(text: str) -> None:
    """Print to standard error if that is a terminal."""
    if _on_terminal():
        _print_error(text)


def drop_what_cannot_be_written() -> None:
    """Python would try it again at its end, print a second error and exit with 120."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _discard(sys.stdout)


def discard_output() -> None:
    """Write no more of standard output: at its end Python would wait for a reader that may have stopped."""
    if sys.stdout is not None:
        _discard(sys.stdout)


def _opened(stream: TextIO | None, name: str) -> TextIO:
    if stream is None:
        raise InvalidInputError(f"standard {name} is closed: open it, or name a file with --{name}.")
    return stream


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _print_error(text: str) -> None:
    """Print to standard error; where that cannot be, answers are worth more than what is said of them."""
    if sys.stderr is None:  # for which print() would take standard output
        return
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
