"""The task's own metric: compares the answers of pipelines to a file of labelled examples, one JSON object per line."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import punctuation
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from erniem_export.checkpoint import Checkpoint
from erniem_export.errors import ExportError, ParityError
from erniem_export.heads import LABELLED
from erniem_export.mask_mode import UIE_M, at_full_width
from erniem_export.modeling import ErnieMPreTrainedModel
from erniem_export.sources import read_text
from erniem_rt.errors import InvalidInputError
from erniem_rt.manifest import Manifest
from erniem_rt.pipelines.base import Progress
from erniem_rt.pipelines.information_extraction import InformationExtractionPipeline
from erniem_rt.pipelines.multiple_choice import MultipleChoicePipeline
from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline
from erniem_rt.pipelines.text_classification import TextClassificationPipeline
from erniem_rt.pipelines.token_classification import TokenClassificationPipeline
from erniem_rt.session import Session
from erniem_rt.tokenizer import Tokenizer

# Allowed fall of a metric, in points of 100. In fp32 the answers are the same; 0.05 allows one changed answer in 2,000,
# where two candidates' scores differ by less than rounding.
FALLS = {"fp32": 0.05, "other": 0.5}
# Tolerance for float rounding when percentages are subtracted.
_ROUNDING = 1e-9
# Called with the number of answered examples.
ReportProgress = Callable[[int], None]

_HALF = 0.5
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Accuracy:
    """Figures of the artifact (``found``) and of the PyTorch model (``reference``), by the metric's name.

    ``same_answers`` counts the examples with the same answer from both; None where answers are numbers.
    """

    task_set: str
    examples: int
    reference: Mapping[str, float]
    found: Mapping[str, float]
    same_answers: int | None
    may_fall: float

    def failures(self) -> list[str]:
        """Return a sentence for each figure that falls by more than ``may_fall``."""
        return [
            f"{name} on {self.task_set} ({self.examples} examples) falls from {before:.2f} to {self.found[name]:.2f}, "
            f"by {before - self.found[name]:.2f} points; {self.may_fall:g} are allowed"
            for name, before in self.reference.items()
            if not before - self.found[name] <= self.may_fall + _ROUNDING
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as the report stores them."""
        return {
            "file": self.task_set,
            "examples": self.examples,
            "metrics": {
                name: {"reference": round(before, 4), "found": round(self.found[name], 4)}
                for name, before in self.reference.items()
            },
            "same_answers": self.same_answers,
            "may_fall": self.may_fall,
        }


def _opened(artifact: Path) -> Session:
    return Session(artifact, engine="onnxruntime", verify=False)


