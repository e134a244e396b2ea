"""Many distinct texts in little memory, found by their text: a quarter of a million tokens in a few megabytes.

A dict of that size takes ten times the memory and, worse, holds Python's lock for as long as sentencepiece loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_WORD = 8
# The bytes of a word, read as little-endian, that belong to a token of so many bytes.
_OWN_BYTES = np.array([(1 << 8 * size) - 1 for size in range(_WORD + 1)], dtype=np.uint64)
# Odd, so that no bit of a token of up to eight bytes is lost; otherwise arbitrary.
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], dtype=np.uint64)


class TokenList:
    """Tokens by index, and back. Of a token that is listed twice the last index counts.

    Args:
        content: The tokens in UTF-8, with or without something between them.
        starts: ``(tokens,)`` where each begins in ``content``.
        ends: ``(tokens,)`` where it ends.
    """

    def __init__(self, content: bytes, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> None:
        self._content = content
        self._starts = starts.astype(np.uint32)
        self._ends = ends.astype(np.uint32)
        # The low bits of each key make room for the index, so that one sort of plain numbers orders both.
        self._low = np.uint64((1 << len(starts).bit_length()) - 1)
        self._sorted = _keys(content, starts, ends) & ~self._low | np.arange(len(starts), dtype=np.uint64)
        self._sorted.sort()
        # Tokens whose key is not theirs alone, most of them listed twice; a dict tells them apart.
        twin = (self._sorted[1:] ^ self._sorted[:-1]) <= self._low
        sharing = np.sort(self._sorted[np.append(twin, False) | np.insert(twin, 0, False)] & self._low).tolist()
        self._sharing = {self._bytes(i): i for i in sharing}
        self._superseded = frozenset(sharing) - frozenset(self._sharing.values())

    @classmethod
    def of(cls, tokens: Sequence[str]) -> TokenList:
        """A list of these tokens."""
        return cls(*_joined(tokens))

    @classmethod
    def of_lines(cls, content: bytes) -> TokenList:
        r"""A list of the lines of ``content``, which end in ``\n``; after the last one it may be missing."""
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
        """How many different tokens there are."""
        return len(self) - len(self._superseded)

    def get(self, index: int) -> str | None:
        """The token at an index; None where there is none, or where it is listed again further on."""
        if not 0 <= index < len(self) or index in self._superseded:
            return None
        return self._bytes(index).decode()

    def indices(self, tokens: list[str]) -> list[int | None]:
        """The index of each token, None for what is not listed. Takes about as long for a hundred as for one."""
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
    # A lone surrogate, which no file holds, is like no token then.
    encoded = [token.encode("utf-8", "surrogatepass") for token in tokens]
    sizes = np.array([len(token) for token in encoded], dtype=np.intp)
    ends = np.cumsum(sizes)
    return b"".join(encoded), ends - sizes, ends


def _keys(content: bytes, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.uint64]:
    """A number for each token, made of its length and its first, middle and last eight bytes."""
    padded = content + bytes(_WORD)
    words = np.ndarray(len(content) + 1, dtype="<u8", buffer=padded, strides=(1,))  # the eight bytes at each place
    sizes = ends - starts
    own = _OWN_BYTES[np.minimum(sizes, _WORD)]
    spare = np.maximum(sizes - _WORD, 0)
    keys: NDArray[np.uint64] = sizes.astype(np.uint64) * _FACTORS[3]
    for factor, places in zip(_FACTORS, (starts, starts + spare // 2, starts + spare), strict=False):
        keys += (words[places] & own) * factor
    return keys
