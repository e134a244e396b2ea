"""Counts and figures: what a prediction gets right, at the level of characters."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from features import best_answer, entities, extracted
from languages import load
from tasks import ChoiceExample, EntityExample, Example, ExtractionExample, InferenceExample, QuestionExample

if TYPE_CHECKING:
    from collections.abc import Set

    from torch import Tensor

    from erniem_rt.tokenizer import Encoding


def score(example: Example, encodings: list[Encoding], logits: list[Tensor]) -> Counter[str]:
    """Count ``n`` examples and ``hits``, or spans that are ``right``, ``wanted`` and ``given``."""
    if isinstance(example, QuestionExample):
        start, end = best_answer(encodings[0], *logits[0].numpy())
        given = example.context[start:end]
        return Counter(n=1, hits=given == example.context[example.start : example.end])
    if isinstance(example, InferenceExample):
        hit = int(logits[0].argmax()) == example.label
        kind = "topic" if example.topic else "nli"
        return Counter({"n": 1, "hits": hit, f"{kind}_n": 1, f"{kind}_hits": hit})
    if isinstance(example, ChoiceExample):
        return Counter(n=1, hits=int(torch.cat(logits).argmax()) == example.label)
    if isinstance(example, EntityExample):
        return _span_counts(entities(encodings[0], logits[0].argmax(-1).numpy()), set(example.entities))
    if isinstance(example, ExtractionExample):
        return _span_counts(extracted(encodings[0], *logits[0].sigmoid().numpy()), set(example.spans))
    raise TypeError(f"no score for a {type(example).__name__}")


def ratio(task: str, counts: Counter[str]) -> dict[str, float]:
    """The figures that the counts amount to."""
    if task in ("ner", "ie"):
        precision = counts["right"] / max(1, counts["given"])
        recall = counts["right"] / max(1, counts["wanted"])
        f1 = 2 * counts["right"] / max(1, counts["given"] + counts["wanted"])
        figures = {"f1": f1, "precision": precision, "recall": recall}
        return {"n": counts["n"], "spans": counts["wanted"], **{k: round(v, 4) for k, v in figures.items()}}
    name = "exact_match" if task == "qa" else "accuracy"
    figures = {"n": counts["n"], name: round(counts["hits"] / counts["n"], 4)}
    for kind in ("nli", "topic"):
        if counts[f"{kind}_n"]:
            figures[f"{kind}_n"] = counts[f"{kind}_n"]
            figures[f"{kind}_accuracy"] = round(counts[f"{kind}_hits"] / counts[f"{kind}_n"], 4)
    return figures


def zero_shot_rows(examples: list[InferenceExample]) -> tuple[list[tuple[str, str | None]], int, list[int]]:
    """Rows of (premise, "This example is about TOPIC.") for every topic, how many topics, and the true ones.

    The true topic is the one that the example's entailed hypothesis names, in its language or in English.
    """
    rows: list[tuple[str, str | None]] = []
    answers = []
    topics = load("en").data["topics"]
    for example in examples:
        rows += [(example.premise, f"This example is about {topic['name']}.") for topic in topics.values()]
        answers.append(_topic_of(example))
    return rows, len(topics), answers


def _topic_of(example: InferenceExample) -> int:
    used = {(pair.language, pair.slot, pair.filler) for pair in example.pairs}
    for code in (example.language, "en"):
        for i, topic in enumerate(load(code).data["topics"].values()):
            if (code, "topic", topic["name"]) in used:
                return i
    raise ValueError("expected an example with a topic hypothesis")


def _span_counts(given: Set[object], wanted: Set[object]) -> Counter[str]:
    return Counter(n=1, right=len(given & wanted), given=len(given), wanted=len(wanted))
