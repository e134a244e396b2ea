"""What an export says while it works."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

__all__ = ["Progress", "Terminal"]

Item = TypeVar("Item")

_WIDTH = 78


class Progress(Protocol):
    """Is told what is being done."""

    def step(self, text: str) -> None:
        """A step begins."""

    def track(self, items: Sequence[Item], unit: str) -> Iterable[Item]:
        """Return ``items``, which are about to be worked through one by one."""

    def note(self, text: str) -> None:
        """Something that is worth a line, and no step."""

    def phase(self, name: str, done: int, total: int) -> None:
        """How far a part of the step has come; without a name, the step is over."""


class Terminal:
    """Writes to standard error, with a bar where it takes long; nothing if it is quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def step(self, text: str) -> None:
        """Write one line."""
        self.note(f"{text} ...")

    def track(self, items: Sequence[Item], unit: str) -> Iterable[Item]:
        """Show a bar if somebody is watching."""
        from tqdm import tqdm

        bar: Iterable[Item] = tqdm(items, unit=unit, leave=False, disable=not self._is_watched())
        return bar

    def note(self, text: str) -> None:
        """Write one line."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def phase(self, name: str, done: int, total: int) -> None:
        """Show it in place of what was shown before, if somebody is watching."""
        if self._is_watched():
            line = f"  {name} {done}/{total}"[:_WIDTH] if name else ""
            print(f"\r{line:<{_WIDTH}}\r{line}", end="", file=sys.stderr, flush=True)

    def _is_watched(self) -> bool:
        return not self._quiet and sys.stderr.isatty()
