"""Check the hand-written inputs of ``demo.json``: does nano give the answers that they expect?"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from erniem_rt import Tokenizer
from features import best_answer, entities, extracted
from prediction import load_checkpoint, predict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

Predict: TypeAlias = "Callable[[list[tuple[str, str | None]]], list[Tensor]]"
Verdict = tuple[str, Any, Any]


def check(path: Path, checkpoints: Path) -> dict[str, dict[str, int]]:
    """How many expectations of each task hold; those that do not are printed."""
    cases = json.loads(path.read_text(encoding="utf-8"))
    counts = {}
    for task, verdicts in _VERDICTS.items():
        tokenizer = Tokenizer.from_dir(checkpoints / task)
        model = load_checkpoint(checkpoints / task, task)
        run = partial(predict, model, tokenizer, task)
        results = [verdict for case in cases[task] for verdict in verdicts(case, tokenizer, run)]
        for asked, wanted, given in results:
            if wanted != given:
                print(f"demo {task}: {asked}: expected {wanted}, got {given}")
        counts[task] = {"n": len(results), "right": sum(wanted == given for _, wanted, given in results)}
    return counts


def _questions(case: dict[str, Any], tokenizer: Tokenizer, run: Predict) -> Iterator[Verdict]:
    rows = [(asked["question"], case["context"]) for asked in case["questions"]]
    for asked, row, logits in zip(case["questions"], rows, run(rows), strict=True):
        start, end = best_answer(tokenizer(*row), *logits.numpy())
        yield asked["question"], asked["answer"], case["context"][start:end]


def _topics(case: dict[str, Any], tokenizer: Tokenizer, run: Predict) -> Iterator[Verdict]:
    del tokenizer
    scores = torch.stack(run([(case["text"], case["hypothesis"].format(label)) for label in case["labels"]]))[:, 0]
    yield case["text"], case["answer"], case["labels"][int(scores.argmax())]


def _names(case: dict[str, Any], tokenizer: Tokenizer, run: Predict) -> Iterator[Verdict]:
    text = case["text"]
    found = sorted(entities(tokenizer(text), run([(text, None)])[0].argmax(-1).numpy()))
    yield text, case["entities"], [[text[start:end], kind] for start, end, kind in found]


def _choices(case: dict[str, Any], tokenizer: Tokenizer, run: Predict) -> Iterator[Verdict]:
    del tokenizer
    scores = torch.cat(run([(case["prompt"], choice) for choice in case["choices"]]))
    yield case["prompt"], case["answer"], int(scores.argmax())


def _extractions(case: dict[str, Any], tokenizer: Tokenizer, run: Predict) -> Iterator[Verdict]:
    rows = [(prompt, case["text"]) for prompt in case["expected"]]
    for row, logits in zip(rows, run(rows), strict=True):
        spans = sorted(extracted(tokenizer(*row), *logits.sigmoid().numpy()))
        yield row[0], case["expected"][row[0]], [case["text"][start:end] for start, end in spans]


_VERDICTS = {"qa": _questions, "cls": _topics, "ner": _names, "mc": _choices, "ie": _extractions}
