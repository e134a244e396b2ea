"""Checks of option values, which raise :class:`InvalidInputError`."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, get_args

from erniem_rt.errors import InvalidInputError


def is_count(value: Any, least: int = 1) -> bool:
    """Return whether ``value`` is a Python or numpy integer of at least ``least``."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def require_count(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """Return ``value`` as an int; :class:`InvalidInputError` unless it is an integer from ``least`` to ``most``."""
    if not is_count(value, least) or (most is not None and value > most):
        expected = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidInputError(f"{name} must be an integer {expected}, got {value!r}.")
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
