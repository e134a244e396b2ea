"""Information extraction by a schema: entities, relations, events, opinions, classifications."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from erniem_rt.checks import require_choice, require_fraction
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.answers import Extracted, sigmoid
from erniem_rt.pipelines.base import CommonOptions, Job, Options, Pipeline, RunOptions
from erniem_rt.pipelines.inputs import text_of
from erniem_rt.pipelines.uie import (
    EncodedText,
    Node,
    Prompt,
    Prompter,
    PromptKey,
    SchemaLanguage,
    Span,
    choose_option,
    cut_answers,
    encode,
    find_spans,
    join_spans,
    parse_schema,
    split,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Unpack

    from erniem_rt.batching import Outputs
    from erniem_rt.pipelines.answers import Column, Text
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer


Answer = dict[str, Any]

# Taskflow subtracts this for special tokens from a row's length, to limit a text's characters.
_TASKFLOW_SPECIAL = 3
# The limit is never below this, however long the prompt is.
_FEWEST_CHARACTERS = 64


@dataclass(frozen=True)
class _Question:
    """A prompt, and the answer whose ``relations`` get the results under the node's name."""

    node: Node
    prompt: Prompt
    parent: Answer


class InformationExtractionSettings(CommonOptions, total=False):
    """The options that do not change an answer's type: see :class:`InformationExtractionPipeline`."""

    schema: Any
    schema_lang: SchemaLanguage | None
    threshold: float | None


class InformationExtractionOptions(InformationExtractionSettings, RunOptions, total=False):
    """All options: see :class:`InformationExtractionPipeline`."""


@dataclass(frozen=True)
class _Options(Options):
    schema: Any = None
    schema_lang: SchemaLanguage = "auto"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("schema_lang", self.schema_lang, SchemaLanguage)
        self._check(require_fraction, "threshold")


@dataclass(frozen=True)
class _Asked:
    """The settings of a call: the schema, the token limit of a row, the prompts' language and the threshold."""

    roots: tuple[Node, ...]
    limit: int
    language: SchemaLanguage
    threshold: float


