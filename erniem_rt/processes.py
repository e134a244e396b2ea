"""Processes and threads: what a forked child must not take over, and calls in other threads."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload
from weakref import WeakSet

from erniem_rt.errors import EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from erniem_rt.engines.base import Device


__all__ = ["Workers", "check_gpu", "keep_for_good", "lazy", "no_fork", "note_gpu", "renew_after_fork"]


class Renewed(Protocol):
    """What is of no use to a child as it is."""

    def after_fork(self) -> None:
        """Called in the child, before anything else runs there, whatever the other threads of the parent were at."""


# A fork waits no longer than this: seconds, more than a large model takes to open.
_PATIENCE = 60

_renewed: WeakSet[Renewed] = WeakSet()
# The first process that used a GPU: this one, or one that it was forked from.
_gpu_process: int | None = None


def renew_after_fork(thing: Renewed) -> None:
    """Call ``thing.after_fork()`` in every child that is forked while ``thing`` is alive."""
    _renewed.add(thing)


def keep_for_good(thing: object) -> None:
    """Never free ``thing``, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def note_gpu() -> None:
    """This process used a GPU, so its children cannot."""
    global _gpu_process
    _gpu_process = _gpu_process or os.getpid()


def check_gpu(device: Device) -> None:
    """Raise :class:`EngineUnavailableError` for a GPU in a process forked from one that used it: CUDA fails there."""
    if device.kind == "cuda" and _gpu_process not in (None, os.getpid()):
        raise EngineUnavailableError(
            f"{device} cannot be used here: this process was forked from one that used a GPU, and CUDA does not work "
            "in such a process. Start it with the method 'spawn' or 'forkserver', or fork before anything is loaded "
            "on a GPU."
        )


class _Gate:
    """What forks wait at."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """As new: a child has one thread, which is not inside."""
        self._changed = threading.Condition()
        self._inside: list[int] = []

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Forks of other threads wait until this is left."""
        thread = threading.get_ident()
        with self._changed:
            self._inside.append(thread)
        try:
            yield
        finally:
            with self._changed:
                if thread in self._inside:  # not so in a child that was forked in here
                    self._inside.remove(thread)
                self._changed.notify_all()

    def shut(self) -> None:
        """Wait until no other thread is inside, and let none in."""
        until = time.monotonic() + _PATIENCE
        self._changed.acquire()
        while set(self._inside) - {threading.get_ident()} and (left := until - time.monotonic()) > 0:
            self._changed.wait(left)

    def open(self) -> None:
        """Let them in again."""
        self._changed.release()


_gate = _Gate()

# While this is entered, forks of other threads wait: onnxruntime and imports hold locks that a child would never get.
no_fork = _gate.inside


def _after_fork() -> None:
    _gate.renew()
    for thing in list(_renewed):  # A list keeps them all until each was called.
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(before=_gate.shut, after_in_parent=_gate.open, after_in_child=_after_fork)

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
        self.wait()

    def wait(self) -> None:
        """Wait for all calls that were submitted; in one of them, for the others."""
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join()


def _answer(future: Future[_Result], call: Callable[[], _Result]) -> None:
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
        del future  # The error's traceback holds this frame.
    else:
        future.set_result(result)


_Value = TypeVar("_Value")


class lazy(Generic[_Value]):  # noqa: N801  # a decorator
    """As ``functools.cached_property``, without the lock that all objects of a class share before Python 3.12.

    A child forked while a thread holds that lock never gets it. Two threads may both work the value out here.
    """

    def __init__(self, compute: Callable[[Any], _Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, thing: None, owner: type) -> lazy[_Value]: ...

    @overload
    def __get__(self, thing: object, owner: type) -> _Value: ...

    def __get__(self, thing: object | None, owner: type) -> lazy[_Value] | _Value:
        if thing is None:
            return self
        value: _Value = vars(thing).setdefault(self._name, self._compute(thing))
        return value
