"""TensorRT's errors, kept for our own messages and not printed. The exporter uses the same logger."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["listening", "logger_of", "reason"]

_KEPT = 16


@functools.cache
def logger_of(library: Any) -> Any:
    """Return the one logger of a TensorRT module in this process: TensorRT uses the first that it is given for good."""

    class Logger(library.ILogger):  # type: ignore[misc]  # a class of the module that was found
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.lines: list[str] = []
            self.listeners: list[list[str]] = []
            self.lock = threading.Lock()

        def log(self, severity: Any, message: str) -> None:
            if severity not in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                return
            line = " ".join(str(message).split())
            with self.lock:
                if len(self.lines) < _KEPT:  # the first errors name the cause
                    self.lines.append(line)
                for listener in self.listeners:
                    listener.append(line)

    return Logger()


def reason(library: Any) -> str:
    """Return the first error since the last call, in one line without a full stop; empty if there was none."""
    logger = logger_of(library)
    with logger.lock:
        lines = list(logger.lines)
        logger.lines.clear()
    return str(lines[0]).rstrip(".") if lines else ""


@contextlib.contextmanager
def listening(library: Any) -> Iterator[list[str]]:
    """Collect all errors that are logged inside the ``with`` block, each in one line."""
    logger = logger_of(library)
    messages: list[str] = []
    with logger.lock:
        logger.listeners.append(messages)
    try:
        yield messages
    finally:
        with logger.lock:  # by identity: two empty lists are equal
            logger.listeners[:] = [each for each in logger.listeners if each is not messages]
