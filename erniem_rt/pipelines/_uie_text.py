"""A text as the ``ie`` head reads it: encoded once, cut into pieces that fit into a row."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from erniem_rt.pipelines._rows import require_tokens
from erniem_rt.pipelines._windows import shared_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erniem_rt.tokenizer import Tokenizer

__all__ = ["EncodedText", "encode", "half_width", "split"]

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_CLOSING = "\"'”’»」』）)\\]"
# A dot after one letter, or after up to three of Latin or Cyrillic script or digits (four with a capital), may be an
# abbreviation's or a number's: "J. R. Smith", "St. Gallen", "ул. Мира", "4. Mai", "Prof. Li".
_LETTER, _CAPITAL = "[0-9A-Za-zÀ-ɏЀ-ӿ]", "[A-ZÀ-ÞЀ-Я]"
_AFTER_LONG_WORD = rf"(?<!\b\w)(?<!\b{_LETTER}{{2}})(?<!\b{_LETTER}{{3}})(?<!\b{_CAPITAL}{_LETTER}{{3}})"
# Where no name goes on: after a mark that ends a sentence by itself, after one that needs space after it, and at an
# empty line. A line end alone is none, for scanned text has them within names. Every alternative looks at a bounded
# number of characters besides those that it takes, so that the search is linear in the text.
_SENTENCE_END = re.compile(
    rf"[。！？｡…؟۔।][{_CLOSING}]{{0,3}}(?![。！？｡…؟۔।{_CLOSING}])\s*"
    rf"|(?:{_AFTER_LONG_WORD}\.|[!?])[{_CLOSING}]{{0,3}}\s+"
    r"|\n\s*\n\s*"
)


@dataclass(frozen=True)
class EncodedText:
    """A text and its tokens, without special tokens.

    Attributes:
        text: As it was given, full-width characters and all.
        ids: Token ids.
        offsets: Where each token stands in ``text``: half-open, in code points.
    """

    text: str
    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]


def half_width(text: str) -> str:
    """Replace full-width forms of ASCII characters, one by one, so that no position moves."""
    return text.translate(_HALF_WIDTH)


def encode(tokenizer: Tokenizer, text: str, name: str, *, narrow: bool = False) -> EncodedText:
    """Encode ``text``, with ``narrow`` in its half-width form; ``name`` is what errors call it.

    Only what is an added token as it is written becomes one: ``[MASK]``, but not ``［MASK］``.

    Raises:
        InvalidInputError: Nothing of the text is left as tokens.
    """
    encoding = tokenizer(_narrowed(tokenizer, text) if narrow else text, add_special_tokens=False)
    require_tokens(name, len(encoding))
    return EncodedText(text, encoding.input_ids, encoding.offsets)


def _narrowed(tokenizer: Tokenizer, text: str) -> str:
    """``text`` in half-width form, except where that would spell an added token, or where a wide one is written."""
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
    """Finds these words wherever they begin, also within one another; in any case, for a tokenizer may lower it."""
    longest_first = sorted(filter(None, words), key=len, reverse=True)
    return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))", re.IGNORECASE)


def split(encoded: EncodedText, room: int, most_characters: int | None = None) -> list[range]:
    """Ranges of tokens, each of at most ``room`` and of ``most_characters``, which cover the text in order.

    A piece ends where the last sentence ends that fits. Where none does it fills the room, and the next piece begins
    :func:`shared_tokens` before its end: what is no longer than that stands whole in one of the two.
    """
    count = len(encoded.ids)
    starts, ends = [start for start, _ in encoded.offsets], [end for _, end in encoded.offsets]

    def stop_after(first: int) -> int:
        """Where a piece from ``first`` on is full; it has a token at least."""
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
