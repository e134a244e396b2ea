"""What a schema names, found in texts: entities, relations, events, opinions, classifications."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines._options import require_choice, require_fraction
from erniem_rt.pipelines._scores import sigmoid
from erniem_rt.pipelines._uie_prompts import Prompt, Prompter, PromptKey, SchemaLanguage
from erniem_rt.pipelines._uie_schema import Node, parse_schema
from erniem_rt.pipelines._uie_spans import Span, choose_option, cut_answers, find_spans, join_spans
from erniem_rt.pipelines._uie_text import EncodedText, encode, split
from erniem_rt.pipelines.base import Job, Outputs, Pipeline, RunOptions, text_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

__all__ = ["InformationExtractionPipeline"]

Answer = dict[str, Any]


@dataclass(frozen=True)
class _Question:
    """A prompt, and the answer under whose ``relations`` what is found goes by the node's name."""

    node: Node
    prompt: Prompt
    parent: Answer


class InformationExtractionPipeline(Pipeline):
    """Head ``ie``: universal information extraction (UIE) by a schema.

    A schema is a name, a list of names and dicts, or a dict of names to schemas of the same kind, which are asked
    about each answer::

        ["Person", {"Company": ["Founder", "Sentiment[positive, negative]"]}]

    A name that ends in options, with commas of any script between them, is a classification: its answer is one of
    them. One item in brackets is part of the name, as in ``Price [EUR]``. With slashes, as in ``Speed [km/h]``, it may
    be either: one of the options is the answer only where none is found in the text. Names become prompts as in uie-m:
    ``Person``, then ``Founder of Apple`` and ``Sentiment of Apple [positive, negative]``, or ``苹果的创始人``. The
    schema is asked level by level.

    A text that does not fit into a row beside the longest prompt of a level is split at ends of sentences. Where none
    ends, pieces share 128 tokens, or half a row if that is less, and an answer of at most that length is found whole,
    and once. A classification is what most pieces say.

    Each level takes a row for each of its different prompts with each piece of the text. Below the first level that
    is a prompt for each name and each different answer above it: in a text of 100 pieces with 200 people,
    ``{"Person": "Employer"}`` takes 100 rows and then 20,000.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        schema: What to extract. A call may bring another one.
        schema_lang: How to ask about an answer: ``"zh"`` with 的, ``"en"`` with "of", ``"auto"`` as the name asked for
            is written: Chinese if it has a Han character.
        threshold: Start and end of an answer are more probable than this; from 0 to below 1.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`; each prompt makes a row with each piece of a text.

    Raises:
        InvalidInputError: The schema is not one (the message says where), a prompt leaves no room for a text, or
            another argument is none of the above.
    """

    task = "information-extraction"
    head = "ie"

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        *,
        schema: Any = None,
        schema_lang: SchemaLanguage = "auto",
        threshold: float = 0.5,
        **options: Unpack[RunOptions],
    ) -> None:
        super().__init__(session, tokenizer, **options)
        require_choice("schema_lang", schema_lang, SchemaLanguage)
        self.threshold = require_fraction("threshold", threshold)
        self._ask = Prompter(tokenizer, self.max_length, schema_lang)
        self._roots = None if schema is None else self._parsed(schema, self.max_length)

    def __call__(self, inputs: Any, *, schema: Any = None, **options: Unpack[RunOptions]) -> Any:
        """Extract from one text, a list of texts or a stream of texts.

        Args:
            inputs: Texts, each a str or ``{"text": ...}``.
            schema: What to extract, if not what the pipeline was made for.
            **options: :class:`~erniem_rt.pipelines.base.RunOptions`.

        Returns:
            Per text a dict of names to answers, without the names that nothing was found for; a list for a list, an
            iterator for a stream. An answer is ``{"text", "start", "end", "probability"}``, or ``{"text",
            "probability"}`` if it is an option; ``start`` and ``end`` (half-open, in code points) are where it stands
            in the text as it was given. What was found about an answer is under its ``"relations"``, by name again.
            Answers are in the order of the text.

        Raises:
            InvalidInputError: An input is not text or is empty; there is no schema, or it is not one; a prompt leaves
                no room for a text.
        """
        limit = self._limit(options)
        roots = self._roots if schema is None else self._parsed(schema, limit)
        if roots is None:
            raise InvalidInputError(
                'information-extraction needs a schema, like schema=["Person", {"Company": ["Founder"]}]: give it to '
                "the pipeline or to its call."
            )
        return self._answer(inputs, partial(self._job, roots, limit), options)

    def close(self) -> None:
        """Free the model and let go of the tokenizer."""
        super().close()
        self._ask.close()

    def _parsed(self, schema: object, limit: int) -> tuple[Node, ...]:
        nodes = parse_schema(schema)
        for node in nodes:
            self._ask(node, max_length=limit)
        return nodes

    def _job(self, roots: Sequence[Node], limit: int, item: object) -> Job[Answer]:
        encoded = encode(self.tokenizer, text_of(self.task, item), "text")
        root: Answer = {}
        questions = [_Question(node, self._ask(node, max_length=limit), root) for node in roots]
        return self._level(encoded, questions, root, limit)

    def _level(self, text: EncodedText, questions: list[_Question], root: Answer, limit: int) -> Job[Answer]:
        """Ask one level of the schema; prompts that several answers lead to are asked once."""
        prompts = {question.prompt.key: question.prompt for question in questions}
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        room = limit - special - max(len(prompt.encoded.ids) for prompt in prompts.values())
        pieces = split(text, room)
        make_row = self.tokenizer.build_inputs_with_special_tokens
        rows = [
            make_row(prompt.encoded.ids, text.ids[piece.start : piece.stop])
            for prompt in prompts.values()
            for piece in pieces
        ]

        def finish(outputs: list[Outputs]) -> Answer | Job[Answer]:
            remaining = iter(outputs)
            found = {
                key: self._read(prompt, text, pieces, list(islice(remaining, len(pieces))))
                for key, prompt in prompts.items()
            }
            following = [next_one for question in questions for next_one in self._attach(question, found, limit)]
            return self._level(text, following, root, limit) if following else root.get("relations", {})

        return Job(rows, finish)

    def _attach(self, question: _Question, found: dict[PromptKey, list[Answer]], limit: int) -> Iterator[_Question]:
        """Put what was found in its place; yield what to ask about it."""
        # Copies: the same prompt may be another question's, whose answers get relations of their own.
        answers = [dict(answer) for answer in found[question.prompt.key]]
        if answers:
            question.parent.setdefault("relations", {})[question.node.name] = answers
        for child in question.node.children:
            for answer in answers:
                yield _Question(child, self._ask(child, answer["text"], max_length=limit), answer)

    def _read(self, prompt: Prompt, text: EncodedText, pieces: list[range], outputs: list[Outputs]) -> list[Answer]:
        """Answers to one prompt from its row with each piece: ``[CLS] prompt [SEP] [SEP] piece [SEP]``."""
        length = len(prompt.encoded.ids)
        answers = self._found(length, text, pieces, outputs) if prompt.text_first or not prompt.options else []
        if answers or not prompt.options:
            return answers
        spans_of = [self._spans(output, slice(1, 1 + length)) for output in outputs]
        return choose_option(prompt.encoded, prompt.options, spans_of)

    def _found(self, length: int, text: EncodedText, pieces: list[range], outputs: list[Outputs]) -> list[Answer]:
        """Answers from the text to a prompt of ``length`` tokens."""
        found = [
            [
                Span(piece.start + first, piece.start + last, probability)
                for first, last, probability in self._spans(output, slice(3 + length, 3 + length + len(piece)))
            ]
            for piece, output in zip(pieces, outputs, strict=True)
        ]
        return cut_answers(text, join_spans(pieces, found))

    def _spans(self, output: Outputs, part: slice) -> list[Span]:
        """Spans within one part of a row. One that leaves it is no answer, nor does it change what else is one."""
        start, end = (sigmoid(output[name][part].astype(np.float64)) for name in ("start_logits", "end_logits"))
        return find_spans(start, end, self.threshold)
