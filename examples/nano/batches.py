"""An endless, seeded stream of training batches: all tasks and languages mixed, rows of like length together."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import IterableDataset

from erniem_rt import Tokenizer
from features import Unit, encode
from generate import generate
from languages import CODES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

MAX_TOKENS = 512
IGNORED = -100
# Examples per language in each chunk of the stream.
SHARES = {"qa": 80, "ner": 40, "cls": 100, "mc": 50, "ie": 80}
LONG_SHARE = 0.02
# How often a row's later tokens are moved to later positions, so that the whole position table is trained.
GAP_SHARE = 0.3


@dataclass(frozen=True)
class Batch:
    """Rows of all tasks; ``(rows, length)`` int64 ids, mask, positions, and the rows and targets of each task."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    rows: dict[str, Tensor]
    targets: dict[str, Tensor]


class Batches(IterableDataset[Batch]):
    """Batches of about ``tokens`` tokens, padding included."""

    def __init__(self, tokenizer: Path, seed: int, tokens: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.tokens = tokens

    def __iter__(self) -> Iterator[Batch]:
        tokenizer = Tokenizer.from_dir(self.tokenizer)
        rng = random.Random(self.seed)
        while True:
            units = list(self._units(tokenizer, rng.getrandbits(40)))
            units.sort(key=lambda unit: unit.length + 8 * rng.random())
            groups = list(self._cut(units))
            rng.shuffle(groups)
            for group in groups:
                yield collate(group, rng)

    def _units(self, tokenizer: Tokenizer, seed: int) -> Iterator[Unit]:
        for task, count in SHARES.items():
            for language in CODES:
                for example in generate(task, language, "train", seed, count, long_share=LONG_SHARE):
                    unit = encode(tokenizer, task, example)
                    if unit.length <= MAX_TOKENS:
                        yield unit

    def _cut(self, units: list[Unit]) -> Iterator[list[Unit]]:
        group: list[Unit] = []
        rows = 0
        for unit in units:
            if group and (rows + len(unit.rows)) * unit.length > self.tokens:
                yield group
                group, rows = [], 0
            group.append(unit)
            rows += len(unit.rows)
        if group:
            yield group


def collate(units: list[Unit], rng: random.Random) -> Batch:
    """Pad the rows of these units to one length and gather the targets of each task."""
    length = max(unit.length for unit in units)
    rows = [row for unit in units for row in unit.rows]
    ids = torch.tensor([row + [1] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    positions = torch.tensor([_positions(len(row), length, rng) for row in rows])
    owned: dict[str, list[int]] = {}
    targets: dict[str, list[Tensor]] = {}
    first = 0
    for unit in units:
        indices = list(range(first, first + len(unit.rows)))
        first += len(unit.rows)
        # Choices are padded to four, -1 where there is none.
        owned.setdefault(unit.task, []).extend(indices + [-1] * (4 - len(indices)) if unit.task == "mc" else indices)
        targets.setdefault(unit.task, []).append(_target(unit, length))
    return Batch(
        ids,
        mask,
        positions,
        {task: torch.tensor(indices) for task, indices in owned.items()},
        {task: torch.stack(values) for task, values in targets.items()},
    )


def _target(unit: Unit, length: int) -> Tensor:
    if isinstance(unit.target, int):
        return torch.tensor(unit.target)
    if unit.task == "ner":
        return torch.tensor([*unit.target, *[IGNORED] * (length - len(unit.target))])
    if unit.task == "qa":
        return torch.tensor(unit.target[0])
    marks = torch.zeros(2, length)
    for start, end in unit.target:  # type: ignore[misc]
        marks[0, start] = marks[1, end] = 1
    return marks


def _positions(used: int, length: int, rng: random.Random) -> list[int]:
    positions = list(range(length))
    if rng.random() < GAP_SHARE and used < MAX_TOKENS:
        cut, gap = rng.randrange(1, used), rng.randint(0, MAX_TOKENS - used)
        positions = [min(p + gap, MAX_TOKENS - 1) if p >= cut else p for p in positions]
    return positions
