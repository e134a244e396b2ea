"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

# What decides which kernels the engines pick.
_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def describe_machine() -> dict[str, Any]:
    """CPU, the flags that matter to it, cores, memory, system, Python, and the load of the last minute."""
    info = _cpu_info()
    return {
        "cpu": info.get("model name", platform.processor() or "unknown"),
        "flags": [flag for flag in _FLAGS if flag in info.get("flags", "").split()],
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def has_vnni() -> bool:
    """Whether int8 products are exact in one instruction here, so that weights may use the whole range."""
    return bool({"avx512_vnni", "avx_vnni"} & set(_cpu_info().get("flags", "").split()))


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
