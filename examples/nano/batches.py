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
CHOICES = 4
PADDING, SEPARATOR = 1, 2
# Examples per language in each chunk of the stream.
SHARES = {"qa": 80, "ner": 40, "cls": 100, "mc": 50, "ie": 80}
LONG_SHARE = 0.02
# How often a text is moved to later positions, so that short rows train the whole position table.
GAP_SHARE = 0.3
# Short passages first, as (share of the steps, most sentences): what to look for is found sooner among few sentences.
CURRICULUM = ((0.15, 2), (0.3, 3), (1.0, 6))


@dataclass(frozen=True)
class Batch:
    """Rows of all tasks; ``(rows, length)`` int64 ids, mask, positions, and the rows and targets of each task.

    A multiple-choice example has ``CHOICES`` rows, -1 where there is no further choice.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    rows: dict[str, Tensor]
    targets: dict[str, Tensor]


class Batches(IterableDataset[Batch]):
    """Batches of about ``tokens`` tokens, padding included; ``steps`` is the number that the curriculum spans."""

    def __init__(self, tokenizer: Path, seed: int, tokens: int, steps: int) -> None:
        self.steps = steps
        self.tokenizer = tokenizer
        self.seed = seed
        self.tokens = tokens

    def __iter__(self) -> Iterator[Batch]:
        tokenizer = Tokenizer.from_dir(self.tokenizer)
        rng = random.Random(self.seed)
        given = 0
        while True:
            most = next((limit for share, limit in CURRICULUM if given < share * self.steps), CURRICULUM[-1][1])
            units = list(self._units(tokenizer, rng.getrandbits(40), most))
            units.sort(key=lambda unit: unit.length + 8 * rng.random())
            groups = list(self._cut(units))
            rng.shuffle(groups)
            given += len(groups)
            for group in groups:
                yield collate(group, rng)

    def _units(self, tokenizer: Tokenizer, seed: int, most: int) -> Iterator[Unit]:
        for task, count in SHARES.items():
            for language in CODES:
                long_share = LONG_SHARE if most == CURRICULUM[-1][1] else 0.0
                examples = generate(task, language, "train", seed, count, most_sentences=most, long_share=long_share)
                for example in examples:
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
    ids = torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    positions = torch.tensor([_positions(row, length, rng) for row in rows])
    owned: dict[str, list[int]] = {}
    targets: dict[str, list[Tensor]] = {}
    first = 0
    for unit in units:
        indices = list(range(first, first + len(unit.rows)))
        first += len(unit.rows)
        if unit.task == "mc":
            indices += [-1] * (CHOICES - len(indices))
        owned.setdefault(unit.task, []).extend(indices)
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


def _positions(row: list[int], length: int, rng: random.Random) -> list[int]:
    """Positions of a row, sometimes with a gap after [CLS] or before the second text, as a longer row would have."""
    positions = list(range(length))
    if rng.random() < GAP_SHARE and len(row) < MAX_TOKENS:
        cut = rng.choice([1, row.index(SEPARATOR) + 1])
        gap = rng.randint(0, MAX_TOKENS - len(row))
        positions = [min(p + gap, MAX_TOKENS - 1) if p >= cut else p for p in positions]
    return positions
