"""The runtime cache of TensorRT for RTX: the kernels that it compiled for a plan on this GPU, kept in a file."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from erniem_rt._files import as_path, replacing, unreadable
from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RuntimeCache"]


class RuntimeCache:
    """A cache of the library, filled from ``path`` if that exists and written there by :meth:`save`.

    Without a path the contexts of one session share it, and it ends with them. The library itself refuses what
    another GPU, driver or version left there; that is a warning, the kernels are compiled, and the file is replaced.

    Raises:
        InvalidInputError: The path is not that of a file in a folder that exists.
        ArtifactError: The file cannot be read.
    """

    def __init__(self, create: Callable[[], Any], path: str | os.PathLike[str] | None) -> None:
        self.handle: Any = create()
        self._path = None if path is None else as_path("runtime_cache", path)
        self._found = b""
        if self._path is None:
            return
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise InvalidInputError(f"runtime_cache must be a file in a folder that exists, got {str(self._path)!r}.")
        try:
            self._found = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise unreadable(self._path, error) from error
        if not self.handle.deserialize(self._found):
            warnings.warn(
                f"the runtime cache {self._path} is damaged, or of another GPU, driver or version of TensorRT for RTX: "
                "the kernels are compiled anew, and it is replaced when the session is closed.",
                stacklevel=2,
            )

    def save(self) -> None:
        """Write what was compiled since; a file that cannot be written is a warning, for all else is done."""
        if self._path is None:
            return
        content = bytes(self.handle.serialize())
        if content == self._found:
            return
        try:
            with replacing(self._path) as file:
                file.write(content)
        except OSError as error:
            warnings.warn(f"the runtime cache {self._path} was not written: {error.strerror}.", stacklevel=2)
