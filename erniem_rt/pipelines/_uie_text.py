"""A text as the ``ie`` head reads it: half-width, encoded once, cut into pieces that fit into a row."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from erniem_rt.pipelines._rows import require_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erniem_rt.tokenizer import Tokenizer

__all__ = ["EncodedText", "encode", "half_width", "split"]

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_CLOSING = "\"'”’»」』）)\\]"
# A mark that ends a sentence by itself, or one that needs space after it, or a line end. Every alternative looks at a
# bounded number of characters besides those that it takes, so that the search is linear in the text.
_SENTENCE_END = re.compile(
    rf"[。！？｡…؟۔।][{_CLOSING}]{{0,3}}(?![。！？｡…؟۔।{_CLOSING}])\s*|[.!?][{_CLOSING}]{{0,3}}\s+|\n\s*"
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


def encode(tokenizer: Tokenizer, text: str, name: str) -> EncodedText:
    """Encode ``text`` in its half-width form; ``name`` is what errors call it.

    Raises:
        InvalidInputError: Nothing of the text is left as tokens.
    """
    encoding = tokenizer(half_width(text), add_special_tokens=False)
    require_tokens(name, len(encoding))
    return EncodedText(text, encoding.input_ids, encoding.offsets)


def split(encoded: EncodedText, room: int) -> list[range]:
    """Ranges of tokens, each of at most ``room``, which cover the text in order.

    A piece ends where the last sentence ends that fits, otherwise where a word ends, otherwise where the room does.
    """
    count = len(encoded.ids)
    if count <= room:
        return [range(count)]
    starts = [start for start, _ in encoded.offsets]
    sentences = [bisect_left(starts, found.end()) for found in _SENTENCE_END.finditer(encoded.text)]
    pieces = []
    first = 0
    while count - first > room:
        last_sentence = bisect_right(sentences, first + room) - 1
        cut = sentences[last_sentence] if last_sentence >= 0 else 0
        if cut <= first:
            cut = _last_word(encoded.text, starts, range(first + 1, first + room + 1))
        pieces.append(range(first, cut))
        first = cut
    return [*pieces, range(first, count)]


def _last_word(text: str, starts: Sequence[int], tokens: range) -> int:
    """The last of ``tokens`` that stands after whitespace, or simply the last of them."""
    after_space = (i for i in reversed(tokens) if text[starts[i] - 1 : starts[i]].isspace())
    return next(after_space, tokens[-1])
