"""Labels for texts, with a score each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines._labels import label_names
from erniem_rt.pipelines._options import is_count, require_choice
from erniem_rt.pipelines._rows import encode_rows
from erniem_rt.pipelines._scores import sigmoid, softmax
from erniem_rt.pipelines.base import Job, Outputs, Pipeline, RunOptions, require_mapping, require_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

__all__ = ["TextClassificationPipeline"]

Function = Literal["sigmoid", "softmax", "none"]

_FUNCTIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "sigmoid": sigmoid,
    "softmax": softmax,
    "none": lambda logits: logits,
}


class TextClassificationPipeline(Pipeline):
    """Head ``cls``: which labels fit a text, or a pair of texts.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`.
    """

    task = "text-classification"
    head = "cls"
    optional = ("text_pair",)

    def __init__(self, session: Session, tokenizer: Tokenizer, **options: Unpack[RunOptions]) -> None:
        super().__init__(session, tokenizer, **options)
        self._labels = label_names(self.manifest)
        self._function = _default_function(self.manifest.problem_type, len(self._labels))

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | Literal["best"] | None = "best",
        function_to_apply: Function | None = None,
        **options: Unpack[RunOptions],
    ) -> Any:
        """Classify one text, a list of texts or a stream of texts.

        A text is a str, or ``{"text": ..., "text_pair": ...}`` for a pair. What is over ``max_seq_len`` is cut from
        the longer of the two, at its end.

        Args:
            inputs: What to classify.
            top_k: How many labels to return, the best first; None returns all, ``"best"`` the best one without a list
                around it.
            function_to_apply: What makes scores of the logits. By default nothing for ``problem_type`` "regression",
                sigmoid for "multi_label_classification" and for a single label, softmax for the rest.
            **options: :class:`~erniem_rt.pipelines.base.RunOptions`.

        Returns:
            The shapes of transformers' pipeline. Per input a list of ``{"label": str, "score": float}`` or, with
            ``top_k="best"``, one of them: a list of those for a list, an iterator for a stream. A lone str with
            ``top_k="best"`` is answered with a list of one.

        Raises:
            InvalidInputError: An input is not text or is empty, or an option is none of the above.
        """
        top_k = _checked_top_k(top_k)
        if function_to_apply is not None:
            require_choice("function_to_apply", function_to_apply, Function)
        scored = _FUNCTIONS[function_to_apply or self._function]
        limit = self._limit(options)

        def finish(outputs: list[Outputs]) -> Any:
            answers = self._ranked(scored(outputs[0]["logits"].astype(np.float64)))
            return answers[0] if top_k == "best" else answers[:top_k]

        def prepare(items: list[object]) -> list[Job[Any]]:
            return [Job([row], finish) for row in self._rows([self._texts(item) for item in items], limit)]

        answer = self._answer_together(inputs, prepare, options)
        return [answer] if isinstance(inputs, str) and isinstance(answer, dict) else answer

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
        if pairs and len(pairs) < len(texts):  # what is encoded together is all texts or all pairs
            return [row for text in texts for row in self._rows([text], limit)]
        first, threads = [text for text, _ in texts], self.session.threads
        return encode_rows(self.tokenizer, first, pairs or None, max_length=limit, threads=threads)

    def _ranked(self, scores: NDArray[np.float64]) -> list[dict[str, Any]]:
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
    """The choice of transformers' pipeline."""
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"
