"""Runs of an ONNX Runtime session on a CPU that give memory back which only a large run needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["ShrinkingRuns"]

# Positions, padding counted: what smaller runs leave is not worth the time that the next one takes to get it again.
_LARGE = 4096
# A run of that share of the largest one since memory was given back shows that so much is not needed now.
_SHARE = 4


class ShrinkingRuns:
    """Runs after which onnxruntime gives free memory of its arena back to the system.

    Args:
        ort: The module onnxruntime.
        session: Its session.
        shrink: After every run, never, or (None) after a run that needs much less than a large one before it.
    """

    def __init__(self, ort: Any, session: Any, shrink: bool | None) -> None:
        self._session = session
        self._shrink = shrink
        self._largest = 0
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, outputs: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute ``outputs``, in that order."""
        mask = feeds.get("attention_mask")
        options = self._options if self._shrinks(0 if mask is None else mask.size) else None
        results: list[NDArray[Any]] = self._session.run(outputs, feeds, options)
        return results

    def _shrinks(self, size: int) -> bool:
        if self._shrink is not None:
            return self._shrink
        # Threads that come between one another here shrink once too often or a run too late, no more.
        if self._largest >= _LARGE and size * _SHARE <= self._largest:
            self._largest = size
            return True
        self._largest = max(self._largest, size)
        return False
