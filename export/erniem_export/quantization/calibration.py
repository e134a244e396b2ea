"""Prepares the calibration inputs of int8: built-in or user text as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from erniem_export.errors import ExportError
from erniem_export.sources import tokenizer_files
from erniem_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from erniem_rt.manifest import Limits

__all__ = ["DRAWN", "Calibration", "calibration_for", "read_texts"]

_BUILT_IN = "calibration.txt"
# The name of the source that is not text.
DRAWN = "random ids"
# More texts would hardly change the scales; one layer's activations of all texts are in memory at a time.
_MOST_TEXTS = 400
_LONGEST = 128
_BATCH_SIZE = 16
# Checkpoints of other encoders may have a fast tokenizer's file only.
_FAST_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Calibration:
    """``source`` in words, for the report; ``batches`` of ``(input_ids, attend)``, each ``(batch, sequence)``.

    ``drawn``: the inputs are random ids, not text.
    """

    source: str
    batches: tuple[tuple[Tensor, Tensor], ...]
    drawn: bool = False


class _Encode(Protocol):
    def __call__(self, text: str, pair: str | None = None) -> Sequence[int]: ...


def calibration_for(
    text: Path | None, folder: Path | None, limits: Limits, special: tuple[int, int] = (0, 2), own: Path | None = None
) -> Calibration:
    """Return the calibration inputs.

    Args:
        text: A file of texts, one on each line; None for ``own``.
        folder: Folder of the tokenizer's files. Without a tokenizer, ids are random, from a fixed seed.
        limits: The model's limits.
        special: First and last id of random rows.
        own: The checkpoint's own file of texts; None for the built-in ones, 200 lines in 60 languages.

    Raises:
        ExportError: The file cannot be read or holds no text, or there is no tokenizer for it.
    """
    encode = _tokenizer(folder, min(_LONGEST, limits.max_length))
    if text is None and encode is not None:
        text = own
    texts = read_texts(text)
    if encode is None:
        if text is not None:
            raise ExportError(f"the calibration text {text} cannot be read: the checkpoint has no tokenizer")
        drawn = _batches(_random_rows(limits, special), limits)
        return Calibration(f"{DRAWN}, for want of a tokenizer", drawn, drawn=True)
    rows = [list(encode(first, second)) for first, second in _arranged(texts)]
    source = "built-in text" if text is None else text.name
    return Calibration(f"{source}, {len(texts)} lines", _batches(rows, limits))


def read_texts(path: Path | None) -> list[str]:
    """Return at most 400 lines of a file that are not blank, evenly spread; None for the built-in text.

    Raises:
        ExportError: The file does not exist, is not UTF-8, or is blank.
    """
    try:
        source = files(__package__).joinpath(_BUILT_IN) if path is None else path
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ExportError(f"the calibration text {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"the calibration text {path} is not UTF-8: {error.reason} at byte {error.start}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ExportError(f"the calibration text {path} is empty: give sentences like those to be served, one a line")
    if len(texts) > _MOST_TEXTS:
        texts = [texts[i * len(texts) // _MOST_TEXTS] for i in range(_MOST_TEXTS)]
    return texts


def _arranged(texts: list[str]) -> list[tuple[str, str | None]]:
    """Return every text alone, some in pairs, and some joined into longer ones."""
    alone: list[tuple[str, str | None]] = [(text, None) for text in texts]
    pairs: list[tuple[str, str | None]] = list(zip(texts[::7], texts[1::7], strict=False))
    joined: list[tuple[str, str | None]] = [(" ".join(texts[i : i + 8]), None) for i in range(0, len(texts), 48)]
    return [*alone, *pairs, *joined]


def _tokenizer(folder: Path | None, longest: int) -> _Encode | None:
    if folder is None:
        return None
    if tokenizer_files(folder):
        ours = Tokenizer.from_dir(folder, verify=False)
        return lambda text, pair=None: ours(text, pair, truncation="longest_first", max_length=longest).input_ids
    if not (folder / _FAST_TOKENIZER).is_file():
        return None
    fast: Any = import_module("tokenizers").Tokenizer.from_file(str(folder / _FAST_TOKENIZER))
    fast.no_padding()
    fast.enable_truncation(longest)
    return lambda text, pair=None: fast.encode(text, pair).ids


def _random_rows(limits: Limits, special: tuple[int, int]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    first, last = special
    longest = min(_LONGEST, limits.max_length)
    lengths = np.clip(rng.lognormal(3.0, 0.7, 120), 3, longest).astype(int)
    return [[first, *rng.integers(0, limits.vocab_size, max(length - 2, 0)).tolist(), last] for length in lengths]


def _batches(rows: list[list[int]], limits: Limits) -> tuple[tuple[Tensor, Tensor], ...]:
    """Batch rows of similar length."""
    rows = sorted((row[: limits.max_length] for row in rows), key=len)
    batches = []
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = rows[start : start + _BATCH_SIZE]
        ids = torch.full((len(batch), max(map(len, batch))), limits.pad_token_id)
        attend = torch.zeros(ids.shape, dtype=torch.bool)
        for i, row in enumerate(batch):
            ids[i, : len(row)], attend[i, : len(row)] = torch.tensor(row), True
        batches.append((ids, attend))
    return tuple(batches)
