"""Measure the stored nano checkpoints on held-out text and write ``metrics.json``.

    python examples/nano/evaluate.py

The held-out split is generated anew from its seed; it shares no template-filler pair with training. The weights are
those in ``checkpoints/``, widened to float32. Exits 1 when a figure is under its bar.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from demonstration import check
from erniem_rt import Tokenizer
from features import texts_of
from generate import TASKS, generate
from languages import CODES
from network import HEADS
from prediction import load_checkpoint, predict
from scoring import ratio, score, zero_shot_rows
from task_sets import CALIBRATION_FILE, FILE
from tasks import InferenceExample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erniem_export.modeling import ErnieMPreTrainedModel
    from tasks import Example

HERE = Path(__file__).parent
# The figure that decides for each task, and what it must reach.
BARS = {
    "qa": ("exact_match", 0.80),
    "ner": ("f1", 0.90),
    "cls": ("accuracy", 0.85),
    "mc": ("accuracy", 0.80),
    "ie": ("f1", 0.85),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print a table, write the figures; 1 if a bar is missed."""
    args = _parse(argv)
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    tasks = {task: evaluate(args.checkpoints / task, task, args.seed, args.count) for task in TASKS}
    report = {
        "seed": args.seed,
        "training": json.loads((args.checkpoints / "training.json").read_text(encoding="utf-8")),
        "versions": {
            "python": platform.python_version(),
            **{n: version(n) for n in ("torch", "transformers", "sentencepiece")},
        },
        "size_bytes": _sizes(args.checkpoints),
        "parameters": _parameters(args.checkpoints / "base"),
        "demo": check(HERE / "demo.json", args.checkpoints),
        "tasks": tasks,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    temporary = args.output.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(args.output)
    missed = _print_table(tasks)
    print(f"{args.output} written in {time.monotonic() - started:.0f} s")
    return 1 if missed else 0


def evaluate(folder: Path, task: str, seed: int, count: int) -> dict[str, object]:
    """The figures of one checkpoint over ``count`` held-out examples per language."""
    tokenizer = Tokenizer.from_dir(folder)
    model = load_checkpoint(folder, task)
    examples = [example for code in CODES for example in generate(task, code, "heldout", seed, count)]
    outputs = predict(model, tokenizer, task, [texts for example in examples for texts in texts_of(example)])
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    first = 0
    for example in examples:
        rows = texts_of(example)
        encodings = [tokenizer(*texts) for texts in rows]
        result = score(example, encodings, outputs[first : first + len(rows)])
        counts["all"].update(result)
        counts[example.language].update(result)
        first += len(rows)
    figures: dict[str, object] = ratio(task, counts.pop("all"))
    figures["languages"] = {code: ratio(task, count) for code, count in counts.items()}
    if task == "cls":
        figures["zero_shot_topics"] = _zero_shot(model, tokenizer, examples)
    return figures


def _zero_shot(model: ErnieMPreTrainedModel, tokenizer: Tokenizer, examples: list[Example]) -> dict[str, object]:
    """Choose one of eight topics by the entailment logit, as zero-shot pipelines do."""
    chosen = [e for e in examples if isinstance(e, InferenceExample) and e.topic and e.label == 0]
    rows, topics, answers = zero_shot_rows(chosen)
    scores = torch.stack(predict(model, tokenizer, "cls", rows))[:, 0].view(len(chosen), topics)
    hits = int((scores.argmax(1) == torch.tensor(answers)).sum())
    return {"n": len(chosen), "accuracy": round(hits / len(chosen), 4)}


def _sizes(checkpoints: Path) -> dict[str, int]:
    """Of the checkpoints themselves: what an export reads besides is no part of a model."""
    besides = (FILE, CALIBRATION_FILE)
    files = {head: [file for file in (checkpoints / head).iterdir() if file.name not in besides] for head in HEADS}
    sizes = {head: sum(file.stat().st_size for file in found) for head, found in files.items()}
    return {**sizes, "total": sum(sizes.values())}


def _parameters(folder: Path) -> int:
    return sum(parameter.numel() for parameter in load_checkpoint(folder, "base").parameters())


def _print_table(tasks: dict[str, dict[str, object]]) -> list[str]:
    missed = []
    for task, (name, bar) in BARS.items():
        value = tasks[task][name]
        if value < bar:
            missed.append(task)
        languages = " ".join(f"{code} {figures[name]:.3f}" for code, figures in tasks[task]["languages"].items())
        verdict = "MISSED" if value < bar else "ok"
        print(f"{task:4} {name:12} {value:.4f} (bar {bar:.2f}, n {tasks[task]['n']}) {verdict:6} {languages}")
    return missed


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=HERE / "checkpoints")
    parser.add_argument("--output", type=Path, default=HERE / "metrics.json")
    parser.add_argument("--seed", type=int, default=2024, help="seed of the held-out text")
    parser.add_argument("--count", type=int, default=500, help="examples per task and language")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
