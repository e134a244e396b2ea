"""Several batches of a small model at once, each on one thread."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from erniem_rt._workers import Workers
from erniem_rt.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from erniem_rt.engines.base import Device, Engine
    from erniem_rt.manifest import Manifest

__all__ = ["Lanes", "lane_count", "take"]

_T = TypeVar("_T")

# Files of a model whose products are too small to be worth dividing between threads, together; an engine of its own
# for the lanes is not worth the memory above that.
_SMALL = 64 << 20


def lane_count(manifest: Manifest, device: Device, threads: int) -> int:
    """How many batches at once are faster than one after the other; 1 unless the model is small and on a CPU."""
    size = sum(record.size for name, record in manifest.files.items() if name.startswith(manifest.artifact))
    if device.kind != "cpu" or size > _SMALL:
        return 1
    return threads


class Lanes:
    """An engine whose runs take one thread, and how many of them there are at once."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine = engine
        self._count = count

    def run(self, feeds: Iterable[Mapping[str, NDArray[Any]]], outputs: Sequence[str]) -> Iterator[list[NDArray[Any]]]:
        """Compute ``outputs`` of each batch, in order; batches are taken as they get their turn.

        What is raised where a batch is taken comes after the answers of those before it.
        """
        under_way: deque[Future[list[NDArray[Any]]]] = deque()
        source = iter(feeds)
        process = os.getpid()
        with Workers(self._count) as pool:
            while True:
                _check_process(process)
                taken, failure = take(source, 1)
                if not taken:
                    break
                under_way.append(pool.submit(self._engine.run, taken[0], outputs))
                if len(under_way) > self._count:
                    yield under_way.popleft().result()
            while under_way:
                _check_process(process)
                yield under_way.popleft().result()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # Its traceback holds this frame.

    def close(self) -> None:
        """Let go of the engine."""
        self._engine.close()


def take(source: Iterator[_T], count: int) -> tuple[list[_T], Exception | None]:
    """Return up to ``count`` items, and what the source raised in the place of the next one."""
    taken: list[_T] = []
    try:
        while len(taken) < count:
            taken.append(next(source))
    except StopIteration:
        return taken, None
    except Exception as error:
        return taken, error
    return taken, None


def _check_process(process: int) -> None:
    if os.getpid() != process:
        raise EngineError(
            "this process was forked while run_all was under way, which goes on in the parent alone: call it again."
        )
