"""Every head under every kind of input: our outputs are the reference's, in names, order and numbers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

# fp32, hidden states of the order of 1.
TOLERANCE = 1e-5
HEADS = ("base", "cls", "ner", "mc", "qa", "ie")
CHOICES = 2
LONGEST = 33


@dataclass(frozen=True)
class Scenario:
    """What one forward call is given; ``mask`` and ``padding`` name a pattern of :func:`_attended`."""

    batch: int = 3
    length: int = 9
    padding: str = "none"
    mask: str | None = None
    mask_dtype: torch.dtype = torch.int64
    position_ids: bool = False
    head_mask: int = 0
    inputs_embeds: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)


SCENARIOS = {
    "missing mask": Scenario(),
    "missing mask, right padding ids": Scenario(padding="right"),
    "missing mask, interleaved padding ids": Scenario(padding="interleaved"),
    "missing mask, a row of padding ids": Scenario(padding="row"),
    "mask of ones over padding ids": Scenario(padding="right", mask="none"),
    "right mask": Scenario(mask="right"),
    "left mask": Scenario(mask="left"),
    "interleaved mask": Scenario(mask="interleaved"),
    "first token masked": Scenario(mask="first"),
    "a row masked": Scenario(mask="row"),
    "all masked": Scenario(mask="all"),
    "float mask": Scenario(mask="interleaved", mask_dtype=torch.float32),
    "bool mask": Scenario(mask="interleaved", mask_dtype=torch.bool),
    "int32 mask": Scenario(mask="interleaved", mask_dtype=torch.int32),
    "one token": Scenario(length=1),
    "one token, masked": Scenario(length=1, mask="all"),
    "odd length": Scenario(length=17, mask="right"),
    "longest length": Scenario(length=LONGEST, mask="right", batch=2),
    "batch of 1": Scenario(batch=1, mask="right"),
    "batch of 7": Scenario(batch=7, length=5, mask="interleaved"),
    "position ids": Scenario(position_ids=True, mask="right"),
    "head mask per head": Scenario(head_mask=1, mask="right"),
    "head mask per layer and head": Scenario(head_mask=2, mask="right"),
    "inputs_embeds": Scenario(inputs_embeds=True, mask="left"),
    "inputs_embeds and position ids": Scenario(inputs_embeds=True, mask="left", position_ids=True),
    "hidden states": Scenario(mask="right", flags={"output_hidden_states": True}),
    "attentions": Scenario(mask="right", flags={"output_attentions": True}),
    "attentions of a masked row": Scenario(mask="row", flags={"output_attentions": True}),
    "attentions under a head mask": Scenario(head_mask=2, flags={"output_attentions": True}),
    "hidden states and attentions": Scenario(flags={"output_hidden_states": True, "output_attentions": True}),
    "flags in the config": Scenario(config={"output_hidden_states": True, "output_attentions": True}),
    "flags against the config": Scenario(
        config={"output_hidden_states": True, "output_attentions": True},
        flags={"output_hidden_states": False, "output_attentions": False},
    ),
    "tuple": Scenario(mask="right", flags={"return_dict": False}),
    "tuple of everything": Scenario(
        flags={"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    ),
    "tuple by the config": Scenario(config={"return_dict": False}, flags={"return_dict": None}),
    "relu": Scenario(config={"hidden_act": "relu"}),
    "large epsilon": Scenario(config={"layer_norm_eps": 0.1}),
    "one label": Scenario(config={"num_labels": 1}),
    "other padding id": Scenario(config={"pad_token_id": 5}, padding="right"),
}


# Left out: what the reference cannot do (test_modeling_differences has it), and labels that QA cannot have.
IMPOSSIBLE = {("ie", name) for name in SCENARIOS if name.startswith("tuple")} | {("qa", "one label")}
CASES = [(head, name) for head in HEADS for name in SCENARIOS if (head, name) not in IMPOSSIBLE]


@pytest.mark.parametrize(("head", "name"), CASES)
def test_outputs_equal_the_reference(head, name, make_pair):
    scenario = SCENARIOS[name]
    theirs, ours = make_pair(head, **scenario.config)
    inputs = _inputs(scenario, head, theirs)
    with torch.no_grad():
        expected = theirs(**copy.deepcopy(inputs))
        actual = ours(**inputs)
    _assert_same(actual, expected)


@pytest.mark.parametrize("flags", [{}, {"return_dict": False}, {"output_hidden_states": True, "return_dict": False}])
def test_base_model_without_a_pooler_equals_the_reference(flags, make_pair):
    theirs, ours = make_pair("base", add_pooling_layer=False)
    inputs = _inputs(Scenario(mask="right", flags=flags), "base", theirs)
    with torch.no_grad():
        expected, actual = theirs(**inputs), ours(**inputs)
    _assert_same(actual, expected)
    assert actual[1] is None if "return_dict" in flags else actual.pooler_output is None


def test_positional_arguments_follow_the_reference(head, make_pair):
    """The base model takes position_ids second, the heads attention_mask; both as in the reference."""
    theirs, ours = make_pair(head)
    named = _inputs(Scenario(mask="right", position_ids=True), head, theirs)
    order = ["input_ids", "position_ids", "attention_mask"]
    if head != "base":
        order = ["input_ids", "attention_mask", "position_ids"]
    with torch.no_grad():
        expected = theirs(*(named[argument].clone() for argument in order))
        actual = ours(*(named[argument] for argument in order))
        by_name = ours(**named)
    _assert_same(actual, expected)
    _assert_same(actual, by_name)


def test_the_weights_used_here_make_attention_sharp(make_pair):
    """Parity on near-uniform attention would prove little."""
    theirs, ours = make_pair("base")
    with torch.no_grad():
        attentions = ours(**_inputs(Scenario(length=17), "base", theirs), output_attentions=True).attentions
    for weights in attentions:
        assert weights.amax(-1).mean() > 4 / 17
    for name, parameter in ours.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().mean() > 0.1, name
        if "norm" in name:
            assert parameter.std() > 0.1, name


def _inputs(scenario: Scenario, head: str, model: nn.Module) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    config = model.config
    shape = (scenario.batch, CHOICES) if head == "mc" else (scenario.batch,)
    rows = scenario.batch * (CHOICES if head == "mc" else 1)
    ids = torch.randint(6, config.vocab_size, (rows, scenario.length), generator=generator)
    ids = ids.masked_fill(~_attended(scenario.padding, rows, scenario.length), config.pad_token_id)
    tensors = {"input_ids": ids}
    if scenario.inputs_embeds:
        tensors = {"inputs_embeds": torch.randn(rows, scenario.length, config.hidden_size, generator=generator)}
    if scenario.mask is not None:
        mask = _attended(scenario.mask, rows, scenario.length)
        tensors["attention_mask"] = mask.to(scenario.mask_dtype)
    if scenario.position_ids:
        tensors["position_ids"] = torch.randint(LONGEST, (rows, scenario.length), generator=generator)
    inputs: dict[str, Any] = {name: tensor.reshape(*shape, *tensor.shape[1:]) for name, tensor in tensors.items()}
    if scenario.head_mask:
        sizes = (config.num_hidden_layers, config.num_attention_heads)[-scenario.head_mask :]
        inputs["head_mask"] = torch.rand(sizes, generator=generator).round(decimals=1)
    return inputs | scenario.flags


def _attended(pattern: str, rows: int, length: int) -> Tensor:
    """Return a bool ``(rows, length)``, True where a token counts."""
    column, row = torch.arange(length)[None, :], torch.arange(rows)[:, None]
    count = 1 + (row * 3 + length // 2) % length
    return {
        "none": (column >= 0) & (row >= 0),
        "right": column < count,
        "left": column >= length - count,
        "interleaved": (column + row) % 3 != 1,
        "first": (column > 0) & (row >= 0),
        "row": (column >= 0) & (row != 0),
        "all": (column < 0) & (row < 0),
    }[pattern]


def _assert_same(actual: Any, expected: Any) -> None:
    """Same structure, same names, and every tensor within the tolerance."""
    if isinstance(expected, ModelOutput):
        assert list(actual.keys()) == list(expected.keys())
        actual, expected = tuple(actual.values()), tuple(expected.values())
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple)
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            _assert_same(ours, theirs)
    elif expected is None:
        assert actual is None
    else:
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
