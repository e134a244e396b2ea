"""Reads and checks labelled examples of a checkpoint's task, one JSON object per line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erniem_export.errors import ExportError
from erniem_export.heads import LABELLED

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_export.checkpoint import Checkpoint

__all__ = ["FEWEST", "Example", "Task", "TaskSet", "read_task_set", "task_set_of"]

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
    examples = [_example(path, number, line, task) for number, line in _lines(path) if line.strip()]
    if len(examples) < FEWEST:
        raise ExportError(
            f"the task set {path} is too small: half a point cannot be seen in fewer than {FEWEST} examples, and it "
            f"holds {len(examples)}; add some, or leave it out"
        )
    return TaskSet(path.name, task, tuple(examples))


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        # Not splitlines(): it also splits at characters that JSON allows within a string.
        return list(enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1))
    except OSError as error:
        raise ExportError(f"the task set {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"the task set {path} is not UTF-8: {error.reason} at byte {error.start}") from error


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


def _question(_task: Task, fields: Any) -> Example:
    fields = _fields(fields, "question", "context", "answers")
    context = _text(fields, "context")
    answers = fields["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, str) and answer for answer in answers):
        raise _LineError("answers must be a list of texts, each of them right; an empty one if there is no answer")
    for answer in answers:
        if answer not in context:
            raise _LineError(f"the answer {answer!r} is not in the context")
    return Example({"question": _text(fields, "question"), "context": context}, tuple(answers))


def _labelled(task: Task, fields: Any) -> Example:
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


def _entities(task: Task, fields: Any) -> Example:
    fields = _fields(fields, "text", "entities")
    text = _text(fields, "text")
    kinds = tuple(dict.fromkeys(label.split("-", 1)[-1] for label in task.labels if label != "O"))
    found = set()
    for item in _list(fields, "entities"):
        entity = _fields(item, "start", "end", "label", what="an entity")
        found.add((*_span(entity, text), _label(entity["label"], kinds)))
    return Example(text, frozenset(found))


def _choices(_task: Task, fields: Any) -> Example:
    fields = _fields(fields, "prompt", "choices", "label")
    choices, label = fields["choices"], fields["label"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise _LineError(f"choices must be a list of texts, got {_shown(choices)}")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise _LineError(f"label must be the index of a choice, from 0 to {len(choices) - 1}, got {_shown(label)}")
    return Example({"prompt": _text(fields, "prompt"), "choices": choices}, label)


def _extraction(_task: Task, fields: Any) -> Example:
    fields = _fields(fields, "prompt", "text", "spans")
    prompt, text = _text(fields, "prompt"), _text(fields, "text")
    if prompt.rstrip().endswith(("]", "］")):
        raise _LineError(f"the prompt {prompt!r} ends in options, and their answer is no span: leave it out")
    spans = [_span(_fields(item, "start", "end", what="a span"), text) for item in _list(fields, "spans")]
    return Example(text, frozenset(spans), prompt)


_READERS: dict[str, Callable[[Task, Any], Example]] = {
    "qa": _question,
    "cls": _labelled,
    "ner": _entities,
    "mc": _choices,
    "ie": _extraction,
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
