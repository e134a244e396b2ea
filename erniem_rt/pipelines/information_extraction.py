"""Information extraction by a schema: entities, relations, events, opinions, classifications.

This is universal information extraction (UIE). The rules for spans are those of PaddleNLP's ``utils/tools.py``
(``get_span``) and ``taskflow/information_extraction.py`` (``_auto_joiner``).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from erniem_rt.checks import require_choice, require_fraction
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.answers import Extracted, sigmoid
from erniem_rt.pipelines.base import CommonOptions, Job, Options, Pipeline, RunOptions
from erniem_rt.pipelines.inputs import (
    comma_parts,
    is_list,
    parts,
    quoted,
    require_tokens,
    shared_tokens,
    strings,
    text_of,
    visible,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from erniem_rt.batching import Outputs
    from erniem_rt.pipelines.answers import Column, Text
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

SchemaLanguage = Literal["auto", "zh", "en"]
PromptKey = tuple[str, tuple[range, ...]]
Answer = dict[str, Any]

# Schemas.
_DEEPEST = 32
_SLASH = re.compile("/")
_OTHER_DIVIDER = re.compile("[;؛|]")
# Prompts.
_REMEMBERED = 1024  # size of a prompter's cache
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
# Texts.
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_CLOSING = "\"'”’»」』）)\\]"
# A dot after one letter, or after up to three of Latin or Cyrillic script or digits (four with a capital), may be part
# of an abbreviation or a number: "J. R. Smith", "St. Gallen", "ул. Мира", "4. Mai", "Prof. Li".
_LETTER, _CAPITAL = "[0-9A-Za-zÀ-ɏЀ-ӿ]", "[A-ZÀ-ÞЀ-Я]"
_AFTER_LONG_WORD = rf"(?<!\b\w)(?<!\b{_LETTER}{{2}})(?<!\b{_LETTER}{{3}})(?<!\b{_CAPITAL}{_LETTER}{{3}})"
# Ends of sentences: after a mark that always ends one, after one that does so before whitespace, and at an empty line.
# A single line end does not count, since scanned text has them within names. Every alternative has a bounded lookahead
# and lookbehind, so that the search is linear in the text.
_SENTENCE_END = re.compile(
    rf"[。！？｡…؟۔।][{_CLOSING}]{{0,3}}(?![。！？｡…؟۔।{_CLOSING}])\s*"
    rf"|(?:{_AFTER_LONG_WORD}\.|[!?])[{_CLOSING}]{{0,3}}\s+"
    r"|\n\s*\n\s*"
)
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


@dataclass(frozen=True)
class Node:
    """One thing to extract, or one classification, and the questions about each of its answers.

    Attributes:
        name: The name in the schema and in the answers.
        label: The name without brackets at its end.
        bracket: The brackets at the name's end: options, ``"[positive, negative]"``, or part of the name, ``"[EUR]"``.
        options: The range of each option in ``bracket``; empty unless this may be a classification.
        text_first: Whether the options may be a unit, ``"[km/h]"``: then an option is an answer only if the text has
            none.
        children: The questions about each answer.
    """

    name: str
    label: str
    bracket: str
    options: tuple[range, ...]
    text_first: bool
    children: tuple[Node, ...]


def parse_schema(schema: object) -> tuple[Node, ...]:
    """Read a schema: a name, a list of names and dicts, or a dict of names to schemas.

    Raises:
        InvalidInputError: It is of another type, is empty, repeats a name on one level, is cyclic or nested deeper than
            32 levels, or a name in it is empty or not str, has empty brackets, or has options with another separator
            than commas. The message says where.
    """
    nodes = _nodes(schema, "schema", ())
    if not nodes:
        raise InvalidInputError('schema is empty: expected names, like ["Person", {"Company": ["Founder"]}].')
    return nodes


def _nodes(schema: object, place: str, above: tuple[object, ...]) -> tuple[Node, ...]:
    if any(schema is other for other in above):
        raise InvalidInputError(f"{place} holds itself: a schema cannot be cyclic.")
    nodes: dict[str, Node] = {}
    for name, children, where in _entries(schema, place):
        if len(above) == _DEEPEST:
            raise InvalidInputError(f"schema is nested deeper than {_DEEPEST} levels.")
        if not isinstance(name, str) or not name.strip():
            raise InvalidInputError(f"{where} has the name {name!r}: expected a non-empty str.")
        if name in nodes:
            raise InvalidInputError(f"{place} has the name {name!r} twice: give each name once.")
        nodes[name] = _node(name, where, _nodes(children, where, (*above, schema)))
    return tuple(nodes.values())


def _entries(schema: object, place: str) -> Iterator[tuple[object, object, str]]:
    """Yield each name on one level, with its children's schema and its place."""
    if isinstance(schema, str):
        yield schema, (), place
    elif isinstance(schema, Mapping):
        for name, children in schema.items():
            yield name, children, f"{place}[{name!r}]"
    elif is_list(schema):
        for i, item in enumerate(strings(place, schema)):
            if not isinstance(item, (str, Mapping)):
                raise InvalidInputError(f"{place}[{i}] must be a name or a dict, got {type(item).__name__}.")
            yield from _entries(item, f"{place}[{i}]")
    else:
        raise InvalidInputError(f"{place} must be a name, a list or a dict, got {type(schema).__name__}.")


