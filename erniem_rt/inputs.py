"""Checks, completes and converts a caller's arrays to the inputs of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.errors import InvalidInputError
from erniem_rt.manifest import HEADS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from erniem_rt.manifest import Limits, Manifest, TensorSpec

_USE_TOKENIZER = "Use the tokenizer that was exported with this artifact."


def prepare(manifest: Manifest, given: Mapping[str, object], *, longest: int | None = None) -> dict[str, NDArray[Any]]:
    """Return C-contiguous arrays for every input of the graph, in its dtypes; never changes the given arrays.

    A value of None counts as missing. ``longest`` is the longest row of a plan, which may be shorter than the model's.
    Raises :class:`InvalidInputError`.
    """
    given = {name: value for name, value in given.items() if value is not None}
    specs = {spec.name: spec for spec in manifest.inputs}
    main = specs["input_ids"] if "input_ids" in specs else specs["inputs_embeds"]
    _check_names(given, specs, main.name)

    array = _as_array(main.name, given[main.name])
    if array.size == 0:
        raise InvalidInputError(
            f"{main.name} is empty (shape {array.shape}): at least one row of at least one token is needed."
        )
    _check_shape(main, array, main.shape)
    _check_length(manifest, main.name, array, longest)
    feeds = {main.name: _convert(main, array, manifest.limits)}

    sizes = dict(zip(main.shape, array.shape, strict=True))
    for name, spec in specs.items():
        if name == main.name:
            continue
        shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape)
        if name in given:
            array = _as_array(name, given[name])
            _check_shape(spec, array, shape)
            feeds[name] = _convert(spec, array, manifest.limits)
        else:
            feeds[name] = _default(spec, shape, feeds, manifest.limits)
    return feeds


def _check_names(given: Mapping[str, object], specs: Mapping[str, TensorSpec], main: str) -> None:
    for name in given:
        if name not in specs:
            hint = " ErnieM has no token types: leave them out." if name == "token_type_ids" else ""
            raise InvalidInputError(f"unknown input {name!r}; this artifact takes {', '.join(specs)}.{hint}")
    if main not in given:
        raise InvalidInputError(f"input {main!r} is missing; this artifact takes {', '.join(specs)}.")


def _as_array(name: str, value: object) -> NDArray[Any]:
    try:
        array = np.asarray(value)
        if array.dtype == object and array.size:  # nested rows, or Python numbers
            array = np.array(array.tolist())
        return array
    # RuntimeError: a torch tensor that is not on the CPU or requires gradients.
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(
            f"{name} cannot be read as one array: {reason}. Give a numpy array or nested lists whose rows are "
            "padded to the same length."
        ) from error


def _check_shape(spec: TensorSpec, array: NDArray[Any], shape: tuple[int | str, ...]) -> None:
    """Compare the array's shape with ``shape``, where a name matches any size."""
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(map(str, shape))
        raise InvalidInputError(
            f"{spec.name} must have shape ({expected}), got {array.shape}. The graph declares "
            f"({', '.join(map(str, spec.shape))}); a single row needs all these axes too."
        )


def _check_length(manifest: Manifest, name: str, array: NDArray[Any], longest: int | None) -> None:
    length = array.shape[len(HEADS[manifest.head].axes) - 1]
    limit = manifest.limits.max_length
    who, remedy = "model", ""
    if longest is not None and longest < limit:
        who, limit, remedy = "plan", longest, ", or build it with longer profiles (--profile)"
    if length > limit:
        raise InvalidInputError(
            f"{name} has rows of {length} positions, and this {who} takes at most {limit}: truncate or split the "
            f"text{remedy}."
        )


def _convert(spec: TensorSpec, array: NDArray[Any], limits: Limits) -> NDArray[Any]:
    """Check the values of the input, then convert to the graph's dtype."""
    if spec.name == "input_ids":
        _check_range(spec.name, array, limits.vocab_size, _USE_TOKENIZER)
    elif spec.name == "position_ids":
        _check_range(spec.name, array, limits.max_length, "Positions count from 0 in every row.")
    elif spec.name == "attention_mask":
        _check_mask(spec.name, array)
    else:
        return _to_floats(spec, array)
    return np.ascontiguousarray(array, dtype=spec.dtype)


def _check_range(name: str, array: NDArray[Any], stop: int, hint: str) -> None:
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{name} must be integers, got dtype {array.dtype}. {hint}")
    # Before conversion, in which a uint64 beyond int64 would become negative or even valid.
    if array.min() < 0 or array.max() >= stop:
        where, value = _first(array, (array < 0) | (array >= stop))
        raise InvalidInputError(f"{name}[{where}] is {value}; it must be from 0 to {stop - 1}. {hint}")


def _check_mask(name: str, array: NDArray[Any]) -> None:
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(f"{name} must be 0 and 1 as integers, floats or booleans, got dtype {array.dtype}.")
    bad = (array != 0) & (array != 1)
    if bad.any():
        where, value = _first(array, bad)
        raise InvalidInputError(f"{name}[{where}] is {value}; it must be 1 to attend and 0 to ignore.")


def _to_floats(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(f"{spec.name} must be real numbers, got dtype {array.dtype}.")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype=spec.dtype)
    bad = ~np.isfinite(converted)
    if bad.any():
        where, value = _first(array, bad)
        raise InvalidInputError(f"{spec.name}[{where}] is {value}, which is not finite in {spec.dtype}.")
    return converted


def _first(array: NDArray[Any], bad: NDArray[np.bool_]) -> tuple[str, object]:
    """Return the index, as text, and the value of the first bad element."""
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    return ", ".join(map(str, index)), array[index]


def _default(
    spec: TensorSpec, shape: tuple[int, ...], feeds: Mapping[str, NDArray[Any]], limits: Limits
) -> NDArray[Any]:
    """Return the reference model's default of an optional input."""
    if spec.name == "attention_mask" and "input_ids" in feeds:
        attended: NDArray[Any] = feeds["input_ids"] != limits.pad_token_id
        return attended.astype(spec.dtype)
    if spec.name == "position_ids":
        return np.ascontiguousarray(np.broadcast_to(np.arange(shape[-1], dtype=spec.dtype), shape))
    return np.ones(shape, dtype=spec.dtype)
