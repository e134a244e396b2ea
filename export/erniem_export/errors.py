"""The errors of the exporter, all of them :class:`erniem_rt.errors.ErnieMError`, and how messages list names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from erniem_rt.errors import ErnieMError


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


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def some(names: Iterable[str]) -> str:
    """Return the first names in alphabetical order, and how many more there are."""
    return listed(sorted(names))
