"""Quantizing an encoder layer by layer, each on what the layers before it really give once they are quantized."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from erniem_export.mask_mode import PADDING, with_padding_key
from erniem_export.modeling import ErnieMModel
from erniem_export.quantization.products import Form, Int8Linear, Int8Product, choose_input, round_product

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from erniem_export.encoder import ErnieMEncoderLayer
    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_export.quantization.calibration import Calibration

__all__ = ["Quantization", "quantize_encoder"]

_ATTENTION = "self_attn.self_attn."
_VALUE, _OUT = f"{_ATTENTION}v_proj", "self_attn.out_proj"
# Products that read the same input share its quantization.
_GROUPS = ((f"{_ATTENTION}q_proj", f"{_ATTENTION}k_proj", _VALUE), (_OUT,), ("linear1",), ("linear2",))
# Tokens that ranges are chosen on; the search runs every candidate on all of them.
_SAMPLE = 768
_SEED = 0


@dataclass
class Quantization:
    """``products`` by the name of their linear layer; ``error``, the relative L2 of the last hidden state to float32
    on the calibration text.
    """

    products: dict[str, Int8Product] = field(default_factory=dict)
    error: float = 0.0


@torch.no_grad()
def quantize_encoder(
    model: ErnieMPreTrainedModel,
    calibration: Calibration,
    track: Callable[[Sequence[ErnieMEncoderLayer]], Iterable[ErnieMEncoderLayer]] = iter,
    *,
    form: Form = "exact",
    mask_mode: str = PADDING,
) -> Quantization:
    """Find the int8 form of the products of every encoder layer; ``model`` is left as it is.

    Args:
        model: The float32 model.
        calibration: What to run it on.
        track: Wraps the layers, for a progress bar.
        form: What computes the products.
        mask_mode: The manifest's.
    """
    base = model if isinstance(model, ErnieMModel) else cast("ErnieMModel", model.ernie_m)
    prefix = "" if base is model else "ernie_m."
    batches = [_batch(ids, attend, base, mask_mode) for ids, attend in calibration.batches]
    exact, masks, attends = ([batch[i] for batch in batches] for i in range(3))
    found, result = exact, Quantization()
    for index, layer in enumerate(track(cast("list[ErnieMEncoderLayer]", list(base.encoder.layers)))):
        pair = _Pair(layer, masks, attends, exact, found, form)
        for group in _GROUPS:
            products = pair.quantize(group, f"{prefix}encoder.layers.{index}.")
            result.products |= {product.name: product for product in products}
        exact, found = pair.outputs()
    reference = torch.cat([states[mask] for states, mask in zip(exact, masks, strict=True)])
    states = torch.cat([states[mask] for states, mask in zip(found, masks, strict=True)])
    result.error = float((states - reference).norm() / reference.norm())
    return result


class _Pair:
    """A layer in float32 and its copy that is being quantized, each on its own inputs."""

    def __init__(
        self,
        layer: ErnieMEncoderLayer,
        masks: list[Tensor],
        attends: list[Tensor],
        exact: list[Tensor],
        found: list[Tensor],
        form: Form,
    ) -> None:
        self.form = form
        self.layer, self.quantized = layer, copy.deepcopy(layer)
        self.masks, self.attends, self.exact, self.found = masks, attends, exact, found
        first = [group[0] for group in _GROUPS]
        self.exact_inputs, self.exact_outputs = _run(layer, first, exact, masks, attends)

    def quantize(self, group: Sequence[str], prefix: str) -> list[Int8Product]:
        """Put the int8 form of some products in their place."""
        first = group[0]
        inputs = _run(self.quantized, [first], self.found, self.masks, self.attends)[0][first]
        linears = {name: cast("nn.Linear", self.layer.get_submodule(name)) for name in group}
        weights = torch.cat([linear.weight.T for linear in linears.values()], dim=1)
        entering = choose_input(inputs, _sample(inputs), weights, folds=first == _OUT, form=self.form)
        products = []
        for name, linear in linears.items():
            product = round_product(prefix + name, linear, entering, (self.exact_inputs[first], inputs))
            products.append(product)
            self._put(name, product)
        if first == _OUT and entering.factors is not None:
            self._fold(products[0], entering.factors)
        return products

    def outputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """What both give."""
        return self.exact_outputs, _run(self.quantized, [], self.found, self.masks, self.attends)[1]

    def _put(self, name: str, product: Int8Product) -> None:
        parent, _, attribute = name.rpartition(".")
        setattr(self.quantized.get_submodule(parent), attribute, Int8Linear(product))

    def _fold(self, out: Int8Product, factors: Tensor) -> None:
        """The context is a mean of values: factors on it are factors on the values' scales, and cost nothing."""
        value = cast("Int8Linear", self.quantized.get_submodule(_VALUE)).product
        value.scales *= factors
        value.bias *= factors
        value.exact_weight *= factors
        out.fold = True


def _batch(ids: Tensor, attend: Tensor, base: ErnieMModel, mask_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """The embeddings, which tokens count ``(batch, sequence)`` bool, and what attention is masked by."""
    if mask_mode == PADDING:
        return base.embeddings(ids, None, None), attend, attend[:, None, None]
    inputs, bias = with_padding_key(ids, attend, base.config)
    states = base.embeddings(inputs["input_ids"], inputs["position_ids"], None)
    hidden = ~inputs["attention_mask"][:, None, None]
    counts = torch.cat([attend, torch.ones_like(attend[:, :1])], dim=1)
    return states, counts, bias.masked_fill(hidden, torch.finfo(bias.dtype).min)


def _run(
    layer: ErnieMEncoderLayer,
    names: Sequence[str],
    states: list[Tensor],
    masks: list[Tensor],
    attends: list[Tensor],
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run a layer; return what entered some of its products, ``(tokens, in)`` without padding, and its outputs."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
        for name in names
    ]
    try:
        outputs = [layer(batch, attend, None, False)[0] for batch, attend in zip(states, attends, strict=True)]
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: torch.cat([batch[mask] for batch, mask in zip(batches, masks, strict=True)])
        for name, batches in seen.items()
    }, outputs


def _sample(inputs: Tensor) -> Tensor:
    """Some of the tokens, at random."""
    if len(inputs) <= _SAMPLE:
        return inputs
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(_SEED))[:_SAMPLE]
    return inputs[chosen]
