"""What a TensorRT build is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_rt.manifest import Profile

__all__ = ["EngineOptions"]


@dataclass(frozen=True)
class EngineOptions:
    """``engine``: one of :data:`erniem_export.choices.ENGINES`; ``profiles``: none for the defaults.

    ``compute_capabilities`` such as ``"8.9"``, for TensorRT for RTX; none for the library's own choice.
    ``hardware_compatible``: any GPU from Ampere on; ``version_compatible``: later releases of the same major version,
    both for full TensorRT. ``workspace`` in MiB bounds the scratch memory on the GPU. ``timing_cache`` is read, where
    there is one, and written.
    """

    engine: str = "none"
    profiles: tuple[Profile, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatible: bool = False
    version_compatible: bool = False
    workspace: int | None = None
    timing_cache: Path | None = None
