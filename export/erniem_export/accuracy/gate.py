"""The accuracy gate: what an artifact's answers to a task set are worth, beside the PyTorch model's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from erniem_export.accuracy.answers import ReferenceSession, answers
from erniem_export.accuracy.metrics import figures
from erniem_export.errors import ParityError
from erniem_rt.errors import InvalidInputError
from erniem_rt.session import Session
from erniem_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from erniem_export.accuracy.answers import Runs
    from erniem_export.accuracy.task_set import TaskSet
    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_rt.manifest import Manifest

__all__ = ["Accuracy", "AccuracyGate"]

# In points of 100. In fp32 the answers are the same; the little that is left lets through a single one that the model
# itself leaves open, by less than rounding, among 2,000 or more.
FALLS = {"fp32": 0.05, "other": 0.5}
# For the rounding of differences of percentages: 3 answers of 600 are half a point.
_ROUNDING = 1e-9


_opened = partial(Session, engine="onnxruntime", verify=False)


@dataclass(frozen=True)
class Accuracy:
    """Figures of the artifact (``found``) and of the PyTorch model (``reference``), by the metric's name.

    ``same_answers`` counts the examples to which both answer alike; None where answers are numbers.
    """

    task_set: str
    examples: int
    reference: Mapping[str, float]
    found: Mapping[str, float]
    same_answers: int | None
    may_fall: float

    def failures(self) -> list[str]:
        """What became worse by more than it may."""
        return [
            f"{name} on {self.task_set} ({self.examples} examples) falls from {before:.2f} to {self.found[name]:.2f}, "
            f"by {before - self.found[name]:.2f} points; {self.may_fall:g} are allowed"
            for name, before in self.reference.items()
            if not before - self.found[name] <= self.may_fall + _ROUNDING
        ]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the report."""
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


class AccuracyGate:
    """Compares artifacts with the model that they were exported from, whose answers are computed once.

    Args:
        task_set: What to ask.
        model: The model in float32.
        tokenizer_dir: Folder of the tokenizer's files, those that come with the artifact.
        told: Is told what is done, how far it is, and of how much.
    """

    def __init__(
        self,
        task_set: TaskSet,
        model: ErnieMPreTrainedModel,
        tokenizer_dir: Path,
        told: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        self._task_set = task_set
        self._model = model
        self._tokenizer = Tokenizer.from_dir(tokenizer_dir, verify=False)
        self._told = told
        self._reference: list[Any] | None = None

    def compare(
        self,
        artifact: Path,
        report: Mapping[str, Any],
        open_session: Callable[[Path], Session] = _opened,
    ) -> dict[str, Any]:
        """Ask an artifact that passed the comparison of outputs; return its ``report`` with ``accuracy`` added.

        ``open_session`` opens it, whose files were just verified.

        Raises:
            ParityError: A figure falls by more than it may, and the report is attached.
            InvalidInputError: An example cannot be asked, for its question leaves no room for a text.
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
            raise InvalidInputError(f"the task set {task_set.name} cannot be asked: {error}") from error
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

    def _answers(self, who: str, session: Runs) -> list[Any]:
        total = len(self._task_set.examples)
        try:
            found = answers(
                self._task_set,
                session,
                self._tokenizer,
                lambda done: self._told(f"{self._task_set.name}, answers of {who}", done, total),
            )
        finally:
            self._told("", 0, 0)
        return found


def _is_fp32(manifest: Manifest) -> bool:
    return {manifest.precision.get("weights"), manifest.precision.get("embedding")} == {"fp32"}


def _remedy(manifest: Manifest) -> str:
    if _is_fp32(manifest):
        return "Export again with other versions of torch and onnxruntime, and report it with the versions."
    if manifest.precision.get("weights") == "int8":
        return "Calibrate on text like what will be served (--calibration FILE), or take a higher precision."
    return "Take a higher precision."
