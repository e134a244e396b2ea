"""From logits to probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["sigmoid", "softmax"]


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities along the last axis, which sum to 1; same shape and dtype."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities, each by itself; same shape and dtype. Overflows for no logit, unlike ``1 / (1 + exp(-x))``."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))
