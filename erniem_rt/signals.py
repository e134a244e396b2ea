"""SIGTERM and SIGHUP for programs that have something to clean up.

``timeout``, ``docker stop`` and systemd send the one, a terminal that is closed or a connection that is lost the other.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Terminated", "stopped_by_signals"]

_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


class Terminated(KeyboardInterrupt):
    """A signal came; whatever is cleaned up after Ctrl-C is cleaned up after this too."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let the signals raise :class:`Terminated`, which leaves as ``SystemExit`` with 128 and their number.

    Without a handler, they would end the process with half-written files left behind. What is handled already, or
    ignored as under nohup, stays so; and in other threads than the main one Python lets nobody set a handler.
    """
    main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in _NUMBERS if main and signal.getsignal(number) is signal.SIG_DFL]

    def terminate(number: int, _frame: Any) -> None:
        # They come in twos, from timeout as from a closed terminal; the second would interrupt the cleaning.
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise Terminated(number)

    for number in numbers:
        signal.signal(number, terminate)
    try:
        yield
    except Terminated as end:
        raise SystemExit(128 + end.number) from None
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
