"""One matmul of a layer in int8: weights with a scale per column, activations with one static scale.

With a static scale, quantizing costs one cheap pass, and a text's result cannot depend on the texts beside it. But one
activation range must then fit every token. So outlier channels stay in float32, in a matmul of their own, where that
pays (as in LLM.int8(), Dettmers et al. 2022, but the same channels for every token). Other channels with a wide range
are smoothed: divided beforehand, and their weights multiplied (as in SmoothQuant, Xiao et al. 2022, but all others stay
unchanged). The rest is clipped where the matmul's error is smallest.

A CPU without VNNI adds pairs of products in 16 bits, which two large weights overflow. The usual remedy halves all
weights. Here the inputs leave some of their range unused instead, and only the few weights that could still overflow
with the inputs of their pair in calibration are rounded down. Larger inputs saturate, as they do when clipped.

Weights are rounded row by row; the rows that follow compensate each row's error (GPTQ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product as pairs_of
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_TINY = torch.finfo(torch.float32).tiny

# Inputs are uint8, weights int8 without -128.
INPUT_STEPS, WEIGHT_STEPS = 255, 127
# The zero point of symmetric inputs: uint8 values minus it are int8.
MIDDLE = 128

# What computes the matmuls. ``exact``: sums never overflow; ``pairs``: pairs are added in 16 bits; ``symmetric``:
# zero points are 0, and no outlier channels are in float32.
Form = Literal["exact", "pairs", "symmetric"]

# Channels with a range wider than this quantile are smoothed; None: no channel.
_CAPS = (None, 0.99, 0.95, 0.85, 0.7)
# The range, relative to that of the calibration tokens. Other tokens exceed it: a narrower range wins on the
# calibration text and loses on other text. In pairs, the unused steps of the inputs give the same room.
_CLIPPED_TO: dict[Form, tuple[float, ...]] = {"exact": (1.25,), "pairs": (1.25, 1.05), "symmetric": (1.25,)}
# How many outlier channels may stay in float32, and the least number of channels for that.
_EXACT, _WIDE = 4, 32
# The factor by which a multiplication before the matmul, or an addition after it, must lower the squared error.
_MULTIPLICATION, _ADDITION = 1.1, 1.1
# The largest int8 step, relative to a column's largest weight; larger ones where pairs are limited to 16 bits.
_SHARES, _WIDER_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8), (1.1, 1.25, 1.5)
# Inputs may be this much larger than the largest in calibration before sums of 16 bits saturate.
_ROOM = 1.1
_DIRECTIONS = 5
# The ridge that keeps fitted weights near the given ones, relative to the mean square of the inputs.
_RIDGE = 3.0
# How many of the 255 steps inputs on both sides of zero use where sums of 16 bits may overflow. For most matmuls
# of MiniLM's first three layers the best of 150, 176, 208 and 255.
_HELD_STEPS = 208
# The number of rows that are rounded before their errors go to all later rows.
_BLOCK = 128
# GPTQ's damping, for inputs that do not occur in the calibration text.
_DAMPING = 0.02
_INT16 = 2**15 - 1


@dataclass(frozen=True)
class QuantizedInput:
    """``round(x * factors / scale) + zero_point``, clipped to uint8; ``factors (in,)`` or None for ones.

    The channels ``exact (few,)`` stay in float32 instead. ``reach (in / 2, corners, 2)``: the largest uint8 values that
    each pair of neighbours had together in calibration, if sums have 16 bits.
    """

    scale: float
    zero_point: int
    factors: Tensor | None = None
    exact: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    reach: Tensor | None = None

    def rounded(self, values: Tensor) -> Tensor:
        """Return ``values (..., in)``, already multiplied by the factors, after quantizing and dequantizing."""
        steps = torch.round(values / self.scale) + self.zero_point
        return (steps.clamp(0, INPUT_STEPS) - self.zero_point) * self.scale

    def inner(self, values: Tensor) -> Tensor:
        """Return ``values (..., in)`` with zeros in the outlier channels."""
        return values.index_fill(-1, self.exact, 0.0) if len(self.exact) else values

    def scaled(self, values: Tensor) -> Tensor:
        """Return ``values (..., in)`` times the factors."""
        return values if self.factors is None else values * self.factors

    def inner_weights(self, weights: Tensor) -> Tensor:
        """Return ``weights (in, out)`` divided by the factors, with zeros in the outlier channels."""
        moved = weights if self.factors is None else weights / self.factors[:, None]
        return moved.index_fill(0, self.exact, 0.0) if len(self.exact) else moved

    def corners(self, inputs: Tensor) -> Tensor:
        """Return ``(in / 2, corners, 2)``: the largest uint8 values of each pair of neighbours, with some room."""
        steps = torch.round(self.inner(self.scaled(inputs)) * (_ROOM / self.scale)) + self.zero_point
        steps = functional.pad(steps.clamp(1, INPUT_STEPS), (0, len(inputs[0]) % 2), value=1.0)
        pairs = steps.reshape(len(steps), -1, 2)
        found = []
        for angle in torch.linspace(0, torch.pi / 2, _DIRECTIONS):
            furthest = (pairs[..., 0] * torch.cos(angle) + pairs[..., 1] * torch.sin(angle)).argmax(0)
            found.append(pairs[furthest, torch.arange(len(furthest))])
        return torch.stack(found, dim=1)


@dataclass
class Int8Product:
    """``name`` of the linear layer; ``weight (in, out)`` int8, ``scales (out,)``, ``bias (out,)`` float32, and
    ``exact_weight (few, out)`` float32 of the outlier channels in float32.

    Matmuls that read the same input share ``entering``. ``fold``: the layer before has the factors, so they need no
    multiplication. ``error`` is relative to the result, on the calibration text.
    """

    name: str
    entering: QuantizedInput
    weight: Tensor
    scales: Tensor
    bias: Tensor
    exact_weight: Tensor
    fold: bool = False
    error: float = 0.0

    def smoothed_channels(self) -> int:
        """Return how many input channels are smoothed."""
        factors = self.entering.factors
        return 0 if factors is None else int((factors < 1).sum())


class Int8Linear(nn.Module):
    """A linear layer that computes in float32 what ``product`` computes in int8."""

    def __init__(self, product: Int8Product) -> None:
        super().__init__()
        self.product = product

    def forward(self, states: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        product = self.product
        entering = product.entering
        values = states if product.fold else entering.scaled(states)
        result = functional.linear(
            entering.rounded(entering.inner(values)), (product.weight.float() * product.scales).T, product.bias
        )
        return result + values[..., entering.exact] @ product.exact_weight


def choose_input(
    inputs: Tensor, sample: Tensor, weights: Tensor, *, folds: bool = False, form: Form = "exact"
) -> QuantizedInput:
    """Find the factors, the range and the outlier channels with the smallest error of the matmul.

    Args:
        inputs: ``(tokens, in)``, all inputs, for the ranges.
        sample: ``(fewer tokens, in)`` of them, on which the error is computed.
        weights: ``(in, out)`` of all layers that read them.
        folds: Whether factors cost nothing, because the layer before includes them.
        form: How the matmul is computed.
    """
    expected = sample @ weights
    importance = _importance(expected)
    low, high = inputs.amin(0), inputs.amax(0)
    furthest = torch.maximum(-low, high)
    best, least = None, float("inf")
    for count, cap in pairs_of((0,) if form == "symmetric" or len(furthest) < _WIDE else (0, _EXACT), _CAPS):
        exact = furthest.topk(count).indices.sort().values
        factors = None if cap is None else _factors(furthest.index_fill(0, exact, 0.0), cap)
        price = (_MULTIPLICATION if factors is not None and not folds else 1.0) * (_ADDITION if count else 1.0)
        even = QuantizedInput(1.0, 0, factors, exact)
        values, ends = even.inner(even.scaled(sample)), [even.inner(even.scaled(end)) for end in (low, high)]
        steps, scales = _round_weights(even.inner_weights(weights))
        stored = steps.float() * scales
        rest = expected - sample[:, exact] @ weights[exact]
        for scale, zero_point in _ranges(float(ends[0].min()), float(ends[1].max()), form):
            entering = replace(even, scale=scale, zero_point=zero_point)
            error = float((entering.rounded(values) @ stored - rest).square().sum(1) @ importance) * price
            if error < least:
                best, least = entering, error
    assert best is not None
    return replace(best, reach=best.corners(inputs)) if form == "pairs" else best


def _round_weights(weights: Tensor, reach: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize ``(in, out)`` per column: int8 without -128, and ``(out,)`` scales.

    Each column gets the scale, of a few, with the least rounding error; with ``reach``, pairs of weights that would
    overflow count as rounded down.
    """
    largest = weights.abs().amax(0).clamp_min(_TINY * WEIGHT_STEPS)
    largest[(weights == 0).all(0)] = WEIGHT_STEPS  # any scale works for zeros; a common one is never rounded to zero
    best_error = torch.full_like(largest, float("inf"))
    scales = largest / WEIGHT_STEPS
    for share in _SHARES if reach is None else _SHARES + _WIDER_SHARES:
        candidate = largest * share / WEIGHT_STEPS
        steps = torch.round(weights / candidate).clamp(-WEIGHT_STEPS, WEIGHT_STEPS)
        error = ((steps if reach is None else _hold_pairs(steps, reach)) * candidate - weights).square().sum(0)
        better = error < best_error
        best_error, scales = torch.where(better, error, best_error), torch.where(better, candidate, scales)
    return torch.round(weights / scales).clamp(-WEIGHT_STEPS, WEIGHT_STEPS).to(torch.int8), scales


