"""Checks of what a caller passed, with messages that say what was expected."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np

from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_Value = TypeVar("_Value")


def check_text(name: str, value: object) -> None:
    """Raise unless ``value`` is a str."""
    if not isinstance(value, str):
        hint = "; batch() takes several texts" if isinstance(value, (list, tuple)) else ""
        raise InvalidInputError(f"{name} must be str, not {type(value).__name__}{hint}.")


def check_choice(name: str, value: str | None, choices: Any) -> None:
    """Raise unless ``value`` is None or one of the Literal's values."""
    allowed = get_args(choices)
    if value is not None and not (isinstance(value, str) and value in allowed):
        raise InvalidInputError(f"{name} must be one of {', '.join(map(repr, allowed))} or None, not {value!r}.")


def check_count(name: str, value: int) -> None:
    """Raise unless ``value`` is a positive integer."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name} must be a whole number above 0, not {value!r}.")


def check_batch(texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    """Raise unless both are lists of str and of one length, not empty."""
    for name, values in (("texts", texts), ("pairs", pairs)):
        if values is not None and not isinstance(values, (list, tuple)):
            raise InvalidInputError(f"{name} must be a list of str, not {type(values).__name__}.")
    if not texts:
        raise InvalidInputError("A batch needs at least one text.")
    if pairs is not None and len(pairs) != len(texts):
        raise InvalidInputError(f"There must be as many pairs as texts, not {len(pairs)} pairs for {len(texts)} texts.")
    for name, values in (("text", texts), ("pair", pairs or ())):
        _check_texts(name, values)


def checked_ids(ids: Iterable[int]) -> list[int]:
    """The ids as plain integers; raise unless they are integers."""
    return [_checked_id(i) for i in _iterator("ids", "integers", ids)]


def checked_tokens(tokens: Iterable[str]) -> list[str]:
    """The tokens in a list; raise unless they are str."""
    found = list(_iterator("tokens", "str", tokens))
    _check_texts("token", found)
    return found


def check_multiple(multiple_of: int | None, limit: int | None) -> None:
    """Raise unless rows cut to ``limit`` tokens stay within it when padded to a multiple."""
    if multiple_of is None:
        return
    check_count("pad_to_multiple_of", multiple_of)
    if limit is not None and limit % multiple_of:
        raise InvalidInputError(
            f"max_length={limit} is not a multiple of pad_to_multiple_of={multiple_of}, so rows that were cut would "
            "grow beyond it again."
        )


def _checked_id(value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise InvalidInputError(f"ids must be a list of integers; one is {type(value).__name__}.") from error


def _check_texts(name: str, values: Sequence[str]) -> None:
    if set(map(type, values)) - {str}:
        for value in values:
            check_text(name, value)


def _iterator(name: str, of: str, values: Iterable[_Value]) -> Iterator[_Value]:
    try:
        return iter(values)
    except TypeError as error:  # an array without axes among them, which says that it is iterable
        raise InvalidInputError(f"{name} must be a list of {of}, not {type(values).__name__}.") from error
