"""Write what an export reads beside the weights: a task set for its accuracy gate, texts to calibrate int8 on.

    python examples/nano/task_sets.py

``checkpoints/HEAD/task_set.jsonl`` holds as many examples of each language as of the others. They come from the
generator's held-out split, with a seed of their own, and are the same whenever they are made.
``checkpoints/HEAD/calibration.txt`` holds passages of the training split.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generate import TASKS, generate
from languages import CODES
from tasks import (
    NLI_LABELS,
    ChoiceExample,
    EntityExample,
    Example,
    ExtractionExample,
    InferenceExample,
    QuestionExample,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
FILE, CALIBRATION_FILE = "task_set.jsonl", "calibration.txt"
SEED, CALIBRATION_SEED = 4096, 5
PER_LANGUAGE, TEXTS_PER_LANGUAGE = 100, 66


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files of all heads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=HERE / "checkpoints")
    write_task_sets(parser.parse_args(argv).checkpoints)
    return 0


def write_task_sets(checkpoints: Path) -> None:
    """Write the task set of each head that has a task, and the texts of all."""
    for task in TASKS:
        (checkpoints / task / FILE).write_text(task_set(task), encoding="utf-8")
    texts = calibration_texts()
    for head in (*TASKS, "base"):
        (checkpoints / head / CALIBRATION_FILE).write_text(texts, encoding="utf-8")


def task_set(task: str) -> str:
    """The content of a task's file."""
    return "".join(json.dumps(as_line(example), ensure_ascii=False) + "\n" for example in examples(task))


def calibration_texts() -> str:
    """Passages that nano may have been trained on, one on each line."""
    passages = (generate("ner", code, "train", CALIBRATION_SEED, TEXTS_PER_LANGUAGE) for code in CODES)
    return "".join(f"{passage.text}\n" for of_language in passages for passage in of_language)


def examples(task: str) -> list[Example]:
    """What the file is made of."""
    return [example for code in CODES for example in generate(task, code, "heldout", SEED, PER_LANGUAGE)]


@singledispatch
def as_line(example: Example) -> dict[str, Any]:
    """The example as the exporter's task sets have it."""
    raise TypeError(f"no line for a {type(example).__name__}")


@as_line.register
def _(example: QuestionExample) -> dict[str, Any]:
    answer = example.context[example.start : example.end]
    return {"question": example.question, "context": example.context, "answers": [answer]}


@as_line.register
def _(example: EntityExample) -> dict[str, Any]:
    entities = [{"start": start, "end": end, "label": label} for start, end, label in example.entities]
    return {"text": example.text, "entities": entities}


@as_line.register
def _(example: InferenceExample) -> dict[str, Any]:
    return {"text": example.premise, "text_pair": example.hypothesis, "label": NLI_LABELS[example.label]}


@as_line.register
def _(example: ChoiceExample) -> dict[str, Any]:
    return {"prompt": example.prompt, "choices": list(example.choices), "label": example.label}


@as_line.register
def _(example: ExtractionExample) -> dict[str, Any]:
    spans = [{"start": start, "end": end} for start, end in example.spans]
    return {"prompt": example.prompt, "text": example.text, "spans": spans}


if __name__ == "__main__":
    sys.exit(main())
