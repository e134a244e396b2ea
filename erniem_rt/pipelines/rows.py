"""Encodes texts as rows of ids, splits long texts into windows, and turns logits into scores."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from erniem_rt.errors import ArtifactError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from erniem_rt.manifest import Manifest
    from erniem_rt.tokenizer import Tokenizer

_SHARED = 128


def encode_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int,
    threads: int,
    add_special_tokens: bool = True,
) -> list[list[int]]:
    """Encode texts, or pairs, as rows without padding, cut to ``max_length`` tokens.

    Raises:
        InvalidInputError: A text has no tokens.
    """
    encoded = tokenizer.batch(
        texts,
        pairs,
        padding_side="right",
        truncation="longest_first",
        max_length=max_length,
        add_special_tokens=add_special_tokens,
        threads=threads,
    )
    for i, size in enumerate(encoded.text_sizes.tolist()):
        require_tokens("text" if i < len(texts) else "text_pair", size)
    lengths = encoded.attention_mask.sum(axis=1).tolist()
    return [row[:length] for row, length in zip(encoded.input_ids.tolist(), lengths, strict=True)]


def require_tokens(name: str, count: int) -> None:
    """Raise :class:`InvalidInputError` for a text without tokens: the model would only see special tokens."""
    if not count:
        raise InvalidInputError(f"{name} has no tokens left after normalization: expected text.")


@dataclass(frozen=True)
class SecondText:
    """The ids of a text that is never cut, without special tokens, and the room for a first text, in tokens."""

    ids: list[int]
    room: int


def encode_seconds(
    tokenizer: Tokenizer, texts: Sequence[str], *, names: Sequence[str], max_length: int
) -> list[SecondText]:
    """Encode the second texts of rows of at most ``max_length`` tokens.

    Raises:
        InvalidInputError: One has no tokens, or leaves no room for a first text; the message has its name from
            ``names``.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    seconds = []
    for text, name in zip(texts, names, strict=True):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        require_tokens(name, len(ids))
        room = max_length - special - len(ids)
        if room < 1:
            raise InvalidInputError(
                f"{name} alone takes {len(ids)} tokens; the limit is {max_length}, of which {special} are special "
                "tokens and at least one is the other text's. Shorten it."
            )
        seconds.append(SecondText(ids, room))
    return seconds


def pair_rows(tokenizer: Tokenizer, first: list[int], seconds: Sequence[SecondText]) -> list[list[int]]:
    """Build rows ``[CLS] first [SEP] [SEP] second [SEP]``.

    ``first``, ids without special tokens, is cut on the tokenizer's truncation side, by default the end.
    """
    from_left = tokenizer.settings.truncation_side == "left"
    return [
        tokenizer.build_inputs_with_special_tokens(
            first[-second.room :] if from_left else first[: second.room], second.ids
        )
        for second in seconds
    ]


def shared_tokens(size: int) -> int:
    """Return the overlap of neighbouring windows of ``size`` tokens: 128, or half a window if that is less."""
    return min(_SHARED, size // 2)


def windows(length: int, size: int, step: int) -> list[range]:
    """Return windows over ``length`` tokens: one of ``size`` every ``step`` tokens, until one reaches the end.

    The last may be shorter. ``step`` is between 1 and ``size``, so that every token is covered; zero tokens give one
    empty window.
    """
    return [range(start, min(start + size, length)) for start in range(0, max(length - size, 0) + step, step)]


def best_parts(spans: Sequence[range]) -> list[range]:
    """Return the part of each window with more context there than in any other window.

    Overlaps are cut in the middle. The parts are disjoint and cover all tokens, in order.
    """
    cuts = [spans[0].start, *((right.start + left.stop) // 2 for left, right in pairwise(spans)), spans[-1].stop]
    return [range(start, stop) for start, stop in pairwise(cuts)]


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
