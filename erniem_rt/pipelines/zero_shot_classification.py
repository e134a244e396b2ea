"""Zero-shot classification: scores any label as a hypothesis about a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from erniem_rt.checks import require_flag
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.answers import Ranking, ZeroShotAnswer, label_names, softmax
from erniem_rt.pipelines.base import CommonOptions, Job, Options, Pipeline, RunOptions
from erniem_rt.pipelines.inputs import (
    encode_rows,
    encode_seconds,
    pair_rows,
    quoted,
    require_text,
    require_tokens,
    split_at_commas,
    strings,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from erniem_rt.batching import Outputs
    from erniem_rt.pipelines.answers import Column, Text
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer


_PLACE = "{}"


class _Settings(CommonOptions, total=False):
    hypothesis_template: str | None
    multi_label: bool | None


class ZeroShotClassificationSettings(_Settings, total=False):
    """The options that do not change an answer's type: see :class:`ZeroShotClassificationPipeline`."""

    candidate_labels: str | Column | None


class ZeroShotClassificationOptions(ZeroShotClassificationSettings, RunOptions, total=False):
    """All options: see :class:`ZeroShotClassificationPipeline`."""


class _CallOptions(_Settings, RunOptions, total=False):
    pass


@dataclass(frozen=True)
class _Options(Options):
    candidate_labels: Any = None
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(require_flag, "multi_label")
        self._check(_candidates, "candidate_labels")
        template = self.hypothesis_template
        if not isinstance(template, str) or _PLACE not in template:
            raise InvalidInputError(
                f"hypothesis_template must be text with {_PLACE} where the label goes, got {template!r}."
            )


