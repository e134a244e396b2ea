"""Labelled examples of a checkpoint's task: a JSON object on each line, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erniem_export.accuracy.lines import READERS, Example, LineError, Task
from erniem_export.errors import ExportError
from erniem_export.heads import LABELLED

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_export.checkpoint import Checkpoint

__all__ = ["FEWEST", "TaskSet", "read_task_set", "task_set_of"]

# With fewer, one answer weighs more than half a point, and a fall of that size could not be told from none.
FEWEST = 200


@dataclass(frozen=True)
class TaskSet:
    """``name`` of the file, the ``task`` that it is of, and its ``examples``."""

    name: str
    task: Task
    examples: tuple[Example, ...]


def task_set_of(checkpoint: Checkpoint, given: Path | None, *, takes_ids: bool = True) -> TaskSet | None:
    """Return the task set that was given, or else the checkpoint's own; None if there is neither.

    A checkpoint's own is left alone where there is nothing to ask: in head ``base``, and in a graph that takes no ids.

    Raises:
        ExportError: It cannot be read, is not of this head, or there is no tokenizer to read its texts with.
    """
    can_answer = takes_ids and checkpoint.head in READERS
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
        ExportError: There is no such file, it has too few examples, or one of its lines is not an example of this
            task; the message names the line.
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
        # Not splitlines(), which also splits at characters that JSON allows within a string.
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
        return READERS[task.head](task, fields)
    except LineError as error:
        raise ExportError(f"{where}: {error}") from error
