"""What every pipeline does: take one input, a list or a stream, run rows in batches, answer in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from erniem_rt.batching import Outputs, run_rows
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines._options import require_count

if TYPE_CHECKING:
    from types import TracebackType

    from erniem_rt.manifest import Manifest
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

__all__ = ["Job", "Outputs", "Pipeline", "Progress", "require_mapping", "require_text"]

Answer = TypeVar("Answer")
Self = TypeVar("Self", bound="Pipeline")

# Told after each answer: how many inputs are answered, and of how many (None for a stream).
Progress = Callable[[int, "int | None"], None]

# Inputs that are prepared and sorted by length together, in batches.
_BATCHES_PER_CHUNK = 8


@dataclass(frozen=True)
class Job(Generic[Answer]):
    """One input made ready: rows of ids for the model, and what to make of the outputs.

    ``finish`` gets the outputs of each row, in order (see :func:`erniem_rt.batching.run_rows`), and returns the
    answer, or another job when the answer leads to further questions. An answer must not keep the outputs' arrays,
    which are views of whole batches: copy what stays.
    """

    rows: list[list[int]]
    finish: Callable[[list[Outputs]], Answer | Job[Answer]]


# Makes a job of each input.
Prepare = Callable[[list[Any]], list[Job[Answer]]]


class Pipeline:
    """A session, its tokenizer, and a task. Safe to share between threads; a context manager.

    Subclasses give a ``__call__`` that checks its options and answers one :class:`Job` per input; nothing of a call
    is kept in the object.

    Attributes:
        session: The model.
        batch_size: Most rows in one run of the model.
    """

    task: str
    head: str
    __call__: Callable[..., Any]

    def __init__(self, session: Session, tokenizer: Tokenizer, *, batch_size: int = 16) -> None:
        self.batch_size = require_count("batch_size", batch_size)
        self.session = session
        self._tokenizer: Tokenizer | None = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; :class:`InvalidInputError` once the pipeline is closed."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InvalidInputError("the pipeline is closed; open it again.")
        return tokenizer

    @property
    def manifest(self) -> Manifest:
        """What the artifact says of itself."""
        return self.session.manifest

    @property
    def max_length(self) -> int:
        """Most tokens in one row, special tokens included."""
        return self.manifest.limits.max_length

    def close(self) -> None:
        """Free the model and let go of the tokenizer. Closing twice is fine."""
        self.session.close()
        self._tokenizer = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session!r})"

    def _answer(
        self, inputs: Any, prepare: Callable[[Any], Job[Answer]], progress: Progress | None
    ) -> Answer | list[Answer] | Iterator[Answer]:
        """Answer one input (text or mapping) with one answer, a list with a list, any other iterable as a stream."""
        return self._answer_together(inputs, lambda items: [prepare(item) for item in items], progress)

    def _answer_together(
        self, inputs: Any, prepare: Prepare[Answer], progress: Progress | None
    ) -> Answer | list[Answer] | Iterator[Answer]:
        """Like :meth:`_answer`, with a ``prepare`` that makes a job of each of many inputs at once, which is faster."""
        if progress is not None and not callable(progress):
            raise InvalidInputError(f"progress must be a function of two numbers, or None, got {progress!r}.")
        if _is_one(inputs):
            (answer,) = self._run(prepare([inputs]), lambda _: None)
            if progress is not None:
                progress(1, 1)
            return answer
        if isinstance(inputs, Sequence):
            return list(self._stream(inputs, prepare, progress, len(inputs)))
        return self._stream(inputs, prepare, progress, None)

    def _stream(
        self,
        inputs: Iterable[Any],
        prepare: Prepare[Answer],
        progress: Progress | None,
        total: int | None,
    ) -> Iterator[Answer]:
        iterator, done = iter(inputs), 0

        def report(answered: int) -> None:
            if progress is not None:
                progress(done + answered, total)

        while chunk := list(islice(iterator, _BATCHES_PER_CHUNK * self.batch_size)):
            answers = self._run(_prepared(prepare, chunk, done), report)
            done += len(chunk)
            yield from answers

    def _run(self, jobs: list[Job[Answer]], report: Callable[[int], None]) -> list[Answer]:
        """Run jobs together, round by round, until each has its answer; ``report`` their number as it grows."""
        answers: dict[int, Answer] = {}
        pending = dict(enumerate(jobs))
        while pending:
            following: dict[int, Job[Answer]] = {}
            for index, result in self._round(pending):
                if isinstance(result, Job):
                    following[index] = result
                else:
                    answers[index] = result
                    report(len(answers))
            pending = following
        return [answers[index] for index in range(len(jobs))]

    def _round(self, jobs: Mapping[int, Job[Answer]]) -> Iterator[tuple[int, Answer | Job[Answer]]]:
        """Run every job's rows; yield each job's result once its last row is there, so that few outputs are held."""
        owners = [index for index, job in jobs.items() for _ in job.rows]
        found: dict[int, dict[int, Outputs]] = {index: {} for index in jobs}
        yield from ((index, job.finish([])) for index, job in jobs.items() if not job.rows)
        rows = [row for job in jobs.values() for row in job.rows]
        for row, outputs in run_rows(self.session, rows, batch_size=self.batch_size):
            index = owners[row]
            found[index][row] = outputs
            if len(found[index]) == len(jobs[index].rows):
                complete = found.pop(index)
                yield index, jobs[index].finish([complete[i] for i in sorted(complete)])


def require_text(name: str, value: object) -> str:
    """Return ``value`` if it is text with something in it; :class:`InvalidInputError` otherwise."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be str, got {type(value).__name__}.")
    if not value.strip():
        raise InvalidInputError(f"{name} is empty: expected text.")
    return value


