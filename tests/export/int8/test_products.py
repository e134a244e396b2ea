"""One product in int8: its scales, its rounding, and what float32 says it computes."""

import pytest
import torch
from torch import nn

from erniem_export.quantization.products import Int8Linear, choose_input, round_against, round_product

TOKENS, WIDTH, OUT = 600, 48, 32


@pytest.fixture
def inputs():
    """Correlated channels, one of which reaches a hundred times as far as the rest."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(TOKENS, 8, generator=generator) @ torch.randn(8, WIDTH, generator=generator)
    mixed += 0.3 * torch.randn(TOKENS, WIDTH, generator=generator)
    mixed[:, 5] *= 100
    return mixed


@pytest.fixture
def linear():
    torch.manual_seed(0)
    with torch.no_grad():
        made = nn.Linear(WIDTH, OUT)
        made.weight[:, 5] /= 100
    return made.requires_grad_(False)


@pytest.mark.parametrize("form", ["exact", "pairs"])
def test_a_channel_that_reaches_far_enters_in_float32(inputs, linear, form):
    entering = choose_input(inputs, inputs, linear.weight.T, form=form)
    assert 5 in entering.exact
    product = round_product("layer", linear, entering, (inputs, inputs))
    assert not product.weight[entering.exact].any()
    found = Int8Linear(product)(inputs)
    expected = linear(inputs)
    assert (found - expected).norm() / expected.norm() < 0.015
    assert 0 < product.error < 0.02


def test_where_none_can_enter_in_float32_it_is_divided_down(inputs, linear):
    entering = choose_input(inputs, inputs, linear.weight.T, form="symmetric")
    assert not len(entering.exact)
    assert entering.zero_point == 128
    assert entering.factors is not None
    assert entering.factors[5] < 0.1
    product = round_product("layer", linear, entering, (inputs, inputs))
    assert 0 < product.error < 0.05
    assert product.smoothed_channels() >= 1


def test_even_channels_are_left_alone():
    uniform = torch.rand(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)) - 0.5
    entering = choose_input(uniform, uniform, torch.randn(WIDTH, OUT, generator=torch.Generator().manual_seed(1)))
    assert entering.factors is None


def test_the_simulation_computes_what_integers_give(inputs, linear):
    product = round_product("layer", linear, choose_input(inputs, inputs, linear.weight.T), (inputs, inputs))
    entering = product.entering
    steps = torch.round(entering.scaled(inputs) / entering.scale + entering.zero_point).clamp(0, 255).long()
    whole = (steps - entering.zero_point) @ product.weight.long()
    expected = whole * (entering.scale * product.scales) + product.bias
    expected += inputs[:, entering.exact] @ linear.weight.T[entering.exact]
    torch.testing.assert_close(Int8Linear(product)(inputs), expected, rtol=1e-4, atol=1e-4)


def overflows(product, inputs):
    """How many sums of two products do not fit into 16 bits."""
    entering = product.entering
    steps = torch.round(entering.inner(entering.scaled(inputs)) / entering.scale + entering.zero_point).clamp(0, 255)
    pairs = steps.reshape(len(inputs), -1, 2).long()
    weights = product.weight.reshape(-1, 2, product.weight.shape[1]).long()
    sums = torch.einsum("tpk,pko->tpo", pairs, weights)
    return int(((sums > 32767) | (sums < -32768)).sum())


def test_weights_held_to_pairs_do_not_overflow_16_bits():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(TOKENS, WIDTH, generator=generator)
    torch.manual_seed(1)
    linear = nn.Linear(WIDTH, OUT).requires_grad_(False)  # uniform weights: many are large

    def rounded(form):
        return round_product("layer", linear, choose_input(inputs, inputs, linear.weight.T, form=form), (inputs,) * 2)

    free, held = rounded("exact"), rounded("pairs")
    assert overflows(free, inputs) > 100
    assert overflows(held, inputs) == 0
    assert held.error < 2 * free.error, "seven bits would double it"


def test_rounding_for_the_product_beats_rounding_each_weight(inputs, linear):
    weights = linear.weight.T.contiguous()
    scales = weights.abs().amax(0) / 7  # coarse, for a clear difference
    rounded = round_against(weights, scales, 7, inputs.T @ inputs)
    nearest = torch.round(weights / scales)
    assert rounded.dtype == torch.int8
    assert rounded.abs().max() <= 7

    def error(steps):
        return float((inputs @ (steps * scales - weights)).norm())

    assert error(rounded.float()) < 0.6 * error(nearest)


@pytest.mark.parametrize("form", ["exact", "pairs", "symmetric"])
@pytest.mark.parametrize("zero", ["weight", "inputs", "most inputs", "a column"])
def test_where_nothing_enters_or_comes_out_the_product_is_finite(inputs, linear, form, zero):
    if zero == "weight":
        linear.weight.zero_()
    elif zero == "a column":
        linear.weight[3] = 0
    else:
        inputs[TOKENS // 10 if zero == "most inputs" else 0 :] = 0
    entering = choose_input(inputs, inputs, linear.weight.T, form=form)
    product = round_product("layer", linear, entering, (inputs, inputs))
    assert 0 <= product.error < 0.05
    assert product.scales.min() > 1e-30, "a scale that a factor may round to zero"
    expected, found = linear(inputs), Int8Linear(product)(inputs)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