def _node(name: str, place: str, children: tuple[Node, ...]) -> Node:
    flat = half_width(name).rstrip()
    opening = flat.rfind("[")
    if not flat.endswith("]") or opening < 0:
        return Node(name, name, "", (), False, children)
    label, bracket = name[:opening], name[opening : len(flat)]
    try:
        options, text_first = _options(label, half_width(bracket)[1:-1])
    except ValueError as error:
        raise InvalidInputError(f"{place} has the name {name!r}: {error}") from None
    if not label.strip():
        return Node(name, name, "", (), False, children)
    return Node(name, label, bracket, tuple(range(o.start + 1, o.stop + 1) for o in options), text_first, children)


def _options(label: str, inside: str) -> tuple[list[range], bool]:
    """Return the ranges of options between brackets, and whether they may be a unit; ValueError if they are invalid.

    Two or more parts between commas are options. A single part, ``"[EUR]"``, is none unless it has slashes.
    """
    options = comma_parts(inside)
    texts = [inside[option.start : option.stop] for option in options]
    if "" in texts:
        raise ValueError("expected options between its brackets and commas.")
    if len(options) == 1:
        return _units(inside)
    if not label.strip():
        raise ValueError("expected text before the options.")
    if len(set(texts)) < len(texts):
        raise ValueError("give each option once.")
    return options, False


def _units(inside: str) -> tuple[list[range], bool]:
    if _OTHER_DIVIDER.search(inside):
        raise ValueError(
            "write options with commas between them, like Sentiment[good,bad], and anything else in round brackets."
        )
    options = parts(inside, _SLASH)
    texts = {inside[option.start : option.stop] for option in options}
    if len(options) == 1 or "" in texts or len(texts) < len(options):
        return [], False
    return options, True


@dataclass(frozen=True)
class EncodedText:
    """A text and its tokens, without special tokens.

    Attributes:
        text: The given text, with its full-width characters.
        ids: Token ids.
        offsets: The range of each token in ``text``: half-open, in code points.
    """

    text: str
    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Prompt:
    """A prompt and, for a classification, the ranges of its options (code points).

    With ``text_first`` options are answers only if the text has none.
    """

    encoded: EncodedText
    options: tuple[range, ...]
    text_first: bool

    @property
    def text(self) -> str:
        """The prompt's text."""
        return self.encoded.text

    @property
    def key(self) -> PromptKey:
        """Identifies a prompt. The text does not: in an answer like ``room [a,b]``, brackets are not options."""
        return self.text, self.options


