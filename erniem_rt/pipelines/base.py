"""The base of all pipelines: take one input, a list or a stream, run rows in batches, answer in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypedDict, TypeVar

from erniem_rt.batching import Outputs, run_rows, take
from erniem_rt.checks import require_choice, require_count
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.answers import AnyAnswer
from erniem_rt.pipelines.inputs import items_of, require_size

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

    from erniem_rt.manifest import Manifest
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

Answer = TypeVar("Answer")
Self = TypeVar("Self", bound="Pipeline[Any]")
OptionsOfTask = TypeVar("OptionsOfTask", bound="Options")


# Called after each answer with the number of answered inputs and their total (None for a stream).
Progress = Callable[[int, "int | None"], None]

Errors = Literal["raise", "return"]

# Number of batches whose inputs are prepared and sorted by length together.
_BATCHES_PER_CHUNK = 8


class CommonOptions(TypedDict, total=False):
    """The options of every pipeline that do not change an answer's type.

    Attributes:
        batch_size: Largest number of rows in one run of the model; 16 by default.
        read_ahead: How many inputs of a stream are read before the first of them is answered; they are sorted by length
            and run together. By default ``8 * batch_size``, but 1 with ``batch_size=1``: each input is then answered
            before the next one is read.
        max_seq_len: Largest number of tokens in a row, special tokens included. Depending on the task, longer texts are
            cut or read in windows or pieces. By default the checkpoint's value or else the model's limit, which is the
            largest allowed value.
        max_characters: Largest number of characters in all texts of one input. A longer input is an error, before any
            work is done for it. By default there is no limit.
        progress: Called after each answer with the number of answered inputs and their total (None for a stream).
    """

    batch_size: int | None
    read_ahead: int | None
    max_seq_len: int | None
    max_characters: int | None
    progress: Progress | None


class RunOptions(CommonOptions, total=False):
    """The options of every pipeline, at creation and in each call; None in a call means the pipeline's own value.

    Attributes:
        errors: How to treat an input that cannot be answered. ``"raise"``, the default, raises its
            :class:`InvalidInputError` after the answers to the inputs before it. ``"return"`` gives the error in place
            of its answer and answers all others. Other failures (engine, source of a stream) are always raised.
    """

    errors: Errors | None


@dataclass(frozen=True)
class Options:
    """Checked :class:`RunOptions`; tasks extend it by their options."""

    none_is_a_value: ClassVar[frozenset[str]] = frozenset()

    batch_size: int = 16
    read_ahead: int | None = None
    errors: Errors = "raise"
    max_seq_len: int | None = None
    max_characters: int | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self._check(require_count, "batch_size", "read_ahead", "max_seq_len", "max_characters")
        require_choice("errors", self.errors, Errors)
        if self.progress is not None and not callable(self.progress):
            raise InvalidInputError(f"progress must be a function of two numbers, or None, got {self.progress!r}.")

    def _check(self, check: Callable[[str, Any], Any], *names: str) -> None:
        """Replace each named option that is not None by the result of ``check``."""
        for name in names:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check(name, getattr(self, name)))

    def changed(self: OptionsOfTask, options: Mapping[str, Any]) -> OptionsOfTask:
        """Return a copy with ``options``; None leaves an option unchanged, except where None is a value."""
        known = self.none_is_a_value
        return replace(self, **{name: value for name, value in options.items() if value is not None or name in known})

    def chunk_size(self, *, stream: bool) -> int:
        """Return how many inputs are read, prepared and run together."""
        if stream and self.read_ahead is not None:
            return self.read_ahead
        return 1 if stream and self.batch_size == 1 else _BATCHES_PER_CHUNK * self.batch_size


@dataclass(frozen=True)
class Job(Generic[Answer]):
    """One prepared input: rows of ids for the model, and a function from their outputs to the answer.

    ``finish`` gets the outputs of each row, in order (see :func:`erniem_rt.batching.run_rows`), and returns the
    answer, or another job if there are follow-up questions. An answer must copy what it keeps of the outputs, which are
    views of whole batches.
    """

    rows: list[list[int]]
    finish: Callable[[list[Outputs]], Answer | Job[Answer]]


# Turns inputs into jobs.
Prepare = Callable[[list[Any]], list[Job[Answer]]]


class Pipeline(Generic[AnyAnswer]):
    """A session, its tokenizer, and a task. Safe to share between threads; a context manager.

    Subclasses define a ``__call__`` that checks its options and answers one :class:`Job` per input; the object keeps no
    state of a call.

    Every pipeline takes one input or many: a list, an array, a Series, a column, or columns with a row per input (a
    mapping of lists, a frame, a table, a dataset) give a list of as many answers. Any other iterable is a stream, which
    is answered as it is read. Inputs that were read before a failure are answered before the error is raised.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        **options: :class:`RunOptions`, and those of the task. A call may override each.

    Attributes:
        options_type: The class of the task's checked options.
        session: The model.
        owns_session: Whether :meth:`close` closes the session too.
        required: The keys of an input; the first is a text. If it is the only key, an input may be the text itself.
        optional: Further keys that an input may have.
    """

    task: str
    head: str
    required: tuple[str, ...] = ("text",)
    optional: tuple[str, ...] = ()
    options_type: type[Options] = Options
    __call__: Callable[..., Any]

    def __init__(self, session: Session, tokenizer: Tokenizer, **options: Unpack[RunOptions]) -> None:
        self._options = self.options_type()
        self._options = self.options_for(options)
        self.session = session
        self.owns_session = True
        self._tokenizer: Tokenizer | None = tokenizer
        self._limit(self._options)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; :class:`InvalidInputError` once the pipeline is closed."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InvalidInputError("the pipeline is closed; open it again.")
        return tokenizer

    @property
    def batch_size(self) -> int:
        """Largest number of rows in one run of the model, unless a call overrides it."""
        return self._options.batch_size

    @property
    def manifest(self) -> Manifest:
        """The artifact's manifest."""
        return self.session.manifest

    @property
    def max_length(self) -> int:
        """Largest number of tokens in one row, special tokens included, unless a call overrides it."""
        return self._limit(self._options)

    def close(self) -> None:
        """Free the tokenizer and, unless the session was passed in, the model. May be called twice."""
        if self.owns_session:
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

    def _limit(self, asked: Options) -> int:
        """Return the largest number of tokens in one row of a call with these options."""
        limit, most = asked.max_seq_len, self.session.limits.max_length
        if limit is None:
            return min(self.manifest.defaults.max_seq_len or most, most)
        if limit > most:
            raise InvalidInputError(f"max_seq_len is {limit}; the model takes at most {most} tokens.")
        special = self.tokenizer.num_special_tokens_to_add()
        if limit <= special:
            raise InvalidInputError(
                f"max_seq_len is {limit}, and a row has {special} special tokens: expected at least {special + 1}."
            )
        return limit

    def options_for(self, options: Mapping[str, Any]) -> Any:
        """Return the pipeline's options updated by those of a call, checked."""
        require_options(type(self), options)
        return self._options.changed(options)

    def _answer(
        self, inputs: Any, prepare: Callable[[Any], Job[Answer]], asked: Options
    ) -> Answer | list[Answer] | Iterator[Answer]:
        """Answer one input with one answer, many with a list, a stream with an iterator."""
        return self._answer_together(inputs, lambda items: [prepare(item) for item in items], asked)

    def _answer_together(
        self, inputs: Any, prepare: Prepare[Answer], asked: Options
    ) -> Answer | list[Answer] | Iterator[Answer]:
        """Like :meth:`_answer`, with a ``prepare`` that takes many inputs at once, which is faster."""
        many = items_of(self.task, inputs, self.required, self.optional)
        if many is None:
            (answer,) = self._answers([inputs], 1, prepare, asked, alone=True)
            return answer
        items, total = many
        answers = self._answers(items, total, prepare, asked, alone=False)
        return answers if total is None else list(answers)

    def formed(self, inputs: Any, found: Any, asked: Any) -> Any:  # noqa: ARG002
        """What a call with ``inputs`` and the options ``asked`` returns; ``found`` is its answer, or a list of them."""
        return found

    def _answers(
        self,
        items: Iterable[Any],
        total: int | None,
        prepare: Prepare[Answer],
        run: Options,
        *,
        alone: bool,
    ) -> Iterator[Answer]:
        """Yield the answers to ``items``, chunk by chunk; errors have the item's index unless it is ``alone``."""
        source, done = iter(items), 0
        size = run.chunk_size(stream=total is None)
        failure: Exception | None = None
        broken: Exception | None = None

        def report(answered: int) -> None:
            if run.progress is not None:
                run.progress(done + answered, total)

        while failure is None:
            chunk, failure = take(source, size)
            if not chunk:
                break
            results, broken = self._results(_prepared(prepare, chunk, run), run, report)
            broken = yield from _settled(results, broken, run, None if alone else done)
            failure = failure if broken is None else broken
            done += len(chunk)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure, broken  # break the reference cycle with this frame

    def _results(
        self, jobs: list[Job[Answer] | InvalidInputError], run: Options, report: Callable[[int], None]
    ) -> tuple[dict[int, Answer | InvalidInputError], Exception | None]:
        """Run jobs together, round by round, until each has its result; ``report`` gets the number of results.

        Returns the results by index and, if some are missing, the error.
        """
        results: dict[int, Answer | InvalidInputError] = {}
        pending: dict[int, Job[Answer]] = {}
        answered = 0

        def settle(index: int, result: Answer | InvalidInputError) -> None:
            nonlocal answered
            results[index] = result
            if run.errors == "return" or not isinstance(result, InvalidInputError):
                answered += 1
                report(answered)

        try:
            for index, job in enumerate(jobs):
                if isinstance(job, Job):
                    pending[index] = job
                else:
                    settle(index, job)
            while pending:
                following: dict[int, Job[Answer]] = {}
                for index, result in self._round(pending, run.batch_size):
                    if isinstance(result, Job):
                        following[index] = result
                    else:
                        settle(index, result)
                pending = following
        except Exception as error:
            return results, error
        return results, None

    def _round(
        self, jobs: Mapping[int, Job[Answer]], batch_size: int
    ) -> Iterator[tuple[int, Answer | Job[Answer] | InvalidInputError]]:
        """Run every job's rows; yield each job's result after its last row, so that few outputs stay in memory."""
        owners = [index for index, job in jobs.items() for _ in job.rows]
        found: dict[int, dict[int, Outputs]] = {index: {} for index in jobs}
        yield from ((index, _finished(job, [])) for index, job in jobs.items() if not job.rows)
        rows = [row for job in jobs.values() for row in job.rows]
        for row, outputs in run_rows(self.session, rows, batch_size=batch_size):
            index = owners[row]
            found[index][row] = outputs
            if len(found[index]) == len(jobs[index].rows):
                complete = found.pop(index)
                yield index, _finished(jobs[index], [complete[i] for i in sorted(complete)])


