"""Rounding weights one row after another, each row's error made up for by the rows that are still to come (GPTQ)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hold_pairs", "round_against"]

_BLOCK = 128
# Inputs that the calibration text never showed must not be relied on.
_DAMPING = 0.02
_INT16 = 2**15 - 1


def round_against(weights: Tensor, scales: Tensor, steps: int, moments: Tensor, reach: Tensor | None = None) -> Tensor:
    """Round weights to int8 such that the product's error is small, not the weights' own.

    Frantar et al. 2022, "GPTQ". Rows are taken in the order of how much enters through them.

    Args:
        weights: ``(in, out)``.
        scales: ``(out,)``.
        steps: The largest magnitude of a rounded weight.
        moments: ``(in, in)``, the sum over tokens of the outer products of what enters.
        reach: ``(in / 2, corners, 2)``, the furthest uint8 that enter through each pair of rows together, where the
            product adds pairs in 16 bits: weights are then held to what does not overflow.

    Returns:
        ``(in, out)`` int8.
    """
    order = torch.argsort(moments.diagonal(), descending=True)
    moments = moments[order][:, order].clone()
    moments.diagonal().add_(_DAMPING * moments.diagonal().mean() or 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    carry = torch.linalg.cholesky(inverse, upper=True)
    left = weights[order].clone()
    rounded = torch.zeros(weights.shape, dtype=torch.int8)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = torch.empty(stop - start, weights.shape[1])
        for row in range(start, stop):
            whole = torch.round(left[row] / scales).clamp(-steps, steps)
            if reach is not None:
                whole = _without_overflow(whole, int(order[row]), rounded, reach)
            rounded[order[row]] = whole.to(torch.int8)
            errors[row - start] = (left[row] - whole * scales) / carry[row, row]
            left[row:stop] -= carry[row, row:stop, None] * errors[row - start]
        left[stop:] -= carry[start:stop, stop:].T @ errors
    return rounded


def hold_pairs(steps: Tensor, reach: Tensor) -> Tensor:
    """Round the second row of each pair of ``steps (in, out)`` down to what the first leaves of 16 bits."""
    held = steps.clone()
    count = len(steps) // 2
    held[1::2] = _within(steps[1::2], steps[0 : 2 * count : 2], reach[:count, :, 1].T, reach[:count, :, 0].T)
    return held


def _without_overflow(whole: Tensor, row: int, rounded: Tensor, reach: Tensor) -> Tensor:
    """Hold a row to what the one that it is paired with leaves of 16 bits."""
    pair = row ^ 1
    if pair >= len(rounded):
        return whole
    return _within(whole, rounded[pair].float(), reach[row // 2, :, row % 2], reach[row // 2, :, pair % 2])


def _within(steps: Tensor, pair: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Hold ``steps (..., out)`` beside ``pair (..., out)``, for what enters through both: ``(corners, ...)`` each."""
    own, other = own[..., None], other[..., None]
    above = ((_INT16 - other * pair.clamp_min(0)) / own).amin(0).floor()
    below = ((_INT16 + other * pair.clamp_max(0)) / own).amin(0).floor()
    return torch.minimum(torch.maximum(steps, -below), above)
