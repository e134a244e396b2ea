"""Maps tokens to ids and back: the base vocabulary and a checkpoint's added tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from erniem_rt.errors import ArtifactError
from erniem_rt.files import refuse_pointer
from erniem_rt.tokenizer.pieces import WORD_START

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_rt.tokenizer.settings import TokenizerSettings

_WORD = 8
# Masks of the first 0 to 8 bytes of a little-endian word.
_OWN_BYTES = np.array([(1 << 8 * size) - 1 for size in range(_WORD + 1)], dtype=np.uint64)
# Odd, so that no bit of a token of up to eight bytes is lost; otherwise arbitrary.
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], dtype=np.uint64)
# transformers' clean_up_tokenization, in its order.
_CLEAN_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class TokenList:
    """Maps tokens to indices and back. A token that is listed twice has its last index.

    Args:
        content: The tokens in UTF-8, with or without separators.
        starts: ``(tokens,)``, each token's start in ``content``.
        ends: ``(tokens,)``, each token's end.
    """

    def __init__(self, content: bytes, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> None:
        self._content = content
        self._starts = starts.astype(np.uint32)
        self._ends = ends.astype(np.uint32)
        # The low bits of each key hold the index, so that one sort of integers orders both.
        self._low = np.uint64((1 << len(starts).bit_length()) - 1)
        self._sorted = _keys(content, starts, ends) & ~self._low | np.arange(len(starts), dtype=np.uint64)
        self._sorted.sort()
        # Tokens that share a key, most of them listed twice, are looked up in a dict.
        twin = (self._sorted[1:] ^ self._sorted[:-1]) <= self._low
        sharing = np.sort(self._sorted[np.append(twin, False) | np.insert(twin, 0, False)] & self._low).tolist()
        self._sharing = {self._bytes(i): i for i in sharing}
        self._superseded = frozenset(sharing) - frozenset(self._sharing.values())

    @classmethod
    def of(cls, tokens: Sequence[str]) -> TokenList:
        """Return the list of these tokens."""
        return cls(*_joined(tokens))

    @classmethod
    def of_lines(cls, content: bytes) -> TokenList:
        r"""Return the list of the lines of ``content``, which end in ``\n``, optional after the last one."""
        ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
        if not content.endswith(b"\n"):
            ends = np.append(ends, len(content))
        return cls(content, np.concatenate([[0], ends[:-1] + 1]), ends)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[str]:
        return (self._bytes(i).decode() for i in range(len(self)))

    @property
    def distinct(self) -> int:
        """The number of different tokens."""
        return len(self) - len(self._superseded)

    def get(self, index: int) -> str | None:
        """Return the token at an index; None outside the list, and for a token that is listed again later."""
        if not 0 <= index < len(self) or index in self._superseded:
            return None
        return self._bytes(index).decode()

    def indices(self, tokens: list[str]) -> list[int | None]:
        """Return the index of each token, None for unlisted ones. A hundred take about as long as one."""
        content, starts, ends = _joined(tokens)
        keys = _keys(content, starts, ends) & ~self._low
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self) - 1)
        likely = (self._sorted[places] & self._low).tolist()
        result: list[int | None] = []
        for index, start, end in zip(likely, starts.tolist(), ends.tolist(), strict=True):
            token = content[start:end]
            alone = index if self._bytes(index) == token else None
            result.append(self._sharing.get(token, alone))
        return result

    def _bytes(self, index: int) -> bytes:
        return self._content[self._starts[index] : self._ends[index]]


def _joined(tokens: Sequence[str]) -> tuple[bytes, NDArray[np.intp], NDArray[np.intp]]:
    # A lone surrogate then matches no token, since files have none.
    encoded = [token.encode("utf-8", "surrogatepass") for token in tokens]
    sizes = np.array([len(token) for token in encoded], dtype=np.intp)
    ends = np.cumsum(sizes)
    return b"".join(encoded), ends - sizes, ends


def _keys(content: bytes, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Return a hash of each token, from its length and its first, middle and last eight bytes."""
    padded = content + bytes(_WORD)
    words = np.ndarray(len(content) + 1, dtype="<u8", buffer=padded, strides=(1,))  # the eight bytes at each position
    sizes = ends - starts
    own = _OWN_BYTES[np.minimum(sizes, _WORD)]
    spare = np.maximum(sizes - _WORD, 0)
    keys: NDArray[np.uint64] = sizes.astype(np.uint64) * _FACTORS[3]
    for factor, places in zip(_FACTORS, (starts, starts + spare // 2, starts + spare), strict=False):
        keys += (words[places] & own) * factor
    return keys


class Vocabulary:
    """The base vocabulary (one token per id) and the added tokens.

    Special tokens missing in both get the next free ids, as in transformers.
    """

    def __init__(self, tokens: TokenList, settings: TokenizerSettings) -> None:
        self._base = tokens
        self.added = dict(settings.added_tokens)
        self.added_ids = {token.content: i for i, token in self.added.items()}
        for token in settings.all_special_tokens:
            index = self._index(token.content)
            self.added[index] = replace(token, special=True)
            self.added_ids[token.content] = index
        self.added_ids = {token.content: i for i, token in self.added.items()}
        self.unk_token = settings.special_tokens["unk_token"].content
        self._unk_id = self._index(self.unk_token)
        self._known = dict(self.added_ids)  # a cache of tokens found in the base vocabulary, which bounds its size

    @property
    def base_size(self) -> int:
        """The number of tokens without the added ones."""
        return self._base.distinct

    def with_settings(self, settings: TokenizerSettings) -> Vocabulary:
        """Return the same base vocabulary with the added tokens of other settings."""
        return Vocabulary(self._base, settings)

    def __len__(self) -> int:
        return self.base_size + self._base.indices(list(self.added_ids)).count(None)

    def all(self) -> dict[str, int]:
        """Return every token with its id, added tokens included."""
        return {**{token: i for i, token in enumerate(self._base)}, **self.added_ids}

    def id_of(self, token: str) -> int:
        """Return the token's id, or the unknown token's."""
        return self.ids_of([token])[0]

    def ids_of(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of several tokens, which is faster than one by one."""
        tokens, known = list(tokens), self._known
        try:
            return [known[token] for token in tokens]
        except KeyError:
            missing = list({token for token in tokens if token not in known})
        found = zip(missing, self._base.indices(missing), strict=True)
        known.update((token, index) for token, index in found if index is not None)
        return [known.get(token, self._unk_id) for token in tokens]

    def token_of(self, index: int) -> str:
        """Return the id's token, or the unknown token."""
        if index in self.added:
            return self.added[index].content
        # A token that is listed twice has the id of its last line; the other ids are unknown.
        token = self._base.get(index)
        return self.unk_token if token is None else token

    def text(self) -> str:
        """Return the content of a ``vocab.txt`` with the base vocabulary, a token per line."""
        return "".join(f"{token}\n" for token in self._base)

    def _index(self, special: str) -> int:
        """Return the id of a special token: an existing one, or the next free one."""
        index = self.added_ids.get(special)
        if index is None:
            (index,) = self._base.indices([special])
        return len(self) if index is None else index


def read_vocabulary(path: Path) -> TokenList:
    """Read the lines of a ``vocab.txt``.

    Raises:
        ArtifactError: The file is missing, empty or not UTF-8.
    """
    refuse_pointer(path)
    try:
        content = path.read_bytes()
        content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a readable vocabulary (UTF-8, a token per line): {error}") from error
    if not content:
        raise ArtifactError(f"{path} is empty; expected a vocabulary with a token per line.")
    return TokenList.of_lines(content.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))


def decode(
    ids: Iterable[int], vocabulary: Vocabulary, settings: TokenizerSettings, *, skip_special_tokens: bool
) -> str:
    """Join tokens at their word-start marks; put added tokens that are not special between spaces."""
    special = {token.content for token in settings.all_special_tokens}
    extra = {token.content for token in settings.additional_special_tokens}
    base_size = vocabulary.base_size
    apart = (vocabulary.added_ids.keys() - special) | {t for t in extra if vocabulary.id_of(t) >= base_size}
    tokens = [vocabulary.token_of(i) for i in ids]
    if skip_special_tokens:
        tokens = [token for token in tokens if token not in special]
    parts: list[str] = []
    for stands_apart, run in groupby(tokens, apart.__contains__):
        words = list(run)
        parts += words if stands_apart else [tokens_to_text(words)]
    text = " ".join(filter(None, parts))
    if settings.clean_up_tokenization_spaces:
        for found, replacement in _CLEAN_UP:
            text = text.replace(found, replacement)
    return text


def tokens_to_text(tokens: Iterable[str]) -> str:
    """Join sub-words to text; word-start marks become spaces."""
    return "".join(tokens).replace(WORD_START, " ").strip()
