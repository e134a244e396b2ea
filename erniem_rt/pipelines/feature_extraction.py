"""Vectors for texts: pooled hidden states."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines._options import require_choice, require_flag
from erniem_rt.pipelines._rows import encode_rows
from erniem_rt.pipelines.base import Job, Outputs, Pipeline, RunOptions, text_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer

__all__ = ["FeatureExtractionPipeline"]

Pooling = Literal["mean", "cls", "pooler", "none"]

_SMALLEST_NORM = 1e-12


class FeatureExtractionPipeline(Pipeline):
    """Head ``base``: one vector per text.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        pooling: ``"mean"`` over all tokens, special tokens included (as sentence-transformers does), the hidden state
            of the first token with ``"cls"``, the model's own ``"pooler"`` output, or ``"none"`` for the hidden state
            of every token, special tokens included. If left out, what the checkpoint says, otherwise ``"mean"``.
        normalize: Scale each vector to length 1. If left out, as the checkpoint says, otherwise not.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`.
    """

    task = "feature-extraction"
    head = "base"

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> None:
        super().__init__(session, tokenizer, **options)
        defaults = self.manifest.defaults
        wanted = defaults.pooling or "mean" if pooling is None else pooling
        require_choice("pooling", wanted, Pooling)
        if wanted == "pooler" and all(spec.name != "pooler_output" for spec in self.manifest.outputs):
            raise InvalidInputError(
                f"pooling='pooler' needs pooler_output, which {self.manifest.artifact} does not give, for its "
                "checkpoint had no pooler: take pooling='mean' or 'cls'."
            )
        self.pooling = wanted
        self.normalize = require_flag("normalize", bool(defaults.normalize) if normalize is None else normalize)

    def __call__(self, inputs: Any, **options: Unpack[RunOptions]) -> Any:
        """Turn one text, a list of texts or a stream of texts into float32 vectors.

        Texts over ``max_seq_len`` are cut at their end.

        Args:
            inputs: Texts, each a str or ``{"text": ...}``.
            **options: :class:`~erniem_rt.pipelines.base.RunOptions`.

        Returns:
            ``(hidden,)`` for one text and ``(texts, hidden)`` for a list, float32; an iterator for a stream. With
            ``pooling="none"`` ``(tokens, hidden)`` per text, and a list of these for a list. A list that holds errors
            (``errors="return"``) stays a list.

        Raises:
            InvalidInputError: An input is not text, or is empty.
        """
        found = self._answer_together(inputs, partial(self._jobs, self._limit(options)), options)
        return self._stacked(found) if isinstance(found, list) else found

    def _stacked(self, found: list[Any]) -> Any:
        """Vectors as one array, where there is one per text."""
        if self.pooling == "none" or not all(isinstance(vector, np.ndarray) for vector in found):
            return found
        hidden = next(spec.shape[-1] for spec in self.manifest.outputs if spec.name == "last_hidden_state")
        return np.stack(found) if found else np.empty((0, int(hidden)), np.float32)

    def _jobs(self, limit: int, items: list[object]) -> list[Job[NDArray[np.float32]]]:
        texts = [text_of(self.task, item) for item in items]
        rows = encode_rows(self.tokenizer, texts, max_length=limit, threads=self.session.threads)
        return [Job([row], self._finish) for row in rows]

    def _finish(self, outputs: list[Outputs]) -> NDArray[np.float32]:
        # A copy, even of float32: the outputs are views that would keep a whole batch in memory.
        vectors = np.array(self._pooled(outputs[0]), dtype=np.float32)
        if self.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _SMALLEST_NORM)
        return vectors

    def _pooled(self, output: Outputs) -> NDArray[Any]:
        states = output["last_hidden_state"]
        if self.pooling == "mean":
            return np.asarray(states.mean(axis=0, dtype=np.float32))
        if self.pooling == "cls":
            return np.asarray(states[0])
        return states if self.pooling == "none" else output["pooler_output"]
