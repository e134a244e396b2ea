"""Processes, threads and signals: makes objects safe to fork, calls in other threads, and cleans up at SIGTERM."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # hooks run in reverse order: its lock is taken after our wait
import contextlib
import ctypes
import os
import signal
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

    from erniem_rt.engines import Device


class Renewed(Protocol):
    """An object with state that is invalid in a forked child."""

    def after_fork(self) -> None:
        """Renew the object; called in the child before anything else, at any state of the parent's other threads."""


# The longest wait of a fork in seconds, enough for opening a large model.
_PATIENCE = 60

_renewed: WeakSet[Renewed] = WeakSet()
# The first process that used a GPU: this one, or an ancestor that it was forked from.
_gpu_process: int | None = None


def renew_after_fork(thing: Renewed) -> None:
    """Call ``thing.after_fork()`` in every child that is forked while ``thing`` is alive."""
    _renewed.add(thing)


def keep_for_good(thing: object) -> None:
    """Never free ``thing``, not even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def note_gpu() -> None:
    """Record that this process used a GPU, so that its forked children cannot."""
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


class _ForkBarrier:
    """Delays forks while other threads are in a critical section."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Reset the state in a child, whose only thread is in no section."""
        self._changed = threading.Condition()
        self._inside: list[int] = []
        self._forks: set[int] = set()  # threads that fork, or wait to

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Make forks in other threads wait until the context exits; wait for a fork that waits already."""
        thread = threading.get_ident()
        with self._changed:
            while self._forks and thread not in self._inside:
                self._changed.wait()
            self._inside.append(thread)
        try:
            yield
        finally:
            with self._changed:
                if thread in self._inside:  # False in a child forked within this section
                    self._inside.remove(thread)
                self._changed.notify_all()

    def shut(self) -> None:
        """Wait until no other thread is in a section, and block new ones."""
        until = time.monotonic() + _PATIENCE
        self._forks.add(threading.get_ident())
        self._changed.acquire()
        while set(self._inside) - {threading.get_ident()} and (left := until - time.monotonic()) > 0:
            self._changed.wait(left)

    def open(self) -> None:
        """Unblock threads that wait for a section."""
        self._forks.discard(threading.get_ident())
        try:
            self._changed.notify_all()
            self._changed.release()
        except RuntimeError:  # Ctrl-C kept shut() from acquiring it; Python forks nevertheless
            with self._changed:
                self._changed.notify_all()


_barrier = _ForkBarrier()

# Makes forks in other threads wait: onnxruntime, OpenVINO and imports hold locks that a child could never acquire.
no_fork = _barrier.inside


def _after_fork() -> None:
    _barrier.renew()
    for thing in list(_renewed):  # the list keeps all objects alive during the loop
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_barrier.shut, after_in_parent=_barrier.open, after_in_child=_after_fork)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Workers:
    """At most ``count`` threads that make calls in the order of submission.

    A thread ends when no calls are left, since an idle one would keep the interpreter from exiting. If no thread can
    start, the submitting thread makes the call. A context manager, which waits for all calls.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], None]] = deque()
        self._threads: set[threading.Thread] = set()

    def submit(
        self, function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Future[_Result]:
        """Call ``function`` in another thread; return a future with its result or exception."""
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
        except RuntimeError:  # no thread can start: the interpreter exits, or the system has no more
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
        del future  # break the reference cycle with the error's traceback
    else:
        future.set_result(result)


_Value = TypeVar("_Value")


class lazy(Generic[_Value]):  # noqa: N801  # a decorator
    """``functools.cached_property`` without the lock that all objects of a class share before Python 3.12.

    A child forked while a thread holds that lock could never acquire it. Here, two threads may both compute the value.
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


_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


class Terminated(KeyboardInterrupt):
    """A signal arrived; as a KeyboardInterrupt it triggers the same cleanup as Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let the signals raise :class:`Terminated`, which becomes ``SystemExit`` with 128 plus the signal's number.

    ``timeout``, ``docker stop`` and systemd send SIGTERM; a closed terminal or a lost connection sends SIGHUP. Without
    a handler, they would end the process and leave half-written files behind. Signals that are already handled, or
    ignored as under nohup, stay so. Outside the main thread, where Python allows no handlers, nothing changes.
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