class Prompter:
    """Makes prompts as in the training of uie-m, and remembers their tokens: prompts repeat with every text."""

    def __init__(self) -> None:
        self._encoded: dict[str, EncodedText] = {}

    def __call__(
        self, tokenizer: Tokenizer, node: Node, answer: str | None = None, *, max_length: int, language: SchemaLanguage
    ) -> Prompt:
        """Return the prompt for ``node``, about ``answer`` if it is a child.

        Args:
            tokenizer: The model's tokenizer, always the same.
            node: What to ask for.
            answer: What to ask about.
            max_length: Largest number of tokens in a row; a prompt must leave some for the text.
            language: ``"zh"`` asks about an answer with ``ANSWER的NAME``, ``"en"`` with ``NAME of ANSWER``; ``"auto"``
                as the name is written, Chinese if it has a Han character.

        Raises:
            InvalidInputError: The prompt leaves no room for a text, or has no tokens.
        """
        lead = _lead(node, answer, language)
        options = tuple(range(len(lead) + o.start, len(lead) + o.stop) for o in node.options)
        text = lead + node.bracket
        encoded = self._encoded.get(text)
        if encoded is None:
            if len(self._encoded) >= _REMEMBERED:
                self._encoded.clear()
            encoded = encode(tokenizer, text, f"the prompt {quoted(text)}", narrow=True)
            self._encoded[text] = encoded
        special = tokenizer.num_special_tokens_to_add(pair=True)
        if len(encoded.ids) + special >= max_length:
            raise InvalidInputError(
                f"the prompt {quoted(text)} takes {len(encoded.ids)} tokens; the limit is {max_length}, of which "
                f"{special} are special tokens and at least one is the text's. Use a shorter name or, where the prompt "
                "holds an answer that is not one, a higher threshold."
            )
        return Prompt(encoded, options, node.text_first)


def _lead(node: Node, answer: str | None, language: SchemaLanguage) -> str:
    """Return the prompt up to the brackets at its end."""
    if answer is None:
        return node.label
    if language == "zh" or (language == "auto" and _HAN.search(node.name)):
        return f"{answer}的{node.label}"
    return f"{node.label.rstrip()} of {answer} " if node.bracket else f"{node.label} of {answer}"


def half_width(text: str) -> str:
    """Replace full-width forms of ASCII characters one by one; positions stay the same."""
    return text.translate(_HALF_WIDTH)


def encode(tokenizer: Tokenizer, text: str, name: str, *, narrow: bool = False) -> EncodedText:
    """Encode ``text``, with ``narrow`` in its half-width form; ``name`` is its name in errors.

    Added tokens must be written exactly: ``[MASK]``, not ``［MASK］``.

    Raises:
        InvalidInputError: The text has no tokens.
    """
    encoding = tokenizer(_narrowed(tokenizer, text) if narrow else text, add_special_tokens=False)
    require_tokens(name, len(encoding))
    return EncodedText(text, encoding.input_ids, encoding.offsets)


def _narrowed(tokenizer: Tokenizer, text: str) -> str:
    """Return ``text`` in half-width form, except where that would create an added token or change one."""
    narrow = half_width(text)
    if narrow == text:
        return text
    settings = tokenizer.settings
    added = (*settings.added_tokens.values(), *settings.all_special_tokens)
    characters = list(narrow)
    for found in _spelled(frozenset(half_width(token.content) for token in added)).finditer(narrow):
        start, stop = found.span(1)
        characters[start:stop] = text[start:stop]
    return "".join(characters)


