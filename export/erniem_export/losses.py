"""The losses of the heads, where labels are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from erniem_export.configuration import ErnieMConfig

__all__ = ["binary_loss", "position_loss", "sequence_loss"]


def sequence_loss(config: ErnieMConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of ``logits (batch, labels)`` by ``config.problem_type``, or by what labels and their dtype suggest.

    Raises:
        ValueError: The problem type is not known.
    """
    problem = config.problem_type or _problem_type(config.num_labels, labels)
    if problem == "regression":
        return functional.mse_loss(logits, labels.reshape(logits.shape).to(logits.dtype))
    if problem == "single_label_classification":
        return functional.cross_entropy(logits, labels.flatten().long())
    if problem == "multi_label_classification":
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    raise ValueError(f"unknown config.problem_type {problem!r}")


def position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Cross-entropy of ``logits (batch, sequence)`` at ``positions (batch,)``; those outside of it are ignored."""
    ignored = logits.shape[1]
    return functional.cross_entropy(logits, positions.flatten().long().clamp(0, ignored), ignore_index=ignored)


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of ``logits`` and 0/1 ``labels``, both ``(batch, sequence)``."""
    return functional.binary_cross_entropy_with_logits(logits, labels.reshape(logits.shape).to(logits.dtype))


def _problem_type(num_labels: int, labels: Tensor) -> str:
    if num_labels == 1:
        return "regression"
    integral = labels.dtype in (torch.int64, torch.int32)
    return "single_label_classification" if integral else "multi_label_classification"
