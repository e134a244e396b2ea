"""Finds added tokens, such as ``[MASK]``, in raw text before sentencepiece runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from .settings import AddedToken


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