@lru_cache(maxsize=16)
def _spelled(words: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern that finds these words, overlaps included, in any case since a tokenizer may lower it."""
    longest_first = sorted(filter(None, words), key=len, reverse=True)
    return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))", re.IGNORECASE)


def split(encoded: EncodedText, room: int, most_characters: int | None = None) -> list[range]:
    """Split the text into ranges of at most ``room`` tokens and ``most_characters`` characters, in order.

    A piece ends at the last end of a sentence that fits. If there is none, it fills the room, and the next piece starts
    :func:`shared_tokens` before its end: an answer of at most that length is whole in one of the two.
    """
    count = len(encoded.ids)
    starts, ends = [start for start, _ in encoded.offsets], [end for _, end in encoded.offsets]

    def stop_after(first: int) -> int:
        """Return the largest stop of a piece from ``first`` on, which has at least one token."""
        if most_characters is None:
            return first + room
        return min(first + room, max(bisect_right(ends, starts[first] + most_characters), first + 1))

    if not count or stop_after(0) >= count:
        return [range(count)]
    sentences = [bisect_left(starts, found.end()) for found in _SENTENCE_END.finditer(encoded.text)]
    pieces = []
    first = 0
    while (stop := stop_after(first)) < count:
        last_sentence = bisect_right(sentences, stop) - 1
        end = sentences[last_sentence] if last_sentence >= 0 else 0
        if end > first:
            pieces.append(range(first, end))
            first = end
        else:
            pieces.append(range(first, stop))
            shared = stop - shared_tokens(stop - first)
            first = shared if stop_after(shared) > stop else stop
    return [*pieces, range(first, count)]


class Span(NamedTuple):
    """First and last token of a possible answer, and its probability."""

    first: int
    last: int
    probability: float


def find_spans(start: NDArray[np.float64], end: NDArray[np.float64], threshold: float) -> list[Span]:
    """Pair starts with ends, probabilities ``(tokens,)`` of one text, both strictly above ``threshold``.

    Each start pairs with the first end at or after it; of several starts with the same end, the nearest wins. The
    probability of a span is the product of the two.
    """
    starts, ends = np.flatnonzero(start > threshold), np.flatnonzero(end > threshold)
    nearest = np.searchsorted(starts, ends, side="right") - 1
    ends = ends[nearest >= 0]
    firsts = starts[nearest[nearest >= 0]]
    # A start that is not after the previous end pairs with that one.
    free = firsts > np.concatenate([[-1], ends[:-1]])
    return [Span(int(s), int(e), float(start[s] * end[e])) for s, e in zip(firsts[free], ends[free], strict=True)]


def join_spans(pieces: Sequence[range], found: Sequence[Sequence[Span]]) -> list[Span]:
    """Merge the spans ``found`` in each piece of a text, in order; all positions are tokens of the text.

    The overlap of two pieces is cut in the middle, or at the nearest position that no span crosses. The left piece's
    spans are kept left of the cut, the right piece's right of it. So a whole span wins over a part of it at the edge of
    the other piece, and each span occurs once.
    """
    cuts = [_cut(*both, *spans) for both, spans in zip(pairwise(pieces), pairwise(found), strict=True)]
    joined: list[Span] = []
    for begin, stop, spans in zip([0, *cuts], [*cuts, pieces[-1].stop], found, strict=True):
        first_free = max(begin, joined[-1].last + 1) if joined else begin
        joined += [span for span in spans if first_free <= span.first < stop]
    return joined


def _cut(left: range, right: range, left_spans: Iterable[Span], right_spans: Iterable[Span]) -> int:
    """Return the cut between two pieces; the middle if every position is within a span, when the two contradict."""
    middle = (right.start + left.stop) // 2
    places = set(range(right.start, left.stop + 1))
    for span in (*left_spans, *right_spans):
        places.difference_update(range(span.first + 1, span.last + 1))
    return min(places, key=lambda place: (abs(place - middle), place), default=middle)


def cut_answers(encoded: EncodedText, spans: Iterable[Span]) -> list[dict[str, Any]]:
    """Cut answers from the text, in its order; ``spans`` are ranges of its tokens.

    Answers are stripped of whitespace. Spans of the same characters (one character may be several tokens) become one
    answer, the most probable of them.
    """
    best: dict[tuple[int, int], float] = {}
    for span in spans:
        start, end = visible(encoded.text, encoded.offsets[span.first][0], encoded.offsets[span.last][1])
        if start < end:
            best[start, end] = max(span.probability, best.get((start, end), 0.0))
    return [
        {"text": encoded.text[start:end], "start": start, "end": end, "probability": probability}
        for (start, end), probability in sorted(best.items())
    ]


def choose_option(
    prompt: EncodedText, options: Sequence[range], pieces: Iterable[Sequence[Span]]
) -> list[dict[str, Any]]:
    """Choose the option with the most votes of a text's pieces, if any, with its mean probability in them.

    Each piece votes for the option of its most probable span; spans are ranges of the prompt's tokens, and a span that
    touches no option or several is ignored. On equal votes the sum of probabilities decides.
    """
    votes: dict[range, list[float]] = {}
    for spans in pieces:
        found = [(option, span.probability) for span in spans if (option := _touched(prompt, options, span))]
        if found:
            option, probability = max(found, key=lambda vote: vote[1])
            votes.setdefault(option, []).append(probability)
    if not votes:
        return []
    chosen, probabilities = max(votes.items(), key=lambda vote: (len(vote[1]), sum(vote[1])))
    text = prompt.text[chosen.start : chosen.stop]
    return [{"text": text, "probability": sum(probabilities) / len(probabilities)}]


def _touched(prompt: EncodedText, options: Sequence[range], span: Span) -> range | None:
    start, end = prompt.offsets[span.first][0], prompt.offsets[span.last][1]
    touched = [option for option in options if start < option.stop and option.start < end]
    return touched[0] if len(touched) == 1 else None
