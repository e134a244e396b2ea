"""What an export is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from erniem_export.heads import GraphOptions
from erniem_export.precision import Precision
from erniem_export.quantization.quantize import Int8
from erniem_export.tensorrt.options import EngineOptions
from erniem_export.vocabulary.selection import Keep

__all__ = ["ExportOptions"]


@dataclass(frozen=True)
class ExportOptions:
    """The choices of one ``erniem-export``.

    ``model`` is a folder, a hub id or ``random:SIZE``; ``head`` one of the six or ``auto``; ``output`` the folder
    that receives the artifact; ``graph`` the optional inputs and outputs; ``precision`` the types to compute and store
    in; ``keep`` the part of the vocabulary to keep, all of it if it asks for nothing; ``target`` the engine that the
    graph is made for, see :data:`erniem_export.choices.TARGETS`; ``int8`` and ``engine`` how to make those;
    ``task_set`` a file of labelled examples, if not the checkpoint's own.
    """

    model: str
    head: str = "auto"
    output: Path = Path("out")
    graph: GraphOptions = field(default_factory=GraphOptions)
    precision: Precision = field(default_factory=Precision)
    keep: Keep = field(default_factory=Keep)
    target: str = "any"
    int8: Int8 = field(default_factory=Int8)
    engine: EngineOptions = field(default_factory=EngineOptions)
    task_set: Path | None = None
