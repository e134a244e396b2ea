"""Question answering: answers cut from contexts of any length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

import numpy as np

from erniem_rt.checks import require_count, require_flag
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.answers import Found, QuestionAnswer, softmax
from erniem_rt.pipelines.base import CommonOptions, Job, Options, Pipeline, RunOptions
from erniem_rt.pipelines.inputs import require_text, require_tokens, windows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from erniem_rt.batching import Outputs
    from erniem_rt.pipelines.answers import Column
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer


# The answer to one input in a call with options that change its type.
_AnyForm: TypeAlias = "Found | QuestionAnswer | list[QuestionAnswer] | InvalidInputError"

# transformers' defaults.
_WINDOW, _STRIDE = 384, 128
# transformers splits a context at these: space, tab, line ends, narrow no-break space.
_WORD = re.compile("[^ \t\r\n\u202f]+")


class QuestionAnsweringSettings(CommonOptions, total=False):
    """The options that do not change an answer's type: see :class:`QuestionAnsweringPipeline`."""

    max_answer_len: int | None
    handle_impossible_answer: bool | None
    align_to_words: bool | None
    doc_stride: int | None


class QuestionAnsweringOptions(QuestionAnsweringSettings, RunOptions, total=False):
    """All options: see :class:`QuestionAnsweringPipeline`."""

    top_k: int | None


@dataclass(frozen=True)
class _Options(Options):
    top_k: int = 1
    max_answer_len: int = 15
    handle_impossible_answer: bool = False
    align_to_words: bool = False
    doc_stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(require_count, "top_k", "max_answer_len", "doc_stride")
        self._check(require_flag, "handle_impossible_answer", "align_to_words")


