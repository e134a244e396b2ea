"""What every pipeline does: take one input, a list or a stream, run rows in batches, answer in order."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from erniem_rt.batching import run_rows
from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from erniem_rt.manifest import Manifest
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

__all__ = ["Job", "Outputs", "Pipeline", "Progress", "require_text"]

Answer = TypeVar("Answer")
Outputs = dict[str, "NDArray[Any]"]

# Told after each chunk of inputs: how many are answered, and of how many (None for a stream).
Progress = Callable[[int, "int | None"], None]

# Inputs that are prepared and sorted by length together, in batches.
_BATCHES_PER_CHUNK = 8


@dataclass(frozen=True)
class Job(Generic[Answer]):
    """One input made ready: rows of ids for the model, and what to make of the outputs.

    ``finish`` gets the outputs of each row, in order (see :func:`erniem_rt.batching.run_rows`), and returns the
    answer, or another job when the answer leads to further questions.
    """

    rows: list[list[int]]
    finish: Callable[[list[Outputs]], Answer | Job[Answer]]


class Pipeline(ABC):
    """A session, its tokenizer, and a task. Safe to share between threads; a context manager.

    Subclasses give a typed ``__call__`` and build one :class:`Job` per input.
    """

    task: str
    head: str

    def __init__(self, session: Session, tokenizer: Tokenizer, *, batch_size: int = 16) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidInputError(f"batch_size must be a positive integer, got {batch_size!r}.")
        self.session = session
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @property
    def manifest(self) -> Manifest:
        """What the artifact says of itself."""
        return self.session.manifest

    @property
    def max_length(self) -> int:
        """Most tokens in one row, special tokens included."""
        return self.manifest.limits.max_length

    def close(self) -> None:
        """Free the model."""
        self.session.close()

    def __enter__(self) -> Any:
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
        if isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, Iterable):
            return self._chunk([prepare(inputs)])[0]
        if isinstance(inputs, Sequence):
            return list(self._stream(inputs, prepare, progress, len(inputs)))
        return self._stream(inputs, prepare, progress, None)

    def _stream(
        self,
        inputs: Iterable[Any],
        prepare: Callable[[Any], Job[Answer]],
        progress: Progress | None,
        total: int | None,
    ) -> Iterator[Answer]:
        iterator, done = iter(inputs), 0
        while chunk := list(islice(iterator, _BATCHES_PER_CHUNK * self.batch_size)):
            answers = self._chunk([_named(prepare, item, done + i) for i, item in enumerate(chunk)])
            done += len(chunk)
            if progress is not None:
                progress(done, total)
            yield from answers

    def _chunk(self, jobs: list[Job[Answer]]) -> list[Answer]:
        """Run jobs together, round by round, until each has its answer."""
        answers: dict[int, Answer] = {}
        pending = dict(enumerate(jobs))
        while pending:
            rows = [row for job in pending.values() for row in job.rows]
            outputs = iter(run_rows(self.session, rows, batch_size=self.batch_size))
            following: dict[int, Job[Answer]] = {}
            for index, job in pending.items():
                result = job.finish(list(islice(outputs, len(job.rows))))
                if isinstance(result, Job):
                    following[index] = result
                else:
                    answers[index] = result
            pending = following
        return [answers[index] for index in range(len(jobs))]


def require_text(name: str, value: object) -> str:
    """Return ``value`` if it is text with something in it; :class:`InvalidInputError` otherwise."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be str, got {type(value).__name__}.")
    if not value.strip():
        raise InvalidInputError(f"{name} is empty: expected text.")
    return value


def _named(prepare: Callable[[Any], Job[Answer]], item: Any, index: int) -> Job[Answer]:
    try:
        return prepare(item)
    except InvalidInputError as error:
        raise InvalidInputError(f"input {index}: {error}") from error
