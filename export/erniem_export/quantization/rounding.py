"""Rounding weights one row after another, each row's error made up for by the rows that are still to come (GPTQ)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["round_against"]

_BLOCK = 128
# Inputs that the calibration text never showed must not be relied on.
_DAMPING = 0.02


def round_against(weights: Tensor, scales: Tensor, steps: int, moments: Tensor) -> Tensor:
    """Round weights to int8 such that the product's error is small, not the weights' own.

    Frantar et al. 2022, "GPTQ". Rows are taken in the order of how much enters through them.

    Args:
        weights: ``(in, out)``.
        scales: ``(out,)``.
        steps: The largest magnitude of a rounded weight.
        moments: ``(in, in)``, the sum over tokens of the outer products of what enters.

    Returns:
        ``(in, out)`` int8.
    """
    order = torch.argsort(moments.diagonal(), descending=True)
    moments = moments[order][:, order].clone()
    moments.diagonal().add_(_DAMPING * moments.diagonal().mean() + torch.finfo(torch.float32).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    carry = torch.linalg.cholesky(inverse, upper=True)
    left = weights[order].clone()
    rounded = torch.empty(weights.shape, dtype=torch.int8)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = torch.empty(stop - start, weights.shape[1])
        for row in range(start, stop):
            whole = torch.round(left[row] / scales).clamp(-steps, steps)
            rounded[order[row]] = whole.to(torch.int8)
            errors[row - start] = (left[row] - whole * scales) / carry[row, row]
            left[row:stop] -= carry[row, row:stop, None] * errors[row - start]
        left[stop:] -= carry[start:stop, stop:].T @ errors
    return rounded
