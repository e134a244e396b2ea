"""What an export is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from erniem_export.heads import GraphOptions

__all__ = ["ExportOptions"]


@dataclass(frozen=True)
class ExportOptions:
    """The choices of one ``erniem-export``.

    ``model`` is a folder, a hub id or ``random:SIZE``; ``head`` one of the six or ``auto``; ``output`` the folder
    that receives the artifact; ``graph`` the optional inputs and outputs.
    """

    model: str
    head: str = "auto"
    output: Path = Path("out")
    graph: GraphOptions = field(default_factory=GraphOptions)
