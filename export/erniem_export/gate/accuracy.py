"""Measures how much of the task's metric an artifact's precision costs, from the pipelines' answers to a task set."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from string import punctuation
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from erniem_export.errors import ParityError
from erniem_export.mask_mode import UIE_M, at_full_width
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.information_extraction import InformationExtractionPipeline
from erniem_rt.pipelines.multiple_choice import MultipleChoicePipeline
from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline
from erniem_rt.pipelines.text_classification import TextClassificationPipeline
from erniem_rt.pipelines.token_classification import TokenClassificationPipeline
from erniem_rt.session import Session
from erniem_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from erniem_export.gate.task_set import Example, TaskSet
    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_rt.manifest import Manifest
    from erniem_rt.pipelines.base import Progress

__all__ = ["Accuracy", "AccuracyCheck", "ReferenceSession", "answers", "figures"]

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


class Runs(Protocol):
    """The part of a session that pipelines use."""

    manifest: Manifest
    threads: int

    def run_all(self, batches: Iterable[Mapping[str, ArrayLike | None]]) -> Iterator[dict[str, NDArray[Any]]]:
        """See :meth:`erniem_rt.Session.run_all`."""


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
    task_set: TaskSet, runs: Runs, tokenizer: Tokenizer, report_progress: ReportProgress = lambda _: None
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
