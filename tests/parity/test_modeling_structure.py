"""What a checkpoint and a caller see of each class is the reference's: names, arguments, dropouts, saved files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import erniem_export.modeling as erniem_modeling

MakePair = Callable[..., tuple[nn.Module, nn.Module]]


def test_state_dicts_have_the_same_names_and_shapes(head, make_pair):
    expected, actual = (_shapes(model) for model in make_pair(head))
    assert actual == expected


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_arguments_have_the_same_names_order_and_defaults(head, method, make_pair):
    theirs, ours = (inspect.signature(getattr(type(model), method)).parameters for model in make_pair(head))
    expected = [(parameter.name, parameter.default) for parameter in theirs.values()]
    assert [(parameter.name, parameter.default) for parameter in ours.values()] == expected


def test_configurations_are_equal(reference):
    theirs, ours = reference.ErnieMConfig, erniem_modeling.ErnieMConfig
    assert ours().to_dict() == theirs().to_dict()
    assert ours.attribute_map == theirs.attribute_map
    options: dict[str, Any] = {"num_classes": 5, "hidden_size": 24, "act_dropout": None, "pruned_heads": {1: [2]}}
    assert ours(**options).to_dict() == theirs(**options).to_dict()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"classifier_dropout": 0.4},
        {"act_dropout": None},
        {"act_dropout": 0.6, "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
    ],
    ids=str,
)
def test_dropouts_sit_in_the_same_places(head, config, make_pair):
    theirs, ours = make_pair(head, **config)
    assert _dropouts(ours) == _dropouts(theirs)


def test_fresh_weights_have_the_same_spread(reference):
    # Large enough that 5 % are six times what the spread of so many numbers varies by.
    options = {"vocab_size": 300, "hidden_size": 128, "num_hidden_layers": 1, "initializer_range": 0.5}
    options |= {"num_attention_heads": 4, "intermediate_size": 160, "max_position_embeddings": 130}
    torch.manual_seed(0)
    theirs = reference.ErnieMModel(reference.ErnieMConfig(**options))
    ours = erniem_modeling.ErnieMModel(erniem_modeling.ErnieMConfig(**options))
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.mean().item() == pytest.approx(expected[name].mean().item(), abs=0.05), name
        assert parameter.std().item() == pytest.approx(expected[name].std().item(), rel=0.05), name
    padding = ours.embeddings.word_embeddings.weight[1], ours.embeddings.position_embeddings.weight[1]
    assert all(row.eq(0).all() for row in padding)


def test_each_loads_what_the_other_saved(head, make_pair, tmp_path):
    theirs, ours = make_pair(head)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    assert _loaded_state(type(ours), tmp_path / "theirs") == _loaded_state(type(theirs), tmp_path / "ours")
    expected, actual = ((tmp_path / name / "config.json").read_text() for name in ("theirs", "ours"))
    assert actual == expected


def test_pruned_models_are_equal_and_each_loads_the_other(make_pair, tmp_path):
    theirs, ours = make_pair("cls")
    whole = ours(_ids()).logits
    for heads in ({0: [1], 1: [0, 3]}, {0: [0]}):
        theirs.prune_heads(heads)
        ours.prune_heads(heads)
    assert _shapes(ours) == _shapes(theirs)
    expected = theirs(_ids()).logits
    assert (expected - whole).abs().max() > 0.01
    torch.testing.assert_close(ours(_ids()).logits, expected, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    for loader, folder in ((type(ours), "theirs"), (type(theirs), "ours")):
        loaded = loader.from_pretrained(tmp_path / folder).eval()
        torch.testing.assert_close(loaded(_ids()).logits, expected, rtol=0, atol=1e-5)


def _ids() -> torch.Tensor:
    return torch.arange(6, 24).reshape(2, 9)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _dropouts(model: nn.Module) -> dict[str, float]:
    return {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}


def _loaded_state(model_class: type, folder: Path) -> dict[str, bytes]:
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
