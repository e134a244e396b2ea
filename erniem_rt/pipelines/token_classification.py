"""Token classification: labels of tokens, words or entities, in texts of any length."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from erniem_rt.checks import require_choice, require_count
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.answers import Entities, Entity, label_names, softmax
from erniem_rt.pipelines.base import CommonOptions, Job, Options, Pipeline, RunOptions
from erniem_rt.pipelines.inputs import best_parts, require_tokens, shared_tokens, strings, text_of, visible, windows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from erniem_rt.batching import Outputs
    from erniem_rt.pipelines.answers import Column, Text
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer


Strategy = Literal["none", "simple", "first", "average", "max"]

# Scripts written without spaces between words: Thai and Lao, Myanmar, Khmer, Chinese and Japanese.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x312F),
    (0x31A0, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)


class Token(NamedTuple):
    """A token's half-open range of characters and its probabilities ``(labels,)``."""

    start: int
    end: int
    scores: NDArray[np.float64]


class Labelled(NamedTuple):
    """A label, its probability, and the half-open range of characters it was found in."""

    label: str
    score: float
    start: int
    end: int


class TokenClassificationSettings(CommonOptions, total=False):
    """The options that do not change an answer's type: see :class:`TokenClassificationPipeline`."""

    aggregation_strategy: Strategy | None
    ignore_labels: Collection[str] | None
    stride: int | None


class TokenClassificationOptions(TokenClassificationSettings, RunOptions, total=False):
    """All options: see :class:`TokenClassificationPipeline`."""


@dataclass(frozen=True)
class _Options(Options):
    aggregation_strategy: Strategy = "none"
    ignore_labels: Collection[str] = ("O",)
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("aggregation_strategy", self.aggregation_strategy, Strategy)
        self._check(_checked_labels, "ignore_labels")
        self._check(partial(require_count, least=0), "stride")


class TokenClassificationPipeline(Pipeline[Entities]):
    """Head ``ner``: a label for each token, word or entity of a text.

    A text that does not fit into one row is read in overlapping windows. A token's label comes from the window in
    which it has the most context, so each token is labelled once, and entities are joined across windows.

    Args:
        session: The model; its manifest names the labels.
        tokenizer: Its tokenizer.
        aggregation_strategy: ``"none"`` for tokens. ``"simple"`` joins neighbouring tokens of one kind, up to the next
            ``B-``; ``"first"``, ``"average"`` and ``"max"`` join words in the same way. The label of a word is that of
            its first token, of the mean of its tokens' probabilities, or of its most certain token. A word is a run of
            letters and digits; each punctuation mark is a word, as is each token in a script written without spaces.
        ignore_labels: Labels to leave out, as they appear in the result: ``"B-PER"`` of tokens, ``"PER"`` of entities.
        stride: The overlap of neighbouring windows, in tokens; by default 128 or half a window, whichever is less.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`.

    Raises:
        ArtifactError: The manifest does not name the labels.
        InvalidInputError: An option is invalid.
    """

    task = "token-classification"
    head = "ner"
    options_type = _Options

    @overload
    def __init__(
        self: TokenClassificationPipeline,
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[TokenClassificationSettings],
    ) -> None: ...
    @overload
    def __init__(
        self: TokenClassificationPipeline[Any],
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[TokenClassificationOptions],
    ) -> None: ...
    def __init__(self, session: Session, tokenizer: Tokenizer, **options: Unpack[TokenClassificationOptions]) -> None:
        super().__init__(session, tokenizer, **options)  # type: ignore[misc]
        self._window(self._options)
        self.labels = label_names(self.manifest)

    @overload
    def __call__(self, inputs: Text, **options: Unpack[TokenClassificationSettings]) -> Entities: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[TokenClassificationSettings]
    ) -> Entities | list[Entities]: ...
    @overload
    def __call__(self, inputs: Column, **options: Unpack[TokenClassificationSettings]) -> list[Entities]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], **options: Unpack[TokenClassificationSettings]
    ) -> Iterator[Entities]: ...
    @overload
    def __call__(self, inputs: Text, **options: Unpack[TokenClassificationOptions]) -> Entities | InvalidInputError: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[TokenClassificationOptions]
    ) -> Entities | InvalidInputError | list[Entities | InvalidInputError]: ...
    @overload
    def __call__(
        self, inputs: Column, **options: Unpack[TokenClassificationOptions]
    ) -> list[Entities | InvalidInputError]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], **options: Unpack[TokenClassificationOptions]
    ) -> Iterator[Entities | InvalidInputError]: ...
    def __call__(self, inputs: Any, **options: Unpack[TokenClassificationOptions]) -> Any:
        """Label one text, a list of texts or a stream of texts. Options default to the pipeline's own.

        A text is a str or ``{"text": ...}``.

        Returns:
            Per text a list of ``{"entity", "score", "index", "word", "start", "end"}``, in the order of the text:
            ``word`` is ``text[start:end]`` (code points), ``index`` the number of the token in the text, from 1.
            With an aggregation strategy ``{"entity_group", "score", "word", "start", "end"}``. For a list of texts a
            list of results, for a stream an iterator.

        Raises:
            InvalidInputError: An input is not text or is empty, or an option is invalid.
        """
        asked = self.options_for(options)
        job = partial(self._job, asked.aggregation_strategy, asked.ignore_labels, self._window(asked))
        return self._answer(inputs, job, asked)

    def _window(self, asked: Any) -> tuple[int, int]:
        """Return the size of a window without special tokens, and the step between windows, in tokens."""
        room = self._limit(asked) - self.tokenizer.num_special_tokens_to_add()
        stride = shared_tokens(room) if asked.stride is None else asked.stride
        if stride >= room:
            raise InvalidInputError(f"stride is {stride}; it must be less than the {room} tokens of a window.")
        return room, room - stride

    def _job(
        self, strategy: Strategy, ignored: frozenset[str], window: tuple[int, int], item: object
    ) -> Job[list[Entity]]:
        text = text_of(self.task, item)
        encoding = self.tokenizer(text, add_special_tokens=False)
        require_tokens("text", len(encoding))
        spans = windows(len(encoding), *window)
        make_row = self.tokenizer.build_inputs_with_special_tokens
        rows = [make_row(encoding.input_ids[span.start : span.stop]) for span in spans]

        def finish(outputs: list[Outputs]) -> list[Entity]:
            scores = _merged(spans, [softmax(output["logits"][1:-1].astype(np.float64)) for output in outputs])
            tokens = [Token(*place, row) for place, row in zip(encoding.offsets, scores, strict=True)]
            found = self._tokens(text, tokens) if strategy == "none" else self._groups(text, tokens, strategy)
            return [item for item in found if item.get("entity", item.get("entity_group")) not in ignored]

        return Job(rows, finish)

    def _tokens(self, text: str, tokens: list[Token]) -> list[Entity]:
        entities = entities_of_tokens(tokens, self.labels)
        return [
            {"entity": label, "score": score, "index": index, "word": text[start:end], "start": start, "end": end}
            for index, (label, score, start, end) in enumerate(entities, start=1)
        ]

    def _groups(self, text: str, tokens: list[Token], strategy: Strategy) -> list[Entity]:
        if strategy == "simple":
            entities = entities_of_tokens(tokens, self.labels)
        else:
            entities = entities_of_words(text, tokens, self.labels, strategy)
        return [
            {"entity_group": kind, "score": score, "word": text[start:end], "start": start, "end": end}
            for kind, score, start, end in grouped(text, entities)
        ]


