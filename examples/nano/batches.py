"""An endless, seeded stream of training batches: all tasks and languages mixed, rows of like length together."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import IterableDataset

from erniem_rt import Tokenizer
from features import IGNORED, Unit, encode
from generate import generate
from languages import CODES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from passages import Span

MAX_TOKENS = 512
CHOICES = 4
PADDING, SEPARATOR, UNKNOWN = 1, 2, 3


@dataclass(frozen=True)
class Stage:
    """A part of training.

    It lasts until this share of the steps and caps the sentences of a passage. ``long_share`` of the passages have 12
    to 24 sentences; ``gap_share`` of the texts are moved to later positions, so that short rows train the whole table.
    """

    until: float
    sentences: dict[str, int]
    long_share: float = 0.0
    gap_share: float = 0.0


# Examples per language in each chunk of the stream.
SHARES = {"qa": 80, "ner": 15, "cls": 140, "mc": 40, "ie": 70}
# Short passages first: how to compare two texts is found far sooner where there is little to compare.
CURRICULUM = (
    Stage(until=0.15, sentences={"qa": 2, "ner": 2, "cls": 1, "mc": 1, "ie": 2}),
    Stage(until=0.35, sentences={"qa": 3, "ner": 3, "cls": 2, "mc": 2, "ie": 3}),
    Stage(until=1.0, sentences={"qa": 6, "ner": 6, "cls": 3, "mc": 3, "ie": 6}, long_share=0.02, gap_share=0.2),
)


@dataclass(frozen=True)
class Batch:
    """Rows of all tasks: ``(rows, length)`` int64 ids, mask, positions and entity tags; rows and targets per task.

    A multiple-choice example has ``CHOICES`` rows, -1 where there is no further choice.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    tags: Tensor
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
            stage = next((stage for stage in CURRICULUM if given < stage.until * self.steps), CURRICULUM[-1])
            units = list(self._units(tokenizer, rng.getrandbits(40), stage))
            units.sort(key=lambda unit: unit.length + 8 * rng.random())
            groups = list(self._cut(units))
            rng.shuffle(groups)
            given += len(groups)
            for group in groups:
                yield collate(group, rng, stage.gap_share)

    def _units(self, tokenizer: Tokenizer, seed: int, stage: Stage) -> Iterator[Unit]:
        for task, count in SHARES.items():
            for language in CODES:
                examples = generate(
                    task,
                    language,
                    "train",
                    seed,
                    count,
                    most_sentences=stage.sentences[task],
                    long_share=stage.long_share,
                )
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


def collate(units: list[Unit], rng: random.Random, gap_share: float) -> Batch:
    """Pad the rows of these units to one length and gather the targets of each task."""
    length = max(unit.length for unit in units)
    rows = [row for unit in units for row in unit.rows]
    ids = torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    positions = torch.tensor([_positions(row, length, rng, gap_share) for row in rows])
    tags = torch.tensor([tag + [IGNORED] * (length - len(tag)) for unit in units for tag in unit.tags])
    owned: dict[str, list[int]] = {}
    targets: dict[str, list[Tensor]] = {}
    first = 0
    for unit in units:
        indices = list(range(first, first + len(unit.rows)))
        first += len(unit.rows)
        if unit.task == "mc":
            indices += [-1] * (CHOICES - len(indices))
        owned.setdefault(unit.task, []).extend(indices)
        if unit.target is not None:
            targets.setdefault(unit.task, []).append(_target(unit.task, unit.target, length))
    return Batch(
        ids,
        mask,
        positions,
        tags,
        {task: torch.tensor(indices) for task, indices in owned.items()},
        {task: torch.stack(values) for task, values in targets.items()},
    )


def _target(task: str, target: int | list[Span], length: int) -> Tensor:
    if isinstance(target, int):
        return torch.tensor(target)
    if task == "qa":
        return torch.tensor(target[0])
    marks = torch.zeros(2, length)
    for start, end in target:
        marks[0, start] = marks[1, end] = 1
    return marks


def _positions(row: list[int], length: int, rng: random.Random, gap_share: float) -> list[int]:
    """Positions of a row, sometimes with a gap after [CLS] or before the second text, as a longer row would have."""
    positions = list(range(length))
    if rng.random() < gap_share and len(row) < MAX_TOKENS:
        cut = rng.choice([1, row.index(SEPARATOR) + 1])
        gap = rng.randint(0, MAX_TOKENS - len(row))
        positions = [min(p + gap, MAX_TOKENS - 1) if p >= cut else p for p in positions]
    return positions
