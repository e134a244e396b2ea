"""Optimization profiles: the ranges of shapes that a plan supports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erniem_export.errors import EngineBuildError, OptionError
from erniem_rt.manifest import HEADS, Profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erniem_rt.manifest import TensorSpec

__all__ = ["input_shapes", "parse_profile", "resolve_profiles"]

_SYNTAX = "MIN,OPT,MAX such as 1x1,8x128,32x512 (batch x sequence; for mc batch x choices x sequence)"
# Typical and largest batch, for latency and for throughput.
_LATENCY, _THROUGHPUT = (1, 4), (32, 32)
_TYPICAL = 128
# Choices: typical and largest number.
_CHOICES = (4, 8)


def parse_profile(text: str) -> Profile:
    """Parse ``MIN,OPT,MAX``; :class:`OptionError` gives the reason if it is malformed."""
    shapes = text.split(",")
    try:
        parsed = [tuple(int(size) for size in shape.strip().lower().split("x")) for shape in shapes]
    except ValueError:
        parsed = []
    if len(parsed) != 3 or any(size < 1 for shape in parsed for size in shape):
        raise OptionError(f"expected {_SYNTAX}, got {text!r}")
    low, opt, high = parsed
    if len({len(shape) for shape in parsed}) > 1 or not all(
        a <= b <= c for a, b, c in zip(low, opt, high, strict=True)
    ):
        raise OptionError(f"expected MIN <= OPT <= MAX along every axis, got {text!r}")
    return Profile(low, opt, high)


def resolve_profiles(profiles: Sequence[Profile], head: str, max_length: int) -> tuple[Profile, ...]:
    """Check the profiles against the model; by default return one for latency and one for throughput.

    Raises:
        EngineBuildError: The number of axes is not the head's, or a row is longer than the model's maximum.
    """
    axes = HEADS[head].axes
    if not profiles:
        return tuple(_default(best, most, len(axes), max_length) for best, most in (_LATENCY, _THROUGHPUT))
    for profile in profiles:
        written = ",".join("x".join(map(str, shape)) for shape in (profile.min, profile.opt, profile.max))
        if len(profile.max) != len(axes):
            raise EngineBuildError(
                f"--profile {written} has {len(profile.max)} axes, and head {head} has {len(axes)}: {' x '.join(axes)}"
            )
        if profile.max[-1] > max_length:
            raise EngineBuildError(
                f"--profile {written} goes up to {profile.max[-1]} positions, and the model takes at most "
                f"{max_length}: give a MAX of at most {'x'.join(map(str, (*profile.max[:-1], max_length)))}"
            )
    return tuple(profiles)


def _default(best: int, most: int, axes: int, max_length: int) -> Profile:
    choices = [(1, *_CHOICES)] * (axes - 2)
    length = (1, min(_TYPICAL, max_length), max_length)
    low, opt, high = zip((1, best, most), *choices, length, strict=True)
    return Profile(low, opt, high)


def input_shapes(profile: Profile, axes: Sequence[str], spec: TensorSpec) -> list[tuple[int, ...]]:
    """Return the min, opt and max shape of a graph's input, from the sizes of the ids along ``axes``."""
    return [
        tuple(axis if isinstance(axis, int) else shape[list(axes).index(axis)] for axis in spec.shape)
        for shape in (profile.min, profile.opt, profile.max)
    ]
