"""Our pipelines beside transformers 4.57.6's, on nano's checkpoints and held-out texts: shared by tests and figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.agreement import classification, extraction, spans
from benchmarks.agreement.tally import TOLERANCE, Artifact, HeldOut, Tally

__all__ = ["COMPARISONS", "TOLERANCE", "Artifact", "Comparison", "HeldOut", "Tally"]


class Comparison(NamedTuple):
    """A task with options of ours, what it is compared with, and how: ``run(artifact, heldout, **arguments)``."""

    task: str
    options: str
    reference: str
    run: Callable[..., Tally]
    arguments: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Task and options."""
        return f"{self.task} {self.options}".strip()


_QA = "`QuestionAnsweringPipeline`, repaired"
_NER = "`TokenClassificationPipeline`"
_NER_WORDS = "transformers' aggregation, fed with our words"

COMPARISONS = (
    Comparison("question-answering", "", "transformers' decoder on the reference model", spans.decoded_answers),
    Comparison("question-answering", "align_to_words", _QA, spans.answers),
    Comparison(
        "question-answering",
        "align_to_words, max_seq_len=80, doc_stride=16",
        _QA,
        spans.answers,
        {"max_seq_len": 80, "doc_stride": 16},
    ),
    Comparison(
        "question-answering",
        "align_to_words, handle_impossible_answer, max_seq_len=80, doc_stride=16",
        f"{_QA}, and `[CLS]` raised",
        spans.answers_or_none,
        {"max_seq_len": 80, "doc_stride": 16},
    ),
    Comparison("text-classification", "top_k=None", "`TextClassificationPipeline`", classification.labels),
    Comparison("zero-shot-classification", "", "`ZeroShotClassificationPipeline`", classification.zero_shot),
    Comparison(
        "zero-shot-classification",
        "multi_label",
        "`ZeroShotClassificationPipeline`",
        classification.zero_shot,
        {"multi_label": True},
    ),
    Comparison("token-classification", "", _NER, spans.token_labels, {"ignore_labels": ["O"]}),
    Comparison("token-classification", "ignore_labels=[]", _NER, spans.token_labels, {"ignore_labels": []}),
    Comparison("token-classification", 'aggregation_strategy="simple"', _NER, spans.simple_entities),
    *(
        Comparison(
            "token-classification",
            f'aggregation_strategy="{strategy}"',
            _NER_WORDS,
            spans.entities_of_words,
            {"strategy": strategy},
        )
        for strategy in ("first", "average", "max")
    ),
    Comparison("multiple-choice", "", "the reference model, a row per choice", classification.choices),
    Comparison("information-extraction", "", "PaddleNLP's rules over the reference model", extraction.prompts),
    Comparison("feature-extraction", 'pooling="none"', "`FeatureExtractionPipeline`", classification.features),
)
