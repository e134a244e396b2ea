"""The types of the tasks' answers and of pipelines' inputs, for type checkers, and the scores in answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from erniem_rt.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from typing_extensions import TypeVar

    from erniem_rt.manifest import Manifest
else:
    import typing

    def TypeVar(name, default):  # noqa: N802, ARG001
        """Python's own takes no default before 3.13."""
        return typing.TypeVar(name)


class QuestionAnswer(TypedDict):
    """An answer found in a context: ``context[start:end]``, in code points; ``score`` is between 0 and 1."""

    answer: str
    score: float
    start: int
    end: int


class LabelScore(TypedDict):
    """A label and its score."""

    label: str
    score: float


class ZeroShotAnswer(TypedDict):
    """The text, its candidate labels with the best first, and a score for each."""

    sequence: str
    labels: list[str]
    scores: list[float]


class _Place(TypedDict):
    score: float
    word: str
    start: int
    end: int


class Entity(_Place, total=False):
    """A token, or with an aggregation strategy an entity: ``word`` is ``text[start:end]``, in code points.

    A token has ``entity``, its label, and ``index``, its number in the text from 1; an entity has ``entity_group``.
    """

    entity: str
    index: int
    entity_group: str


class ChoiceAnswer(TypedDict):
    """The best choice, its index, and a score per choice, in their order."""

    answer: str
    index: int
    scores: list[float]


class _Found(TypedDict):
    text: str
    probability: float


class Extraction(_Found, total=False):
    """An answer for a name of a schema; without ``start`` and ``end`` (code points) if it is an option.

    ``relations`` holds the answers about it, by name.
    """

    start: int
    end: int
    relations: dict[str, list[Extraction]]


class Column(Protocol):
    """A list, array, Series or column: anything with a length and an index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


# One text, alone or in a mapping.
Text: TypeAlias = "str | Mapping[str, str]"
Vector = NDArray[np.float32]

# The answer to one input. The defaults apply to pipelines without options that change its type.
AnyAnswer = TypeVar("AnyAnswer", default=Any)
Found = TypeVar("Found", default=QuestionAnswer)
Label = TypeVar("Label", default=LabelScore)
LoneLabels = TypeVar("LoneLabels", default=list[LabelScore])
Ranking = TypeVar("Ranking", default=ZeroShotAnswer)
Entities = TypeVar("Entities", default=list[Entity])
Choice = TypeVar("Choice", default=ChoiceAnswer)
Extracted = TypeVar("Extracted", default=dict[str, list[Extraction]])
Embedding = TypeVar("Embedding", default=Vector)
Embeddings = TypeVar("Embeddings", default=Vector)


def label_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the manifest's labels by id.

    Raises:
        ArtifactError: There are none, or their number is not that of the logits.
    """
    width = next(spec.shape[-1] for spec in manifest.outputs if spec.name == "logits")
    labels = manifest.labels or ()
    if not labels or (isinstance(width, int) and len(labels) != width):
        raise ArtifactError(
            f"the manifest of {manifest.artifact} names {len(labels)} labels and its logits are for {width}. "
            "Export again from a checkpoint whose id2label names each of them."
        )
    return labels


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Return probabilities that sum to 1 along the last axis; same shape and dtype."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    """Return independent probabilities; same shape and dtype. Never overflows, unlike ``1 / (1 + exp(-x))``."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))
