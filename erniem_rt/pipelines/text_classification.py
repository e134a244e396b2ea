"""Text classification: labels with scores, for texts and pairs of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, overload

import numpy as np

from erniem_rt.checks import is_count, require_choice
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.answers import Label, LabelScore, LoneLabels, label_names, sigmoid, softmax
from erniem_rt.pipelines.base import CommonOptions, Job, Options, Pipeline, RunOptions
from erniem_rt.pipelines.inputs import encode_rows, require_mapping, require_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from erniem_rt.batching import Outputs
    from erniem_rt.pipelines.answers import Column
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer


Function = Literal["sigmoid", "softmax", "none"]

# The answer to one input in a call with options that change its type.
_AnyForm: TypeAlias = "Label | LabelScore | list[LabelScore] | InvalidInputError"

_FUNCTIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "sigmoid": sigmoid,
    "softmax": softmax,
    "none": lambda logits: logits,
}


class TextClassificationSettings(CommonOptions, total=False):
    """The options that do not change an answer's type: see :class:`TextClassificationPipeline`."""

    function_to_apply: Function | None


class TextClassificationOptions(TextClassificationSettings, RunOptions, total=False):
    """All options: see :class:`TextClassificationPipeline`."""

    top_k: int | Literal["best"] | None


@dataclass(frozen=True)
class _Options(Options):
    none_is_a_value: ClassVar[frozenset[str]] = frozenset({"top_k"})

    top_k: int | Literal["best"] | None = "best"
    function_to_apply: Function | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "top_k", _checked_top_k(self.top_k))
        require_choice("function_to_apply", self.function_to_apply, Function, optional=True)


class TextClassificationPipeline(Pipeline[Label], Generic[Label, LoneLabels]):
    """Head ``cls``: which labels fit a text, or a pair of texts.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        top_k: How many labels to return, the best first; None returns all; ``"best"``, the default, returns the best
            one without a list around it.
        function_to_apply: Turns logits into scores: ``"sigmoid"``, ``"softmax"`` or ``"none"``. By default
            ``"none"`` for ``problem_type`` "regression", sigmoid for "multi_label_classification" and for a single
            label, softmax for the rest.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`.
    """

    task = "text-classification"
    head = "cls"
    optional = ("text_pair",)
    options_type = _Options

    @overload
    def __init__(
        self: TextClassificationPipeline,
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[TextClassificationSettings],
    ) -> None: ...
    @overload
    def __init__(
        self: TextClassificationPipeline[Any, Any],
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[TextClassificationOptions],
    ) -> None: ...
    def __init__(self, session: Session, tokenizer: Tokenizer, **options: Unpack[TextClassificationOptions]) -> None:
        super().__init__(session, tokenizer, **options)  # type: ignore[misc]
        self._labels = label_names(self.manifest)
        self._function = _default_function(self.manifest.problem_type, len(self._labels))

    @overload
    def __call__(self, inputs: str, **options: Unpack[TextClassificationSettings]) -> LoneLabels: ...
    @overload
    def __call__(self, inputs: Mapping[str, str], **options: Unpack[TextClassificationSettings]) -> Label: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[TextClassificationSettings]
    ) -> Label | list[Label]: ...
    @overload
    def __call__(self, inputs: Column, **options: Unpack[TextClassificationSettings]) -> list[Label]: ...
    @overload
    def __call__(self, inputs: Iterable[object], **options: Unpack[TextClassificationSettings]) -> Iterator[Label]: ...
    @overload
    def __call__(
        self, inputs: str, **options: Unpack[TextClassificationOptions]
    ) -> LoneLabels | list[LabelScore] | InvalidInputError: ...
    @overload
    def __call__(self, inputs: Mapping[str, str], **options: Unpack[TextClassificationOptions]) -> _AnyForm[Label]: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[TextClassificationOptions]
    ) -> _AnyForm[Label] | list[_AnyForm[Label]]: ...
    @overload
    def __call__(self, inputs: Column, **options: Unpack[TextClassificationOptions]) -> list[_AnyForm[Label]]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], **options: Unpack[TextClassificationOptions]
    ) -> Iterator[_AnyForm[Label]]: ...
    def __call__(self, inputs: Any, **options: Unpack[TextClassificationOptions]) -> Any:
        """Classify one text, a list of texts or a stream of texts.

        A text is a str, or ``{"text": ..., "text_pair": ...}`` for a pair. Rows longer than ``max_seq_len`` are cut at
        the end of the longer text.

        Args:
            inputs: One text, a list or a stream of texts.
            **options: By default the pipeline's own.

        Returns:
            The same types as transformers' pipeline. Per input a list of ``{"label": str, "score": float}`` or, with
            ``top_k="best"``, one of them; a list of those for a list, an iterator for a stream. A single str with
            ``top_k="best"`` gives a list of one.

        Raises:
            InvalidInputError: An input is not text or is empty, or an option is invalid.
        """
        asked = self.options_for(options)
        top_k, scored = asked.top_k, _FUNCTIONS[asked.function_to_apply or self._function]
        limit = self._limit(asked)

        def finish(outputs: list[Outputs]) -> Any:
            answers = self._ranked(scored(outputs[0]["logits"].astype(np.float64)))
            return answers[0] if top_k == "best" else answers[:top_k]

        def prepare(items: list[object]) -> list[Job[Any]]:
            return [Job([row], finish) for row in self._rows([self._texts(item) for item in items], limit)]

        return self.formed(inputs, self._answer_together(inputs, prepare, asked), asked)

    def formed(self, inputs: Any, found: Any, asked: Any) -> Any:  # noqa: ARG002
        """``found``, in a list if a lone str has one label."""
        return [found] if isinstance(inputs, str) and isinstance(found, dict) else found

    def _texts(self, item: object) -> tuple[str, str | None]:
        pair = None
        if isinstance(item, Mapping):
            fields = require_mapping(self.task, item, ["text"], ["text_pair"])
            item = fields["text"]
            pair = fields.get("text_pair")
        text = require_text("text", item)
        if pair is not None:
            pair = require_text("text_pair", pair)
        return text, pair

    def _rows(self, texts: list[tuple[str, str | None]], limit: int) -> list[list[int]]:
        pairs = [pair for _, pair in texts if pair is not None]
        if pairs and len(pairs) < len(texts):  # a batch has texts only, or pairs only
            return [row for text in texts for row in self._rows([text], limit)]
        first, threads = [text for text, _ in texts], self.session.threads
        return encode_rows(self.tokenizer, first, pairs or None, max_length=limit, threads=threads)

    def _ranked(self, scores: NDArray[np.float64]) -> list[LabelScore]:
        named = zip(self._labels, scores.tolist(), strict=True)
        return [{"label": label, "score": score} for label, score in sorted(named, key=lambda pair: -pair[1])]


def _checked_top_k(top_k: Any) -> int | Literal["best"] | None:
    if is_count(top_k):
        return int(top_k)
    if top_k is None:
        return None
    if isinstance(top_k, str) and top_k == "best":
        return "best"
    raise InvalidInputError(f"top_k must be a positive integer, None or 'best', got {top_k!r}.")


def _default_function(problem_type: str | None, labels: int) -> str:
    """Return the function that transformers' pipeline would apply."""
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"
