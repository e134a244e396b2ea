"""One product of a layer in int8: weights with a scale per column, inputs with one fixed scale.

Fixed, so that quantizing costs one cheap pass and a text's result cannot depend on the texts beside it. The price is
that one range must fit every token: channels that reach further than most are therefore divided down beforehand and
their weights multiplied up (as in SmoothQuant, Xiao et al. 2022, but all others are left alone: on MiniLM that halves
the error), and what is left is clipped where the product's error is smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from erniem_export.quantization.rounding import round_against

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["INPUT_STEPS", "MIDDLE", "Int8Linear", "Int8Product", "QuantizedInput", "choose_input", "round_product"]

_TINY = torch.finfo(torch.float32).tiny

# Inputs are uint8, weights int8 without -128.
INPUT_STEPS, WEIGHT_STEPS = 255, 127
# The zero point of symmetric inputs: what is uint8 about it is int8 about zero.
MIDDLE = 128

# Up to which channel, in the order of their reach, all keep their range; None: no factors, and nothing to multiply.
_CAPS = (None, 0.99, 0.95, 0.85, 0.7, 0.4)
# Of the range of all tokens that were seen; others may go further.
_CLIPPED_TO = (1.25, 1.05)
# A multiplication before the product must take this share off its error.
_WORTH = 0.9


@dataclass(frozen=True)
class QuantizedInput:
    """``round(x * factors / scale) + zero_point``, clipped to uint8; ``factors (in,)`` or None for ones."""

    scale: float
    zero_point: int
    factors: Tensor | None = None

    def rounded(self, values: Tensor) -> Tensor:
        """What is left of ``values (..., in)``, already multiplied by the factors."""
        steps = torch.round(values / self.scale) + self.zero_point
        return (steps.clamp(0, INPUT_STEPS) - self.zero_point) * self.scale

    def scaled(self, values: Tensor) -> Tensor:
        """``values (..., in)`` times the factors."""
        return values if self.factors is None else values * self.factors


@dataclass
class Int8Product:
    """``name`` of the linear layer; ``weight (in, out)`` int8, ``scales (out,)``, ``bias (out,)`` float32.

    ``entering`` is shared between products that read the same input. ``fold`` says that the factors are in the
    product before, and need no multiplication. ``error`` is relative to the product, on the calibration text.
    """

    name: str
    entering: QuantizedInput
    weight: Tensor
    scales: Tensor
    bias: Tensor
    fold: bool = False
    error: float = 0.0

    def evened_channels(self) -> int:
        """How many input channels are divided down."""
        factors = self.entering.factors
        return 0 if factors is None else int((factors < 1).sum())


class Int8Linear(nn.Module):
    """A linear layer that computes in float32 what ``product`` computes in int8."""

    def __init__(self, product: Int8Product) -> None:
        super().__init__()
        self.product = product

    def forward(self, states: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        product = self.product
        entering = product.entering
        values = entering.rounded(states if product.fold else entering.scaled(states))
        return functional.linear(values, (product.weight.float() * product.scales).T, product.bias)


def choose_input(inputs: Tensor, sample: Tensor, weights: Tensor, *, symmetric: bool = False) -> QuantizedInput:
    """Find the factors and the range with the smallest error of the product.

    Args:
        inputs: ``(tokens, in)``, all that enters: for the ranges.
        sample: ``(fewer tokens, in)`` of it, to compute the error on.
        weights: ``(in, out)`` of everything that reads it.
        symmetric: Keep the range symmetric about zero.
    """
    expected = sample @ weights
    importance = _importance(expected)
    low, high = inputs.amin(0), inputs.amax(0)
    best: tuple[float, QuantizedInput] | None = None
    for cap in _CAPS:
        factors = None if cap is None else _factors(torch.maximum(-low, high), cap)
        values, ends = (sample, (low, high)) if factors is None else (sample * factors, (low * factors, high * factors))
        moved = weights if factors is None else weights / factors[:, None]
        steps, scales = _round_weights(moved)
        stored = steps.float() * scales
        for entering in _ranges(float(ends[0].min()), float(ends[1].max()), factors, symmetric):
            error = float((entering.rounded(values) @ stored - expected).square().sum(1) @ importance)
            if best is None or error < best[0] * (_WORTH if best[1].factors is None and cap is not None else 1.0):
                best = (error, entering)
    assert best is not None
    return best[1]


def _round_weights(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize ``(in, out)`` per column: int8 without -128, and ``(out,)`` scales.

    The scale of each column is the one, of a few, that rounds it with the least error.
    """
    largest = weights.abs().amax(0).clamp_min(_TINY * WEIGHT_STEPS)
    best_error = torch.full_like(largest, float("inf"))
    scales = largest / WEIGHT_STEPS
    for share in (1.0, 0.95, 0.9, 0.85, 0.8):
        candidate = largest * share / WEIGHT_STEPS
        rounded = torch.round(weights / candidate).clamp(-WEIGHT_STEPS, WEIGHT_STEPS) * candidate
        error = (rounded - weights).square().sum(0)
        better = error < best_error
        best_error, scales = torch.where(better, error, best_error), torch.where(better, candidate, scales)
    return torch.round(weights / scales).clamp(-WEIGHT_STEPS, WEIGHT_STEPS).to(torch.int8), scales