class Candidate(NamedTuple):
    """A possible answer: a half-open range of characters, and its probability."""

    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text, and the characters where answers start and end.

    Attributes:
        ids: The tokens' ids.
        starts: int64 ``(tokens,)``, the start of an answer whose first token is this one.
        ends: int64 ``(tokens,)``, the (exclusive) end of an answer whose last token is this one.
    """

    ids: list[int]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, window: range) -> Tokens:
        part = slice(window.start, window.stop)
        return Tokens(self.ids[part], self.starts[part], self.ends[part])


@dataclass(frozen=True)
class Reading:
    """The model's probabilities for one window; arrays ``(tokens,)``, float64.

    Attributes:
        start: Probability that the answer begins with this token.
        end: Probability that the answer ends with this token.
        null: Probability that there is no answer: that it begins and ends at ``[CLS]``.
        tokens: The window's tokens.
    """

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    null: float
    tokens: Tokens


@dataclass(frozen=True)
class _Windows:
    """In tokens: the longest row, the usual row (more for a long question), and the step between windows."""

    limit: int
    usual: int
    stride: int


class QuestionAnsweringPipeline(Pipeline[Found]):
    """Head ``qa``: the part of a context that answers a question.

    A context that does not fit into one row is read in windows; the best answer of all windows is returned.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        top_k: The number of answers to return. There are fewer if the context has no more.
        max_answer_len: Longest answer, in tokens.
        handle_impossible_answer: Whether "no answer" (an empty one, from 0 to 0) competes with the others. Its score
            is the lowest that any window gives it.
        align_to_words: Answer in whole words, split at whitespace, and tokenize the context word by word, both as
            transformers does with ErnieM: "Berlin." instead of "Berlin", and all of a Chinese sentence. Without it,
            the context is tokenized as a whole and an answer has the exact tokens that the model chose.
        doc_stride: Tokens from the start of one window to the start of the next; at most the size of a window. By
            default 128 or half of the longest row, whichever is less.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`. ``max_seq_len`` is the length of a row: question,
            special tokens and window. By default 384, or more for a long question, up to the checkpoint's limit.
    """

    task = "question-answering"
    head = "qa"
    required = ("question", "context")
    options_type = _Options

    @overload
    def __init__(
        self: QuestionAnsweringPipeline,
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[QuestionAnsweringSettings],
    ) -> None: ...
    @overload
    def __init__(
        self: QuestionAnsweringPipeline[Any],
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[QuestionAnsweringOptions],
    ) -> None: ...
    def __init__(self, session: Session, tokenizer: Tokenizer, **options: Unpack[QuestionAnsweringOptions]) -> None:
        super().__init__(session, tokenizer, **options)  # type: ignore[misc]
        self._windows(self._options)

    @overload
    def __call__(self, *, question: str, context: str, **options: Unpack[QuestionAnsweringSettings]) -> Found: ...
    @overload
    def __call__(
        self, *, question: Column, context: Column, **options: Unpack[QuestionAnsweringSettings]
    ) -> list[Found]: ...
    @overload
    def __call__(self, inputs: Mapping[str, str], **options: Unpack[QuestionAnsweringSettings]) -> Found: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[QuestionAnsweringSettings]
    ) -> Found | list[Found]: ...
    @overload
    def __call__(self, inputs: Column, **options: Unpack[QuestionAnsweringSettings]) -> list[Found]: ...
    @overload
    def __call__(self, inputs: Iterable[object], **options: Unpack[QuestionAnsweringSettings]) -> Iterator[Found]: ...
    @overload
    def __call__(
        self, *, question: str, context: str, **options: Unpack[QuestionAnsweringOptions]
    ) -> _AnyForm[Found]: ...
    @overload
    def __call__(
        self, *, question: Column, context: Column, **options: Unpack[QuestionAnsweringOptions]
    ) -> list[_AnyForm[Found]]: ...
    @overload
    def __call__(self, inputs: Mapping[str, str], **options: Unpack[QuestionAnsweringOptions]) -> _AnyForm[Found]: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[QuestionAnsweringOptions]
    ) -> Found | QuestionAnswer | list[QuestionAnswer] | InvalidInputError | list[_AnyForm[Found]]: ...
    @overload
    def __call__(self, inputs: Column, **options: Unpack[QuestionAnsweringOptions]) -> list[_AnyForm[Found]]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], **options: Unpack[QuestionAnsweringOptions]
    ) -> Iterator[_AnyForm[Found]]: ...
    def __call__(
        self,
        inputs: Any = None,
        *,
        question: Any = None,
        context: Any = None,
        **options: Unpack[QuestionAnsweringOptions],
    ) -> Any:
        """Answer ``question`` from ``context``, or one mapping with these two keys, a list or a stream of mappings.

        Both may be columns: lists, arrays or Series of one length. Options default to the pipeline's own.

        Returns:
            ``{"answer", "score", "start", "end"}``: ``context[start:end]`` (code points) is the answer, the score is
            between 0 and 1. With ``top_k`` above 1 a list of these, best first. For a list of inputs a list of results,
            for a stream an iterator.

        Raises:
            InvalidInputError: A text is missing, not text or empty, or the question leaves no room for the context.
        """
        if inputs is None:
            inputs = {"question": question, "context": context}
        elif question is not None or context is not None:
            raise InvalidInputError("give question and context by name or as one mapping, not both.")
        asked = self.options_for(options)
        return self._answer(inputs, partial(self._job, asked, self._windows(asked)), asked)

    def _windows(self, asked: Any) -> _Windows:
        limit = self._limit(asked)
        usual = limit if asked.max_seq_len is not None else min(_WINDOW, limit)
        stride = asked.doc_stride or min(max(usual // 2, 1), _STRIDE)
        if stride > usual:
            raise InvalidInputError(
                f"doc_stride is {stride}, more than the {usual} tokens of a row: text would be left out."
            )
        return _Windows(limit, usual, stride)

    def _job(self, options: _Options, rows_of: _Windows, item: object) -> Job[Any]:
        question, context = _texts(item)
        question_ids = self.tokenizer(question, add_special_tokens=False).input_ids
        tokens = self._words(context) if options.align_to_words else self._tokens(context)
        require_tokens("question", len(question_ids))
        require_tokens("context", sum(tokens.starts < tokens.ends))
        room = self._room(len(question_ids), rows_of)
        parts = [tokens[window] for window in windows(len(tokens), room, min(rows_of.stride, room))]
        rows = [self.tokenizer.build_inputs_with_special_tokens(question_ids, part.ids) for part in parts]
        return Job(rows, partial(_finish, options, context, rows, parts))

    def _tokens(self, context: str) -> Tokens:
        """Tokenize the whole context; answers are the text of their tokens without whitespace at the ends."""
        encoding = self.tokenizer(context, add_special_tokens=False)
        starts = [_visible_start(context, start) for start, _ in encoding.offsets]
        ends = [_visible_end(context, end) for _, end in encoding.offsets]
        return Tokens(encoding.input_ids, np.array(starts, np.int64), np.array(ends, np.int64))

    def _words(self, context: str) -> Tokens:
        """Tokenize each word of the context alone; answers are whole words."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        for word in _WORD.finditer(context):
            word_ids = self.tokenizer(word.group(), add_special_tokens=False).input_ids
            ids += word_ids
            places += [word.span()] * len(word_ids)
        starts, ends = np.array(places, np.int64).reshape(-1, 2).T
        return Tokens(ids, starts, ends)

    def _room(self, question_length: int, rows_of: _Windows) -> int:
        """Return how many tokens of the context fit into a row beside the question."""
        taken = question_length + self.tokenizer.num_special_tokens_to_add(pair=True)
        limit = rows_of.limit
        if taken >= limit:
            raise InvalidInputError(
                f"the question alone takes {question_length} tokens; the limit is {limit}, with "
                f"{taken - question_length} special tokens and some of the context. Shorten the question."
            )
        return min(limit, max(rows_of.usual, taken + rows_of.stride)) - taken


def _texts(item: object) -> tuple[str, str]:
    if not isinstance(item, Mapping):
        raise InvalidInputError(f"expected a mapping with question and context, got {type(item).__name__}.")
    unknown = sorted(map(str, item.keys() - {"question", "context"}))
    if unknown:
        raise InvalidInputError(f"{unknown[0]!r} is not known; expected question and context.")
    for name in ("question", "context"):
        if item.get(name) is None:
            raise InvalidInputError(f"{name} is missing; expected question and context.")
    return require_text("question", item["question"]), require_text("context", item["context"])


def _finish(
    options: _Options, context: str, rows: list[list[int]], parts: list[Tokens], outputs: list[Outputs]
) -> QuestionAnswer | list[QuestionAnswer]:
    readings = [
        # One separator follows the context.
        read(output["start_logits"], output["end_logits"], len(row) - 1 - len(part), part)
        for row, part, output in zip(rows, parts, outputs, strict=True)
    ]
    spans = best_spans(readings, options.top_k, options.max_answer_len)
    if options.handle_impossible_answer:
        spans.append(Candidate(0, 0, min(reading.null for reading in readings)))
        spans = sorted(spans, key=lambda span: -span.score)[: options.top_k]
    answers: list[QuestionAnswer] = [
        {"answer": context[s.start : s.end], "score": s.score, "start": s.start, "end": s.end} for s in spans
    ]
    return answers[0] if options.top_k == 1 else answers


def _visible_start(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _visible_end(text: str, end: int) -> int:
    while end > 0 and text[end - 1].isspace():
        end -= 1
    return end


def read(start_logits: NDArray[np.float32], end_logits: NDArray[np.float32], first: int, tokens: Tokens) -> Reading:
    """Turn one row's logits ``(sequence,)`` into probabilities over ``[CLS]`` and the context, from ``first`` on.

    As in transformers, the softmax excludes the question and the separators.
    """
    context = slice(first, first + len(tokens))
    start, end = (
        softmax(np.append(logits[:1], logits[context]).astype(np.float64)) for logits in (start_logits, end_logits)
    )
    return Reading(start[1:], end[1:], float(start[0] * end[0]), tokens)


def best_spans(readings: Iterable[Reading], count: int, max_tokens: int) -> list[Candidate]:
    """Return the ``count`` most probable spans of at most ``max_tokens`` tokens, best first, over all windows.

    Each span is returned once, with its best score, even if several pairs of tokens or several windows produce it. Ties
    go to the earlier window, then to the earlier first token, then to the earlier last token.
    """
    best: dict[tuple[int, int], Candidate] = {}
    found = [span for reading in readings for span in _best_in_window(reading, count, max_tokens)]
    for span in sorted(found, key=lambda span: -span.score):
        best.setdefault((span.start, span.end), span)
    return list(best.values())[:count]


def _best_in_window(reading: Reading, count: int, max_tokens: int) -> Iterator[Candidate]:
    """Yield up to ``count`` different spans, the best first."""
    length = len(reading.tokens)
    if not length:
        return
    reach = min(max_tokens, length)
    # Row i, column j: the answer from token i to token i + j.
    last = np.arange(length)[:, None] + np.arange(reach)
    is_inside = last < length
    last = np.minimum(last, length - 1)
    starts, ends = reading.tokens.starts[:, None], reading.tokens.ends[last]
    scores = np.where(is_inside & (starts < ends), reading.start[:, None] * reading.end[last], -1.0)
    for _ in range(count):
        row, column = divmod(int(scores.argmax()), reach)
        if scores[row, column] < 0:
            return
        span = Candidate(int(starts[row, 0]), int(ends[row, column]), float(scores[row, column]))
        yield span
        scores[(starts == span.start) & (ends == span.end)] = -1.0
