"""The errors of the exporter; all of them are :class:`erniem_rt.errors.ErnieMError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erniem_rt.errors import ErnieMError

__all__ = [
    "CheckpointError",
    "EngineBuildError",
    "ExportError",
    "FusionError",
    "OptionError",
    "ParityError",
    "PrecisionError",
]


class CheckpointError(ErnieMError):
    """A checkpoint is missing, damaged, not ErnieM, or contradicts its config."""


class ExportError(ErnieMError):
    """The artifact could not be written: a problem with the folder, the disk or the graph."""


class EngineBuildError(ErnieMError):
    """TensorRT could not build the plan; names the node if known."""


class FusionError(ErnieMError):
    """A graph pass did not find the nodes that it rewrites."""


class OptionError(ErnieMError, ValueError):
    """An option is unknown, or options contradict each other."""


class ParityError(ErnieMError):
    """An artifact differs from the PyTorch model; ``report`` has the figures, if any were computed."""

    def __init__(self, message: str, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class PrecisionError(ParityError):
    """The graph is correct, but rounding in its precision costs this model more than is allowed."""
