"""Checks of what a caller chose, with messages that say what was expected."""

from __future__ import annotations

from typing import Any, get_args

from erniem_rt.errors import InvalidInputError

__all__ = ["quoted", "require_choice", "require_count", "require_flag"]

_SHOWN = 60


def require_count(name: str, value: object, *, least: int = 1) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInputError(f"{name} must be an integer of at least {least}, got {value!r}.")


def require_flag(name: str, value: object) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} must be True or False, got {value!r}.")


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is one of the Literal's values."""
    if value not in get_args(choices):
        raise InvalidInputError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}.")


def quoted(text: str) -> str:
    """``text`` in quotes for a message, cut short if it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
