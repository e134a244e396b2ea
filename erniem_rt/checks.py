"""Checks of option values (:class:`InvalidInputError`) and of the values in a JSON file (:class:`ArtifactError`)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, get_args

from erniem_rt import __version__
from erniem_rt.errors import ArtifactError, InvalidInputError
from erniem_rt.files import refuse_pointer, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_count(value: Any, least: int = 1) -> bool:
    """Return whether ``value`` is a Python or numpy integer of at least ``least``."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def require_count(name: str, value: Any, *, least: int = 1) -> int:
    """Return ``value`` as an int; :class:`InvalidInputError` unless it is an integer of at least ``least``."""
    if not is_count(value, least):
        raise InvalidInputError(f"{name} must be an integer of at least {least}, got {value!r}.")
    return int(value)


def require_flag(name: str, value: object, *, optional: bool = False) -> bool | None:
    """Return ``value`` as a bool; :class:`InvalidInputError` unless it is a bool of Python or numpy (or None)."""
    if value is None and optional:
        return None
    if type(value).__name__ not in ("bool", "bool_"):  # bool_ in numpy 1
        raise InvalidInputError(
            f"{name} must be {'True, False or None' if optional else 'True or False'}, got {value!r}."
        )
    return bool(value)


def require_fraction(name: str, value: Any) -> float:
    """Return ``value`` as a float; :class:`InvalidInputError` unless it is a number from 0 to below 1."""
    is_number = not isinstance(value, bool) and isinstance(value, Real)
    if not (is_number and 0 <= value < 1):
        raise InvalidInputError(f"{name} must be a number from 0 to below 1, got {value!r}.")
    return float(value)


def require_choice(name: str, value: object, choices: Any, *, optional: bool = False) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is one of the Literal's values, or None if ``optional``."""
    if value is None and optional:
        return
    if not isinstance(value, str) or value not in get_args(choices):
        choices = get_args(choices)
        expected = ", ".join(choices) + (" or None" if optional and "none" not in choices else "")
        raise InvalidInputError(f"{name} must be one of {expected}, got {value!r}.")


_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"\d+\.\d+")
_ABSENT = object()


def artifact_error(path: Path, problem: str) -> ArtifactError:
    """Return the error for an invalid manifest, always with the same advice."""
    return ArtifactError(f"{path}: {problem}; re-export with this version ({__version__}).")


@dataclass(frozen=True)
class Fields:
    """A JSON object with its file's ``path`` and its key prefix there.

    ``ignored`` collects unknown keys; if it is None, unknown keys are errors.
    """

    path: Path
    data: dict[str, Any]
    prefix: str = ""
    ignored: list[str] | None = None

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Parse a file whose top level is a JSON object."""
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise artifact_error(path, "there is no such file, and an artifact needs its manifest") from error
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, RecursionError) as error:
            refuse_pointer(path)
            raise artifact_error(path, f"expected JSON, but {error}") from error
        if not isinstance(data, dict):
            raise artifact_error(path, f"expected a JSON object, got {_shown(data)}")
        return cls(path, data)

    def value(self, key: str) -> Any:
        """Return the value of a required key."""
        value = self.data.get(key, _ABSENT)
        if value is _ABSENT:
            raise artifact_error(self.path, f"key {self.prefix + key!r} is missing")
        return value

    def string(self, key: str) -> str:
        """Return a text that is not empty."""
        value = self.value(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "a non-empty string")
        return value

    def optional_string(self, key: str) -> str | None:
        """Return a text that is not empty; None if the key is missing or null."""
        return None if self.data.get(key) is None else self.string(key)

    def one_of(self, key: str, choices: tuple[str, ...]) -> str:
        """Return a text, which must be one of ``choices``."""
        value = self.value(key)
        if not isinstance(value, str) or value not in choices:
            raise self._wrong(key, " or ".join(repr(choice) for choice in choices))
        return value

    def integer(self, key: str, least: int) -> int:
        """Return an integer of at least ``least``; refuse true and false."""
        value = self.value(key)
        if not is_count(value, least):
            raise self._wrong(key, f"an integer of at least {least}")
        return int(value)

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of strings")
        return tuple(value)

    def boolean(self, key: str) -> bool:
        """Return true or false."""
        value = self.value(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def sizes(self, key: str, count: int) -> tuple[int, ...]:
        """Return ``count`` positive integers."""
        value = self.value(key)
        if not isinstance(value, list) or len(value) != count or not all(map(is_count, value)):
            raise self._wrong(key, f"a list of {count} positive integers")
        return tuple(value)

    def axes(self, key: str) -> tuple[int | str, ...]:
        """Return a shape of sizes and names."""
        value = self.value(key)
        if not isinstance(value, list) or not all(map(_is_axis, value)):
            raise self._wrong(key, "a list of positive integers and axis names")
        return tuple(value)

    def sha256(self, key: str) -> str:
        """Return a digest in lower-case hex."""
        value = self.value(key)
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise self._wrong(key, "64 lower-case hex digits")
        return value

    def version(self, key: str) -> str:
        """Return a version of the form MAJOR.MINOR."""
        value = self.value(key)
        if not isinstance(value, str) or not _VERSION.fullmatch(value):
            raise self._wrong(key, "a version such as '1.21'")
        return value

    def section(self, key: str) -> Fields:
        """Return a nested object."""
        value = self.value(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Fields(self.path, value, f"{self.prefix}{key}.", self.ignored)

    def sections(self, key: str) -> list[Fields]:
        """Return a non-empty list of nested objects."""
        value = self.value(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            raise self._wrong(key, "a non-empty list of objects")
        return [Fields(self.path, item, f"{self.prefix}{key}[{i}].", self.ignored) for i, item in enumerate(value)]

    def plain_name(self, name: str) -> str:
        """Return ``name`` if it names a file directly inside the folder, on any system."""
        if not _is_plain(name):
            raise artifact_error(
                self.path,
                f"key {self.prefix.rstrip('.')!r} must hold plain file names inside the folder, got {name!r}",
            )
        return name

    def inner_name(self, name: str) -> str:
        """``name`` if it is a file inside the folder or, after one ``/``, inside a folder of it."""
        return name if name.count("/") == 1 and all(map(_is_plain, name.split("/"))) else self.plain_name(name)

    def no_others(self, known: Iterable[str]) -> None:
        """Refuse unknown keys, or collect them if they may be ignored."""
        others = sorted(set(self.data) - set(known))
        if self.ignored is not None:
            self.ignored.extend(repr(self.prefix + other) for other in others)
        elif others:
            raise artifact_error(self.path, f"unknown key {self.prefix + others[0]!r}")

    def _wrong(self, key: str, expected: str) -> ArtifactError:
        got = _shown(self.data[key])
        return artifact_error(self.path, f"key {self.prefix + key!r} must be {expected}, got {got}")


def _is_plain(name: str) -> bool:
    # Windows' rules cover "/", "\" and drive letters.
    return name not in {"", ".", ".."} and "\0" not in name and PureWindowsPath(name).name == name


def _is_axis(value: object) -> bool:
    return bool(value) if isinstance(value, str) else is_count(value)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
