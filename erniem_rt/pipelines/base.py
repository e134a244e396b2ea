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

__all__ = ["CommonOptions", "Job", "Options", "Outputs", "Pipeline", "Progress", "RunOptions", "require_options"]

# Told after each answer: how many inputs are answered, and of how many (None for a stream).
Progress = Callable[[int, "int | None"], None]

Errors = Literal["raise", "return"]

# Inputs that are prepared and sorted by length together, in batches.
_BATCHES_PER_CHUNK = 8


class CommonOptions(TypedDict, total=False):
    """The options of every pipeline that change nothing of an answer's form.

    Attributes:
        batch_size: Most rows in one run of the model; 16.
        read_ahead: How many inputs of a stream are taken before the first of them is answered: they are sorted by
            length and run together. ``8 * batch_size`` if left out, and 1 with ``batch_size=1``: each input is then
            answered before the next one is taken.
        max_seq_len: Most tokens in a row, special tokens included: what is longer is cut, or read in windows or pieces,
            as the task does. If left out, what the artifact's checkpoint says, or the model's own limit, which is the
            most that may be given.
        max_characters: Most characters in one input, its texts taken together; more is an error of that input, before
            any work is done for it. No limit if left out.
        progress: Told after each answer how many inputs are answered, and of how many (None for a stream).
    """

    batch_size: int | None
    read_ahead: int | None
    max_seq_len: int | None
    max_characters: int | None
    progress: Progress | None


class RunOptions(CommonOptions, total=False):
    """Options that every pipeline takes, when it is made and in each call; None in a call means the pipeline's own.

    Attributes:
        errors: How to treat an input that cannot be answered. ``"raise"``, the default, raises its
            :class:`InvalidInputError` after the answers to the inputs before it. ``"return"`` gives the error in place
            of its answer and answers all others. Other failures (engine, source of a stream) are always raised.
    """

    errors: Errors | None


@dataclass(frozen=True)
class Options:
    """:class:`RunOptions`, checked; a task with options of its own extends it."""

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
        """Replace the options of these names that are not None by what ``check`` makes of them."""
        for name in names:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check(name, getattr(self, name)))

    def changed(self: OptionsOfTask, options: Mapping[str, Any]) -> OptionsOfTask:
        """A copy with ``options``; None leaves an option unchanged, except where None is a value."""
        known = self.none_is_a_value
        return replace(self, **{name: value for name, value in options.items() if value is not None or name in known})

    def chunk_size(self, *, stream: bool) -> int:
        """How many inputs are taken, prepared and run together."""
        if stream and self.read_ahead is not None:
            return self.read_ahead
        return 1 if stream and self.batch_size == 1 else _BATCHES_PER_CHUNK * self.batch_size


@dataclass(frozen=True)
class Job(Generic[Answer]):
    """One prepared input: rows of ids for the model, and a function from their outputs to the answer.

    ``finish`` gets the outputs of each row, in order (see :func:`erniem_rt.batching.run_rows`), and returns the
    answer, or another job when the answer leads to further questions. An answer must not keep the outputs' arrays,
    which are views of whole batches: copy what stays.
    """

    rows: list[list[int]]
    finish: Callable[[list[Outputs]], Answer | Job[Answer]]


# Makes a job of each input.
Prepare = Callable[[list[Any]], list[Job[Answer]]]

# Makes what is raised about the input of an index.
Named = Callable[[int, InvalidInputError], InvalidInputError]


class Pipeline(Generic[AnyAnswer]):
    """A session, its tokenizer, and a task. Safe to share between threads; a context manager.

    Subclasses give a ``__call__`` that checks its options and answers one :class:`Job` per input; nothing of a call
    is kept in the object.

    Every pipeline may be called with one input, or with many: a list, an array, a Series, a column, or columns with a
    row per input (a mapping of lists, a frame, a table, a dataset) give a list of as many answers. Any other iterable
    is a stream, which is answered as it is read. Inputs that were taken before a failure are answered before the error
    is raised.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        **options: :class:`RunOptions`, and those of the task. Each may be given in a call too, for that call.

    Attributes:
        options_type: The options of the task, checked.
        session: The model.
        owns_session: Whether :meth:`close` closes the session too.
        required: The keys of an input; the first is a text. Where it is the only one, the text alone will do.
        optional: Keys that an input may have besides.
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
        """Its tokenizer; :class:`InvalidInputError` once the pipeline is closed."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InvalidInputError("the pipeline is closed; open it again.")
        return tokenizer

    @property
    def batch_size(self) -> int:
        """Most rows in one run of the model, where a call does not say otherwise."""
        return self._options.batch_size

    @property
    def manifest(self) -> Manifest:
        """What the artifact says of itself."""
        return self.session.manifest

    @property
    def max_length(self) -> int:
        """Most tokens in one row, special tokens included, where a call does not say otherwise."""
        return self._limit(self._options)

    def close(self) -> None:
        """Free the tokenizer and, unless the session was passed in, the model. Closing twice is fine."""
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
        """Most tokens in one row of a call with these options."""
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
        """The pipeline's options with those of a call, checked."""
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
        """Like :meth:`_answer`, with a ``prepare`` that makes a job of each of many inputs at once, which is faster."""
        many = items_of(self.task, inputs, self.required, self.optional)
        if many is None:
            (answer,) = self._answers([inputs], 1, prepare, asked, _itself)
            return answer
        items, total = many
        answers = self._answers(items, total, prepare, asked, _about)
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
        named: Named,
    ) -> Iterator[Answer]:
        """Yield the answers to ``items``, chunk by chunk; ``named`` makes what is raised about the item of an index."""
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
            broken = yield from _settled(results, broken, run, named, done)
            failure = failure if broken is None else broken
            done += len(chunk)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure, broken  # which hold this frame, which holds them

    def _results(
        self, jobs: list[Job[Answer] | InvalidInputError], run: Options, report: Callable[[int], None]
    ) -> tuple[dict[int, Answer | InvalidInputError], Exception | None]:
        """Run jobs together, round by round, until each has its result; ``report`` their number as it grows.

        The results are by index, with what was raised where some are missing.
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
        """Run every job's rows; yield each job's result once its last row is there, so that few outputs are held."""
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
    """Raise :class:`InvalidInputError` unless all are names of options of the task."""
    common = [field.name for field in fields(Options)]
    known = [*(field.name for field in fields(cls.options_type) if field.name not in common), *common]
    for name in options:
        if name not in known:
            raise InvalidInputError(f"{cls.task} takes no option {name!r}; expected one of {', '.join(known)}.")


def _prepared(prepare: Prepare[Answer], items: list[Any], run: Options) -> list[Job[Answer] | InvalidInputError]:
    """Each item's job or error; with ``errors="raise"`` up to the first error."""
    try:
        for item in items:
            require_size(item, run.max_characters)
        return [*prepare(items)]
    except InvalidInputError as error:
        if len(items) == 1:
            return [error.with_traceback(None)]  # which would keep all items in memory
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
    results: dict[int, Answer | InvalidInputError], broken: Exception | None, run: Options, named: Named, first: int
) -> Generator[Any, None, Exception | None]:
    """Yield the results in order; return the error to raise in place of the next one."""
    index = 0
    while index in results:
        result = results.pop(index)
        if run.errors == "raise" and isinstance(result, InvalidInputError):
            return named(first + index, result)
        yield result
        index += 1
    return broken


def _itself(_: int, error: InvalidInputError) -> InvalidInputError:
    return error


def _about(index: int, error: InvalidInputError) -> InvalidInputError:
    """The same error with the index of its input."""
    return InvalidInputError(f"input {index}: {error}")
