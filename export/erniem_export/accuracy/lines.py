"""One line of a task set, for each head: what a pipeline is asked, and what it should answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["READERS", "Example", "LineError", "Task"]


class LineError(Exception):
    """What is wrong with a line; told with its number."""


@dataclass(frozen=True)
class Task:
    """A head; of ``cls`` and ``ner`` the labels by id, of ``cls`` the problem type, None if the config has none."""

    head: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    @property
    def metric(self) -> str | None:
        """The name of what is measured; None if nothing is defined for this task."""
        if self.head != "cls":
            return {"qa": "exact_match", "mc": "accuracy"}.get(self.head, "f1")
        if self.problem_type == "multi_label_classification":
            return "micro_f1"
        if self.problem_type == "regression" or len(self.labels) == 1:  # a single output, as transformers reads it
            return "pearson" if len(self.labels) == 1 else None
        return "accuracy"


@dataclass(frozen=True)
class Example:
    """``given``: what the pipeline takes (for ``ie`` the text), ``prompt`` what to extract, ``wanted`` the answer.

    The answer is a tuple of texts that are right each (``qa``; empty if there is no answer), a label, or a number
    (``cls``), the index of a choice (``mc``), or a frozenset: of labels, of spans ``(start, end)`` or of
    ``(start, end, label)``, half-open in code points.
    """

    given: str | Mapping[str, Any]
    wanted: Any
    prompt: str = ""


def _question(_task: Task, fields: Any) -> Example:
    fields = _fields(fields, "question", "context", "answers")
    context = _text(fields, "context")
    answers = fields["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, str) and answer for answer in answers):
        raise LineError("answers must be a list of texts, each of them right; an empty one if there is no answer")
    for answer in answers:
        if answer not in context:
            raise LineError(f"the answer {answer!r} is not in the context")
    return Example({"question": _text(fields, "question"), "context": context}, tuple(answers))


def _labelled(task: Task, fields: Any) -> Example:
    key = "labels" if task.metric == "micro_f1" else "label"
    fields = _fields(fields, "text", key, optional=("text_pair",))
    given = {name: _text(fields, name) for name in ("text", "text_pair") if name in fields}
    value = fields[key]
    if task.metric == "micro_f1":
        if not isinstance(value, list):
            raise LineError(f"labels must be a list, got {_shown(value)}")
        return Example(given, frozenset(_label(label, task.labels) for label in value))
    if task.metric == "pearson":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise LineError(f"label must be a number, got {_shown(value)}")
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
        raise LineError(f"choices must be a list of texts, got {_shown(choices)}")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise LineError(f"label must be the index of a choice, from 0 to {len(choices) - 1}, got {_shown(label)}")
    return Example({"prompt": _text(fields, "prompt"), "choices": choices}, label)


def _extraction(_task: Task, fields: Any) -> Example:
    fields = _fields(fields, "prompt", "text", "spans")
    prompt, text = _text(fields, "prompt"), _text(fields, "text")
    if prompt.rstrip().endswith(("]", "］")):
        raise LineError(f"the prompt {prompt!r} ends in options, and their answer is no span: leave it out")
    spans = [_span(_fields(item, "start", "end", what="a span"), text) for item in _list(fields, "spans")]
    return Example(text, frozenset(spans), prompt)


READERS: dict[str, Callable[[Task, Any], Example]] = {
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
        raise LineError(f"{keys}; this is {_shown(value)}")
    missing = [key for key in required if key not in value]
    if missing:
        raise LineError(f"{missing[0]!r} is missing; {keys}")
    unknown = [key for key in value if key not in (*required, *optional)]
    if unknown:
        raise LineError(f"{unknown[0]!r} is not known; {keys}")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise LineError(f"{name} must be text, got {_shown(value)}")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields[name]
    if not isinstance(value, list):
        raise LineError(f"{name} must be a list, got {_shown(value)}")
    return value


def _label(value: Any, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise LineError(f"label {_shown(value)} is not known; expected one of {', '.join(known)}")
    return value


def _span(fields: Mapping[str, Any], text: str) -> tuple[int, int]:
    start, end = fields["start"], fields["end"]
    whole = all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end))
    if not whole or not 0 <= start < end <= len(text):
        raise LineError(
            f"start and end, {_shown(start)} and {_shown(end)}, are not a part of the text's {len(text)} characters"
        )
    return start, end


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
