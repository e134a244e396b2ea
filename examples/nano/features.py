"""Examples as token ids and token labels, and the way back from logits to characters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tasks import (
    NER_LABELS,
    ChoiceExample,
    EntityExample,
    Example,
    ExtractionExample,
    InferenceExample,
    QuestionExample,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from erniem_rt import Tokenizer
    from erniem_rt.tokenizer import Encoding
    from passages import Entity, Span

MAX_ANSWER_TOKENS = 30
THRESHOLD = 0.5
IGNORED = -100


@dataclass(frozen=True)
class Unit:
    """One training unit: a row of ids, or one per choice, and its target.

    ``target`` is the label (``cls``, ``mc``) or ``(first, last)`` token index pairs (``qa``: exactly one, ``ie``: any
    number), None for ``ner``. ``tags`` are the entity labels of each row's tokens, IGNORED outside of the passage:
    every passage teaches what a name is, whatever else is asked of it.
    """

    task: str
    rows: tuple[list[int], ...]
    tags: tuple[list[int], ...]
    target: int | list[Span] | None

    @property
    def length(self) -> int:
        """Tokens in the longest row."""
        return max(len(row) for row in self.rows)


def texts_of(example: Example) -> list[tuple[str, str | None]]:
    """The text, or pair of texts, of each row."""
    if isinstance(example, QuestionExample):
        return [(example.question, example.context)]
    if isinstance(example, EntityExample):
        return [(example.text, None)]
    if isinstance(example, InferenceExample):
        return [(example.premise, example.hypothesis)]
    if isinstance(example, ChoiceExample):
        return [(example.prompt, choice) for choice in example.choices]
    if isinstance(example, ExtractionExample):
        return [(example.prompt, example.text)]
    raise TypeError(f"no rows for a {type(example).__name__}")


def encode(tokenizer: Tokenizer, task: str, example: Example) -> Unit:
    """Token ids and token labels of an example."""
    encodings = [tokenizer(*texts) for texts in texts_of(example)]
    rows = tuple(encoding.input_ids for encoding in encodings)
    passage = 1 if isinstance(example, (QuestionExample, ExtractionExample)) else 0
    tags = tuple(_tags(encoding, passage, example.entities) for encoding in encodings)
    target: int | list[Span] | None = None
    if isinstance(example, (InferenceExample, ChoiceExample)):
        target = example.label
    elif isinstance(example, QuestionExample):
        target = [_token_span(encodings[0], passage, example.start, example.end)]
    elif isinstance(example, ExtractionExample):
        target = [_token_span(encodings[0], passage, *span) for span in example.spans]
    return Unit(task, rows, tags, target)


def best_answer(encoding: Encoding, start: NDArray[np.float32], end: NDArray[np.float32]) -> Span:
    """The characters of the best answer: the highest ``start[i] + end[j]`` within the second text, ``j - i < 30``."""
    tokens = np.flatnonzero([sequence == 1 for sequence in encoding.sequence_ids])
    scores = start[tokens, None] + end[None, tokens]
    scores = np.where(np.tri(len(tokens), k=-1, dtype=bool), -np.inf, scores)
    scores = np.where(np.tri(len(tokens), k=MAX_ANSWER_TOKENS - 1, dtype=bool), scores, -np.inf)
    i, j = np.unravel_index(np.argmax(scores), scores.shape)
    return encoding.offsets[tokens[i]][0], encoding.offsets[tokens[j]][1]


def entities(encoding: Encoding, labels: NDArray[np.int64]) -> set[tuple[int, int, str]]:
    """Entities in characters from the label of each token; an I- that continues nothing starts an entity."""
    found: list[tuple[int, int, str]] = []
    previous = "O"
    for (start, end), sequence, label in zip(encoding.offsets, encoding.sequence_ids, labels, strict=True):
        tag = NER_LABELS[label] if sequence == 0 and end > start else "O"
        if tag != "O":
            kind = tag[2:]
            if tag.startswith("I-") and previous[2:] == kind:
                found[-1] = (found[-1][0], end, kind)
            else:
                found.append((start, end, kind))
        previous = tag
    return set(found)


def extracted(encoding: Encoding, start: NDArray[np.float32], end: NDArray[np.float32]) -> set[Span]:
    """Spans in characters from probabilities: every end over one half with the nearest start before it, as in UIE."""
    spans: set[Span] = set()
    first: int | None = None
    for i, sequence in enumerate(encoding.sequence_ids):
        if sequence != 1:
            continue
        if start[i] > THRESHOLD:
            first = i
        if end[i] > THRESHOLD and first is not None:
            spans.add((encoding.offsets[first][0], encoding.offsets[i][1]))
            first = None
    return spans


def _token_span(encoding: Encoding, sequence: int, start: int, end: int) -> Span:
    """First and last token that overlap the characters ``start`` to ``end``."""
    covered = [
        i
        for i, (offset, owner) in enumerate(zip(encoding.offsets, encoding.sequence_ids, strict=True))
        if owner == sequence and offset[0] < end and offset[1] > start
    ]
    return covered[0], covered[-1]


def _tags(encoding: Encoding, passage: int, found: tuple[Entity, ...]) -> list[int]:
    labels = [0 if sequence == passage else IGNORED for sequence in encoding.sequence_ids]
    for start, end, kind in found:
        first, last = _token_span(encoding, passage, start, end)
        labels[first] = NER_LABELS.index(f"B-{kind}")
        labels[first + 1 : last + 1] = [NER_LABELS.index(f"I-{kind}")] * (last - first)
    return labels
