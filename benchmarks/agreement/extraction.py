"""Information extraction beside a slow and obvious loop over the reference model.

transformers has no such pipeline. The loop is PaddleNLP's, written plainly: one prompt and one text at a time, every
start with every end, node after node of the schema. Ids come from transformers' tokenizer; it knows no positions,
so those are ours, of the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.agreement.reference import LIMIT, NANO, load
from benchmarks.agreement.tally import Answer, Artifact, HeldOut, Tally, listed
from erniem_rt import Tokenizer, pipeline

_EACH = 36  # per language

Answers = list[dict[str, Any]]


def prompts(artifact: Artifact, heldout: HeldOut) -> Tally:
    """One prompt per text, some texts long; those over the limit are in ``test_pipeline_agreement_ie.py``."""
    theirs = Reference()
    tally = Tally()
    with pipeline(artifact("ie"), threads=1) as ours:
        for example in heldout("ie", 5, _EACH, 0.1):
            found = ours(example.text, schema=example.prompt)
            tally.add(example.language, flat(found), flat(theirs.extract(example.prompt, example.text)))
    return tally


def flat(found: dict[str, Answers]) -> Answer:
    """Answers at every level of a schema, each under the path of names and answers that led to it."""
    return listed(list(_flat(found, ())))


def _flat(found: dict[str, Answers], path: tuple[Any, ...]) -> Iterator[tuple[Any, float]]:
    for name, answers in found.items():
        for answer in answers:
            here = (*path, name, answer["text"], answer["start"], answer["end"])
            yield here, answer["probability"]
            yield from _flat(answer.get("relations", {}), here)


class Reference:
    """The reference's model and tokenizer, asked a prompt at a time."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load("ie")
        self.positions = Tokenizer.from_dir(NANO / "checkpoints" / "ie")

    def ask(self, prompt: str, text: str) -> Answers:
        """Answers from a text of any length, in its order."""
        prompt_ids, ids = (self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
        encoding = self.positions(text, add_special_tokens=False)
        assert encoding.input_ids == ids
        answers: Answers = []
        for first, stop in _pieces(text, encoding.offsets, LIMIT - len(prompt_ids) - 4):
            row = self.tokenizer.build_inputs_with_special_tokens(prompt_ids, ids[first:stop])
            before = len(row) - 1 - (stop - first)
            for start, end, probability in self.spans(row):
                if before <= start and end < len(row) - 1:
                    begin = encoding.offsets[first + start - before][0]
                    finish = encoding.offsets[first + end - before][1]
                    while begin < finish and text[begin].isspace():
                        begin += 1
                    while begin < finish and text[finish - 1].isspace():
                        finish -= 1
                    found = {"text": text[begin:finish], "start": begin, "end": finish, "probability": probability}
                    answers += [found] if found["text"] else []
        return sorted(answers, key=lambda answer: answer["start"])

    def spans(self, row: list[int]) -> list[tuple[int, int, float]]:
        """Every start over one half with the first end at or after it, unless a nearer start has that end."""
        with torch.inference_mode():
            output = self.model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row)))
        starts, ends = (torch.sigmoid(x[0]).tolist() for x in (output.start_logits, output.end_logits))
        found = {}
        for i, start in enumerate(starts):
            for j in range(i, len(ends)):
                if start > 0.5 and ends[j] > 0.5:
                    found[j] = (i, j, start * ends[j])
                    break
        return list(found.values())

    def extract(self, schema: Any, text: str, parent: str | None = None) -> dict[str, Answers]:
        """Answers by name to a schema, each with what was found about it."""
        found = {}
        for name, children in schema.items() if isinstance(schema, dict) else _children_of(schema):
            prompt = name if parent is None else f"{parent}的{name}" if name >= "\u4e00" else f"{name} of {parent}"
            answers = self.ask(prompt, text)
            for answer in answers:
                relations = self.extract(children, text, answer["text"])
                if relations:
                    answer["relations"] = relations
            if answers:
                found[name] = answers
        return found


def _children_of(schema: Any) -> Iterator[tuple[str, Any]]:
    for item in [schema] if isinstance(schema, str) else schema:
        if isinstance(item, str):
            yield item, []
        else:
            yield from item.items()


def _pieces(text: str, offsets: list[tuple[int, int]], room: int) -> list[tuple[int, int]]:
    """Tokens from the end of one sentence to the end of the last that fits."""
    ends = [
        i
        for i in range(1, len(offsets))
        if text[: offsets[i][0]].rstrip()[-1] in "。！？؟"
        or (text[: offsets[i][0]].rstrip()[-1] in ".!?" and text[offsets[i][0] - 1].isspace())
    ]
    found, first = [], 0
    while len(offsets) - first > room:
        stop = max(i for i in ends if first < i <= first + room)
        found.append((first, stop))
        first = stop
    return [*found, (first, len(offsets))]
