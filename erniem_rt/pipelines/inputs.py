"""Reads and checks callers' inputs, texts in containers of any kind, and encodes them as rows of ids or windows.

Containers (arrays, Series, frames, tables, datasets) are recognized by their methods, without importing their packages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from erniem_rt.tokenizer import Tokenizer

_MISSING = float("nan")
_NEVER_LISTS = (str, bytes, bytearray, memoryview, Mapping)
_SHOWN = 60
# The overlap of windows, in tokens.
_SHARED = 128
# Commas of Latin, Chinese, Arabic, Ethiopic, Mongolian and N'Ko script, and the Chinese enumeration comma.
_COMMA = re.compile("[,，﹐︐،፣᠂᠈߸]")
_ENUMERATION_COMMA = re.compile("[、､﹑︑]")


def items_of(
    task: str, inputs: Any, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[Iterable[Any], int | None] | None:
    """Split a call's inputs into items; ``required`` and ``optional`` are the keys of one input.

    Returns:
        The items and their number, None for a stream; or None if ``inputs`` is one input. Columns (of a frame, a
        table, a dataset, a structured array, or a mapping whose first required key has a list) give an item per row:
        a mapping, or the value alone where there is one column.

    Raises:
        InvalidInputError: Columns are missing, unknown or of different lengths; an array has several axes.
    """
    names = _column_names(inputs, required[0])
    if names is not None:
        return _rows(_checked_columns(task, inputs, names, required, optional))
    if is_list(inputs):
        if getattr(inputs, "ndim", 1) > 1:
            raise InvalidInputError(
                f"{task} takes a list of inputs; this {type(inputs).__name__} has {inputs.ndim} axes, shape "
                f"{tuple(inputs.shape)}. Pass one column: array[:, 0]."
            )
        return map(plain, _iterator(inputs)), len(inputs)
    if isinstance(inputs, _NEVER_LISTS) or not isinstance(inputs, Iterable) or getattr(inputs, "ndim", None) == 0:
        return None
    return map(plain, inputs), None


def is_list(value: Any) -> bool:
    """Return whether ``value`` is list-like: it has a length and an index, and is neither text nor a mapping."""
    if isinstance(value, (*_NEVER_LISTS, type)) or getattr(value, "ndim", None) == 0:
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def plain(value: Any) -> Any:
    """Return ``value``, as a Python object if it is a scalar of numpy or pyarrow."""
    if isinstance(value, np.generic):
        return value.item()
    return value.as_py() if hasattr(value, "as_py") else value


def strings(name: str, value: Any, expected: str = "a list of str") -> list[Any]:
    """Return the items of a list, array or column; :class:`InvalidInputError` for anything else."""
    if not is_list(value):
        raise InvalidInputError(f"{name} must be {expected}, got {type(value).__name__}.")
    return [plain(item) for item in _iterator(value)]


def _iterator(values: Any) -> Iterator[Any]:
    if hasattr(values, "__iter__"):
        return iter(values)
    return (values[i] for i in range(len(values)))  # a dataset need not raise IndexError at its end


def _column_names(inputs: Any, first: str) -> list[Any] | None:
    """Return the names of the columns, or None if ``inputs`` has no columns."""
    if isinstance(inputs, Mapping):
        return list(inputs) if is_list(inputs.get(first)) else None
    names = getattr(getattr(inputs, "dtype", None), "names", None)  # a structured array
    if names is None and len(_shape(inputs)) == 2:
        # pyarrow and datasets; then pandas and polars (a table of pyarrow has both).
        names = getattr(inputs, "column_names", None)
        names = getattr(inputs, "columns", None) if names is None else names
    return None if names is None else list(names)


def _shape(inputs: Any) -> Sequence[Any]:
    shape = getattr(inputs, "shape", None)
    return shape if isinstance(shape, tuple) else ()


def _checked_columns(
    task: str, inputs: Any, names: list[Any], required: Sequence[str], optional: Sequence[str]
) -> dict[str, Any]:
    known = (*required, *optional)
    kind = type(inputs).__name__
    if set(required) <= set(names) <= set(known) and len(set(names)) == len(names):
        columns = {name: inputs[name] for name in known if name in names}
    elif len(required) > 1 or not set(optional).isdisjoint(names):
        raise InvalidInputError(
            f"{task} reads the columns {', '.join(map(repr, known))}; this {kind} has {_listed(names)}. "
            "Pass those columns alone, under these names."
        )
    else:
        raise InvalidInputError(
            f"{task} takes one column of texts; this {kind} has {_listed(names)}. "
            f"Pass the column: inputs[{_column_of_text(inputs, names, required[0])!r}]."
        )
    lengths = {name: len(column) if is_list(column) else None for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        rows = ", ".join(
            f"{name!r} a single {type(columns[name]).__name__}" if n is None else f"{name!r} {n}"
            for name, n in lengths.items()
        )
        raise InvalidInputError(f"{task} needs columns of the same length, a row per input; their lengths: {rows}.")
    return columns


def _column_of_text(inputs: Any, names: list[Any], wanted: str) -> Any:
    """Return the column to recommend: the one with the right name, else the first that begins with a text."""
    if wanted in names:
        return wanted
    return next((name for name in names if _begins_with_text(inputs[name])), names[0] if names else wanted)


def _begins_with_text(column: Any) -> bool:
    return is_list(column) and len(column) > 0 and isinstance(plain(next(_iterator(column))), str)


def _listed(names: list[Any]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _rows(columns: dict[str, Any]) -> tuple[Iterable[Any], int]:
    count = len(next(iter(columns.values())))
    values = [map(plain, _iterator(column)) for column in columns.values()]
    if len(values) == 1:
        return values[0], count
    return (dict(zip(columns, map(_not_none, row), strict=True)) for row in zip(*values, strict=True)), count


def _not_none(value: Any) -> Any:
    """Replace None by a missing value, since None in a mapping means that the key is absent."""
    return _MISSING if value is None else value


def require_text(name: str, value: object) -> str:
    """Return ``value`` if it is a text that is not blank; :class:`InvalidInputError` otherwise."""
    if not isinstance(value, str):
        remedy = ", a missing value: leave it out, or put a text in its place" if _is_missing(value) else ""
        raise InvalidInputError(f"{name} must be str, got {type(value).__name__}{remedy}.")
    if not value.strip():
        raise InvalidInputError(f"{name} is empty: expected text.")
    return str.__str__(value)  # convert numpy's str


def text_of(task: str, item: object) -> str:
    """Return the text of an input that is a text or ``{"text": ...}``; :class:`InvalidInputError` otherwise."""
    return require_text("text", require_mapping(task, item, ["text"])["text"] if isinstance(item, Mapping) else item)


def require_mapping(task: str, value: object, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Return ``value`` if it is a mapping with these keys and no others; :class:`InvalidInputError` otherwise."""
    keys = ", ".join([*map(repr, required), *(f"{key!r} (optional)" for key in optional)])
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{task} takes a mapping with {keys}, got {type(value).__name__}.")
    missing = [key for key in required if key not in value]
    if missing:
        raise InvalidInputError(f"{missing[0]!r} is missing; {task} takes a mapping with {keys}.")
    unknown = [key for key in value if key not in (*required, *optional)]
    if unknown:
        raise InvalidInputError(f"key {unknown[0]!r} is not known; {task} takes a mapping with {keys}.")
    return dict(value)


