"""SIGTERM and SIGHUP for programs that must clean up.

``timeout``, ``docker stop`` and systemd send SIGTERM; a closed terminal or a lost connection sends SIGHUP.
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
    """A signal arrived; as a KeyboardInterrupt it triggers the same cleanup as Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let the signals raise :class:`Terminated`, which becomes ``SystemExit`` with 128 plus the signal's number.

    Without a handler, they would end the process and leave half-written files behind. Signals that are already handled,
    or ignored as under nohup, stay so. Outside the main thread, where Python allows no handlers, nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in _NUMBERS if main and signal.getsignal(number) is signal.SIG_DFL]

    def terminate(number: int, _frame: Any) -> None:
        # timeout and a closed terminal send them twice; the second would interrupt the cleanup.
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
