"""The lanes of a plan, shared by threads: each run has one to itself."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from erniem_rt.engines.cuda import OutOfMemoryError
from erniem_rt.engines.trt_lane import Lane
from erniem_rt.errors import EngineError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from erniem_rt.engines.trt_library import LoadedPlan

__all__ = ["LanePool"]

# Each has buffers and scratch memory of its own, and four streams keep a GPU busy.
LANES = 4


class LanePool:
    """At most :data:`LANES` lanes, made when they are wanted; where memory is short, runs wait for those there are.

    Raises:
        EngineError: Not even the first lane could be made.
    """

    def __init__(self, plan: LoadedPlan) -> None:
        self._plan = plan
        self._changed = threading.Condition()
        self._limit = LANES
        self._closed = False
        self._idle = [Lane(plan)]
        self._count = 1

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """Lend a lane. One in which anything failed is not used again: what it holds may be in any state."""
        self._plan.cuda.use()
        lane = self._taken()
        try:
            yield lane
        except BaseException:
            with suppress(EngineError):  # What failed first is the better explanation.
                self._retire(lane)
            raise
        self._give_back(lane)

    def close(self) -> None:
        """Give idle lanes back now, busy ones when their runs are done, and then the plan. Twice is fine.

        The first failure is raised when all was tried: after an error of CUDA that stays, each call fails.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            idle, self._idle = self._idle, []
            none_left = self._count == 0
            self._changed.notify_all()
        steps: list[Callable[[], None]] = [self._plan.cuda.use]
        steps += [partial(self._retire, lane) for lane in reversed(idle)]
        failures = []
        for step in steps:
            try:
                step()
            except EngineError as error:
                failures.append(error)
        if none_left:  # Each lane failed before, so no lane takes the plan along.
            self._plan.release()
        if failures:
            raise failures[0]

    def _taken(self) -> Lane:
        while True:
            with self._changed:
                while not self._closed and not self._idle and self._count >= self._limit:
                    self._changed.wait()
                if self._closed:
                    raise InvalidInputError("the engine is closed; open the artifact again.")
                if self._idle:
                    return self._idle.pop()  # The last one used: its graphs are the likeliest to fit.
                self._count += 1
            try:
                return Lane(self._plan)
            except BaseException as error:
                others = self._forget()
                if not (isinstance(error, OutOfMemoryError) and others):
                    raise
                with self._changed:
                    self._limit = min(self._limit, others)

    def _give_back(self, lane: Lane) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(lane)
                self._changed.notify()
                return
        self._retire(lane)

    def _retire(self, lane: Lane) -> None:
        try:
            lane.close()
        finally:
            self._forget()

    def _forget(self) -> int:
        """Count one lane less, and return how many are left; the last one of a closed pool takes the plan along."""
        with self._changed:
            self._count -= 1
            left = self._count
            self._changed.notify()
            last = self._closed and left == 0
        if last:
            self._plan.release()
        return left
