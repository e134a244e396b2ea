"""The errors of the runtime.

::

    ErnieMError
    ├── InvalidInputError        (also a ValueError)   invalid arguments
    ├── ArtifactError                                  a missing, damaged or foreign file
    ├── EngineUnavailableError   (also an ImportError) a missing package, driver or device
    ├── EngineError              (also a RuntimeError) a failed run of the engine
    └── QueueFullError                                 a full queue

Each message says what was expected, what was given, and what to do.
"""

from __future__ import annotations


class ErnieMError(Exception):
    """Base class of all errors of erniem-rt."""


class InvalidInputError(ErnieMError, ValueError):
    """Text, ids, masks or options are invalid."""


class ArtifactError(ErnieMError):
    """An exported file is missing, truncated, edited after export, or in another format."""


class EngineUnavailableError(ErnieMError, ImportError):
    """A required package, driver or device is missing or lacks a feature."""


class EngineError(ErnieMError, RuntimeError):
    """The engine failed during a run, for example out of memory."""


class QueueFullError(ErnieMError):
    """The queue is full: try again later, or send less at once."""
