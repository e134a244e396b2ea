"""What a forked child must not take over: locks that a thread held, engines whose threads stayed in the parent."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from erniem_rt.errors import EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from erniem_rt.engines.base import Device

__all__ = ["check_gpu", "keep_for_good", "no_fork", "note_gpu", "renew_after_fork"]


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
