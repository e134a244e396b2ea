"""Files: records of their sizes and hashes, checks against these, and atomic replacement."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erniem_rt.errors import ArtifactError, InvalidInputError
from erniem_rt.processes import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from typing import IO

    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 1 << 20
_LFS_POINTER = b"version https://git-lfs"

# Larger files are also recorded in pieces of this size, so that several threads can check them.
PIECE = 16 << 20


@dataclass(frozen=True)
class FileRecord:
    """Hashes and size of one file.

    Attributes:
        sha256: SHA-256 of the content in lower-case hex, as ``sha256sum`` prints it.
        size: Bytes.
        crc32: For a file of more than 16 MiB, the CRC-32 of each of its pieces of 16 MiB. A session checks these
            instead of SHA-256: half the work, in several threads. None for smaller files and in older exports.
    """

    sha256: str
    size: int
    crc32: tuple[int, ...] | None = None


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return ``value`` as a path; :class:`InvalidInputError`, with its ``name``, if it is none."""
    try:
        return Path(value)
    except TypeError as error:
        raise InvalidInputError(f"{name} must be a str or a path, got {type(value).__name__}.") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` atomically on success, and is deleted on failure.

    A link stays a link, and a file keeps its permissions. Raises the file system's :class:`OSError`.
    """
    path = Path(os.path.realpath(path))
    # Not tempfile: only the owner could read its files.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            if path.exists():
                part.chmod(stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first failure explains more
            part.unlink()
        raise


def require_utf_8(path: Path) -> None:
    """Raise :class:`ArtifactError` for a path that is not UTF-8, which the engines cannot open."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ArtifactError(
            f"onnxruntime cannot open {shown}: it takes UTF-8 paths only. Rename what is shown with a backslash, or "
            "make a link."
        ) from error


def hash_file(path: str | os.PathLike[str]) -> FileRecord:
    """Return hashes and size of a file; :class:`ArtifactError` if it cannot be read."""
    whole, pieces, size = hashlib.sha256(), [], 0
    try:
        with Path(path).open("rb", buffering=0) as file:
            while True:
                start, crc32 = size, 0
                for chunk in _piece(file):
                    whole.update(chunk)
                    crc32 = zlib.crc32(chunk, crc32)
                    size += len(chunk)
                if size == start:
                    break
                pieces.append(crc32)
    except OSError as error:
        raise unreadable(path, error) from error
    return FileRecord(whole.hexdigest(), size, tuple(pieces) if size > PIECE else None)


def _piece(file: FileIO) -> Iterator[memoryview]:
    """Yield the next piece of ``file`` in chunks; each chunk is valid until the next."""
    buffer = memoryview(bytearray(min(_CHUNK, PIECE)))
    left = PIECE
    while left and (count := file.readinto(buffer[:left])):
        yield buffer[:count]
        left -= count


def check_size(path: Path, expected: int) -> None:
    """Raise :class:`ArtifactError` unless ``path`` is a file of ``expected`` bytes."""
    try:
        actual = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise unreadable(path, error) from error
    if actual is None:
        raise ArtifactError(f"{path} is missing: the manifest lists it. Restore the file or export again.")
    if actual != expected:
        refuse_pointer(path)
        what = "truncated" if actual < expected else "longer than what was exported"
        raise ArtifactError(
            f"{path} is {what}: expected {expected} bytes, found {actual}. Restore the file or export again."
        )


def stamp(path: Path) -> tuple[int, ...] | None:
    """Return a file's device, inode, size and modification times; None if it is not accessible."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_hash(path: Path, record: FileRecord, threads: int = 1) -> None:
    """Raise :class:`ArtifactError` unless ``path`` has the content of ``record``.

    Checks the CRC-32 values of a large file, in several ``threads``, and the SHA-256 of any other.
    """
    if record.crc32 is not None:
        _check_pieces(path, record.crc32, threads)
    elif (found := hash_file(path).sha256) != record.sha256:
        raise _changed(path, f"expected sha256 {record.sha256}, found {found}")


def _check_pieces(path: Path, expected: tuple[int, ...], threads: int) -> None:
    with Workers(threads) as pool:
        found = [pool.submit(_crc32_of_piece, path, number) for number in range(len(expected))]
        for number, (right, value) in enumerate(zip(expected, found, strict=True)):
            if value.result() != right:
                start, end = number * PIECE, (number + 1) * PIECE
                raise _changed(
                    path, f"expected CRC-32 {right:08x} for bytes {start} to {end}, found {value.result():08x}"
                )


def _crc32_of_piece(path: Path, number: int) -> int:
    found = 0
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(number * PIECE)
            for chunk in _piece(file):
                found = zlib.crc32(chunk, found)
    except OSError as error:
        raise unreadable(path, error) from error
    return found


def _changed(path: Path, how: str) -> ArtifactError:
    return ArtifactError(f"{path} was changed after export: {how}. Restore the file or export again.")


def is_lfs_pointer(path: Path) -> bool:
    """Return whether the file is only a Git LFS pointer; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False


def refuse_pointer(path: Path) -> None:
    """Raise :class:`ArtifactError` if the file is only a Git LFS pointer."""
    if is_lfs_pointer(path):
        raise ArtifactError(f"{path} is a pointer of Git LFS, not the file itself: run git lfs pull.")


def unreadable(path: str | os.PathLike[str], error: OSError) -> ArtifactError:
    """Return the error for a file that cannot be read."""
    return ArtifactError(f"{path} cannot be read: {error.strerror or error}.")


def read_whole(path: Path) -> tuple[NDArray[np.uint8], str]:
    """Return a file's content and its SHA-256 (lower-case hex); :class:`ArtifactError` if it cannot be read."""
    import numpy as np  # here, so that the command line's --help starts fast

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