def round_product(name: str, linear: nn.Linear, entering: QuantizedInput, inputs: tuple[Tensor, Tensor]) -> Int8Product:
    """Quantize a linear layer's weights for an input.

    ``inputs`` are ``(tokens, in)`` each: those of the float32 model, and those after the quantized layers. The bias
    corrects the mean rounding error.
    """
    exact, found = inputs
    weights = linear.weight.T
    plain = exact @ weights
    importance = _importance(plain)
    entered = entering.scaled(found)
    weighted = importance.sqrt()[:, None]
    values = entering.rounded(entering.inner(entered)) * weighted
    wanted = (plain - entered[:, entering.exact] @ weights[entering.exact]) * weighted
    fitted, moments = _fit(values, wanted, entering.inner_weights(weights))
    _, scales = _round_weights(fitted, entering.reach)
    steps = round_against(fitted, scales, WEIGHT_STEPS, moments, entering.reach)
    product = Int8Product(name, entering, steps, scales, linear.bias.clone(), weights[entering.exact].clone())
    gap = plain + linear.bias - Int8Linear(product)(found)
    shift = importance @ gap
    product.bias += shift
    size = plain.square().sum(1) @ importance
    product.error = float(((gap - shift).square().sum(1) @ importance / size.clamp_min(_TINY)).sqrt())
    return product


