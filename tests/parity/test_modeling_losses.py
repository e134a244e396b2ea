"""Losses and gradients of every head equal the reference's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

BATCH, LENGTH, CHOICES = 4, 9, 3
LOSS_TOLERANCE = 1e-5
GRADIENT_RELATIVE_TOLERANCE = 1e-4

Labels = dict[str, Tensor]


def _ints(*shape: int, below: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(3))


def _floats(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def _tokens_with_ignored() -> Tensor:
    return _ints(BATCH, LENGTH, below=5).masked_fill(torch.arange(LENGTH) % 4 == 0, -100)


MULTI_LABEL = "multi_label_classification"
ENDS = torch.tensor([3, 8, 0, 5])

# Name: head, config, labels.
CASES: dict[str, tuple[str, dict[str, Any], Labels]] = {
    "one class": ("cls", {"num_labels": 5}, {"labels": _ints(BATCH, below=5)}),
    "one class, as a column": ("cls", {"num_labels": 5}, {"labels": _ints(BATCH, 1, below=5)}),
    "several labels": ("cls", {"num_labels": 5}, {"labels": _ints(BATCH, 5, below=2).float()}),
    "several labels, by config": (
        "cls",
        {"num_labels": 5, "problem_type": MULTI_LABEL},
        {"labels": _ints(BATCH, 5, below=2).float()},
    ),
    "regression": ("cls", {"num_labels": 1}, {"labels": _floats(BATCH)}),
    "regression, as a column": ("cls", {"num_labels": 1}, {"labels": _floats(BATCH, 1)}),
    "regression of several": (
        "cls",
        {"num_labels": 3, "problem_type": "regression"},
        {"labels": _floats(BATCH, 3)},
    ),
    "choices": ("mc", {}, {"labels": _ints(BATCH, below=CHOICES)}),
    "tokens": ("ner", {"num_labels": 5}, {"labels": _ints(BATCH, LENGTH, below=5)}),
    "tokens, some ignored": ("ner", {"num_labels": 5}, {"labels": _tokens_with_ignored()}),
    "spans": ("qa", {}, {"start_positions": _ints(BATCH, below=LENGTH), "end_positions": ENDS}),
    "spans, as columns": (
        "qa",
        {},
        {"start_positions": _ints(BATCH, 1, below=LENGTH), "end_positions": ENDS[:, None]},
    ),
    "spans, some outside": ("qa", {}, {"start_positions": ENDS + 3, "end_positions": torch.tensor([-5, 99, 2, 9])}),
    "information extraction": (
        "ie",
        {},
        {
            "start_positions": _ints(BATCH, LENGTH, below=2).float(),
            "end_positions": _floats(BATCH, LENGTH),
        },
    ),
    "information extraction, as columns": (
        "ie",
        {},
        {
            "start_positions": _ints(BATCH, LENGTH, 1, below=2).float(),
            "end_positions": _floats(BATCH, LENGTH, 1),
        },
    ),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_the_reference(name, training, make_pair):
    """In train mode with dropouts of 0, as what is random cannot be compared; in eval mode with the weights."""
    head, config, labels = CASES[name]
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    theirs, ours = make_pair(head, **no_dropout | config)
    inputs = _inputs(head, theirs.config.vocab_size) | labels | {"output_attentions": not training}
    losses = [model.train(training)(**inputs).loss for model in (theirs, ours)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=LOSS_TOLERANCE)
    expected, actual = (_gradient_norms(model) for model in (theirs, ours))
    assert actual.keys() == expected.keys()
    assert len(actual) > 30
    # A key's bias shifts all scores of a query alike: its true gradient is 0, and what is computed is rounding.
    floor = max(expected.values()) * 1e-6
    assert actual == pytest.approx(expected, rel=GRADIENT_RELATIVE_TOLERANCE, abs=floor)


@pytest.mark.parametrize("name", [name for name, (head, *_) in CASES.items() if head != "ie"])
def test_the_loss_comes_first_in_a_tuple(name, make_pair):
    head, config, labels = CASES[name]
    theirs, ours = make_pair(head, **config)
    inputs = _inputs(head, theirs.config.vocab_size) | labels
    inputs |= {"return_dict": False, "output_hidden_states": True}
    with torch.no_grad():
        expected, actual = theirs(**inputs), ours(**inputs)
    assert len(actual) == len(expected)
    assert actual[0].shape == ()
    for index in range(len(expected) - 1):
        torch.testing.assert_close(actual[index], expected[index], rtol=0, atol=LOSS_TOLERANCE)


def test_spans_that_are_all_outside_have_a_mean_of_nothing(make_pair):
    outside = torch.full((BATCH,), LENGTH)
    for model in make_pair("qa"):
        loss = model(**_inputs("qa", 61), start_positions=outside, end_positions=outside).loss
        assert loss.isnan()


@pytest.mark.parametrize("head", ["qa", "ie"])
@pytest.mark.parametrize("given", ["start_positions", "end_positions"])
def test_half_a_span_has_no_loss(head, given, make_pair):
    theirs, ours = make_pair(head)
    inputs = _inputs(head, theirs.config.vocab_size) | {given: torch.ones(BATCH, LENGTH)}
    assert theirs(**inputs).loss is None
    assert ours(**inputs).loss is None


def _inputs(head: str, vocab_size: int) -> dict[str, Any]:
    shape = (BATCH, CHOICES, LENGTH) if head == "mc" else (BATCH, LENGTH)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[0, ..., -3:] = 0
    mask[1, ..., :2] = 0
    return {"input_ids": 6 + _ints(*shape, below=vocab_size - 6), "attention_mask": mask}


def _gradient_norms(model: nn.Module) -> dict[str, float]:
    return {
        name: parameter.grad.norm().item() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
