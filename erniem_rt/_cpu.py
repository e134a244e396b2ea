"""What this machine's CPU can do: its class, which decides between engines, and int8."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

__all__ = ["cpu_class", "cpu_flags", "has_vnni", "is_arm", "warn_of_cpu"]

_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
_X86 = frozenset({"x86_64", "amd64"})
_ARM = frozenset({"arm64", "aarch64"})
# What sums of 8-bit products must be exact for, and what a CPU without VNNI is then told.
_EXACT = {"vnni": "a CPU with VNNI, and this CPU has none", "arm64": "arm64, and this CPU is another, without VNNI"}
_EXTENSIONS = {"vnni": _VNNI, "bf16": {"avx512_bf16"}, "amx": {"amx_int8", "amx_bf16"}}


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of the CPU by Linux's names; none where the system does not list them."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())


def cpu_class(flags: Collection[str] | None = None) -> str:
    """The class of CPU that speed depends on, such as ``avx2``, ``avx512-vnni-bf16`` or ``aarch64``.

    ``flags`` are instruction sets by Linux's names, default this machine's. Vector width comes first, then what
    multiplies int8 (``vnni``), bf16 (``bf16``) and tiles (``amx``).
    """
    known = set(cpu_flags() if flags is None else flags)
    width = next((name for name, flag in (("avx512", "avx512f"), ("avx2", "avx2")) if flag in known), "")
    parts = [width or (platform.machine().lower() or "unknown")]
    parts += [name for name, wanted in _EXTENSIONS.items() if not known.isdisjoint(wanted)]
    return "-".join(parts)


def has_vnni() -> bool | None:
    """Whether products of 8 bits are summed exactly; None if that cannot be told: not Linux, or not x86."""
    flags = cpu_flags()
    if not flags or platform.machine().lower() not in _X86:
        return None
    return not flags.isdisjoint(_VNNI)


def is_arm() -> bool:
    """Whether this is a 64-bit ARM, which sums products of 8 bits in 32 bits."""
    return platform.machine().lower() in _ARM


def warn_of_cpu(engine: Mapping[str, Any] | None) -> None:
    """Warn if the manifest's ``engine`` says int8 for VNNI and this CPU has none: its sums would overflow."""
    int8 = (engine or {}).get("int8")
    if isinstance(int8, Mapping) and str(int8.get("cpu")) in _EXACT and has_vnni() is False:
        warnings.warn(
            f"this artifact was exported for {_EXACT[int8['cpu']]}: its results are less accurate "
            "here. Export it again with --int8 --cpu avx2.",
            stacklevel=3,
        )
