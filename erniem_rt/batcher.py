"""A queue in front of a pipeline: requests of many callers run together as soon as a worker is free."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from erniem_rt.checks import require_count
from erniem_rt.errors import ErnieMError, InvalidInputError, QueueFullError
from erniem_rt.pipelines.base import Pipeline
from erniem_rt.pipelines.inputs import is_list, items_of
from erniem_rt.processes import Workers, renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

__all__ = ["Batcher", "BatcherStats"]

# The number of latencies in BatcherStats.
_RECENT = 1000
# Options of a call whose every text takes a row of the model.
_ROWS_PER_INPUT = ("candidate_labels", "schema")


@dataclass(frozen=True)
class BatcherStats:
    """A :class:`Batcher`'s counters since its creation. Times are in seconds, from the request to its answer.

    Attributes:
        waiting: Rows in the queue now.
        running: Batches in computation now.
        answered: Requests that got their answers.
        failed: Requests that got an error.
        refused: Requests that found the queue full.
        cancelled: Requests that were cancelled before their turn.
        batch_sizes: The number of batches by their number of requests.
        seconds: The sum of the times of all answered requests.
        recent: The times of the last 1,000 answered requests, in the order of their answers.
    """

    waiting: int
    running: int
    answered: int
    failed: int
    refused: int
    cancelled: int
    batch_sizes: dict[int, int]
    seconds: float
    recent: tuple[float, ...]


@dataclass
class _Request:
    """One call: its inputs, whether they came as a list, and its options; an equal ``key`` may share a batch."""

    inputs: Any
    items: list[Any]
    is_many: bool
    options: dict[str, Any]
    key: Hashable
    asked: Any
    size: int
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Answers requests of many threads or coroutines with one pipeline; a context manager.

    Call it like the pipeline, with one input or a list. A free worker takes its share of the queue, on OpenVINO and on
    GPUs all of it, and answers it in one call of the pipeline. No request waits for a batch to fill. A request that
    runs alone gets all threads of the pipeline's session. If several batches run at a time, each has one thread; for
    that, the batcher opens a second session, with a second copy of the weights in memory. With ``workers=1``, for a
    pipeline with ``threads=1``, and for engines other than ONNX Runtime on a CPU, there is only the pipeline's own
    session.

    Answers are those of the pipeline. A request that ran alone gets the same bits as a call with the same number of
    threads; one that ran with others gets the bits of a call with the list of them all. Batches of different
    shapes may differ in the last bits of a score.

    A request counts as many rows as it has inputs, times its candidate labels, names of a schema or choices.

    A forked child has an empty queue and workers of its own; the parent answers its own requests. A pickle holds the
    pipeline and the options.

    Args:
        pipeline: Any pipeline. It stays open when the batcher is closed.
        workers: The number of batches at a time. By default the threads of the pipeline's session on ONNX Runtime on a
            CPU, 1 on OpenVINO, and 2 on a GPU: one prepares texts while the other computes.
        max_batch: Most rows in a batch. A larger request runs alone.
        max_queue: Most rows in the queue; a request beyond that is a :class:`QueueFullError`.
        max_items: Most rows of one request; by default ``max_queue``. More is an :class:`InvalidInputError`.
        max_characters: Most characters of one request, its options included; by default no limit.

    Raises:
        InvalidInputError: An argument is invalid.
    """

    def __init__(
        self,
        pipeline: Pipeline[Any],
        *,
        workers: int | None = None,
        max_batch: int = 16,
        max_queue: int = 1024,
        max_items: int | None = None,
        max_characters: int | None = None,
    ) -> None:
        if not isinstance(pipeline, Pipeline):
            raise InvalidInputError(f"pipeline must be a pipeline, like erniem_rt.pipeline('out'), got {pipeline!r}.")
        session = pipeline.session
        # Whether workers share the threads out, and so the queue. OpenVINO computes one batch after the other.
        self._divides = session.device == "cpu" and session.engine == "onnxruntime"
        default = session.threads if self._divides else 1 if session.device == "cpu" else 2
        self.workers = default if workers is None else require_count("workers", workers)
        self.max_batch = require_count("max_batch", max_batch)
        self.max_queue = require_count("max_queue", max_queue)
        self.max_items = self.max_queue if max_items is None else require_count("max_items", max_items)
        if self.max_items > self.max_queue:
            raise InvalidInputError(
                f"max_items is {self.max_items}, more than max_queue={self.max_queue}: such a request would never find "
                "room."
            )
        self.max_characters = None if max_characters is None else require_count("max_characters", max_characters)
        self.pipeline = pipeline
        # The pipeline that answers while several batches run.
        self._beside = pipeline
        if self._divides and self.workers > 1 and session.threads > 1:
            self._beside = copy(pipeline)
            self._beside.session = session.with_threads(1)
        self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Start with an empty queue, counters at zero and no thread: as a new batcher, or in a forked child."""
        self._lock = threading.RLock()
        self._entry = threading.RLock()  # held while a request enters the queue and a worker is called
        self._workers = Workers(self.workers)
        self._slots = threading.Semaphore(self.workers)  # one per batch in computation
        self._queue: deque[_Request] = deque()
        self._working = 0  # workers that have not found the queue empty yet
        self._waiting = self._running = self._answered = self._failed = self._refused = self._cancelled = 0
        self._batch_sizes: Counter[int] = Counter()
        self._seconds = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def __call__(self, inputs: Any = None, /, **options: Any) -> Any:
        """Answer one input or a list, with the options of the pipeline's call, and wait for it.

        Raises:
            InvalidInputError: As for the pipeline; the inputs are a stream; the request is over a limit; the batcher is
                closed.
            QueueFullError: The queue is full.
            EngineError: The engine failed.
        """
        request = self._request(inputs, options)
        with self._entry:
            self._require_open()
            # If no request waits, this one needs no other thread.
            at_once = not self._queue and self._slots.acquire(blocking=False)
            if not at_once:
                self._enqueue(request)
        if at_once:
            self._run([request])
        return request.future.result()

    async def answer(self, inputs: Any = None, /, **options: Any) -> Any:
        """The same in a coroutine: ``await batcher.answer(text)``. A request cancelled in the queue does not run."""
        import asyncio

        return await asyncio.wrap_future(self.submit(inputs, **options))

    def submit(self, inputs: Any = None, /, **options: Any) -> Future[Any]:
        """The same without waiting: the future gets the answer or the error.

        This call itself raises errors that show before the request runs, and those of a full queue.
        """
        request = self._request(inputs, options)
        with self._entry:
            self._require_open()
            self._enqueue(request)
        return request.future

    def submit_all(self, calls: Iterable[tuple[Any, Mapping[str, Any]]]) -> list[Future[Any]]:
        """The same for several calls, each with its inputs and options; none runs before all are in the queue.

        An invalid call's future raises its error.
        """
        futures = []
        with self._entry, self._lock:
            for inputs, options in calls:
                try:
                    futures.append(self.submit(inputs, **options))
                except ErnieMError as error:
                    futures.append(Future())
                    futures[-1].set_exception(error)
        return futures

    def _enqueue(self, request: _Request) -> None:
        with self._lock:
            if self._waiting + request.size > self.max_queue:
                self._refused += 1
                raise QueueFullError(
                    f"{self._waiting} rows wait for an answer and this request has {request.size}; the queue takes "
                    f"{self.max_queue}: try again later."
                )
            self._waiting += request.size
            self._queue.append(request)
            if self._working == self.workers:
                return
            self._working += 1
        self._workers.submit(self._work)

    @property
    def stats(self) -> BatcherStats:
        """The current counters."""
        with self._lock:
            return BatcherStats(
                self._waiting,
                self._running,
                self._answered,
                self._failed,
                self._refused,
                self._cancelled,
                dict(sorted(self._batch_sizes.items())),
                self._seconds,
                tuple(self._recent),
            )

    def close(self) -> None:
        """Refuse new requests, and return when all others are answered. Closing twice is fine."""
        with self._entry:
            self._closed = True
        self._workers.wait()
        for _ in range(self.workers):  # for calls that ran without a worker
            self._slots.acquire()
        for _ in range(self.workers):
            self._slots.release()
        if self._beside is not self.pipeline:
            self._beside.session.close()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Batcher], tuple[Pipeline[Any], dict[str, Any]]]:
        self._require_open()
        names = ("workers", "max_batch", "max_queue", "max_items", "max_characters")
        return _unpickled, (self.pipeline, {name: getattr(self, name) for name in names})

    def __repr__(self) -> str:
        return f"Batcher({self.pipeline!r}, workers={self.workers})"

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidInputError("the batcher is closed; make a new one.")

    def _request(self, inputs: Any, options: dict[str, Any]) -> _Request:
        """Return the request after the checks that need no tokens."""
        pipeline = self.pipeline
        if inputs is None:  # question and context by name
            inputs = {name: options.pop(name) for name in (*pipeline.required, *pipeline.optional) if name in options}
        for name in ("progress", "read_ahead"):
            if options.pop(name, None) is not None:
                raise InvalidInputError(f"a Batcher takes no {name}: requests run together.")
        asked = pipeline.options_for(options)
        options.pop("errors", None)  # each caller has its own
        many = items_of(pipeline.task, inputs, pipeline.required, pipeline.optional)
        if many is not None and many[1] is None:
            raise InvalidInputError("a Batcher takes one input or a list; pass a list of what the stream yields.")
        # One more than is allowed is enough to know.
        items = [inputs] if many is None else list(islice(many[0], self.max_items + 1))
        try:
            key = tuple((name, _frozen(value)) for name, value in sorted(options.items()))
        except RecursionError:
            raise InvalidInputError("the options are nested too deeply.") from None
        request = _Request(inputs, items, many is not None, options, key, asked, _rows(items, asked))
        if request.size > self.max_items:
            count = len(items) if many is None else many[1]
            raise InvalidInputError(
                f"the request asks for more rows of the model than max_items={self.max_items}: it has {count} inputs, "
                "times their labels, names or choices. Divide it, or ask for less."
            )
        size = 0 if self.max_characters is None else sum(map(len, _texts([items, list(options.values())])))
        if self.max_characters is not None and size > self.max_characters:
            raise InvalidInputError(
                f"the request has {size} characters, more than max_characters={self.max_characters}: shorten it, or "
                "divide it."
            )
        return request

    def _work(self) -> None:
        """Answer batches until the queue is empty."""
        while batch := self._taken():
            self._run(batch)

    def _taken(self) -> list[_Request]:
        """Take a batch and hold a slot for it; if there is none, the worker ends."""
        self._slots.acquire()
        with self._lock:
            batch = self._next_batch()
            if not batch:
                self._working -= 1
        if not batch:
            self._slots.release()
        return batch

    def _run(self, batch: list[_Request]) -> None:
        """Answer a batch that holds a slot. The slot is free again before the callers get their answers."""
        try:
            with self._lock:
                self._running += 1
                self._batch_sizes[len(batch)] += 1
                alone = self._running == 1 and not self._queue
            try:
                results = self._answers(self.pipeline if alone else self._beside, batch)
            finally:
                with self._lock:
                    self._running -= 1
        finally:
            self._slots.release()
        for request, (result, error) in zip(batch, results, strict=True):
            self._settle(request, result, error)

    def _next_batch(self) -> list[_Request]:
        """Take the first request, and others with the same options: at most this worker's share of the queue.

        If it took all, they would wait for the whole batch while other workers have nothing to do. On OpenVINO it
        takes all, which was faster; on GPUs, too, which was not measured.
        """
        batch: list[_Request] = []
        left: deque[_Request] = deque()
        size = 0
        most = min(self.max_batch, math.ceil(self._waiting / self.workers) if self._divides else self._waiting)
        while self._queue and size < most:
            request = self._queue.popleft()
            if batch and (request.key != batch[0].key or size + request.size > most):
                left.append(request)
                continue
            self._waiting -= request.size
            if request.future.set_running_or_notify_cancel():
                batch.append(request)
                size += request.size
            else:
                self._cancelled += 1
        self._queue.extendleft(reversed(left))
        return batch

    def _answers(self, pipeline: Pipeline[Any], batch: list[_Request]) -> list[tuple[Any, BaseException | None]]:
        """Return the result or the error of each request."""
        try:
            found = self._found(pipeline, batch)
        except BaseException as error:
            if len(batch) == 1:
                return [(None, _fresh(error))]
            # One request may be the cause, for example a request that is too large.
            return [result for request in batch for result in self._answers(pipeline, [request])]
        return [_result(pipeline, request, list(islice(found, len(request.items)))) for request in batch]

    def _found(self, pipeline: Pipeline[Any], batch: list[_Request]) -> Iterator[Any]:
        """Return an answer or an error for each input of a batch, in order."""
        items = [item for request in batch for item in request.items]
        # As a stream, which yields each answer unchanged, but read ahead like a list.
        ahead = batch[0].asked.chunk_size(stream=False)
        return iter(list(pipeline(iter(items), errors="return", read_ahead=ahead, **batch[0].options)))

    def _settle(self, request: _Request, result: Any, error: BaseException | None) -> None:
        """Count a request and give its caller the result."""
        seconds = time.monotonic() - request.since
        with self._lock:
            if error is None:
                self._answered += 1
                self._seconds += seconds
                self._recent.append(seconds)
            else:
                self._failed += 1
        if error is None:
            request.future.set_result(result)
        else:
            request.future.set_exception(error)


def _unpickled(pipeline: Pipeline[Any], options: dict[str, Any]) -> Batcher:
    return Batcher(pipeline, **options)


def _result(pipeline: Pipeline[Any], request: _Request, answers: list[Any]) -> tuple[Any, BaseException | None]:
    """Return the result or the error of the pipeline's call with these answers to its inputs."""
    if request.asked.errors == "raise":
        for index, answer in enumerate(answers):
            if isinstance(answer, InvalidInputError):
                return None, InvalidInputError(f"input {index}: {answer}") if request.is_many else answer
    try:
        return pipeline.formed(request.inputs, answers if request.is_many else answers[0], request.asked), None
    except BaseException as error:
        return None, _fresh(error)


