"""What TensorRT says while it works: kept, so that an error can tell the reason, and not printed."""

from __future__ import annotations

import functools
import threading
from collections import deque
from typing import Any

__all__ = ["logger_of", "reason"]

_KEPT = 16


@functools.cache
def logger_of(library: Any) -> Any:
    """The logger of a TensorRT module, one per process: TensorRT keeps the first that it gets, for good."""

    class Logger(library.ILogger):  # type: ignore[misc]  # a class of the module that was found
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=_KEPT)
            self.lock = threading.Lock()

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                with self.lock:
                    self.lines.append(message)

    return Logger()


def reason(library: Any) -> str:
    """The first error since this was last asked, in one line without a full stop; empty if there was none."""
    logger = logger_of(library)
    with logger.lock:
        lines = list(logger.lines)
        logger.lines.clear()
    return " ".join(lines[0].split()).rstrip(".") if lines else ""
