"""The work that every engine does: seeded rows of ids, and how many of them go in one batch."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

CLS, SEP, FIRST_TOKEN = 0, 2, 4
# Lengths of real texts are roughly log-normal; this spread leaves about two thirds of a padded batch of 32 to padding.
MIXED_MEAN, MIXED_SIGMA, MIXED_TEXTS = 32, 0.6, 64
SHORTEST, LONGEST = 4, 512
CHECKED_ROWS = 8

Row = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Rows in order of arrival, without padding.

    ``checked`` are the rows whose outputs are compared with PyTorch: the timed ones, and more where there are few.
    """

    name: str
    label: str
    rows: tuple[Row, ...]
    checked: tuple[Row, ...]
    batch_size: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))

    @property
    def padded_tokens(self) -> int:
        """Positions that an engine computes which pads each batch to its longest row."""
        batches = [self.rows[i : i + self.batch_size] for i in range(0, len(self.rows), self.batch_size)]
        return sum(len(batch) * max(map(len, batch)) for batch in batches)

    def description(self) -> dict[str, Any]:
        """Return what the results say about this workload."""
        return {
            "label": self.label,
            "texts": len(self.rows),
            "batch_size": self.batch_size,
            "tokens": self.tokens,
            "padding_share": round(1 - self.tokens / self.padded_tokens, 4),
        }


FIXED = ("1x32", "1x128", "8x128", "1x512")
MIXED = ("mixed", "mixed-single", "mixed-sorted")
PADDED = ("padding-0", "padding-25", "padding-50", "padding-75")
ALL = FIXED + MIXED + PADDED


_MIXED_LABELS = ("64 texts of mixed length", "the same, one by one", "the same, sorted, batches of 16")


def workload_label(name: str) -> str:
    """Return what tables call a workload."""
    if name in MIXED:
        return _MIXED_LABELS[MIXED.index(name)]
    return f"8×128, {name.split('-')[1]} % padding" if name in PADDED else name.replace("x", "×")


def build_workloads(names: tuple[str, ...], vocab_size: int, seed: int = 0) -> list[Workload]:
    """Return the named workloads; the same for the same names, vocabulary and seed."""
    return [_build(name, vocab_size, seed) for name in names]


def _build(name: str, vocab_size: int, seed: int) -> Workload:
    # The three mixed workloads are the same texts; everything else has ids of its own.
    rng = random.Random(f"{seed}/{'mixed' if name in MIXED else name}")
    if name in FIXED:
        batch, length = map(int, name.split("x"))
        checked = random_rows(rng, [length] * max(batch, CHECKED_ROWS), vocab_size)
        return Workload(name, workload_label(name), checked[:batch], checked, batch)
    if name in PADDED:
        share = int(name.split("-")[1])
        rows = random_rows(rng, padded_lengths(8, 128, share / 100), vocab_size)
        return Workload(name, workload_label(name), rows, rows, 8)
    rows = random_rows(rng, mixed_lengths(rng, MIXED_TEXTS), vocab_size)
    if name == "mixed-sorted":
        rows = tuple(sorted(rows, key=len, reverse=True))
    batch_size = {"mixed": 32, "mixed-single": 1, "mixed-sorted": 16}[name]
    return Workload(name, workload_label(name), rows, rows, batch_size)


def mixed_lengths(rng: random.Random, count: int) -> list[int]:
    """Draw log-normal lengths with the stated mean, within the limits of the model."""
    mu = math.log(MIXED_MEAN) - MIXED_SIGMA**2 / 2
    return [min(LONGEST, max(SHORTEST, round(rng.lognormvariate(mu, MIXED_SIGMA)))) for _ in range(count)]


def padded_lengths(rows: int, longest: int, share: float) -> list[int]:
    """Lengths of a batch of ``rows`` × ``longest`` that is padding to the given share: one long row, the rest equal."""
    if not share:
        return [longest] * rows
    left = round(rows * longest * (1 - share)) - longest
    short, rest = divmod(left, rows - 1)
    return [longest, *(short + (i < rest) for i in range(rows - 1))]


def random_rows(rng: random.Random, lengths: list[int], vocab_size: int) -> tuple[Row, ...]:
    """Rows of these lengths, between the tokens that a tokenizer puts around a text."""

    def row(length: int) -> Row:
        return (CLS, *(rng.randrange(FIRST_TOKEN, vocab_size - 1) for _ in range(length - 2)), SEP)

    return tuple(row(length) for length in lengths)
