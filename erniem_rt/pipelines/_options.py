"""Checks of what a caller chose, with messages that say what was expected."""

from __future__ import annotations

import re
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np

from erniem_rt.errors import InvalidInputError

__all__ = [
    "comma_parts",
    "is_count",
    "parts",
    "quoted",
    "require_choice",
    "require_count",
    "require_flag",
    "require_fraction",
    "split_at_commas",
]

_SHOWN = 60
# Commas of Latin, Chinese, Arabic, Ethiopic, Mongolian and N'Ko script, and Chinese ones that divide smaller parts.
_COMMA = re.compile("[,，﹐︐،፣᠂᠈߸]")
_ENUMERATION_COMMA = re.compile("[、､﹑︑]")


def is_count(value: Any, least: int = 1) -> bool:
    """Whether ``value`` is an integer, Python's or numpy's, of at least ``least``."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def require_count(name: str, value: Any, *, least: int = 1) -> int:
    """``value`` as an int; :class:`InvalidInputError` unless it is an integer of at least ``least``."""
    if not is_count(value, least):
        raise InvalidInputError(f"{name} must be an integer of at least {least}, got {value!r}.")
    return int(value)


def require_flag(name: str, value: object) -> bool:
    """``value`` as a bool; :class:`InvalidInputError` unless it is True or False, Python's or numpy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidInputError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def require_fraction(name: str, value: Any) -> float:
    """``value`` as a float; :class:`InvalidInputError` unless it is a number from 0 to below 1."""
    is_number = not isinstance(value, bool) and isinstance(value, Real)
    if not (is_number and 0 <= value < 1):
        raise InvalidInputError(f"{name} must be a number from 0 to below 1, got {value!r}.")
    return float(value)


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is one of the Literal's values."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise InvalidInputError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}.")


def quoted(text: str) -> str:
    """``text`` in quotes for a message, cut short if it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def parts(text: str, divider: re.Pattern[str]) -> list[range]:
    """Where the parts between dividers of one character stand, without the spaces around them; some may be empty."""
    found = []
    start = 0
    for part in divider.split(text):
        found.append(range(start + len(part) - len(part.lstrip()), start + len(part.rstrip())))
        start += len(part) + 1
    return found


def comma_parts(text: str) -> list[range]:
    """Where the parts stand that commas of any script divide ``text`` into, as :func:`parts` does.

    The enumeration comma (、) divides only a text without other commas: in ``金融、保险,科技`` there are two parts.
    """
    return parts(text, _COMMA if _COMMA.search(text) else _ENUMERATION_COMMA)


def split_at_commas(text: str) -> list[str]:
    """The parts of :func:`comma_parts`, without empty ones."""
    return [text[part.start : part.stop] for part in comma_parts(text) if part]
