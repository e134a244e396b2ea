"""Files: records of their sizes and hashes, checks against these, and atomic replacement."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erniem_rt.errors import ArtifactError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from typing import IO

    import numpy as np
    from numpy.typing import NDArray

_LFS_POINTER = b"version https://git-lfs"

# Larger files are also recorded with a checksum.
LARGE = 16 << 20
# Bytes to read at once, a row of the checksum: it and the sums fit into a core's cache.
_ROW = 1 << 18
# Odd, so that a change of one word always changes the checksum.
_FACTOR = 6364136223846793005


@dataclass(frozen=True)
class FileRecord:
    """Hashes and size of one file.

    Attributes:
        sha256: SHA-256 of the content in lower-case hex, as ``sha256sum`` prints it.
        size: Bytes.
        checksum: For a file of more than 16 MiB, a checksum in 64 hex digits that is faster to compute than SHA-256
            and finds damage, but not an attacker's change. A session compares it instead of SHA-256. The file is read
            as rows of 32,768 little-endian uint64, the last one padded with zeros; each column is summed as a
            polynomial, ``sum = sum * 6364136223846793005 + word`` modulo 2^64; the checksum is the SHA-256 of these
            sums. None for smaller files and in older exports.
    """

    sha256: str
    size: int
    checksum: str | None = None


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return ``value`` as a path; :class:`InvalidInputError`, with its ``name``, if it is none."""
    try:
        return Path(value)
    except TypeError as error:
        raise InvalidInputError(f"{name} must be a str or a path, got {type(value).__name__}.") from error


def as_folder(name: str, value: object) -> Path:
    """Return the absolute path of a folder that may not exist yet; ``~`` is the user's home.

    :class:`InvalidInputError`, with ``name``, if no folder can have this name.
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(value := os.fspath(value), str) or not value:
        raise InvalidInputError(f"{name} must be the path of a folder, True, False or None, got {value!r}.")
    with contextlib.suppress(RuntimeError, ValueError):  # the user has no home; the path has a null byte
        value = Path(value).expanduser()
    folder = Path(value).absolute()
    try:
        named = b"\0" not in str(folder).encode()
    except UnicodeEncodeError:
        named = False
    if not named:
        raise InvalidInputError(f"{name} must be the path of a folder, in UTF-8, got {str(folder)!r}.")
    if os.path.exists(folder) and not os.path.isdir(folder):  # noqa: PTH110, PTH112  # False where it may not be read
        raise InvalidInputError(f"{name} must be the path of a folder, and {folder} is a file.")
    return folder


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
    whole, size = hashlib.sha256(), 0
    checksum = _Checksum()
    for row in checksum.rows(Path(path)):
        whole.update(row)
        size += len(row)
    return FileRecord(whole.hexdigest(), size, checksum.hexdigest() if size > LARGE else None)


class _Checksum:
    """The checksum of a :class:`FileRecord`."""

    def __init__(self) -> None:
        import numpy as np

        self._row = np.zeros(_ROW // 8, "<u8")
        self._sums = np.zeros_like(self._row)

    def rows(self, path: Path) -> Iterator[memoryview]:
        """Read ``path`` and add it row by row; yield each row, which is valid until the next."""
        content = self._row.data.cast("B")
        try:
            with path.open("rb", buffering=0) as file:
                while count := _fill(file, content):
                    self._row.view("u1")[count:] = 0
                    self._sums *= _FACTOR
                    self._sums += self._row
                    yield content[:count]
        except OSError as error:
            raise unreadable(path, error) from error

    def hexdigest(self) -> str:
        """Return the checksum of what was added."""
        return hashlib.sha256(self._sums.tobytes()).hexdigest()


def _fill(file: FileIO, content: memoryview) -> int:
    """Read from ``file`` until ``content`` is full or the file ends; return the number of bytes read."""
    count = 0
    while more := file.readinto(content[count:]):
        count += more
    return count


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


def check_hash(path: Path, record: FileRecord) -> None:
    """Raise :class:`ArtifactError` unless ``path`` has the content of ``record``, by its checksum if it has one."""
    if record.checksum is not None:
        checksum = _Checksum()
        deque(checksum.rows(path), maxlen=0)
        name, expected, found = "checksum", record.checksum, checksum.hexdigest()
    else:
        name, expected, found = "sha256", record.sha256, hash_file(path).sha256
    if found != expected:
        raise ArtifactError(
            f"{path} was changed after export: expected {name} {expected}, found {found}. Restore the file or export "
            "again."
        )


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
            while count := file.readinto(buffer[done : done + _ROW]):
                digest.update(buffer[done : done + count])
                done += count
    except OSError as error:
        raise unreadable(path, error) from error
    return content[:done], digest.hexdigest()
