"""What every engine offers, and the device it runs on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from erniem_rt.manifest import TensorSpec

__all__ = ["Device", "Engine", "GraphOptions", "PlanEngine", "PlanOptions"]

_CUDA = re.compile(r"cuda(?::([0-9]{1,3}))?")


@dataclass(frozen=True)
class Device:
    """A processor by kind, ``cpu`` or ``cuda``, and its index among those of that kind."""

    kind: str
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read ``cpu``, ``cuda`` or ``cuda:N``; anything else is an :class:`InvalidInputError`."""
        if text == "cpu":
            return cls("cpu")
        match = _CUDA.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise InvalidInputError(f"device must be 'cpu', 'cuda' or 'cuda:N' (N a device index), got {text!r}.")
        return cls("cuda", int(match[1] or 0))

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


class Engine(Protocol):
    """One loaded graph. ``run`` may be called from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs as the graph itself declares them; axes without a size or a name are ``"?"``."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, likewise."""

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """Compute ``outputs``, in that order, from C-contiguous arrays of the declared dtypes and shapes.

        Raises:
            EngineError: The engine failed, for want of memory for example.
        """

    def close(self) -> None:
        """Let go of the graph; runs under way in other threads finish. Closing twice is fine."""


class PlanEngine(Engine, Protocol):
    """An engine that takes shapes in ranges."""

    @property
    def max_length(self) -> int:
        """Positions of the longest row that it takes."""


@dataclass(frozen=True)
class GraphOptions:
    """What a caller may say about running a graph (see :class:`erniem_rt.Session`)."""

    threads: int = 1
    share_weights: bool = False
    cuda_graphs: bool = False
    spinning: bool | None = None
    shrink_memory: bool | None = None
    engine: str = "onnxruntime"
    precision: str = "auto"
    cache: str | os.PathLike[str] | bool | None = None
    verify: bool = True


@dataclass(frozen=True)
class PlanOptions:
    """What a caller may say about running a plan (see :class:`erniem_rt.Session`)."""

    trust: bool = False
    cuda_graphs: bool = True
    runtime_cache: str | os.PathLike[str] | None = None
