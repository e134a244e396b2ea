"""Files on disk: what is recorded of them, and whether they are still what was recorded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erniem_rt.errors import ArtifactError, InvalidInputError
from erniem_rt.processes import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from hashlib import _Hash as Hash
    from io import FileIO
    from typing import IO

    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 1 << 20
_LFS_POINTER = b"version https://git-lfs"

# A larger file is also recorded piece by piece, so that several threads can check it at once.
PIECE = 16 << 20


@dataclass(frozen=True)
class FileRecord:
    """Hashes and size of one file.

    Attributes:
        sha256: SHA-256 of the content in lower-case hex, as ``sha256sum`` prints it.
        size: Bytes.
        pieces_sha256: For a file of more than 16 MiB, the SHA-256 of the joined SHA-256 digests (32 bytes each) of its
            pieces of 16 MiB. None for a smaller file, and for one that an older version exported.
    """

    sha256: str
    size: int
    pieces_sha256: str | None = None


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """``value`` as a path; :class:`InvalidInputError`, which calls it ``name``, where it is none."""
    try:
        return Path(value)
    except TypeError as error:
        raise InvalidInputError(f"{name} must be a str or a path, got {type(value).__name__}.") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` in one step if all goes well, and is deleted otherwise.

    A reader sees the old content or the new, never a part. A link stays one, and a file keeps its permissions. Raises
    :class:`OSError` as the file system gives it.
    """
    path = Path(os.path.realpath(path))
    # Not tempfile: it makes files that only their owner may read.
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
        with contextlib.suppress(OSError):  # What failed first is the better explanation.
            part.unlink()
        raise


def require_utf_8(path: Path) -> None:
    """Raise :class:`ArtifactError` for a path that onnxruntime cannot be given."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ArtifactError(
            f"onnxruntime cannot open {shown}: it takes UTF-8 paths only. Rename what is shown with a backslash, or "
            "make a link."
        ) from error


def hash_file(path: str | os.PathLike[str]) -> FileRecord:
    """Hashes and size of a file; :class:`ArtifactError` when it cannot be read."""
    whole, pieces = hashlib.sha256(), hashlib.sha256()
    size = 0
    try:
        with Path(path).open("rb", buffering=0) as file:
            while count := _read_piece(file, whole, piece := hashlib.sha256()):
                pieces.update(piece.digest())
                size += count
    except OSError as error:
        raise unreadable(path, error) from error
    return FileRecord(whole.hexdigest(), size, pieces.hexdigest() if size > PIECE else None)


def _read_piece(file: FileIO, *hashes: Hash) -> int:
    """Feed the next piece of ``file`` to ``hashes``; return its size in bytes."""
    buffer = memoryview(bytearray(min(_CHUNK, PIECE)))
    done = 0
    while done < PIECE and (count := file.readinto(buffer[: PIECE - done])):
        for each in hashes:
            each.update(buffer[:count])
        done += count
    return done


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
    """What the file system says of a file: device, inode, size, times of change; None if it cannot."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_hash(path: Path, record: FileRecord, threads: int = 1) -> None:
    """Raise :class:`ArtifactError` unless ``path`` has the content of ``record``.

    A file that was recorded piece by piece is read by several ``threads``.
    """
    if record.pieces_sha256 is None:
        expected, found = record.sha256, hash_file(path).sha256
    else:
        expected, found = record.pieces_sha256, _hash_pieces(path, record.size, threads)
    if found != expected:
        raise ArtifactError(
            f"{path} was changed after export: expected sha256 {expected}, found {found}. "
            "Restore the file or export again."
        )


def _hash_pieces(path: Path, size: int, threads: int) -> str:
    """What :attr:`FileRecord.pieces_sha256` records of a file of ``size`` bytes."""
    with Workers(threads) as pool:
        digests = [pool.submit(_hash_piece, path, start) for start in range(0, size, PIECE)]
        return hashlib.sha256(b"".join(digest.result() for digest in digests)).hexdigest()


def _hash_piece(path: Path, start: int) -> bytes:
    """The SHA-256 digest of the piece that begins at byte ``start``."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            _read_piece(file, digest)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.digest()


def is_lfs_pointer(path: Path) -> bool:
    """Whether Git LFS has left its pointer in place of the file; False for what cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False


def refuse_pointer(path: Path) -> None:
    """Raise :class:`ArtifactError` if Git LFS has left its pointer in place of the file."""
    if is_lfs_pointer(path):
        raise ArtifactError(f"{path} is a pointer of Git LFS, not the file itself: run git lfs pull.")


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
