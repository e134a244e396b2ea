"""Attributes that are worked out when they are first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["lazy"]

_Value = TypeVar("_Value")


class lazy(Generic[_Value]):  # noqa: N801  # a decorator
    """As ``functools.cached_property``, without the lock that all objects of a class share before Python 3.12.

    A child forked while a thread holds that lock never gets it. Two threads may both work the value out here.
    """

    def __init__(self, compute: Callable[[Any], _Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, thing: None, owner: type) -> lazy[_Value]: ...

    @overload
    def __get__(self, thing: object, owner: type) -> _Value: ...

    def __get__(self, thing: object | None, owner: type) -> lazy[_Value] | _Value:
        if thing is None:
            return self
        value: _Value = vars(thing).setdefault(self._name, self._compute(thing))
        return value
