"""The reference that our pipelines are compared with, on nano's checkpoints, and how agreement is counted.

The model, tokenizer and pipelines are those of transformers 4.57.6. For information extraction it has none: there the
reference is a slow and obvious loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from erniem_rt import Tokenizer

NANO = Path(__file__).resolve().parents[2] / "examples" / "nano"
LIMIT = 512

_MODELS = {
    "base": "ErnieMModel",
    "cls": "ErnieMForSequenceClassification",
    "ner": "ErnieMForTokenClassification",
    "mc": "ErnieMForMultipleChoice",
    "qa": "ErnieMForQuestionAnswering",
    "ie": "ErnieMForInformationExtraction",
}


class Parts(NamedTuple):
    """What a pipeline of transformers is made of."""

    model: Any
    tokenizer: Any


def load(head: str) -> Parts:
    """The reference's model and tokenizer of nano's checkpoint."""
    from transformers.models.deprecated.ernie_m import modeling_ernie_m
    from transformers.models.deprecated.ernie_m.tokenization_ernie_m import ErnieMTokenizer

    folder = NANO / "checkpoints" / head
    model = getattr(modeling_ernie_m, _MODELS[head]).from_pretrained(folder, dtype=torch.float32).eval()
    return Parts(model, ErnieMTokenizer.from_pretrained(folder, model_max_length=LIMIT))


def reference_pipeline(name: str, head: str) -> Any:
    """The pipeline class ``name`` of transformers."""
    import transformers

    return getattr(transformers, name)(**load(head)._asdict(), device="cpu")


@contextmanager
def repaired_question_answering() -> Iterator[Any]:
    """transformers' question answering, made to work with ErnieM's tokenizer while the context lasts.

    It wants an attention mask of a tokenizer that gives none, and has to count two separators.
    """
    from transformers.data.processors import squad

    pipe = reference_pipeline("QuestionAnsweringPipeline", "qa")
    pipe.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    with (
        mock.patch.object(squad, "MULTI_SEP_TOKENS_TOKENIZERS_SET", {"erniem"}),
        mock.patch.object(squad, "Pool", ThreadPool),  # in the same process: a new one per question takes longer
    ):
        yield pipe


@contextmanager
def raised_null(ours: Any, theirs: Any, amount: float) -> Iterator[None]:
    """Raise what our pipeline's session and their model say of ``[CLS]``, the first token, while the context lasts."""
    forward, run_all = theirs.forward, ours.session.run_all

    def raised(output: Any) -> Any:
        for name in ("start_logits", "end_logits"):
            output[name][:, 0] += amount
        return output

    def copied(output: dict[str, Any]) -> dict[str, Any]:
        return {name: array.copy() for name, array in output.items()}

    with (
        mock.patch.object(theirs, "forward", functools.wraps(forward)(lambda **inputs: raised(forward(**inputs)))),
        mock.patch.object(ours.session, "run_all", lambda batches: (raised(copied(o)) for o in run_all(batches))),
    ):
        yield


# Scores may differ by as much; so may those whose order is undecided.
TOLERANCE = 1e-4

Artifact = Callable[[str], Path]  # a head to its exported ``HEAD.onnx``
HeldOut = Callable[..., "list[Any]"]  # (task, seed, count in each language, long_share=0.0) to examples


class Answer(NamedTuple):
    """What one side says of an input, and how sure it is."""

    what: Any
    scores: Any


@dataclass
class Tally:
    """Inputs that were compared.

    Attributes:
        inputs: How many.
        languages: In which languages.
        same: To how many of them both sides say the same.
        scores: How many pairs of scores were compared.
        largest: The largest difference between two scores of the same.
        differing: What both sides say where it is not the same.
    """

    inputs: int = 0
    languages: set[str] = field(default_factory=set)
    same: int = 0
    scores: int = 0
    largest: float = 0.0
    differing: list[tuple[Any, Any]] = field(default_factory=list)

    def add(self, language: str | None, ours: Answer, theirs: Answer) -> None:
        """Count an input; ``language`` is None where it is in several."""
        self.inputs += 1
        if language:
            self.languages.add(language)
        if ours.what != theirs.what:
            self.differing.append((ours.what, theirs.what))
            return
        self.same += 1
        differences = np.abs(np.subtract(ours.scores, theirs.scores, dtype=np.float64))
        self.scores += differences.size
        # maximum() keeps NaN, which max() may lose.
        self.largest = float(np.maximum(self.largest, differences.max(initial=0.0)))


def ranked(ours: Sequence[tuple[str, float]], theirs: Sequence[tuple[str, float]]) -> tuple[Answer, Answer]:
    """Labels with scores, best first, as answers; theirs in our order if that is right by their scores too."""
    by_label = dict(theirs)
    if sorted(by_label) == sorted(label for label, _ in ours):
        reordered = [(label, by_label[label]) for label, _ in ours]
        if (np.diff([score for _, score in reordered]) <= TOLERANCE).all():
            theirs = reordered
    return listed(ours), listed(theirs)


def listed(pairs: Sequence[tuple[Any, float]]) -> Answer:
    """An answer of several, each with a score."""
    return Answer([what for what, _ in pairs], [score for _, score in pairs])


Answers = list[dict[str, Any]]


class Reference:
    """Information extraction: PaddleNLP's rules over the reference's model, written plainly.

    One prompt and one text at a time, every start with every end, node after node of the schema. Ids come from
    transformers' tokenizer; it knows no positions, so those are ours, of the same ids.
    """

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
