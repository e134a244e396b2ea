"""What an export says while it works."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

__all__ = ["Progress", "Terminal"]

Item = TypeVar("Item")


class Progress(Protocol):
    """Is told what is being done."""

    def step(self, text: str) -> None:
        """A step begins."""

    def track(self, items: Sequence[Item], unit: str) -> Iterable[Item]:
        """Return ``items``, which are about to be worked through one by one."""


class Terminal:
    """Writes to standard error, with a bar where it takes long."""

    def step(self, text: str) -> None:
        """Write one line."""
        print(f"{text} ...", file=sys.stderr, flush=True)

    def track(self, items: Sequence[Item], unit: str) -> Iterable[Item]:
        """Show a bar if somebody is watching."""
        from tqdm import tqdm

        bar: Iterable[Item] = tqdm(items, unit=unit, leave=False, disable=not sys.stderr.isatty())
        return bar