class InformationExtractionPipeline(Pipeline[Extracted]):
    """Head ``ie``: universal information extraction (UIE) by a schema.

    A schema is a name, a list of names and dicts, or a dict of names to schemas of the same kind, which are asked
    about each answer::

        ["Person", {"Company": ["Founder", "Sentiment[positive, negative]"]}]

    A name that ends in bracketed options, with commas of any script between them, is a classification: its answer is
    one of them. A single item in brackets is part of the name, as in ``Price [EUR]``. With slashes, as in ``Speed
    [km/h]``, it may be either: an option is the answer only if the text has none. Names become prompts as in uie-m:
    ``Person``, then ``Founder of Apple`` and ``Sentiment of Apple [positive, negative]``, or ``苹果的创始人``. The
    schema is processed level by level.

    A text that does not fit into a row with the longest prompt of a level is split at ends of sentences. Where no
    sentence ends, pieces overlap by 128 tokens, or by half a row if that is less; an answer of at most that length is
    found whole, and once. A classification takes the majority of the pieces.

    Each level runs a row for each of its different prompts with each piece of the text. Below the first level there is
    a prompt for each name and each different answer above it: for a text of 100 pieces with 200 people,
    ``{"Person": "Employer"}`` runs 100 rows and then 20,000.

    Prompts are converted to half-width characters, texts are not. In an artifact with the mask of uie-m, a piece has at
    most 509 characters minus those of the longest prompt, as in Taskflow and in the training of uie-m.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        schema: What to extract. Needed here or in the call.
        schema_lang: How to ask about an answer: ``"zh"`` with 的, ``"en"`` with "of", ``"auto"`` as the name asked for
            is written: Chinese if it has a Han character.
        threshold: The probabilities of an answer's start and end must exceed this; from 0 to below 1.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`; each prompt makes a row with each piece of a text.

    Raises:
        InvalidInputError: The schema is invalid (the message says where), a prompt leaves no room for a text, or
            another argument is invalid.
    """

    task = "information-extraction"
    head = "ie"
    options_type = _Options

    @overload
    def __init__(
        self: InformationExtractionPipeline,
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[InformationExtractionSettings],
    ) -> None: ...
    @overload
    def __init__(
        self: InformationExtractionPipeline[Any],
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[InformationExtractionOptions],
    ) -> None: ...
    def __init__(self, session: Session, tokenizer: Tokenizer, **options: Unpack[InformationExtractionOptions]) -> None:
        super().__init__(session, tokenizer, **options)  # type: ignore[misc]
        self._ask = Prompter()
        self._asked(self._options)

    @property
    def threshold(self) -> float:
        """The least probability of an answer's start and end, unless a call overrides it."""
        options: Any = self._options
        return float(options.threshold)

    @overload
    def __call__(self, inputs: Text, **options: Unpack[InformationExtractionSettings]) -> Extracted: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[InformationExtractionSettings]
    ) -> Extracted | list[Extracted]: ...
    @overload
    def __call__(self, inputs: Column, **options: Unpack[InformationExtractionSettings]) -> list[Extracted]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], **options: Unpack[InformationExtractionSettings]
    ) -> Iterator[Extracted]: ...
    @overload
    def __call__(
        self, inputs: Text, **options: Unpack[InformationExtractionOptions]
    ) -> Extracted | InvalidInputError: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[InformationExtractionOptions]
    ) -> Extracted | InvalidInputError | list[Extracted | InvalidInputError]: ...
    @overload
    def __call__(
        self, inputs: Column, **options: Unpack[InformationExtractionOptions]
    ) -> list[Extracted | InvalidInputError]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], **options: Unpack[InformationExtractionOptions]
    ) -> Iterator[Extracted | InvalidInputError]: ...
    def __call__(self, inputs: Any, **options: Unpack[InformationExtractionOptions]) -> Any:
        """Extract from one text, a list of texts or a stream of texts.

        Args:
            inputs: Texts, each a str or ``{"text": ...}``.
            **options: By default the pipeline's own.

        Returns:
            Per text a dict from names to answers, without names that have none; a list for a list, an iterator for a
            stream. An answer is ``{"text", "start", "end", "probability"}``, or ``{"text", "probability"}`` if it is an
            option; ``start`` and ``end`` are its half-open range in the given text, in code points. Answers about an
            answer are under its ``"relations"``, again by name. Answers are in the order of the text.

        Raises:
            InvalidInputError: An input is not text or is empty; the schema is missing or invalid; a prompt leaves no
                room for a text.
        """
        called = self.options_for(options)
        asked = self._asked(called)
        if asked is None:
            raise InvalidInputError(
                'information-extraction needs a schema, like schema=["Person", {"Company": ["Founder"]}]: give it to '
                "the pipeline or to its call."
            )
        return self._answer(inputs, partial(self._job, asked), called)

    def _asked(self, called: Any) -> _Asked | None:
        """Return the settings of a call with these options; None without a schema."""
        limit = self._limit(called)
        if called.schema is None:
            return None
        asked = _Asked(parse_schema(called.schema), limit, called.schema_lang, called.threshold)
        for node in asked.roots:
            self._prompt(asked, node)
        return asked

    def _prompt(self, asked: _Asked, node: Node, answer: str | None = None) -> Prompt:
        return self._ask(self.tokenizer, node, answer, max_length=asked.limit, language=asked.language)

    def _job(self, asked: _Asked, item: object) -> Job[Answer]:
        encoded = encode(self.tokenizer, text_of(self.task, item), "text")
        root: Answer = {}
        questions = [_Question(node, self._prompt(asked, node), root) for node in asked.roots]
        return self._level(encoded, questions, root, asked)

    def _level(self, text: EncodedText, questions: list[_Question], root: Answer, asked: _Asked) -> Job[Answer]:
        """Make the job for one level of the schema, with each different prompt once."""
        prompts = {question.prompt.key: question.prompt for question in questions}
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        room = asked.limit - special - max(len(prompt.encoded.ids) for prompt in prompts.values())
        longest = max(len(prompt.text) for prompt in prompts.values())
        pieces = split(text, room, self._most_characters(asked.limit, longest))
        make_row = self.tokenizer.build_inputs_with_special_tokens
        rows = [
            make_row(prompt.encoded.ids, text.ids[piece.start : piece.stop])
            for prompt in prompts.values()
            for piece in pieces
        ]

        def finish(outputs: list[Outputs]) -> Answer | Job[Answer]:
            remaining = iter(outputs)
            found = {
                key: _read(asked.threshold, prompt, text, pieces, list(islice(remaining, len(pieces))))
                for key, prompt in prompts.items()
            }
            following = [next_one for question in questions for next_one in self._attach(question, found, asked)]
            return self._level(text, following, root, asked) if following else root.get("relations", {})

        return Job(rows, finish)

    def _most_characters(self, limit: int, prompt: int) -> int | None:
        """Return the character limit of a piece beside a prompt of ``prompt`` characters, as in uie-m's training."""
        if self.manifest.mask_mode != "uie-m":
            return None
        return max(limit - _TASKFLOW_SPECIAL - prompt, _FEWEST_CHARACTERS)

    def _attach(self, question: _Question, found: dict[PromptKey, list[Answer]], asked: _Asked) -> Iterator[_Question]:
        """Attach the answers to their parent; yield the questions about them."""
        # Copies: questions with the same prompt get separate relations.
        answers = [dict(answer) for answer in found[question.prompt.key]]
        if answers:
            question.parent.setdefault("relations", {})[question.node.name] = answers
        for child in question.node.children:
            for answer in answers:
                yield _Question(child, self._prompt(asked, child, answer["text"]), answer)


def _read(
    threshold: float, prompt: Prompt, text: EncodedText, pieces: list[range], outputs: list[Outputs]
) -> list[Answer]:
    """Return the answers to one prompt from its row with each piece: ``[CLS] prompt [SEP] [SEP] piece [SEP]``."""
    length = len(prompt.encoded.ids)
    answers = _found(threshold, length, text, pieces, outputs) if prompt.text_first or not prompt.options else []
    if answers or not prompt.options:
        return answers
    spans_of = [_spans(threshold, output, slice(1, 1 + length)) for output in outputs]
    return choose_option(prompt.encoded, prompt.options, spans_of)


def _found(
    threshold: float, length: int, text: EncodedText, pieces: list[range], outputs: list[Outputs]
) -> list[Answer]:
    """Return answers from the text to a prompt of ``length`` tokens."""
    found = [
        [
            Span(piece.start + first, piece.start + last, probability)
            for first, last, probability in _spans(threshold, output, slice(3 + length, 3 + length + len(piece)))
        ]
        for piece, output in zip(pieces, outputs, strict=True)
    ]
    return cut_answers(text, join_spans(pieces, found))


def _spans(threshold: float, output: Outputs, part: slice) -> list[Span]:
    """Return the spans within one part of a row, without those that cross its ends."""
    start, end = (sigmoid(output[name][part].astype(np.float64)) for name in ("start_logits", "end_logits"))
    return find_spans(start, end, threshold)
