"""Answers to a task set: the runtime's own pipelines, over an artifact or over the PyTorch model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from erniem_export.mask_mode import UIE_M, at_full_width
from erniem_rt.pipelines.information_extraction import InformationExtractionPipeline
from erniem_rt.pipelines.multiple_choice import MultipleChoicePipeline
from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline
from erniem_rt.pipelines.text_classification import TextClassificationPipeline
from erniem_rt.pipelines.token_classification import TokenClassificationPipeline

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from erniem_export.accuracy.lines import Example
    from erniem_export.accuracy.task_set import TaskSet
    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_rt.manifest import Manifest
    from erniem_rt.pipelines.base import Progress
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

__all__ = ["ReferenceSession", "answers"]

# Is told how many examples are answered.
Told = Callable[[int], None]

_HALF = 0.5


class Runs(Protocol):
    """What a pipeline needs of a session."""

    manifest: Manifest
    threads: int

    def run_all(self, batches: Iterable[Mapping[str, ArrayLike | None]]) -> Iterator[dict[str, NDArray[Any]]]:
        """As :meth:`erniem_rt.Session.run_all`."""


class ReferenceSession:
    """The PyTorch model in place of an artifact, for a pipeline.

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
        """The outputs of each batch, in order."""
        return (self.run(**batch) for batch in batches)

    def run(self, *, input_ids: ArrayLike | None, attention_mask: ArrayLike | None) -> dict[str, NDArray[Any]]:
        """Outputs by name; both arrays are int64 ``(batch, sequence)``, for ``mc`` ``(batch, choices, sequence)``."""
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


def answers(task_set: TaskSet, runs: Runs, tokenizer: Tokenizer, told: Told = lambda _: None) -> list[Any]:
    """The answer to each example, of the type of ``Example.wanted`` (one text for ``qa``)."""
    session = cast("Session", runs)
    found = _ANSWER[task_set.task.head](task_set, session, tokenizer, lambda done, _: told(done))
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
    """A call takes one schema, so texts with the same prompt go together."""
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