def require_size(item: object, limit: int | None) -> None:
    """Raise :class:`InvalidInputError` if the texts of an input have more than ``limit`` characters together."""
    if limit is None:
        return
    size = _characters(item)
    if size > limit:
        raise InvalidInputError(
            f"the input has {size} characters, more than max_characters={limit}: shorten it, or split it into several."
        )


def _characters(item: object) -> int:
    """Return the total number of characters in the texts of an input."""
    values = list(item.values()) if isinstance(item, Mapping) else [item]
    lists = [strings("item", value) for value in values if is_list(value)]
    return sum(len(text) for text in chain(values, *lists) if isinstance(text, str))


def _is_missing(value: object) -> bool:
    """Return whether this is a missing value: None, NaN, or NA of pandas."""
    is_nan = isinstance(value, (float, np.floating)) and bool(np.isnan(value))
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def quoted(text: str) -> str:
    """Return ``text`` in quotes for a message, shortened if it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def visible(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the range without whitespace at its ends; ``start`` is not before ``end`` if nothing is left."""
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def parts(text: str, divider: re.Pattern[str]) -> list[range]:
    """Return the ranges between single-character dividers, without the spaces around them; some may be empty."""
    found = []
    start = 0
    for part in divider.split(text):
        found.append(range(*visible(text, start, start + len(part))))
        start += len(part) + 1
    return found


