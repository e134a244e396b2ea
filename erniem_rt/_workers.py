"""Calls in other threads, at any time: executors refuse them once the main thread has ended, and in ``atexit``."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Workers"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Workers:
    """At most ``count`` threads that make calls, in the order in which they were submitted.

    A thread ends when nothing is left to do: an idle one would keep the interpreter from ending. Where no thread can
    be started, the call is made in the one that submits it. A context manager, which waits for all calls.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], None]] = deque()
        self._threads: set[threading.Thread] = set()

    def submit(
        self, function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Future[_Result]:
        """Call ``function`` in another thread; the result, or what was raised, is the future's."""
        future: Future[_Result] = Future()
        call = partial(_answer, future, partial(function, *args, **kwargs))
        with self._lock:
            self._calls.append(call)
            if len(self._threads) == self._count:
                return future
            thread = threading.Thread(target=self._work, name="erniem-rt")
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # None can be started: the interpreter ends, or the system has no more.
            self._work(thread)
        return future

    def _work(self, thread: threading.Thread | None = None) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._threads.discard(thread or threading.current_thread())
                    return
                call = self._calls.popleft()
            call()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in list(self._threads):
            thread.join()


def _answer(future: Future[_Result], call: Callable[[], _Result]) -> None:
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
        del future  # The error's traceback holds this frame.
    else:
        future.set_result(result)
