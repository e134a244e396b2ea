"""This machine's class of CPU, and the number of threads that this process may use."""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from erniem_rt.checks import is_count
from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
_X86 = frozenset({"x86_64", "amd64"})
_ARM = frozenset({"arm64", "aarch64"})
# CPUs with exact int8 sums, and their description in a warning on a CPU without VNNI.
_EXACT = {"vnni": "a CPU with VNNI, and this CPU has none", "arm64": "arm64, and this CPU is another, without VNNI"}
_EXTENSIONS = {"vnni": _VNNI, "bf16": {"avx512_bf16"}, "amx": {"amx_int8", "amx_bf16"}}


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the CPU's instruction sets by Linux's names; empty if the system does not list them."""
    lines = _read(path).splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())


def cpu_class() -> str:
    """Return this CPU's speed class, such as ``avx2``, ``avx512-vnni-bf16`` or ``aarch64``.

    It has the vector width, then the instructions for int8 (``vnni``), bf16 (``bf16``) and tiles (``amx``).
    """
    known = cpu_flags()
    width = next((name for name, flag in (("avx512", "avx512f"), ("avx2", "avx2")) if flag in known), "")
    parts = [width or (platform.machine().lower() or "unknown")]
    parts += [name for name, wanted in _EXTENSIONS.items() if not known.isdisjoint(wanted)]
    return "-".join(parts)


def has_vnni() -> bool | None:
    """Return whether the CPU has VNNI, which sums int8 products exactly; None if unknown (not Linux, or not x86)."""
    flags = cpu_flags()
    if not flags or platform.machine().lower() not in _X86:
        return None
    return not flags.isdisjoint(_VNNI)


def is_arm() -> bool:
    """Return whether this is a 64-bit ARM CPU, which sums 8-bit products in 32 bits."""
    return platform.machine().lower() in _ARM


def warn_of_cpu(wanted: str | None) -> None:
    """Warn if int8 needs exact sums (VNNI, ARM) and this CPU lacks VNNI: its 16-bit sums may overflow."""
    if wanted in _EXACT and has_vnni() is False:
        warnings.warn(
            f"this artifact was exported for {_EXACT[wanted]}: its results are less accurate here. "
            "Export it again with --int8 --cpu avx2.",
            stacklevel=3,
        )


_MOST_THREADS = 1024

# Mount points of the CPU controller: cgroup v1 by its names, v2 alone or beside v1.
_V1_MOUNTS: tuple[str, ...] = ("cpu,cpuacct", "cpuacct,cpu", "cpu")
_V2_MOUNTS: tuple[str, ...] = ("", "unified")


def threads_or_default(threads: int | None) -> int:
    """Return ``threads``, for None the default; :class:`InvalidInputError` unless it is an integer from 1 to 1,024."""
    if threads is None:
        return default_threads()
    if not is_count(threads) or threads > _MOST_THREADS:  # ONNX Runtime would start as many at once
        raise InvalidInputError(f"threads must be an integer from 1 to {_MOST_THREADS} or None, got {threads!r}.")
    return int(threads)


def default_threads(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Return the least of this process's CPU affinity, its cgroups' CPU quotas and ``OMP_NUM_THREADS``.

    Quotas are rounded up to whole CPUs. Unreadable files and values that are not positive numbers set no limit.

    Args:
        root: The folder of ``proc`` and ``sys``.
        environment: The environment with ``OMP_NUM_THREADS``.
    """
    return min([_affinity(), *_quotas(root), *_omp(environment)])


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _omp(environment: Mapping[str, str]) -> Iterator[int]:
    # A list has a number per level of nested parallel regions; the first is ours.
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        yield int(first)


def _quotas(root: Path) -> Iterator[int]:
    """Yield the CPU quota, in CPUs rounded up, of this process's cgroup and its parents."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            mounts, quota = _V2_MOUNTS, _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, quota = _V1_MOUNTS, _quota_v1
        else:
            continue
        for mount in mounts:
            for folder in _folders(root / "sys/fs/cgroup" / mount, path):
                limit, period = quota(folder)
                if limit.isdecimal() and period.isdecimal() and int(limit) and int(period):  # "max" and -1: no limit
                    yield -(-int(limit) // int(period))


def _folders(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folders from a cgroup up to the mount point; a container may show only the latter."""
    inside = PurePosixPath(*(part for part in path.split("/") if part not in ("", ".", "..")))
    for part in (inside, *inside.parents):
        yield mount / part


def _quota_v2(folder: Path) -> tuple[str, str]:
    limit, period = [*_read(folder / "cpu.max").split(), "", ""][:2]
    return limit, period


def _quota_v1(folder: Path) -> tuple[str, str]:
    return _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