class AccuracyCheck:
    """Compares an artifact's answers with those of the PyTorch model, which are computed once.

    Args:
        task_set: The labelled examples.
        model: The model in float32.
        tokenizer_dir: Folder of the tokenizer's files that come with the artifact.
        report_progress: Called with a label, the number of answered examples and their total.
    """

    def __init__(
        self,
        task_set: TaskSet,
        model: ErnieMPreTrainedModel,
        tokenizer_dir: Path,
        report_progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        self._task_set = task_set
        self._model = model
        self._tokenizer = Tokenizer.from_dir(tokenizer_dir, verify=False)
        self._report_progress = report_progress
        self._reference: list[Any] | None = None

    def compare(
        self,
        artifact: Path,
        report: Mapping[str, Any],
        open_session: Callable[[Path], Session] = _opened,
    ) -> dict[str, Any]:
        """Run the task set on an artifact that passed the comparison of outputs; return ``report`` with ``accuracy``.

        ``open_session`` opens the artifact; its files were verified before.

        Raises:
            ParityError: A figure falls by more than is allowed; the report is attached.
            InvalidInputError: The question of an example leaves no room for a text.
        """
        with open_session(artifact) as session:
            accuracy = self._measure(session)
        report = {**report, "accuracy": accuracy.to_json()}
        failures = accuracy.failures()
        if failures:
            raise ParityError(
                f"{artifact.name} answers worse than the PyTorch model: {'; '.join(failures)}. "
                f"{_remedy(session.manifest)}",
                {**report, "passed": False},
            )
        return report

    def _measure(self, session: Session) -> Accuracy:
        task_set, manifest = self._task_set, session.manifest
        try:
            if self._reference is None:
                self._reference = self._answers("PyTorch", ReferenceSession(self._model, manifest))
            found = self._answers(manifest.artifact, session)
        except InvalidInputError as error:
            raise InvalidInputError(f"the task set {task_set.name} cannot be used: {error}") from error
        metric, wanted = str(task_set.task.metric), [example.wanted for example in task_set.examples]
        same = sum(a == b for a, b in zip(found, self._reference, strict=True))
        return Accuracy(
            task_set=task_set.name,
            examples=len(wanted),
            reference=figures(metric, self._reference, wanted),
            found=figures(metric, found, wanted),
            same_answers=None if metric == "pearson" else same,
            may_fall=FALLS["fp32" if _is_fp32(manifest) else "other"],
        )

    def _answers(self, who: str, session: Session | ReferenceSession) -> list[Any]:
        total = len(self._task_set.examples)
        try:
            found = answers(
                self._task_set,
                session,
                self._tokenizer,
                lambda done: self._report_progress(f"{self._task_set.name}, answers of {who}", done, total),
            )
        finally:
            self._report_progress("", 0, 0)
        return found


def _is_fp32(manifest: Manifest) -> bool:
    return {manifest.precision.get("weights"), manifest.precision.get("embedding")} == {"fp32"}


def _remedy(manifest: Manifest) -> str:
    if _is_fp32(manifest):
        return "Export again with other versions of torch and onnxruntime, and report it with the versions."
    if manifest.precision.get("weights") == "int8":
        return "Calibrate on text like what will be served (--calibration FILE), or take a higher precision."
    return "Take a higher precision."


class ReferenceSession:
    """The PyTorch model behind a session's interface, for pipelines.

    Attributes:
        manifest: The artifact's, without the outputs that no pipeline reads.
        limits: The manifest's.
    """

    threads = 1

    def __init__(self, model: ErnieMPreTrainedModel, manifest: Manifest) -> None:
        self._model = model
        self.limits = manifest.limits
        self.manifest = replace(manifest, outputs=tuple(spec for spec in manifest.outputs if "." not in spec.name))

    def run_all(self, batches: Iterable[Mapping[str, ArrayLike | None]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the outputs of each batch, in order."""
        return (self.run(**batch) for batch in batches)

    def run(self, *, input_ids: ArrayLike | None, attention_mask: ArrayLike | None) -> dict[str, NDArray[Any]]:
        """Return outputs by name; inputs are int64 ``(batch, sequence)``, for ``mc`` ``(batch, choices, sequence)``."""
        ids, mask = np.asarray(input_ids), np.asarray(attention_mask)
        feeds = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if self.manifest.mask_mode == UIE_M:
            feeds = at_full_width(ids, mask, self._model.config)
        with torch.inference_mode():
            result = self._model(**feeds, return_dict=True)
        found = {spec.name: result[spec.name].numpy() for spec in self.manifest.outputs}
        if self.manifest.mask_mode == UIE_M:
            found = {name: array[:, : ids.shape[1]] for name, array in found.items()}
        return found


def answers(
    task_set: TaskSet,
    runs: Session | ReferenceSession,
    tokenizer: Tokenizer,
    report_progress: ReportProgress = lambda _: None,
) -> list[Any]:
    """Return the answer to each example, of the type of ``Example.wanted`` (one text for ``qa``)."""
    session = cast("Session", runs)
    found = _ANSWER[task_set.task.head](task_set, session, tokenizer, lambda done, _: report_progress(done))
    return list(found)


def _questions(task_set: TaskSet, session: Session, tokenizer: Tokenizer, progress: Progress) -> list[str]:
    impossible = not all(example.wanted for example in task_set.examples)
    pipeline = QuestionAnsweringPipeline(session, tokenizer, handle_impossible_answer=impossible)
    return [answer["answer"] for answer in pipeline(_given(task_set.examples), progress=progress)]


def _labels(task_set: TaskSet, session: Session, tokenizer: Tokenizer, progress: Progress) -> list[Any]:
    classify: Callable[..., Any] = TextClassificationPipeline(session, tokenizer)
    pipeline = partial(classify, _given(task_set.examples), progress=progress)
    metric = task_set.task.metric
    if metric == "micro_f1":
        found = pipeline(top_k=None)
        return [frozenset(one["label"] for one in scores if one["score"] > _HALF) for scores in found]
    if metric == "pearson":
        return [answer["score"] for answer in pipeline(function_to_apply="none")]
    return [answer["label"] for answer in pipeline()]


def _entities(
    task_set: TaskSet, session: Session, tokenizer: Tokenizer, progress: Progress
) -> list[frozenset[tuple[int, int, str]]]:
    pipeline = TokenClassificationPipeline(session, tokenizer, aggregation_strategy="simple")
    found = pipeline(_given(task_set.examples), progress=progress)
    return [frozenset((one["start"], one["end"], one["entity_group"]) for one in entities) for entities in found]


def _choices(task_set: TaskSet, session: Session, tokenizer: Tokenizer, progress: Progress) -> list[int]:
    pipeline = MultipleChoicePipeline(session, tokenizer)
    return [answer["index"] for answer in pipeline(_given(task_set.examples), progress=progress)]


def _extractions(
    task_set: TaskSet, session: Session, tokenizer: Tokenizer, progress: Progress
) -> list[frozenset[tuple[int, int]]]:
    """Answer texts with the same prompt in one call, since a call takes one schema."""
    pipeline = InformationExtractionPipeline(session, tokenizer)
    places: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(task_set.examples):
        places[example.prompt].append(place)
    found: dict[int, frozenset[tuple[int, int]]] = {}
    for prompt, together in places.items():
        texts = [task_set.examples[place].given for place in together]
        for place, answer in zip(together, pipeline(texts, schema=[prompt]), strict=True):
            found[place] = frozenset((one["start"], one["end"]) for one in answer.get(prompt, []))
            progress(len(found), None)
    return [found[place] for place in range(len(task_set.examples))]


def _given(examples: Iterable[Example]) -> list[str | Mapping[str, Any]]:
    return [example.given for example in examples]


_ANSWER: dict[str, Callable[..., Sequence[Any]]] = {
    "qa": _questions,
    "cls": _labels,
    "ner": _entities,
    "mc": _choices,
    "ie": _extractions,
}


def figures(metric: str, answers: Sequence[Any], wanted: Sequence[Any]) -> dict[str, float]:
    """Return the metrics of the answers to a task set, by name.

    Args:
        metric: ``Task.metric``; for ``exact_match`` the result also has SQuAD's ``f1``.
        answers: A pipeline's answers.
        wanted: ``Example.wanted`` of each example; at least one.
    """
    measure: dict[str, Callable[..., float]] = {
        "accuracy": _accuracy,
        "micro_f1": _span_f1,
        "f1": _span_f1,
        "pearson": _pearson,
    }
    if metric == "exact_match":
        return {"exact_match": _best(_same, answers, wanted), "f1": _best(_overlap, answers, wanted)}
    return {metric: 100 * measure[metric](answers, wanted)}


def _accuracy(answers: Sequence[Any], wanted: Sequence[Any]) -> float:
    return sum(bool(a == b) for a, b in zip(answers, wanted, strict=True)) / len(wanted)


def _span_f1(answers: Sequence[AbstractSet[Any]], wanted: Sequence[AbstractSet[Any]]) -> float:
    """Return the micro-averaged F1: a span, entity or label is correct only as a whole."""
    right = sum(len(a & b) for a, b in zip(answers, wanted, strict=True))
    total = sum(map(len, answers)) + sum(map(len, wanted))
    return 2 * right / total if total else 1.0


def _pearson(answers: Sequence[float], wanted: Sequence[float]) -> float:
    """Return the correlation coefficient; 0 where either side is constant."""
    means = math.fsum(answers) / len(answers), math.fsum(wanted) / len(wanted)
    a, b = [value - means[0] for value in answers], [value - means[1] for value in wanted]
    norm = math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def _best(
    score: Callable[[list[str], list[str]], float], answers: Sequence[str], wanted: Sequence[Sequence[str]]
) -> float:
    """Return the mean over all questions of the score against the best-matching reference answer."""
    best = [
        max(score(_words(answer), _words(right)) for right in rights or ("",))
        for answer, rights in zip(answers, wanted, strict=True)
    ]
    return 100 * math.fsum(best) / len(best)


def _same(answer: list[str], right: list[str]) -> float:
    return float(answer == right)


def _overlap(answer: list[str], right: list[str]) -> float:
    if not answer or not right:
        return float(answer == right)
    return 2 * sum((Counter(answer) & Counter(right)).values()) / (len(answer) + len(right))


def _words(text: str) -> list[str]:
    """Split into words as SQuAD's metric does: lower case, no punctuation, no English articles.

    As in MLQA for Chinese, each wide character (Chinese, Japanese, Korean) is a word.
    """
    kept = (char for char in text.lower() if char not in punctuation and not unicodedata.category(char).startswith("P"))
    spaced = "".join(f" {char} " if unicodedata.east_asian_width(char) == "W" else char for char in kept)
    return [word for word in spaced.split() if word not in _ARTICLES]


# With fewer examples, one answer weighs more than half a point, the allowed fall.
FEWEST = 200


class _LineError(Exception):
    """A line is invalid; the caller adds its number to the message."""


@dataclass(frozen=True)
class Task:
    """A head, the labels by id (``cls`` and ``ner``) and the problem type (``cls``; None if the config has none)."""

    head: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    @property
    def metric(self) -> str | None:
        """The name of the task's metric; None if it has none."""
        if self.head != "cls":
            return {"qa": "exact_match", "mc": "accuracy"}.get(self.head, "f1")
        if self.problem_type == "multi_label_classification":
            return "micro_f1"
        if self.problem_type == "regression" or len(self.labels) == 1:  # a single output, as transformers reads it
            return "pearson" if len(self.labels) == 1 else None
        return "accuracy"


@dataclass(frozen=True)
class Example:
    """``given``: the pipeline's input (for ``ie`` the text); ``prompt``: what to extract; ``wanted``: the right answer.

    The answer is a tuple of accepted texts (``qa``; empty if there is no answer), a label or a number (``cls``), the
    index of a choice (``mc``), or a frozenset of labels, of spans ``(start, end)`` or of ``(start, end, label)``.
    Spans are half-open, in code points.
    """

    given: str | Mapping[str, Any]
    wanted: Any
    prompt: str = ""


@dataclass(frozen=True)
class TaskSet:
    """The file's ``name``, its ``task`` and its ``examples``."""

    name: str
    task: Task
    examples: tuple[Example, ...]


def task_set_of(checkpoint: Checkpoint, given: Path | None, *, takes_ids: bool = True) -> TaskSet | None:
    """Return the given task set, or else the checkpoint's own; None if there is none.

    Ignores the checkpoint's own for head ``base``, and for a graph that takes no ids.

    Raises:
        ExportError: It cannot be read, is for another head, or the checkpoint has no tokenizer.
    """
    can_answer = takes_ids and checkpoint.head in _READERS
    path = given or (checkpoint.task_set if can_answer else None)
    if path is None:
        return None
    if not can_answer:
        reason = f"head {checkpoint.head} has no metric" if takes_ids else "a graph without input_ids reads no text"
        raise ExportError(f"--task-set {path} cannot be used: {reason}; leave it out")
    if checkpoint.tokenizer_dir is None:
        raise ExportError(f"the task set {path} cannot be used: {checkpoint.source} has no tokenizer to read text with")
    config, head = checkpoint.config, checkpoint.head
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels)) if head in LABELLED else ()
    return read_task_set(path, Task(head, labels, config.problem_type if head == "cls" else None))


def read_task_set(path: Path, task: Task) -> TaskSet:
    """Read a file of examples.

    Raises:
        ExportError: The file does not exist, has too few examples, or has a line that is not an example of this task;
            the message names the line.
    """
    if task.metric is None:
        raise ExportError(
            f"the task set {path} cannot be used: no metric is defined for {task.problem_type} with "
            f"{len(task.labels)} outputs; leave it out"
        )
    # Not splitlines(): it also splits at characters that JSON allows within a string.
    lines = read_text(path, "task set").split("\n")
    examples = [_example(path, number, line, task) for number, line in enumerate(lines, start=1) if line.strip()]
    if len(examples) < FEWEST:
        raise ExportError(
            f"the task set {path} is too small: half a point cannot be seen in fewer than {FEWEST} examples, and it "
            f"holds {len(examples)}; add some, or leave it out"
        )
    return TaskSet(path.name, task, tuple(examples))


def _example(path: Path, number: int, line: str, task: Task) -> Example:
    where = f"the task set {path}, line {number}"
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{where}: this is not JSON: {error}") from error
    try:
        return _READERS[task.head](task, fields)
    except _LineError as error:
        raise ExportError(f"{where}: {error}") from error


def _read_question(_task: Task, fields: Any) -> Example:
    fields = _fields(fields, "question", "context", "answers")
    context = _text(fields, "context")
    answers = fields["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, str) and answer for answer in answers):
        raise _LineError("answers must be a list of the correct texts, empty if there is no answer")
    for answer in answers:
        if answer not in context:
            raise _LineError(f"the answer {answer!r} is not in the context")
    return Example({"question": _text(fields, "question"), "context": context}, tuple(answers))


def _read_labelled(task: Task, fields: Any) -> Example:
    key = "labels" if task.metric == "micro_f1" else "label"
    fields = _fields(fields, "text", key, optional=("text_pair",))
    given = {name: _text(fields, name) for name in ("text", "text_pair") if name in fields}
    value = fields[key]
    if task.metric == "micro_f1":
        if not isinstance(value, list):
            raise _LineError(f"labels must be a list, got {_shown(value)}")
        return Example(given, frozenset(_label(label, task.labels) for label in value))
    if task.metric == "pearson":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _LineError(f"label must be a number, got {_shown(value)}")
        return Example(given, float(value))
    return Example(given, _label(value, task.labels))


def _read_entities(task: Task, fields: Any) -> Example:
    fields = _fields(fields, "text", "entities")
    text = _text(fields, "text")
    kinds = tuple(dict.fromkeys(label.split("-", 1)[-1] for label in task.labels if label != "O"))
    found = set()
    for item in _list(fields, "entities"):
        entity = _fields(item, "start", "end", "label", what="an entity")
        found.add((*_span(entity, text), _label(entity["label"], kinds)))
    return Example(text, frozenset(found))


def _read_choices(_task: Task, fields: Any) -> Example:
    fields = _fields(fields, "prompt", "choices", "label")
    choices, label = fields["choices"], fields["label"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise _LineError(f"choices must be a list of texts, got {_shown(choices)}")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise _LineError(f"label must be the index of a choice, from 0 to {len(choices) - 1}, got {_shown(label)}")
    return Example({"prompt": _text(fields, "prompt"), "choices": choices}, label)


def _read_extraction(_task: Task, fields: Any) -> Example:
    fields = _fields(fields, "prompt", "text", "spans")
    prompt, text = _text(fields, "prompt"), _text(fields, "text")
    if prompt.rstrip().endswith(("]", "］")):
        raise _LineError(f"the prompt {prompt!r} ends in options, whose answer is not a span: leave it out")
    spans = [_span(_fields(item, "start", "end", what="a span"), text) for item in _list(fields, "spans")]
    return Example(text, frozenset(spans), prompt)


_READERS: dict[str, Callable[[Task, Any], Example]] = {
    "qa": _read_question,
    "cls": _read_labelled,
    "ner": _read_entities,
    "mc": _read_choices,
    "ie": _read_extraction,
}


def _fields(value: Any, *required: str, optional: tuple[str, ...] = (), what: str = "a line") -> dict[str, Any]:
    keys = f"{what} of this task set has the keys {', '.join(required)}"
    keys += f" and, if you like, {', '.join(optional)}" if optional else ""
    if not isinstance(value, dict):
        raise _LineError(f"{keys}; this is {_shown(value)}")
    missing = [key for key in required if key not in value]
    if missing:
        raise _LineError(f"{missing[0]!r} is missing; {keys}")
    unknown = [key for key in value if key not in (*required, *optional)]
    if unknown:
        raise _LineError(f"{unknown[0]!r} is not known; {keys}")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise _LineError(f"{name} must be text, got {_shown(value)}")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields[name]
    if not isinstance(value, list):
        raise _LineError(f"{name} must be a list, got {_shown(value)}")
    return value


def _label(value: Any, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise _LineError(f"label {_shown(value)} is not known; expected one of {', '.join(known)}")
    return value


def _span(fields: Mapping[str, Any], text: str) -> tuple[int, int]:
    start, end = fields["start"], fields["end"]
    whole = all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end))
    if not whole or not 0 <= start < end <= len(text):
        raise _LineError(
            f"start and end, {_shown(start)} and {_shown(end)}, are not a part of the text's {len(text)} characters"
        )
    return start, end


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
