"""The errors of the runtime.

::

    ErnieMError
    ├── InvalidInputError        (also a ValueError)   arguments that cannot be answered
    ├── ArtifactError                                  a file that is missing, damaged or not ours
    ├── EngineUnavailableError   (also an ImportError) a package, driver or device that is not there
    ├── EngineError              (also a RuntimeError) a run that the engine could not finish
    └── QueueFullError                                 too much waits already: try again later

Each message says what was expected, what was given, and what to do.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "EngineError",
    "EngineUnavailableError",
    "ErnieMError",
    "InvalidInputError",
    "QueueFullError",
]


class ErnieMError(Exception):
    """Base class of all errors of erniem-rt."""


class InvalidInputError(ErnieMError, ValueError):
    """Text, ids, masks or options are invalid."""


class ArtifactError(ErnieMError):
    """An exported file is missing, truncated, edited after export, or in another format."""


class EngineUnavailableError(ErnieMError, ImportError):
    """A required package, driver or device is missing or lacks a feature."""


class EngineError(ErnieMError, RuntimeError):
    """The engine failed while it computed: out of memory, or a fault of its own."""


class QueueFullError(ErnieMError):
    """As much waits for an answer as may wait: try again later, or send less at once."""
