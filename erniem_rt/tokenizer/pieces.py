"""Splits a text at added tokens such as ``[MASK]``, and the runs between them into tokens with their ranges.

sentencepiece normalizes a run (the model's NFKC and whitespace rules) and cuts it into pieces; ErnieM, unlike XLM-R,
then cuts pieces further at CJK characters, punctuation and digits. Both steps keep track of positions.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from functools import lru_cache, partial
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from erniem_rt.errors import ArtifactError, EngineUnavailableError
from erniem_rt.files import refuse_pointer, unreadable
from erniem_rt.processes import renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import sentencepiece
    from numpy.typing import NDArray

    from erniem_rt.tokenizer.settings import AddedToken

WORD_START = "▁"
_PUNCTUATION = frozenset(",;:.?!~，；：。？！《》【】")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_CACHED_PIECE = 64
_NOT_YET_KNOWN = -1


class TokenSpan(NamedTuple):
    """A token and its half-open range, in code points of the string it was cut from."""

    token: str
    start: int
    end: int


class SentencePieceModel:
    """A loaded sentencepiece model. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._set_up(_load(path))

    def _set_up(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self.original: Path | None = None  # of a sorted copy: the path of the model that it was made from
        self._processor = processor
        # Not a bound method, which would make a reference cycle with this object.
        self._is_dropped = lru_cache(maxsize=4096)(partial(_normalizes_to_nothing, processor))
        self.size: int = self._processor.get_piece_size()
        self.unknown_id: int = self._processor.unk_id()

    def __getstate__(self) -> bytes:
        return self.serialized()

    def __setstate__(self, content: bytes) -> None:
        self._set_up(_loaded(content, "the pickle"))

    def pieces(self) -> list[str]:
        """Return every piece of the model, by id."""
        return [self.piece(i) for i in range(self.size)]

    def piece(self, index: int) -> str:
        """Return the piece with this id."""
        return str(self._processor.id_to_piece(index))

    def piece_id(self, piece: str) -> int:
        """Return the id of a piece, ``unknown_id`` if the model lacks it."""
        return int(self._processor.piece_to_id(piece))

    def serialized(self) -> bytes:
        """Return the model file's content; :class:`ArtifactError` if ``original`` is set and cannot be read."""
        if self.original is None:
            return bytes(self._processor.serialized_model_proto())
        try:
            return self.original.read_bytes()
        except OSError as error:
            raise unreadable(self.original, error) from error

    def encode(self, runs: Sequence[str], threads: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the piece ids of all (readable) runs, concatenated, and each run's end among them."""
        rows = self._processor.encode(list(runs), out_type=int, num_threads=threads)
        ends = np.cumsum([len(row) for row in rows])
        return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=ends[-1]), ends

    def tokenize(
        self, run: str, *, drop_lone_marks: bool = False, whole_pieces: bool = False
    ) -> tuple[list[str], list[tuple[int, int]]]:
        """Cut ``run`` (without added tokens) into tokens, each with its range in the normalized run.

        With ``whole_pieces`` every piece is a token, even a lone mark, as in XLM-R.
        """
        run = readable([run])[0]
        pieces = self._processor.encode(run, out_type=str)
        tokens: list[str] = []
        spans: list[tuple[int, int]] = []
        split = whole_piece if whole_pieces else _split_once
        position = 0  # in the normalized run, which is the concatenation of the pieces
        for piece, following in zip(pieces, [*pieces[1:], ""], strict=False):
            # A lone mark is a token only in mid-text, and only if the next piece does not start with a mark.
            keeps_mark = position and not following.startswith(WORD_START) and not drop_lone_marks
            if piece != WORD_START or keeps_mark or whole_pieces:
                for token, start, end in split(piece):
                    tokens.append(token)
                    spans.append((position + start, position + end))
            position += len(piece)
        return tokens, spans

    def source_spans(self, run: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Map ranges of the normalized run to ranges of the run."""
        run = readable([run])[0]
        _, origins = self._processor.normalize(run, with_offsets=True)
        if origins == [0, *range(len(run) + 1)]:
            return [(max(start - 1, 0), end - 1) for start, end in spans]
        return [self._source_span(run, origins, start, end) for start, end in spans]

    def only_marks_spaces(self, run: str) -> bool:
        """Return whether normalization only inserts the word-start mark before the run and in place of spaces."""
        return bool(self._processor.normalize(run) == WORD_START + run.replace(" ", WORD_START))

    def _source_span(self, text: str, origins: list[int], start: int, end: int) -> tuple[int, int]:
        """Return the range of ``text`` that became the normalized characters ``start`` to ``end``.

        ``origins[i]`` is the start of the characters that became normalized character ``i``. They end where the next
        ones start, without characters that normalization dropped (control characters, repeated whitespace).
        """
        source_start, last = origins[start], origins[end - 1]
        following = end
        while following < len(origins) - 1 and origins[following] == last:
            following += 1
        source_end = max(origins[following], last + 1)
        while source_end > last + 1 and self._is_dropped(text[source_end - 1]):
            source_end -= 1
        return source_start, source_end


def _load(path: Path) -> sentencepiece.SentencePieceProcessor:
    _new_processor()  # report a missing package first
    if not path.is_file():
        raise ArtifactError(f"Expected a sentencepiece model at {path}, but there is no such file.")
    refuse_pointer(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} is not a readable sentencepiece model: {error}") from error
    return _loaded(model_of_fast_tokenizer(content, path) if path.suffix == ".json" else content, path)


def _new_processor() -> sentencepiece.SentencePieceProcessor:
    try:
        import sentencepiece
    except ImportError as error:
        raise EngineUnavailableError(
            'The tokenizer needs the package sentencepiece. Install it with: pip install "erniem-rt[text]"'
        ) from error
    return sentencepiece.SentencePieceProcessor()


def _loaded(content: bytes, path: Path | str) -> sentencepiece.SentencePieceProcessor:
    """Load a processor from a model file's content; ``path`` is for error messages."""
    processor = _new_processor()
    try:
        loaded = processor.LoadFromSerializedProto(content)
    except RuntimeError as error:  # its text names lines of sentencepiece's source
        raise ArtifactError(f"{path} is not a sentencepiece model, or it is damaged: fetch it again.") from error
    if not loaded or processor.get_piece_size() == 0:
        raise ArtifactError(f"{path} is not a sentencepiece model: it holds no pieces.")
    if processor.is_byte(processor.piece_to_id("<0x00>")) or processor.normalize("a").endswith(WORD_START):
        raise ArtifactError(
            f"{path} has byte fallback or marks at the end of words. ErnieM's and XLM-R's have neither, and offsets "
            "would be wrong with them."
        )
    return processor


# XLM-R's first tokens, in the order of fairseq's ids, and its last.
XLM_ROBERTA_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
XLM_ROBERTA_LAST = "<mask>"
# sentencepiece's first pieces with their types.
_UNKNOWN, _CONTROL = 2, 3
_OWN_PIECES = (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL))
# Steps of a tokenizer.json that sentencepiece does by itself.
_KNOWN_NORMALIZERS = ("Precompiled", "Strip", "Replace")
_KNOWN_PRE_TOKENIZERS = ("WhitespaceSplit", "Metaspace")


def model_of_fast_tokenizer(content: bytes, path: Path) -> bytes:
    """Return the sentencepiece model behind an XLM-R ``tokenizer.json``: its pieces, scores and normalization.

    Raises:
        ArtifactError: It is not JSON, or not XLM-R's.
    """
    try:
        said = json.loads(content)
        vocabulary = [(str(piece), float(score)) for piece, score in said["model"]["vocab"]]
        kind = said["model"]["type"] == "Unigram" and not said["model"].get("byte_fallback")
        steps = [*_steps(said.get("normalizer")), *_steps(said.get("pre_tokenizer"))]
        charsmap = b"".join(
            base64.b64decode(step["precompiled_charsmap"] or "") for step in steps if step["type"] == "Precompiled"
        )
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ArtifactError(f"{path} is not a readable tokenizer.json of XLM-R: {error!r}") from error
    first = len(XLM_ROBERTA_FIRST)
    others = [step["type"] for step in steps if step["type"] not in (*_KNOWN_NORMALIZERS, *_KNOWN_PRE_TOKENIZERS)]
    if not kind or others or tuple(piece for piece, _ in vocabulary[:first]) != XLM_ROBERTA_FIRST:
        what = f"the steps {', '.join(others)}" if others else "another model or order of tokens"
        raise ArtifactError(
            f"{path} has {what}, which XLM-R's does not have: put the sentencepiece.bpe.model that it was made from "
            "beside it."
        )
    end = len(vocabulary) - (vocabulary[-1][0] == XLM_ROBERTA_LAST)
    pieces = [_piece(piece, 0.0, kind) for piece, kind in _OWN_PIECES]
    pieces += [_piece(piece, score) for piece, score in vocabulary[first:end]]
    return b"".join(_field(1, piece) for piece in pieces) + _field(3, _field(2, charsmap))


def _steps(said: Any) -> list[Any]:
    """Return the steps of a normalizer or a pre-tokenizer."""
    if said is None:
        return []
    return [step for key in ("normalizers", "pretokenizers") for step in said.get(key, ())] or [said]


def _piece(piece: str, score: float, kind: int | None = None) -> bytes:
    """Return a ``SentencePiece`` of sentencepiece's ModelProto, serialized."""
    typed = b"" if kind is None else bytes([3 << 3, kind])
    return _field(1, piece.encode("utf-8", "replace")) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + typed


def _field(number: int, content: bytes) -> bytes:
    """Return a protobuf field with its length before its content."""
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def _normalizes_to_nothing(processor: sentencepiece.SentencePieceProcessor, char: str) -> bool:
    return not processor.normalize(char)


def _split_once(piece: str) -> tuple[TokenSpan, ...]:
    return split_piece(piece) if len(piece) > _LONGEST_CACHED_PIECE else _remembered_split(piece)


def split_piece(piece: str) -> tuple[TokenSpan, ...]:
    """Cut a piece as the reference does: CJK characters, punctuation marks and runs of digits become tokens.

    Ranges are positions in the piece, and exclude a leading word-start mark unless the token is only that mark.
    """
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


_remembered_split = lru_cache(maxsize=1 << 16)(split_piece)


def whole_piece(piece: str) -> tuple[TokenSpan, ...]:
    """Return the piece as one token, as in XLM-R; a mark alone has the range of the next character."""
    if piece == WORD_START:
        return (TokenSpan(piece, 1, 2),)
    return (_without_mark(piece, 0, len(piece)),)


def readable(runs: Sequence[str]) -> list[str]:
    """Replace lone surrogates, which UTF-8 cannot encode, by U+FFFD."""
    try:
        "".join(runs).encode()  # much faster than a search in each run
    except UnicodeEncodeError:
        return [_LONE_SURROGATE.sub("\ufffd", run) for run in runs]
    return list(runs)


def _without_mark(piece: str, start: int, end: int) -> TokenSpan:
    token = piece[start:end]
    marks = len(token) - len(token.lstrip(WORD_START))
    return TokenSpan(token, start + marks if marks < len(token) else start, end)


class RunTokens(NamedTuple):
    """The tokens of many runs of text, concatenated.

    Attributes:
        ids: ``(tokens,)`` int64.
        spans: Returns ``(tokens, 2)`` int64, half-open ranges in code points of the run normalized by sentencepiece.
        bounds: ``(runs + 1,)``; run ``i`` has the tokens from ``bounds[i]`` to ``bounds[i + 1]``.
    """

    ids: NDArray[np.int64]
    spans: Callable[[], NDArray[np.int64]]
    bounds: NDArray[np.int64]


class PieceTable:
    """Tokens by piece id, computed at a piece's first use, so that a large vocabulary costs nothing to load.

    It has no tokens for the unknown piece, whose text varies, nor, with ``drop_lone_marks``, for a mark alone. With
    ``whole_pieces`` every piece is a token.
    """

    def __init__(
        self,
        model: SentencePieceModel,
        ids_of: Callable[[Iterable[str]], list[int]],
        *,
        drop_lone_marks: bool = False,
        whole_pieces: bool = False,
    ) -> None:
        self._model = model
        self._ids_of = ids_of
        self._mark = model.piece_id(WORD_START)
        self._whole_pieces = whole_pieces
        self._lock = Lock()
        size = model.size
        self._tokens = np.empty((0, 3), dtype=np.int64)  # id, and start and end in the piece; grouped by piece
        self._first = np.zeros(size, dtype=np.int64)
        self._length = np.zeros(size, dtype=np.int64)
        self._begins_word = np.zeros(size, dtype=bool)
        self._count = np.full(size, _NOT_YET_KNOWN, dtype=np.int16)
        if drop_lone_marks:
            self._count[self._mark], self._length[self._mark] = 0, len(WORD_START)
        self._count[model.unknown_id] = 0
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may have held."""
        self._lock = Lock()

    def look_up(self, pieces: NDArray[np.int64], ends: NDArray[np.int64]) -> RunTokens:
        """Return the tokens of runs of pieces.

        Args:
            pieces: ``(pieces,)``, the piece ids of all runs.
            ends: ``(runs,)``, each run's end in ``pieces``.
        """
        self._learn(pieces)
        counts = self._count[pieces]
        if not self._whole_pieces:
            counts[self._dropped_marks(pieces, ends)] = 0
        token_ends = np.cumsum(counts)
        rows = np.repeat(self._first[pieces] - (token_ends - counts), counts)
        rows += np.arange(len(rows))
        tokens = self._tokens

        def spans() -> NDArray[np.int64]:
            positions = np.cumsum(self._length[pieces]) - self._length[pieces]
            starts = np.concatenate([[0], ends[:-1]])
            sizes = ends - starts
            filled = sizes > 0
            positions -= np.repeat(positions[starts[filled]], sizes[filled])
            return tokens[rows, 1:] + np.repeat(positions, counts)[:, None]

        bounds = np.concatenate([[0], token_ends])[np.concatenate([[0], ends])]
        return RunTokens(tokens[rows, 0], spans, bounds)

    def _dropped_marks(self, pieces: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of lone word-start marks that start their run or precede a piece with a mark."""
        is_bound = np.zeros(len(pieces) + 1, dtype=bool)
        is_bound[0] = True
        is_bound[ends] = True
        marks = np.flatnonzero(pieces == self._mark)
        following = pieces[np.minimum(marks + 1, len(pieces) - 1)] if len(marks) else marks
        return marks[is_bound[marks] | (self._begins_word[following] & ~is_bound[marks + 1])]

    def _learn(self, pieces: NDArray[np.int64]) -> None:
        unknown = pieces[self._count[pieces] == _NOT_YET_KNOWN]
        if not len(unknown):
            return
        with self._lock:
            learned = [int(i) for i in np.unique(unknown) if self._count[i] == _NOT_YET_KNOWN]
            splits = []
            for i in learned:
                piece = self._model.piece(i)
                splits.append(whole_piece(piece) if self._whole_pieces else split_piece(piece))
                self._length[i] = len(piece)
                self._begins_word[i] = piece.startswith(WORD_START)
            spans = [span for split in splits for span in split]
            ids = self._ids_of(token for token, _, _ in spans)
            rows = [(index, start, end) for index, (_, start, end) in zip(ids, spans, strict=True)]
            counts = [len(split) for split in splits]
            known = len(self._tokens)
            self._tokens = np.concatenate([self._tokens, np.array(rows, dtype=np.int64).reshape(-1, 3)])
            self._first[learned] = known + np.cumsum(counts) - counts
            self._count[learned] = counts  # last: other threads read the rest, without the lock, only after this


class Segment(NamedTuple):
    """A part of a text, and each character's index in the original text."""

    text: str
    origins: Sequence[int]

    def slice(self, start: int, end: int) -> Segment:
        """Return the characters from ``start`` to ``end``."""
        return Segment(self.text[start:end], self.origins[start:end])

    def joined_with(self, other: Segment) -> Segment:
        """Return this segment followed by ``other``."""
        return Segment(self.text + other.text, [*self.origins, *other.origins])

    def widened(self, before: Sequence[int], behind: Sequence[int]) -> Segment:
        """Return the same text, with its range extended to these characters."""
        origins = [*self.origins]
        origins[:1], origins[-1:] = [*before[:1], *origins[:1]][:1], [*origins[-1:], *behind[-1:]][-1:]
        return Segment(self.text, origins)

    def stripped_left(self) -> Segment:
        """Return the segment without whitespace at its start."""
        return self.slice(len(self.text) - len(self.text.lstrip()), len(self.text))

    def stripped_right(self) -> Segment:
        """Return the segment without whitespace at its end."""
        return self.slice(0, len(self.text.rstrip()))


_EMPTY = Segment("", range(0))


class TextSplitter:
    """Splits raw text into added tokens and the runs between them, and lower-cases the runs if configured."""

    def __init__(
        self,
        added_tokens: Iterable[AddedToken],
        special_tokens: Sequence[str],
        *,
        do_lower_case: bool,
        split_special_tokens: bool,
        covers_stripped: bool = False,
    ) -> None:
        """``covers_stripped``: an added token's range includes the whitespace that it strips, as in fast tokenizers."""
        self._added: Mapping[str, AddedToken] = {token.content: token for token in added_tokens}
        self._pattern = None if split_special_tokens else _any_of(self._added, longest_first=True)
        self._find_added = not split_special_tokens
        self._do_lower_case = do_lower_case
        self._covers_stripped = covers_stripped
        kept = [token.content for token in self._added.values() if token.normalized and not token.special]
        self._case_kept = _any_of([*special_tokens, *kept], longest_first=False)

    def whole(self, texts: Sequence[str]) -> list[str | None]:
        """Return texts that are a single segment, lower-cased if configured, with unchanged positions.

        None for a text with added tokens, or in which lower-casing moves characters.
        """
        runs: list[str | None] = list(texts)
        if self._do_lower_case:
            lowered = [self._lowered(text).text for text in texts]
            runs = [run if len(run) == len(text) else None for run, text in zip(lowered, texts, strict=True)]
        if self._pattern:
            search = self._pattern.search
            runs = [None if run is None or search(run) else run for run in runs]
        return runs

    def split(self, text: str) -> list[Segment]:
        """Return the segments in order, without empty ones."""
        whole = Segment(text, range(len(text)))
        if self._do_lower_case:
            whole = self._lowered(text)
        return [segment for segment in self._settle_neighbours(self._cut(whole)) if segment.text]

    def is_added(self, text: str) -> bool:
        """Return whether this segment is an added token."""
        return self._find_added and text in self._added

    def _cut(self, whole: Segment) -> list[Segment]:
        segments = []
        position = 0
        for match in self._pattern.finditer(whole.text) if self._pattern else ():
            if match.start() > position:
                segments.append(whole.slice(position, match.start()))
            segments.append(whole.slice(match.start(), match.end()))
            position = match.end()
        if position < len(whole.text):
            segments.append(whole.slice(position, len(whole.text)))
        return segments

    def _settle_neighbours(self, segments: list[Segment]) -> list[Segment]:
        """Let each added token strip the adjacent text, or merge with it, in the order of the reference's steps."""
        for i, segment in enumerate(segments):
            token = self._added.get(segment.text) if self._find_added else None
            if token is None:
                continue
            left = segments[i - 1] if i > 0 else _EMPTY
            right = segments[i + 1] if i + 1 < len(segments) else _EMPTY
            if token.rstrip and right.text:
                segments[i + 1] = right.stripped_left()
            if token.lstrip and left.text:
                segments[i - 1] = left.stripped_right()
            if self._covers_stripped:
                segments[i] = segment.widened(
                    left.origins[len(segments[i - 1].text) :] if token.lstrip and left.text else (),
                    right.origins[: len(right.text) - len(segments[i + 1].text)] if token.rstrip and right.text else (),
                )
            if token.single_word and left.text and left.text[-1] != " ":
                segments[i - 1] = segments[i - 1].joined_with(segment)
                segments[i] = _EMPTY
            elif token.single_word and right.text and right.text[0] != " ":
                segments[i + 1] = segment.joined_with(segments[i + 1])
                segments[i] = _EMPTY
        return segments

    def _lowered(self, text: str) -> Segment:
        runs = list(self._case_runs(text))
        lowered = "".join(_lower(text[start:end]) if lower else text[start:end] for start, end, lower in runs)
        if len(lowered) == len(text):
            return Segment(lowered, range(len(text)))
        origins: list[int] = []
        for start, end, lower in runs:
            for i in range(start, end):
                origins += [i] * (len(_lower(text[i])) if lower else 1)
        return Segment(lowered, origins)

    def _case_runs(self, text: str) -> Iterator[tuple[int, int, bool]]:
        """Yield consecutive ranges of ``text``, each with whether to lower-case it."""
        position = 0
        for match in self._case_kept.finditer(text) if self._case_kept else ():
            yield position, match.start(), True
            yield match.start(), match.end(), False
            position = match.end()
        yield position, len(text), True


def _lower(text: str) -> str:
    """Lower-case each character alone, as the reference does: without the final form of sigma."""
    return text.replace("Σ", "σ").lower()


def _any_of(words: Collection[str], *, longest_first: bool) -> re.Pattern[str] | None:
    # Takes the leftmost match and, with longest_first, the longest one there. So does the reference's trie, except in
    # some texts where one added token lies inside another.
    found = [word for word in words if word]
    if longest_first:
        found.sort(key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None