def require_mapping(task: str, value: object, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Return ``value`` if it is a mapping with these keys and no others; :class:`InvalidInputError` otherwise."""
    keys = ", ".join([*map(repr, required), *(f"{key!r} (optional)" for key in optional)])
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{task} takes a mapping with {keys}, got {type(value).__name__}.")
    missing = [key for key in required if key not in value]
    if missing:
        raise InvalidInputError(f"{missing[0]!r} is missing; {task} takes a mapping with {keys}.")
    unknown = [key for key in value if key not in (*required, *optional)]
    if unknown:
        raise InvalidInputError(f"key {unknown[0]!r} is not known; {task} takes a mapping with {keys}.")
    return dict(value)


def _is_one(inputs: object) -> bool:
    """Whether this is an input, not many. An array without axes is one, although it says that it is iterable."""
    if isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, Iterable):
        return True
    return getattr(inputs, "ndim", None) == 0


def _prepared(prepare: Prepare[Answer], items: list[Any], first: int) -> list[Job[Answer]]:
    """Jobs whose errors say which input they are about; the first one's index is ``first``."""
    try:
        jobs = prepare(items)
    except InvalidInputError:
        jobs = []  # One by one it comes out which of them is at fault.
        for index, item in enumerate(items, start=first):
            try:
                jobs += prepare([item])
            except InvalidInputError as error:
                raise _about(index, error) from error
    return [_named(job, index) for index, job in enumerate(jobs, start=first)]


def _about(index: int, error: InvalidInputError) -> InvalidInputError:
    """The same error, which also says which input it is about."""
    return InvalidInputError(f"input {index}: {error}")


def _named(job: Job[Answer], index: int) -> Job[Answer]:
    """The same job; its errors, and those of the jobs that it leads to, say which input they are about."""

    def finish(outputs: list[Outputs]) -> Answer | Job[Answer]:
        try:
            result = job.finish(outputs)
        except InvalidInputError as error:
            raise _about(index, error) from error
        return _named(result, index) if isinstance(result, Job) else result

    return Job(job.rows, finish)
