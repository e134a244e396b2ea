"""Giving memory back that only a large run on a CPU needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Shrinking", "ShrinkingRuns"]

# Positions, padding counted: what smaller runs leave is not worth the time that the next one takes to get it again.
_LARGE = 4096
# A run of that share of the largest one since memory was given back shows that so much is not needed now.
_SHARE = 4


class Shrinking:
    """Whether memory is to be given back: after every run, never, or (None) after one of much less than before."""

    def __init__(self, shrink: bool | None) -> None:
        self._shrink = shrink
        self._largest = 0

    def after(self, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Whether to give back what the run of ``feeds`` and those before it took."""
        if self._shrink is not None:
            return self._shrink
        mask = feeds.get("attention_mask")
        size = 0 if mask is None else mask.size
        # Threads that come between one another here shrink once too often or a run too late, no more.
        if self._largest >= _LARGE and size * _SHARE <= self._largest:
            self._largest = size
            return True
        self._largest = max(self._largest, size)
        return False


class ShrinkingRuns:
    """Runs after which onnxruntime gives free memory of its arena back to the system.

    Args:
        ort: The module onnxruntime.
        session: Its session.
        shrink: As for :class:`Shrinking`.
    """

    def __init__(self, ort: Any, session: Any, shrink: bool | None) -> None:
        self._session = session
        self._shrinking = Shrinking(shrink)
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, outputs: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute ``outputs``, in that order."""
        options = self._options if self._shrinking.after(feeds) else None
        results: list[NDArray[Any]] = self._session.run(outputs, feeds, options)
        return results
