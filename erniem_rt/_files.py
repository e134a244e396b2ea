"""Files on disk: what is recorded of them, and whether they are still what was recorded."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erniem_rt.errors import ArtifactError, InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """SHA-256 (lower-case hex) and size in bytes of one file."""

    sha256: str
    size: int


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """``value`` as a path; :class:`InvalidInputError`, which calls it ``name``, where it is none."""
    try:
        return Path(value)
    except TypeError as error:
        raise InvalidInputError(f"{name} must be a str or a path, got {type(value).__name__}.") from error


def require_utf_8(path: Path) -> None:
    """Raise :class:`ArtifactError` for a path that onnxruntime cannot be given."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ArtifactError(
            f"{shown} cannot be opened by onnxruntime, which takes paths in UTF-8 alone: rename what is shown with a "
            "backslash, or make a link to it."
        ) from error


def hash_file(path: str | os.PathLike[str]) -> FileRecord:
    """SHA-256 and size of a file, read in pieces; :class:`ArtifactError` when it cannot be read."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    size = 0
    try:
        with Path(path).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                size += count
    except OSError as error:
        raise unreadable(path, error) from error
    return FileRecord(digest.hexdigest(), size)


def check_size(path: Path, expected: int) -> None:
    """Raise :class:`ArtifactError` unless ``path`` is a file of ``expected`` bytes."""
    try:
        actual = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise unreadable(path, error) from error
    if actual is None:
        raise ArtifactError(f"{path} is missing: the manifest lists it. Restore the file or export again.")
    if actual != expected:
        what = "truncated" if actual < expected else "longer than what was exported"
        raise ArtifactError(
            f"{path} is {what}: expected {expected} bytes, found {actual}. Restore the file or export again."
        )


def stamp(path: Path) -> tuple[int, ...] | None:
    """What the file system says of a file: device, inode, size, times of change; None if it cannot."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_hash(path: Path, expected: str) -> None:
    """Raise :class:`ArtifactError` unless the SHA-256 of ``path`` is ``expected``."""
    found = hash_file(path).sha256
    if found != expected:
        raise ArtifactError(
            f"{path} was changed after export: expected sha256 {expected}, found {found}. "
            "Restore the file or export again."
        )


def unreadable(path: str | os.PathLike[str], error: OSError) -> ArtifactError:
    """The error for a file that the system does not let us read."""
    return ArtifactError(f"{path} cannot be read: {error.strerror or error}.")


def read_whole(path: Path) -> tuple[NDArray[np.uint8], str]:
    """The content of a file and its SHA-256 (lower-case hex); :class:`ArtifactError` when it cannot be read."""
    import numpy as np  # here: the command line reads manifests, and its --help is to be quick

    digest = hashlib.sha256()
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            content = np.empty(path.stat().st_size, np.uint8)
            buffer = content.data
            while count := file.readinto(buffer[done : done + _CHUNK]):
                digest.update(buffer[done : done + count])
                done += count
    except OSError as error:
        raise unreadable(path, error) from error
    return content[:done], digest.hexdigest()
