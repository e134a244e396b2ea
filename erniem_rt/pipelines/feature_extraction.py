"""Feature extraction: one vector per text, pooled from the hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

import numpy as np

from erniem_rt.checks import require_choice, require_flag
from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines.answers import Embedding, Embeddings
from erniem_rt.pipelines.base import CommonOptions, Job, Options, Pipeline, RunOptions
from erniem_rt.pipelines.inputs import encode_rows, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from erniem_rt.batching import Outputs
    from erniem_rt.pipelines.answers import Column, Text, Vector
    from erniem_rt.session import Session
    from erniem_rt.tokenizer import Tokenizer


Pooling = Literal["mean", "cls", "pooler", "none"]

_SMALLEST_NORM = 1e-12


class FeatureExtractionSettings(CommonOptions, total=False):
    """The options that do not change an answer's type: see :class:`FeatureExtractionPipeline`."""

    normalize: bool | None


class FeatureExtractionOptions(FeatureExtractionSettings, RunOptions, total=False):
    """All options: see :class:`FeatureExtractionPipeline`."""

    pooling: Pooling | None


@dataclass(frozen=True)
class _Options(Options):
    pooling: Pooling | None = None
    normalize: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("pooling", self.pooling, Pooling, optional=True)
        self._check(require_flag, "normalize")


class FeatureExtractionPipeline(Pipeline[Embedding], Generic[Embedding, Embeddings]):
    """Head ``base``: one vector per text.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        pooling: ``"mean"`` over all tokens, special tokens included (as in sentence-transformers), ``"cls"`` for the
            hidden state of the first token, ``"pooler"`` for the model's pooler output, or ``"none"`` for the hidden
            state of every token, special tokens included. By default the checkpoint's value or else ``"mean"``.
        normalize: Scale each vector to length 1. By default the checkpoint's value or else False.
        **options: :class:`~erniem_rt.pipelines.base.RunOptions`.
    """

    task = "feature-extraction"
    head = "base"
    options_type = _Options

    @overload
    def __init__(
        self: FeatureExtractionPipeline,
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[FeatureExtractionSettings],
    ) -> None: ...
    @overload
    def __init__(
        self: FeatureExtractionPipeline[Any, Any],
        session: Session,
        tokenizer: Tokenizer,
        **options: Unpack[FeatureExtractionOptions],
    ) -> None: ...
    def __init__(self, session: Session, tokenizer: Tokenizer, **options: Unpack[FeatureExtractionOptions]) -> None:
        super().__init__(session, tokenizer, **options)  # type: ignore[misc]
        self.pooling, self.normalize = self._vectors(self._options)

    @overload
    def __call__(self, inputs: Text, **options: Unpack[FeatureExtractionSettings]) -> Embedding: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[FeatureExtractionSettings]
    ) -> Embedding | Embeddings: ...
    @overload
    def __call__(self, inputs: Column, **options: Unpack[FeatureExtractionSettings]) -> Embeddings: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], **options: Unpack[FeatureExtractionSettings]
    ) -> Iterator[Embedding]: ...
    @overload
    def __call__(
        self, inputs: Text, **options: Unpack[FeatureExtractionOptions]
    ) -> Embedding | Vector | InvalidInputError: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, object], **options: Unpack[FeatureExtractionOptions]
    ) -> Embedding | Embeddings | list[Vector | InvalidInputError] | Vector | InvalidInputError: ...
    @overload
    def __call__(
        self, inputs: Column, **options: Unpack[FeatureExtractionOptions]
    ) -> Embeddings | Vector | list[Vector | InvalidInputError]: ...
    @overload
    def __call__(
        self, inputs: Iterable[object], **options: Unpack[FeatureExtractionOptions]
    ) -> Iterator[Embedding | Vector | InvalidInputError]: ...
    def __call__(self, inputs: Any, **options: Unpack[FeatureExtractionOptions]) -> Any:
        """Turn one text, a list of texts or a stream of texts into float32 vectors.

        Texts longer than ``max_seq_len`` are cut at their end.

        Args:
            inputs: Texts, each a str or ``{"text": ...}``.
            **options: :class:`~erniem_rt.pipelines.base.RunOptions`.

        Returns:
            Float32: ``(hidden,)`` for one text and ``(texts, hidden)`` for a list; an iterator for a stream. With
            ``pooling="none"`` ``(tokens, hidden)`` per text, and a list of these for a list. Results with errors
            (``errors="return"``) are a list.

        Raises:
            InvalidInputError: An input is not text, or is empty.
        """
        asked = self.options_for(options)
        pooling, normalize = self._vectors(asked)
        jobs = partial(self._jobs, self._limit(asked), partial(_finish, pooling, normalize))
        return self.formed(inputs, self._answer_together(inputs, jobs, asked), asked)

    def formed(self, inputs: Any, found: Any, asked: Any) -> Any:  # noqa: ARG002
        """Return ``found``, with the vectors of a list stacked to one array unless there is an error among them."""
        if not isinstance(found, list) or self._vectors(asked)[0] == "none":
            return found
        if not all(isinstance(vector, np.ndarray) for vector in found):
            return found
        hidden = next(spec.shape[-1] for spec in self.manifest.outputs if spec.name == "last_hidden_state")
        return np.stack(found) if found else np.empty((0, int(hidden)), np.float32)

    def _vectors(self, asked: Any) -> tuple[str, bool]:
        """Return the pooling of a call with these options, and whether to scale vectors to length 1."""
        defaults = self.manifest.defaults
        pooling: str = asked.pooling or defaults.pooling or "mean"
        require_choice("pooling", pooling, Pooling)
        if pooling == "pooler" and all(spec.name != "pooler_output" for spec in self.manifest.outputs):
            raise InvalidInputError(
                f"pooling='pooler' needs pooler_output, which {self.manifest.artifact} lacks, because its "
                "checkpoint had no pooler: use pooling='mean' or 'cls'."
            )
        return pooling, bool(defaults.normalize) if asked.normalize is None else asked.normalize

    def _jobs(self, limit: int, finish: Callable[[list[Outputs]], Vector], items: list[object]) -> list[Job[Vector]]:
        texts = [text_of(self.task, item) for item in items]
        rows = encode_rows(self.tokenizer, texts, max_length=limit, threads=self.session.threads)
        return [Job([row], finish) for row in rows]


def _finish(pooling: str, normalize: bool, outputs: list[Outputs]) -> Vector:
    # Always a copy: the outputs are views that would keep a whole batch in memory.
    vectors = np.array(_pooled(pooling, outputs[0]), dtype=np.float32)
    if normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _SMALLEST_NORM)
    return vectors


def _pooled(pooling: str, output: Outputs) -> NDArray[Any]:
    if pooling == "pooler":
        return output["pooler_output"]
    states = output["last_hidden_state"]
    if pooling == "mean":
        return np.asarray(states.mean(axis=0, dtype=np.float32))
    return np.asarray(states[0]) if pooling == "cls" else states