def _checked_labels(name: str, labels: Collection[str]) -> frozenset[str]:
    if not isinstance(labels, (set, frozenset)):
        labels = strings(name, labels, "a list of labels")
    if not all(isinstance(label, str) for label in labels):
        raise InvalidInputError(f"{name} must be a list of labels, got {labels!r}.")
    return frozenset(labels)


def _merged(spans: list[range], scores: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Merge the windows' probabilities into those of all tokens ``(tokens, labels)``."""
    return np.concatenate(
        [
            rows[part.start - span.start : part.stop - span.start]
            for span, part, rows in zip(spans, best_parts(spans), scores, strict=True)
        ]
    )


def entities_of_tokens(tokens: Iterable[Token], labels: Sequence[str]) -> list[Labelled]:
    """Label each token with its most probable label (strategies ``none`` and ``simple``)."""
    return [_entity(token.scores, token.start, token.end, labels) for token in tokens]


def entities_of_words(text: str, tokens: Sequence[Token], labels: Sequence[str], strategy: Strategy) -> list[Labelled]:
    """Label each word by its ``first`` token, its most certain one (``max``), or the ``average`` of its tokens.

    A token continues the previous word if there is no whitespace between them and the adjacent characters are letters,
    digits or marks of a script written with spaces. Everything else is a separate word: punctuation, symbols, and each
    token of Chinese, Japanese, Thai, Lao, Khmer and Myanmar text. Tokens of the same character are one word. Tokens of
    whitespace belong to no word.
    """
    visible = [token for token in tokens if not text[token.start : token.end].isspace()]
    words = [visible[:1]] if visible else []
    for previous, token in pairwise(visible):
        if _is_continued(text, previous, token):
            words[-1].append(token)
        else:
            words.append([token])
    return [_entity(_word_scores(word, strategy), word[0].start, word[-1].end, labels) for word in words]


def grouped(text: str, entities: Iterable[Labelled]) -> list[Labelled]:
    """Join neighbours of one kind, up to the next ``B-``; their score is the mean.

    Labels lose their prefix, up to the first hyphen. Groups are stripped of whitespace, and dropped if that leaves
    nothing.
    """
    groups: list[list[Labelled]] = []
    for entity in entities:
        if groups and not entity.label.startswith("B-") and _kind(entity.label) == _kind(groups[-1][-1].label):
            groups[-1].append(entity)
        else:
            groups.append([entity])
    joined = [_joined(text, group) for group in groups]
    return [entity for entity in joined if entity.end > entity.start]


def _entity(scores: NDArray[np.float64], start: int, end: int, labels: Sequence[str]) -> Labelled:
    best = int(scores.argmax())
    return Labelled(labels[best], float(scores[best]), start, end)


def _word_scores(word: Sequence[Token], strategy: Strategy) -> NDArray[np.float64]:
    if strategy == "first":
        return word[0].scores
    if strategy == "max":
        return max(word, key=lambda token: token.scores.max()).scores
    scores: NDArray[np.float64] = np.mean([token.scores for token in word], axis=0)
    return scores


def _is_continued(text: str, previous: Token, token: Token) -> bool:
    if token.start < previous.end:
        return True
    has_space = any(map(str.isspace, text[previous.end : token.start]))
    return not has_space and _joins(text[previous.end - 1]) and _joins(text[token.start])


def _joins(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN" and not any(low <= ord(char) <= high for low, high in _UNSPACED)


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _joined(text: str, group: Sequence[Labelled]) -> Labelled:
    start, end = visible(text, group[0].start, group[-1].end)
    score = float(np.mean([entity.score for entity in group]))
    return Labelled(group[0].label.split("-", 1)[-1], score, start, max(start, end))
