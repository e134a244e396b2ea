"""One run of text to ErnieM tokens, each with the characters it came from.

sentencepiece normalises the run (NFKC and whitespace rules of the model) and cuts it into pieces; ErnieM then cuts
pieces further at CJK characters, punctuation and digits. Positions are followed through both steps.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from erniem_rt.errors import ArtifactError, EngineUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    import sentencepiece

WORD_START = "▁"
_PUNCTUATION = frozenset(",;:.?!~，；：。？！《》【】")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_CACHED_PIECE = 64


class TokenSpan(NamedTuple):
    """A token and the half-open range it occupies, in code points of the string it was cut from."""

    token: str
    start: int
    end: int


class SentencePieceModel:
    """A loaded sentencepiece model. Holds no state that changes results, so threads may share it."""

    def __init__(self, path: Path) -> None:
        self._processor = _load(path)
        self._is_dropped = lru_cache(maxsize=4096)(self._normalizes_to_nothing)

    def pieces(self) -> list[str]:
        """Every piece of the model, by id."""
        return [self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())]

    def serialized(self) -> bytes:
        """The model file's content."""
        return bytes(self._processor.serialized_model_proto())

    def tokenize(self, text: str) -> list[TokenSpan]:
        """Cut ``text`` (no added tokens in it) into tokens with their ranges in ``text``.

        Lone surrogates cannot be written as UTF-8; they are read as U+FFFD.
        """
        text = _LONE_SURROGATE.sub("\ufffd", text)
        pieces = self._processor.encode(text, out_type=str)
        _, origins = self._processor.normalize(text, with_offsets=True)
        tokens = []
        position = 0  # in the normalised text, which the pieces spell out one after the other
        for index, piece in enumerate(pieces):
            for token, start, end in _kept_tokens(pieces, index):
                span = self._source_span(text, origins, position + start, position + end)
                tokens.append(TokenSpan(token, *span))
            position += len(piece)
        return tokens

    def _source_span(self, text: str, origins: list[int], start: int, end: int) -> tuple[int, int]:
        """The range of ``text`` that became the normalised characters ``start`` to ``end``.

        ``origins[i]`` is where the characters that became normalised character ``i`` begin. They end where the next
        ones begin, less what normalisation dropped in between (control characters, repeated whitespace).
        """
        source_start, last = origins[start], origins[end - 1]
        following = end
        while following < len(origins) - 1 and origins[following] == last:
            following += 1
        source_end = max(origins[following], last + 1)
        while source_end > last + 1 and self._is_dropped(text[source_end - 1]):
            source_end -= 1
        return source_start, source_end

    def _normalizes_to_nothing(self, char: str) -> bool:
        return not self._processor.normalize(char)


def _load(path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        import sentencepiece
    except ImportError as error:
        raise EngineUnavailableError(
            'The tokenizer needs the package sentencepiece. Install it with: pip install "erniem-rt[text]"'
        ) from error
    if not path.is_file():
        raise ArtifactError(f"Expected a sentencepiece model at {path}, but there is no such file.")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = processor.LoadFromSerializedProto(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"{path} is not a readable sentencepiece model: {error}") from error
    if not loaded or processor.get_piece_size() == 0:
        raise ArtifactError(f"{path} is not a sentencepiece model: it holds no pieces.")
    if processor.is_byte(processor.piece_to_id("<0x00>")) or processor.normalize("a").endswith(WORD_START):
        raise ArtifactError(
            f"{path} has byte fallback or marks at the end of words. ErnieM's models have neither, and offsets "
            "cannot be told with them."
        )
    return processor


def _kept_tokens(pieces: list[str], index: int) -> tuple[TokenSpan, ...]:
    """The tokens of one piece, with ranges in that piece that leave out a leading word-start mark.

    A lone mark counts as a token in mid-text only, and only if the next piece does not bring a mark of its own.
    """
    piece = pieces[index]
    if piece == WORD_START:
        next_piece = pieces[index + 1] if index + 1 < len(pieces) else ""
        if index == 0 or next_piece.startswith(WORD_START):
            return ()
        return (TokenSpan(WORD_START, 0, 1),)
    if len(piece) > _LONGEST_CACHED_PIECE:
        return _split_piece.__wrapped__(piece)
    return _split_piece(piece)


@lru_cache(maxsize=1 << 16)
def _split_piece(piece: str) -> tuple[TokenSpan, ...]:
    """Cut a piece as the reference does: CJK characters and punctuation stand alone, runs of digits are apart."""
    cuts = []
    begin = 0
    for i, char in enumerate(piece):
        if char == WORD_START:
            continue
        stands_alone = "\u4e00" <= char <= "\u9fff" or char in _PUNCTUATION
        digits_change = i > 0 and char.isdigit() != piece[i - 1].isdigit()
        if stands_alone or digits_change:
            if i > begin and piece[begin:i] != WORD_START:
                cuts.append((begin, i))
            begin = i
        if stands_alone:
            cuts.append((i, i + 1))
            begin = i + 1
    if begin < len(piece):
        cuts.append((begin, len(piece)))
    return tuple(_without_mark(piece, start, end) for start, end in cuts)


def _without_mark(piece: str, start: int, end: int) -> TokenSpan:
    token = piece[start:end]
    marks = len(token) - len(token.lstrip(WORD_START))
    return TokenSpan(token, start + marks if marks < len(token) else start, end)
