"""Between texts and the model: rows of ids, windows over long texts, and the scores of logits."""

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
    """Rows without padding, each what encoding its text, or pair, alone gives; cut to ``max_length`` tokens.

    Raises:
        InvalidInputError: Nothing of a text is left as tokens.
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
    """Raise :class:`InvalidInputError` where a text has no tokens: the model would answer about special ones alone."""
    if not count:
        raise InvalidInputError(f"{name} has no tokens left after normalization: expected text.")


@dataclass(frozen=True)
class SecondText:
    """The ids of a text that is kept whole, without special tokens, and how many tokens a first text may take."""

    ids: list[int]
    room: int


def encode_seconds(
    tokenizer: Tokenizer, texts: Sequence[str], *, names: Sequence[str], max_length: int
) -> list[SecondText]:
    """Encode texts that stand second in a row of at most ``max_length`` tokens.

    Raises:
        InvalidInputError: One has no tokens, or leaves no room for a first text; it is called by its name in
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
    """Rows ``[CLS] first [SEP] [SEP] second [SEP]``.

    ``first``, the ids of a text without special tokens, is cut where the tokenizer cuts: at its end by default.
    """
    from_left = tokenizer.settings.truncation_side == "left"
    return [
        tokenizer.build_inputs_with_special_tokens(
            first[-second.room :] if from_left else first[: second.room], second.ids
        )
        for second in seconds
    ]


def shared_tokens(size: int) -> int:
    """How many tokens neighbouring windows of ``size`` tokens share: 128, or half a window if that is less."""
    return min(_SHARED, size // 2)


def windows(length: int, size: int, step: int) -> list[range]:
    """Windows over ``length`` tokens: one every ``step`` tokens, each of ``size``, until one reaches the end.

    The last may be shorter. ``step`` is between 1 and ``size``, so that no token is left out; no tokens make one
    empty window.
    """
    return [range(start, min(start + size, length)) for start in range(0, max(length - size, 0) + step, step)]


def best_parts(spans: Sequence[range]) -> list[range]:
    """Part of each window that sees more text around it there than in any other window.

    Neighbours are cut in the middle of what they share. The parts are disjoint and cover all tokens, in order.
    """
    cuts = [spans[0].start, *((right.start + left.stop) // 2 for left, right in pairwise(spans)), spans[-1].stop]
    return [range(start, stop) for start, stop in pairwise(cuts)]


def label_names(manifest: Manifest) -> tuple[str, ...]:
    """The manifest's labels by id.

    Raises:
        ArtifactError: There are none, or not as many as the graph has logits.
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
    """Probabilities along the last axis, which sum to 1; same shape and dtype."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities, each by itself; same shape and dtype. Overflows for no logit, unlike ``1 / (1 + exp(-x))``."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))