class ZeroShotClassificationPipeline(Pipeline[Ranking]):
    """Head ``cls`` trained on natural language inference: does the text entail "This example is ..."?

    Args:
        session: The model. Its labels' names must identify entailment ("entail..." in any case) and contradiction
            ("contra...", or the other one of two).
        tokenizer: Its tokenizer.
        candidate_labels: A list, array or Series of labels, or one str with commas between them, of any script. The
            enumeration comma (、) divides only where no other comma does. Needed here or in the call.
        hypothesis_template: The hypothesis, with ``{}`` in place of the label.
        multi_label: Whether several labels may be true: each is then scored alone, entailment against contradiction.
            Otherwise the scores sum to 1. A single candidate is always scored alone.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`; a text makes a row per candidate label.

    Raises:
        InvalidInputError: No label, or more than one, is called entailment.
    """

    task = "zero-shot-classification"
    head = "cls"
    options_type = _Options

    @overload
    def __init__(
        self: ZeroShotClassificationPipeline,
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[ZeroShotClassificationSettings],
    ) -> None: ...
    @overload
    def __init__(
        self: ZeroShotClassificationPipeline[Any],
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[ZeroShotClassificationOptions],
    ) -> None: ...
    def __init__(
        self, session: Session, tokenizer: Tokenizer, **options: Unpack[ZeroShotClassificationOptions]
    ) -> None:
        super().__init__(session, tokenizer, **options)  # type: ignore[misc]
        self._labels = label_names(self.manifest)
        self._entailment = self._label_id("entail")

    @overload
    def __call__(
        self, inputs: Text, candidate_labels: str | Column | None = ..., **options: Unpack[_Settings]
    ) -> Ranking: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], candidate_labels: str | Column | None = ..., **options: Unpack[_Settings]
    ) -> Ranking | list[Ranking]: ...
    @overload
    def __call__(
        self, inputs: Column, candidate_labels: str | Column | None = ..., **options: Unpack[_Settings]
    ) -> list[Ranking]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], candidate_labels: str | Column | None = ..., **options: Unpack[_Settings]
    ) -> Iterator[Ranking]: ...
    @overload
    def __call__(
        self, inputs: Text, candidate_labels: str | Column | None = ..., **options: Unpack[_CallOptions]
    ) -> Ranking | InvalidInputError: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], candidate_labels: str | Column | None = ..., **options: Unpack[_CallOptions]
    ) -> Ranking | InvalidInputError | list[Ranking | InvalidInputError]: ...
    @overload
    def __call__(
        self, inputs: Column, candidate_labels: str | Column | None = ..., **options: Unpack[_CallOptions]
    ) -> list[Ranking | InvalidInputError]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], candidate_labels: str | Column | None = ..., **options: Unpack[_CallOptions]
    ) -> Iterator[Ranking | InvalidInputError]: ...
    def __call__(
        self, inputs: Any, candidate_labels: str | Column | None = None, **options: Unpack[_CallOptions]
    ) -> Any:
        """Classify one text, a list of texts or a stream of texts.

        A text that exceeds ``max_seq_len`` together with a hypothesis is cut at its end; hypotheses are never cut.

        Args:
            inputs: Texts, each a str or ``{"text": ...}``.
            candidate_labels: As for the pipeline.
            **options: By default the pipeline's own.

        Returns:
            Per input ``{"sequence": str, "labels": list[str], "scores": list[float]}``, the best label first, ties in
            the order of ``candidate_labels``; a list for a list, an iterator for a stream.

        Raises:
            InvalidInputError: An input is not text or is empty; labels are missing, empty or repeated; the template has
                no ``{}``; a hypothesis leaves no room for a text; the contradiction label is needed but missing.
        """
        asked = self.options_for({**options, "candidate_labels": candidate_labels})
        limit = self._limit(asked)
        candidates, multi_label = asked.candidate_labels, asked.multi_label
        if candidates is None:
            raise InvalidInputError(
                f'{self.task} needs candidate_labels, like ["politics", "sports"]: give them to the pipeline or to its '
                "call."
            )
        for i, label in enumerate(candidates):
            require_tokens(f"candidate_labels[{i}]", len(self.tokenizer.tokenize(label)))
        hypotheses = encode_seconds(
            self.tokenizer,
            [asked.hypothesis_template.replace(_PLACE, label) for label in candidates],
            names=[f"the hypothesis for candidate label {quoted(label)}" for label in candidates],
            max_length=limit,
        )
        contradiction = self._label_id("contra") if multi_label or len(candidates) == 1 else None

        def job(sequence: str, ids: list[int]) -> Job[ZeroShotAnswer]:
            def finish(outputs: list[Outputs]) -> ZeroShotAnswer:
                scores = self._scores(np.stack([output["logits"] for output in outputs]), contradiction)
                order = np.argsort(-scores, kind="stable")
                return {
                    "sequence": sequence,
                    "labels": [candidates[i] for i in order],
                    "scores": [float(scores[i]) for i in order],
                }

            return Job(pair_rows(self.tokenizer, ids, hypotheses), finish)

        def prepare(items: list[object]) -> list[Job[ZeroShotAnswer]]:
            texts = [text_of(self.task, item) for item in items]
            threads = self.session.threads
            rows = encode_rows(self.tokenizer, texts, max_length=limit, threads=threads, add_special_tokens=False)
            return [job(text, ids) for text, ids in zip(texts, rows, strict=True)]

        return self._answer_together(inputs, prepare, asked)

    def _scores(self, logits: NDArray[Any], contradiction: int | None) -> NDArray[np.float64]:
        """Return scores ``(candidates,)`` from logits ``(candidates, labels)``."""
        logits = logits.astype(np.float64)
        if contradiction is None:
            return softmax(logits[:, self._entailment])
        return softmax(logits[:, [contradiction, self._entailment]])[:, 1]

    def _label_id(self, prefix: str) -> int:
        found = [i for i, label in enumerate(self._labels) if label.lower().startswith(prefix)]
        if prefix == "contra" and not found and len(self._labels) == 2:
            return 1 - self._entailment
        if len(found) != 1:
            raise InvalidInputError(
                f"{self.task} needs a model whose labels name one that starts with {prefix!r}; this one's are "
                f"{', '.join(self._labels)}. Use a model trained on natural language inference, exported with its "
                "label names."
            )
        return found[0]


def _candidates(name: str, labels: object) -> list[str]:
    if isinstance(labels, str):
        labels = split_at_commas(labels)
    labels = strings(name, labels, "a list of str, or one str with commas")
    if not labels:
        raise InvalidInputError(f"{name} is empty: expected at least one label.")
    checked = [require_text(f"{name}[{i}]", label) for i, label in enumerate(labels)]
    for i, label in enumerate(checked):
        if label in checked[:i]:
            raise InvalidInputError(f"{name} has {quoted(label)} twice: give each label once.")
    return checked