def _fresh(error: BaseException) -> BaseException:
    """Return a copy of ``error`` without references to the batch: each caller raises, and so changes, its own."""
    if isinstance(error, ErnieMError):
        made: BaseException = type(error)(*error.args)
        made.__cause__ = error.__cause__
        return made
    return error.with_traceback(None)


def _rows(items: list[Any], asked: Any) -> int:
    """Return a request's number of rows, as known before tokenizing; an empty list counts 1."""
    per_input = [sum(1 for _ in _texts(getattr(asked, name, None))) for name in _ROWS_PER_INPUT]
    choices = [len(item["choices"]) if _has_choices(item) else 1 for item in items]
    return max(sum(max(count, 1) for count in choices), 1) * max(*per_input, 1)


def _has_choices(item: Any) -> bool:
    return isinstance(item, Mapping) and is_list(item.get("choices"))


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in lists and mappings, keys included."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            pending += [*one, *one.values()]
        elif is_list(one):
            pending += list(one)


def _frozen(value: Any) -> Hashable:
    """Return a key that is equal for equal options; other objects are equal to themselves only."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return type(value).__name__, value
    if isinstance(value, Mapping):
        return "mapping", tuple((_frozen(name), _frozen(one)) for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return "list", tuple(map(_frozen, value))
    return "object", id(value)