def require_options(cls: type[Pipeline[Any]], options: Iterable[str]) -> None:
    """Raise :class:`InvalidInputError` unless the task has all these options."""
    common = [field.name for field in fields(Options)]
    known = [*(field.name for field in fields(cls.options_type) if field.name not in common), *common]
    for name in options:
        if name not in known:
            raise InvalidInputError(f"{cls.task} takes no option {name!r}; expected one of {', '.join(known)}.")


def _prepared(prepare: Prepare[Answer], items: list[Any], run: Options) -> list[Job[Answer] | InvalidInputError]:
    """Return each item's job or error; with ``errors="raise"`` up to the first error."""
    try:
        for item in items:
            require_size(item, run.max_characters)
        return [*prepare(items)]
    except InvalidInputError as error:
        if len(items) == 1:
            return [error.with_traceback(None)]  # the traceback would keep all items in memory
    middle = len(items) // 2  # bisection finds the bad items cheaply
    jobs = _prepared(prepare, items[:middle], run)
    if run.errors == "raise" and isinstance(jobs[-1], InvalidInputError):
        return jobs
    return jobs + _prepared(prepare, items[middle:], run)


def _finished(job: Job[Answer], outputs: list[Outputs]) -> Answer | Job[Answer] | InvalidInputError:
    try:
        return job.finish(outputs)
    except InvalidInputError as error:
        return error.with_traceback(None)


def _settled(
    results: dict[int, Answer | InvalidInputError], broken: Exception | None, run: Options, first: int | None
) -> Generator[Any, None, Exception | None]:
    """Yield the results in order; return the error to raise in place of the next one.

    It names the index of its input, where results count from ``first``; None if there is only this input.
    """
    index = 0
    while index in results:
        result = results.pop(index)
        if run.errors == "raise" and isinstance(result, InvalidInputError):
            return result if first is None else InvalidInputError(f"input {first + index}: {result}")
        yield result
        index += 1
    return broken
