"""How many threads: what a caller says, or else what this process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from erniem_rt._checks import is_count
from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["default_threads", "threads_or_default"]

# Where systems mount the controller of CPU time: cgroup v1 by its names, v2 as a whole or beside v1.
_V1_MOUNTS: tuple[str, ...] = ("cpu,cpuacct", "cpuacct,cpu", "cpu")
_V2_MOUNTS: tuple[str, ...] = ("", "unified")


def threads_or_default(threads: int | None) -> int:
    """``threads``, or for None :func:`default_threads`; :class:`InvalidInputError` unless it is a positive integer."""
    if threads is None:
        return default_threads()
    if not is_count(threads):
        raise InvalidInputError(f"threads must be a positive integer or None, got {threads!r}.")
    return int(threads)


def default_threads(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """The least of: CPUs that this process may run on, CPUs' worth of time in its cgroups, ``OMP_NUM_THREADS``.

    Parts of a CPU count as one. What cannot be read, and values that are no positive numbers, set no limit.

    Args:
        root: Where ``proc`` and ``sys`` lie.
        environment: Where ``OMP_NUM_THREADS`` is looked up.
    """
    return min([_affinity(), *_quotas(root), *_omp(environment)])


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _omp(environment: Mapping[str, str]) -> Iterator[int]:
    # A list gives a number for each level of nested regions; the first is for ours.
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        yield int(first)


def _quotas(root: Path) -> Iterator[int]:
    """CPUs' worth of time, rounded up, that each cgroup of this process is allowed, its own and those above it."""
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
                yield from quota(folder)


def _folders(mount: Path, path: str) -> Iterator[Path]:
    """The folders from a cgroup up to the mount; in a container, that may be all there is of the path."""
    inside = PurePosixPath(*(part for part in path.split("/") if part not in ("", ".", "..")))
    for part in (inside, *inside.parents):
        yield mount / part


def _quota_v2(folder: Path) -> Iterator[int]:
    yield from _rounded_up(*[*_read(folder / "cpu.max").split(), "", ""][:2])


def _quota_v1(folder: Path) -> Iterator[int]:
    yield from _rounded_up(_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip())


def _rounded_up(quota: str, period: str) -> Iterator[int]:
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):  # "max" and -1: no limit
        yield -(-int(quota) // int(period))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
