"""What a builder is doing, and a way to stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from erniem_export.progress import Progress

__all__ = ["Monitor", "monitor_for"]


class Monitor(Protocol):
    """``interrupted``: what was raised when somebody pressed Ctrl-C; the build was then told to stop."""

    interrupted: KeyboardInterrupt | None

    def close(self) -> None:
        """Take the progress away."""


def monitor_for(module: Any, progress: Progress) -> Monitor | None:
    """An ``IProgressMonitor`` of this library that shows the phase on ``progress``; None where there is no such thing.

    An exception must not leave a call that the library makes, so an interruption becomes the answer to go no further.
    """
    if not hasattr(module, "IProgressMonitor"):
        return None

    class Watcher(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.interrupted: KeyboardInterrupt | None = None
            self._phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = num_steps
            self._show(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._show(phase_name, step + 1)
            return self.interrupted is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def close(self) -> None:
            progress.phase("", 0, 0)

        def _show(self, phase: str, done: int) -> None:
            try:
                progress.phase(phase, done, self._phases.get(phase, 0))
            except KeyboardInterrupt as error:
                self.interrupted = error

    watcher: Monitor = Watcher()
    return watcher