def round_product(name: str, linear: nn.Linear, entering: QuantizedInput, inputs: tuple[Tensor, Tensor]) -> Int8Product:
    """Quantize a linear layer's weights for an input.

    ``inputs`` are ``(tokens, in)`` each: what enters in float32, and what enters when all before it is quantized.
    What rounding changes on average goes back into the bias.
    """
    exact, found = inputs
    weights = linear.weight.T
    moved = weights if entering.factors is None else weights / entering.factors[:, None]
    plain = exact @ weights
    importance = _importance(plain)
    _, scales = _round_weights(moved)
    values = entering.rounded(entering.scaled(found)) * importance.sqrt()[:, None]
    steps = round_against(moved, scales, WEIGHT_STEPS, values.T @ values)
    product = Int8Product(name, entering, steps, scales, linear.bias.clone())
    gap = plain + linear.bias - Int8Linear(product)(found)
    shift = importance @ gap
    product.bias += shift
    size = plain.square().sum(1) @ importance
    product.error = float(((gap - shift).square().sum(1) @ importance / size.clamp_min(_TINY)).sqrt())
    return product


def _importance(expected: Tensor) -> Tensor:
    """A weight per token ``(tokens,)``, their sum 1, such that errors count relative to the token's own size.

    The norm behind a product divides each token by its size. Without this, the few tokens with very large values
    (first and last of a text) would decide the ranges for all.
    """
    energy = expected.square().sum(1)
    importance = 1 / (energy + energy.median() / 10)
    return importance / importance.sum()


def _factors(reach: Tensor, cap: float) -> Tensor:
    reach = reach.clamp_min(_TINY)
    return (reach.quantile(cap) / reach).clamp_max(1.0)


def _ranges(low: float, high: float, factors: Tensor | None, symmetric: bool) -> Sequence[QuantizedInput]:
    if symmetric:
        reach = max(-low, high)
        return [QuantizedInput(max(reach * share / WEIGHT_STEPS, _TINY), MIDDLE, factors) for share in _CLIPPED_TO]
    low, high = min(low, 0.0), max(high, 0.0)
    found = []
    for share in _CLIPPED_TO:
        # Gelu's results end at -0.17: the short side of a range is no outlier.
        bottom, top = (low * share if -low > high / 4 else low), (high * share if high > -low / 4 else high)
        scale = max((top - bottom) / INPUT_STEPS, _TINY)
        found.append(QuantizedInput(scale, round(-bottom / scale), factors))
    return found
