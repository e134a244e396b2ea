"""Answer real text in six languages with the exported nano models, in a process that has no torch.

Usage: python examples/demo.py FOLDER   (FOLDER/HEAD/HEAD.onnx, as `make demo` exports them)
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import erniem_rt

# Answers by name, each with answers of its own under "relations".
Found = dict[str, list[dict[str, Any]]]

CASES = Path(__file__).resolve().parent / "nano" / "demo.json"


def main(folder: Path) -> int:
    """Run every head on its inputs; 1 if an answer is not the expected one."""
    for package in ("torch", "transformers"):
        found = importlib.util.find_spec(package) is not None
        print(f"{package} installed here: {'yes' if found else 'no'}")
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    shown = right = 0
    for head, show in SHOWS.items():
        started = time.perf_counter()
        task = "zero-shot-classification" if head == "cls" else None
        with erniem_rt.pipeline(task, folder / head) as pipeline:
            print(f"\n{pipeline.task} ({head}.onnx, ready in {time.perf_counter() - started:.2f} s)")
            for line, given, expected in show(pipeline, cases.get(head, cases["ner"])):
                mark = "" if given == expected else f"   <- expected {expected}"
                print(f"  {line}{mark}")
                shown, right = shown + 1, right + (given == expected)
    print(f"\n{right} of {shown} answers as expected")
    return 0 if right == shown else 1


def show_answers(pipeline: Any, cases: list[dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Questions and their answers."""
    for case in cases:
        print(f"  [{case['language']}] {case['context']}")
        inputs = [{"question": asked["question"], "context": case["context"]} for asked in case["questions"]]
        for asked, found in zip(case["questions"], pipeline(inputs), strict=True):
            line = f"    {asked['question']}  {found['answer']}  ({found['score']:.2f})"
            yield line, found["answer"], asked["answer"]


def show_topics(pipeline: Any, cases: list[dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Texts and the best of their candidate labels."""
    for case in cases:
        result = pipeline(case["text"], case["labels"], hypothesis_template=case["hypothesis"])
        best = result["labels"][0]
        yield f"[{case['language']}] {case['text']}  {best}  ({result['scores'][0]:.2f})", best, case["answer"]


def show_names(pipeline: Any, cases: list[dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Texts and the names in them."""
    results = pipeline([case["text"] for case in cases], aggregation_strategy="simple")
    for case, found in zip(cases, results, strict=True):
        names = [[entity["word"], entity["entity_group"]] for entity in found]
        shown = ", ".join(f"{word} {kind}" for word, kind in names)
        yield f"[{case['language']}] {case['text']}  {shown}", names, case["entities"]


def show_choices(pipeline: Any, cases: list[dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Prompts and the choice that fits."""
    for case in cases:
        found = pipeline({"prompt": case["prompt"], "choices": case["choices"]})
        yield f"[{case['language']}] {case['prompt']}  {found['answer']}", found["index"], case["answer"]


def show_extractions(pipeline: Any, cases: list[dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Texts and what a schema finds in them."""
    for case in cases:
        found = dict(extracted(pipeline(case["text"], schema=case["schema"]), case["language"]))
        shown = json.dumps(found, ensure_ascii=False)
        # What was expected and not found is an empty list, as it is where nothing was expected.
        given = {**{prompt: [] for prompt in case["expected"]}, **found}
        yield f"[{case['language']}] {case['text']}  {shown}", given, case["expected"]


def extracted(found: Found, language: str, parent: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yield each prompt that found something, and the answers' texts: ``Person``, then ``Founder of Acme``."""
    for name, answers in found.items():
        about = f"{parent}的{name}" if language == "zh" else f"{name} of {parent}"
        yield name if parent is None else about, [answer["text"] for answer in answers]
        for answer in answers:
            yield from extracted(answer.get("relations", {}), language, answer["text"])


def show_vectors(pipeline: Any, cases: list[dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Texts and their vectors, which have the size that the manifest says, and no infinity or NaN."""
    shapes = {output.name: output.shape for output in pipeline.manifest.outputs}
    expected = (shapes["last_hidden_state"][-1:], True)
    for case, vector in zip(cases, pipeline([case["text"] for case in cases]), strict=True):
        given = (vector.shape, bool(np.isfinite(vector).all()))
        yield f"[{case['language']}] {case['text']}  {vector.shape}, norm {np.linalg.norm(vector):.2f}", given, expected


SHOWS = {
    "qa": show_answers,
    "cls": show_topics,
    "ner": show_names,
    "mc": show_choices,
    "ie": show_extractions,
    "base": show_vectors,
}

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
