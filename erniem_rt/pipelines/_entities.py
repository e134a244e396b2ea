"""Labels of tokens to entities: the strategies of transformers' ``pipelines/token_classification.py``."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

__all__ = ["Entity", "Strategy", "Token", "entities_of_tokens", "entities_of_words", "grouped"]

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


class Entity(NamedTuple):
    """A label, its probability, and the half-open range of characters it was found in."""

    label: str
    score: float
    start: int
    end: int


def entities_of_tokens(tokens: Iterable[Token], labels: Sequence[str]) -> list[Entity]:
    """Each token with its most probable label (strategies ``none`` and ``simple``)."""
    return [_entity(token.scores, token.start, token.end, labels) for token in tokens]


def entities_of_words(text: str, tokens: Sequence[Token], labels: Sequence[str], strategy: Strategy) -> list[Entity]:
    """Each word with one label: that of its ``first`` token, of its surest (``max``), or of the ``average``.

    A token goes on with the word before it if no whitespace is between them and both meet in letters, digits or marks
    of a script written with spaces. Everything else stands alone: punctuation, symbols, and each token of Chinese,
    Japanese, Thai, Lao, Khmer and Myanmar text. Tokens cut from one character belong together. Tokens that are nothing
    but whitespace belong to no word.
    """
    visible = [token for token in tokens if not text[token.start : token.end].isspace()]
    words = [visible[:1]] if visible else []
    for previous, token in pairwise(visible):
        if _is_continued(text, previous, token):
            words[-1].append(token)
        else:
            words.append([token])
    return [_entity(_word_scores(word, strategy), word[0].start, word[-1].end, labels) for word in words]


def grouped(text: str, entities: Iterable[Entity]) -> list[Entity]:
    """Join neighbours of one kind, up to the next ``B-``; their score is the mean.

    Labels lose what is before their first hyphen. Whitespace at the ends of a group is not part of it; a group of
    nothing else is left out.
    """
    groups: list[list[Entity]] = []
    for entity in entities:
        if groups and not entity.label.startswith("B-") and _kind(entity.label) == _kind(groups[-1][-1].label):
            groups[-1].append(entity)
        else:
            groups.append([entity])
    joined = [_joined(text, group) for group in groups]
    return [entity for entity in joined if entity.end > entity.start]


def _entity(scores: NDArray[np.float64], start: int, end: int, labels: Sequence[str]) -> Entity:
    best = int(scores.argmax())
    return Entity(labels[best], float(scores[best]), start, end)


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


def _joined(text: str, group: Sequence[Entity]) -> Entity:
    start, end = group[0].start, group[-1].end
    words = text[start:end]
    start += len(words) - len(words.lstrip())
    end -= len(words) - len(words.rstrip())
    score = float(np.mean([entity.score for entity in group]))
    return Entity(group[0].label.split("-", 1)[-1], score, start, max(start, end))
