"""The workloads of every engine: seeded rows of ids and a batch size."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLS, SEP, FIRST_TOKEN = 0, 2, 4
# Lengths of real texts are roughly log-normal; with this spread, about two thirds of a padded batch of 32 is padding.
MIXED_MEAN, MIXED_SIGMA, MIXED_TEXTS = 32, 0.6, 64
SHORTEST, LONGEST = 4, 512
CHECKED_ROWS = 8

Row = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Rows in order of arrival, without padding.

    ``checked`` are the rows whose outputs are compared with PyTorch: the timed ones, and more if these are few.
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
        """The number of positions if each batch is padded to its longest row."""
        batches = [self.rows[i : i + self.batch_size] for i in range(0, len(self.rows), self.batch_size)]
        return sum(len(batch) * max(map(len, batch)) for batch in batches)

    def description(self) -> dict[str, Any]:
        """Return the description of this workload for the results."""
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
QUICK = ("1x32", "8x128", "mixed")
_MIXED_LABELS = ("64 texts of mixed length", "the same, one by one", "the same, sorted, batches of 16")

GPU_LENGTHS, GPU_BATCHES = (128, 384, 512), (1, 8, 32, 128)
# By priority, if time is short: one row and the full batch, which the bars need, then mixed texts.
_FIRST = ("1x128", "128x128", "mixed", "1x384", "32x384")
GPU_FIXED = tuple(f"{batch}x{length}" for length in GPU_LENGTHS for batch in GPU_BATCHES)
GPU_ALL = (*_FIRST, *(name for name in GPU_FIXED if name not in _FIRST))
GPU_QUICK = ("1x16", "4x16", "2x40", "mixed")
GPU_MIXED, GPU_MIXED_QUICK = (512, 64), (12, 4)  # number of texts, batch size


def workload_label(name: str) -> str:
    """Return a workload's name in tables."""
    if name in MIXED:
        return _MIXED_LABELS[MIXED.index(name)]
    return f"8×128, {name.split('-')[1]} % padding" if name in PADDED else name.replace("x", "×")


def build_workloads(names: Sequence[str], vocab_size: int, seed: int = 0) -> list[Workload]:
    """Return the named workloads of a CPU; the same for the same names, vocabulary and seed."""
    return [_build(name, vocab_size, seed) for name in names]


def build_gpu_workloads(names: Sequence[str], vocab_size: int, *, quick: bool = False) -> list[Workload]:
    """Return the named workloads of a GPU, ``BATCHxLENGTH`` or ``mixed``; the same for the same vocabulary."""
    return [_build_gpu(name, vocab_size, *(GPU_MIXED_QUICK if quick else GPU_MIXED)) for name in names]


def _build(name: str, vocab_size: int, seed: int) -> Workload:
    # The three mixed workloads have the same texts; all others have different ids.
    rng = random.Random(f"{seed}/{'mixed' if name in MIXED else name}")
    if name in FIXED:
        return _equal_rows(rng, name, vocab_size)
    if name in PADDED:
        share = int(name.split("-")[1])
        rows = random_rows(rng, padded_lengths(8, 128, share / 100), vocab_size)
        return Workload(name, workload_label(name), rows, rows, 8)
    rows = random_rows(rng, mixed_lengths(rng, MIXED_TEXTS), vocab_size)
    if name == "mixed-sorted":
        rows = tuple(sorted(rows, key=len, reverse=True))
    batch_size = {"mixed": 32, "mixed-single": 1, "mixed-sorted": 16}[name]
    return Workload(name, workload_label(name), rows, rows, batch_size)


def _build_gpu(name: str, vocab_size: int, texts: int, batch_size: int) -> Workload:
    rng = random.Random(f"gpu/{name}")
    if name != "mixed":
        return _equal_rows(rng, name, vocab_size)
    rows = random_rows(rng, mixed_lengths(rng, texts), vocab_size)
    return Workload(name, f"{len(rows)} texts of mixed length", rows, rows, batch_size)


def _equal_rows(rng: random.Random, name: str, vocab_size: int) -> Workload:
    batch, length = map(int, name.split("x"))
    checked = random_rows(rng, [length] * max(batch, CHECKED_ROWS), vocab_size)
    return Workload(name, workload_label(name), checked[:batch], checked, batch)


def mixed_lengths(rng: random.Random, count: int) -> list[int]:
    """Draw log-normal lengths with the stated mean, within the limits of the model."""
    mu = math.log(MIXED_MEAN) - MIXED_SIGMA**2 / 2
    return [min(LONGEST, max(SHORTEST, round(rng.lognormvariate(mu, MIXED_SIGMA)))) for _ in range(count)]


def padded_lengths(rows: int, longest: int, share: float) -> list[int]:
    """Return lengths of a batch of ``rows`` × ``longest`` with that share of padding: one long row, the rest equal."""
    if not share:
        return [longest] * rows
    left = round(rows * longest * (1 - share)) - longest
    short, rest = divmod(left, rows - 1)
    return [longest, *(short + (i < rest) for i in range(rows - 1))]


def random_rows(rng: random.Random, lengths: list[int], vocab_size: int) -> tuple[Row, ...]:
    """Return random rows of these lengths, with the first and last token of a tokenized text."""

    def row(length: int) -> Row:
        return (CLS, *(rng.randrange(FIRST_TOKEN, vocab_size - 1) for _ in range(length - 2)), SEP)

    return tuple(row(length) for length in lengths)


def flops(workload: Workload, model: dict[str, Any]) -> float:
    """Return the floating-point operations of the encoder's matmuls on the rows of a workload, without padding.

    Per token and layer, 2 for each weight of the four projections and the two feed-forward matmuls; per pair of tokens,
    2 for each element of the scores and of the context.
    """
    hidden, inner, layers = (model[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    weights = 4 * hidden**2 + 2 * hidden * inner
    return float(sum(layers * (2 * weights * len(row) + 4 * hidden * len(row) ** 2) for row in workload.rows))


def write_workloads(path: Path, workloads: Sequence[Workload]) -> Path:
    """Write the workers' input; return its path."""
    content = {w.name: {"rows": w.rows, "checked": w.checked, "batch_size": w.batch_size} for w in workloads}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