def _fit(values: Tensor, wanted: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights near the given ones that correct the errors of earlier layers, and the moments of ``values``.

    Earlier rounding changes the inputs. Ridge regression corrects the part of the error that is linear in them (as in
    GPTAQ, Li et al. 2025), before weights are rounded.
    """
    moments = values.T @ values
    ridge = moments.diagonal().mean() * _RIDGE or 1.0  # the inputs are all zero
    held = moments + ridge * torch.eye(len(moments))
    return weights + torch.cholesky_solve(values.T @ (wanted - values @ weights), torch.linalg.cholesky(held)), moments


def _importance(expected: Tensor) -> Tensor:
    """Return a weight per token ``(tokens,)``, with sum 1, so that errors count relative to the token's own size.

    The norm after a matmul divides each token by its size. Without these weights, the few tokens with very large values
    (first and last of a text) would decide the ranges for all.
    """
    energy = expected.square().sum(1)
    if not energy.any():  # every output is zero
        return torch.full_like(energy, 1 / len(energy))
    usual = energy.median() or energy.mean()
    importance = 1 / (energy + usual / 10)
    return importance / importance.sum()


def _factors(reach: Tensor, cap: float) -> Tensor:
    reach = reach.clamp_min(_TINY)
    return (reach.quantile(cap) / reach).clamp_max(1.0)


def _ranges(low: float, high: float, form: Form) -> Sequence[tuple[float, int]]:
    if low == high == 0:
        return [(1.0, MIDDLE if form == "symmetric" else 0)]
    if form == "symmetric":
        return [(max(-low, high, _TINY) * share / WEIGHT_STEPS, MIDDLE) for share in _CLIPPED_TO[form]]
    low, high = min(low, 0.0), max(high, 0.0)
    found: list[tuple[float, int]] = []
    for share in _CLIPPED_TO[form]:
        # Gelu's results end at -0.17: the short side of a range is no outlier.
        bottom, top = (low * share if -low > high / 4 else low), (high * share if high > -low / 4 else high)
        used = _HELD_STEPS if form == "pairs" and -bottom > top / 4 else INPUT_STEPS
        scale = max((top - bottom) / used, _TINY)
        found.append((scale, round(-bottom / scale)))
    return found


def round_against(weights: Tensor, scales: Tensor, steps: int, moments: Tensor, reach: Tensor | None = None) -> Tensor:
    """Round weights to int8 such that the error of the matmul is small, not that of the weights.

    Frantar et al. 2022, "GPTQ". Rows with the largest inputs come first.

    Args:
        weights: ``(in, out)``.
        scales: ``(out,)``.
        steps: The largest magnitude of a rounded weight.
        moments: ``(in, in)``, the sum over tokens of the outer products of the inputs.
        reach: ``(in / 2, corners, 2)``, the largest uint8 inputs of each pair of rows together, if pairs are added in
            16 bits: weights are then limited so that these do not overflow.

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


def _hold_pairs(steps: Tensor, reach: Tensor) -> Tensor:
    """Limit the second row of each pair of ``steps (in, out)`` to the 16 bits minus the first row's share."""
    held = steps.clone()
    count = len(steps) // 2
    held[1::2] = _within(steps[1::2], steps[0 : 2 * count : 2], reach[:count, :, 1].T, reach[:count, :, 0].T)
    return held


def _without_overflow(whole: Tensor, row: int, rounded: Tensor, reach: Tensor) -> Tensor:
    """Limit a row to the 16 bits minus its pair's share."""
    pair = row ^ 1
    if pair >= len(rounded):
        return whole
    return _within(whole, rounded[pair].float(), reach[row // 2, :, row % 2], reach[row // 2, :, pair % 2])


def _within(steps: Tensor, pair: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Limit ``steps (..., out)`` beside ``pair (..., out)``; the inputs of both are ``(corners, ...)`` each."""
    own, other = own[..., None], other[..., None]
    above = ((_INT16 - other * pair.clamp_min(0)) / own).amin(0).floor()
    below = ((_INT16 + other * pair.clamp_max(0)) / own).amin(0).floor()
    return torch.minimum(torch.maximum(steps, -below), above)
