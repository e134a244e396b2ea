"""The progress of an export, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")

_WIDTH = 78


class Terminal:
    """Shows the steps of an export on standard error, with a bar for long ones; ``quiet`` writes nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def step(self, text: str) -> None:
        """Show the start of a step."""
        self.note(f"{text} ...")

    def track(self, items: Sequence[Item], unit: str) -> Iterable[Item]:
        """Return ``items``, and show a bar over them on a terminal."""
        from tqdm import tqdm

        bar: Iterable[Item] = tqdm(items, unit=unit, leave=False, disable=not self._on_terminal())
        return bar

    def note(self, text: str) -> None:
        """Show a line that is not a step."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def phase(self, name: str, done: int, total: int) -> None:
        """On a terminal, show that ``done`` of ``total`` parts of a phase are done; an empty name ends the step."""
        if self._on_terminal():
            line = f"  {name} {done}/{total}"[:_WIDTH] if name else ""
            print(f"\r{line:<{_WIDTH}}\r{line}", end="", file=sys.stderr, flush=True)

    def _on_terminal(self) -> bool:
        return not self._quiet and sys.stderr.isatty()
