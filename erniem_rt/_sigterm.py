"""SIGTERM for programs that have something to clean up: ``timeout``, ``docker stop`` and systemd send it."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Terminated", "stopped_by_sigterm"]


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever is cleaned up after Ctrl-C is cleaned up after this too."""


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated`, which leaves as ``SystemExit`` with 143, as a shell has it.

    Without a handler, it would end the process with half-written files left behind. A handler that is there already
    stays, and in other threads than the main one Python lets nobody set one.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except Terminated:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, _frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # timeout sends it twice, and the second one would interrupt the cleaning
    raise Terminated