def comma_parts(text: str) -> list[range]:
    """Return the ranges between commas of any script, as :func:`parts` does.

    The enumeration comma (、) divides only a text without other commas: ``金融、保险,科技`` has two parts.
    """
    return parts(text, _COMMA if _COMMA.search(text) else _ENUMERATION_COMMA)


def split_at_commas(text: str) -> list[str]:
    """Return the parts of :func:`comma_parts`, without empty ones."""
    return [text[part.start : part.stop] for part in comma_parts(text) if part]


def encode_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int,
    threads: int,
    add_special_tokens: bool = True,
) -> list[list[int]]:
    """Encode texts, or pairs, as rows without padding, cut to ``max_length`` tokens.

    Raises:
        InvalidInputError: A text has no tokens.
    """
    encoded = tokenizer.batch(
        texts,
        pairs,
        padding_side="right",
        truncation="longest_first",
        max_length=max_length,
        add_special_tokens=add_special_tokens,
        threads=threads,
    )
    for i, size in enumerate(encoded.text_sizes.tolist()):
        require_tokens("text" if i < len(texts) else "text_pair", size)
    lengths = encoded.attention_mask.sum(axis=1).tolist()
    return [row[:length] for row, length in zip(encoded.input_ids.tolist(), lengths, strict=True)]


def require_tokens(name: str, count: int) -> None:
    """Raise :class:`InvalidInputError` for a text without tokens: the model would only see special tokens."""
    if not count:
        raise InvalidInputError(f"{name} has no tokens left after normalization: expected text.")


@dataclass(frozen=True)
class SecondText:
    """The ids of a text that is never cut, without special tokens, and the room for a first text, in tokens."""

    ids: list[int]
    room: int


def encode_seconds(
    tokenizer: Tokenizer, texts: Sequence[str], *, names: Sequence[str], max_length: int
) -> list[SecondText]:
    """Encode the second texts of rows of at most ``max_length`` tokens.

    Raises:
        InvalidInputError: One has no tokens, or leaves no room for a first text; the message has its name from
            ``names``.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    seconds = []
    for text, name in zip(texts, names, strict=True):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        require_tokens(name, len(ids))
        room = max_length - special - len(ids)
        if room < 1:
            raise InvalidInputError(
                f"{name} alone takes {len(ids)} tokens; the limit is {max_length}, of which {special} are special "
                "tokens and at least one is the other text's. Shorten it."
            )
        seconds.append(SecondText(ids, room))
    return seconds


def pair_rows(tokenizer: Tokenizer, first: list[int], seconds: Sequence[SecondText]) -> list[list[int]]:
    """Build rows ``[CLS] first [SEP] [SEP] second [SEP]``.

    ``first``, ids without special tokens, is cut on the tokenizer's truncation side, by default the end.
    """
    from_left = tokenizer.settings.truncation_side == "left"
    return [
        tokenizer.build_inputs_with_special_tokens(
            first[-second.room :] if from_left else first[: second.room], second.ids
        )
        for second in seconds
    ]


def shared_tokens(size: int) -> int:
    """Return the overlap of neighbouring windows of ``size`` tokens: 128, or half a window if that is less."""
    return min(_SHARED, size // 2)


def windows(length: int, size: int, step: int) -> list[range]:
    """Return windows over ``length`` tokens: one of ``size`` every ``step`` tokens, until one reaches the end.

    The last may be shorter. ``step`` is between 1 and ``size``, so that every token is covered; zero tokens give one
    empty window.
    """
    return [range(start, min(start + size, length)) for start in range(0, max(length - size, 0) + step, step)]


def best_parts(spans: Sequence[range]) -> list[range]:
    """Return the part of each window with more context there than in any other window.

    Overlaps are cut in the middle. The parts are disjoint and cover all tokens, in order.
    """
    cuts = [spans[0].start, *((right.start + left.stop) // 2 for left, right in pairwise(spans)), spans[-1].stop]
    return [range(start, stop) for start, stop in pairwise(cuts)]
