"""The work on a GPU: batches of equal rows, and texts of mixed length."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.workloads import CHECKED_ROWS, Workload, mixed_lengths, random_rows

LENGTHS, BATCHES = (128, 384, 512), (1, 8, 32, 128)
FIXED = tuple(f"{batch}x{length}" for length in LENGTHS for batch in BATCHES)
MIXED = "mixed"
ALL = (*FIXED, MIXED)
QUICK = ("1x16", "4x16", "2x40", MIXED)
LATENCY_LENGTHS = (128, 384)

_MIXED = {"texts": 512, "batch_size": 64}
_MIXED_QUICK = {"texts": 12, "batch_size": 4}


def build(names: tuple[str, ...], vocab_size: int, *, quick: bool = False) -> list[Workload]:
    """The named workloads, ``BATCHxLENGTH`` or ``mixed``; the same for the same names and vocabulary."""
    return [_build(name, vocab_size, _MIXED_QUICK if quick else _MIXED) for name in names]


def _build(name: str, vocab_size: int, mixed: dict[str, int]) -> Workload:
    rng = random.Random(f"gpu/{name}")
    if name == MIXED:
        rows = random_rows(rng, mixed_lengths(rng, mixed["texts"]), vocab_size)
        return Workload(name, f"{len(rows)} texts of mixed length", rows, rows, mixed["batch_size"])
    batch, length = map(int, name.split("x"))
    checked = random_rows(rng, [length] * max(batch, CHECKED_ROWS), vocab_size)
    return Workload(name, name.replace("x", "×"), checked[:batch], checked, batch)


def flops(workload: Workload, model: dict[str, Any]) -> float:
    """Floating-point operations of the encoder's products on the rows of a workload, padding not counted.

    Per token and layer 2 for each weight of the four projections and the two feed-forward products, and per pair of
    tokens 2 for each element of the scores and of the context.
    """
    hidden, inner, layers = (model[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    weights = 4 * hidden**2 + 2 * hidden * inner
    return float(sum(layers * (2 * weights * len(row) + 4 * hidden * len(row) ** 2) for row in workload.rows))
