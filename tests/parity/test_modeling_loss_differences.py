"""Losses that the reference cannot compute, or remembers too well: each test shows both it and ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

MakePair = Callable[..., tuple[nn.Module, nn.Module]]
BATCH, LENGTH, CHOICES = 4, 9, 2
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def test_information_extraction_takes_integer_labels(make_pair):
    theirs, ours = make_pair("ie")
    spans = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 4 // 3
    labels = {"start_positions": spans, "end_positions": spans.flip(0)}
    with pytest.raises(RuntimeError, match="can't be cast"):
        theirs(_ids("ie"), **labels)
    expected = theirs(_ids("ie"), **{name: tensor.float() for name, tensor in labels.items()}).loss
    torch.testing.assert_close(ours(_ids("ie"), **labels).loss, expected, **TOLERANCE)


def test_information_extraction_takes_one_token(make_pair):
    theirs, ours = make_pair("ie")
    ids, spans = _ids("ie")[:, :1], torch.ones(BATCH, 1)
    with pytest.raises(ValueError, match="must be the same as input size"):
        theirs(ids, start_positions=spans, end_positions=spans)
    output = ours(ids, start_positions=spans, end_positions=spans)
    expected = -(output.start_logits.sigmoid().log().mean() + output.end_logits.sigmoid().log().mean()) / 2
    torch.testing.assert_close(output.loss, expected, **TOLERANCE)


def test_several_labels_may_be_integers(make_pair):
    theirs, ours = make_pair("cls", num_labels=3, problem_type="multi_label_classification")
    labels = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    with pytest.raises(RuntimeError, match="can't be cast"):
        theirs(_ids("cls"), labels=labels)
    expected = theirs(_ids("cls"), labels=labels.float()).loss
    torch.testing.assert_close(ours(_ids("cls"), labels=labels).loss, expected, **TOLERANCE)


@pytest.mark.parametrize("head", ["cls", "mc", "ner", "qa"])
def test_classes_may_be_int32(head, make_pair):
    theirs, ours = make_pair(head)
    shape = (BATCH, LENGTH) if head == "ner" else (BATCH,)
    names = ["start_positions", "end_positions"] if head == "qa" else ["labels"]
    labels = {name: torch.ones(shape, dtype=torch.int32) for name in names}
    with pytest.raises(RuntimeError, match=r"expected (target dtype|scalar type)"):
        theirs(_ids(head), **labels)
    expected = theirs(_ids(head), **{name: tensor.long() for name, tensor in labels.items()}).loss
    torch.testing.assert_close(ours(_ids(head), **labels).loss, expected, **TOLERANCE)


def test_token_labels_need_not_be_contiguous(make_pair):
    theirs, ours = make_pair("ner", num_labels=5)
    labels = (torch.arange(LENGTH * BATCH) % 5).reshape(LENGTH, BATCH).T
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        theirs(_ids("ner"), labels=labels)
    expected = theirs(_ids("ner"), labels=labels.contiguous()).loss
    torch.testing.assert_close(ours(_ids("ner"), labels=labels).loss, expected, **TOLERANCE)


def test_the_first_labels_do_not_decide_for_all(make_pair):
    """The reference writes what it infers from one batch's labels into the config, for ever."""
    theirs, ours = make_pair("cls", num_labels=3)
    classes, several = torch.tensor([0, 1, 2, 0]), torch.eye(3)[[0, 1, 2, 0]]
    expected = nn.functional.binary_cross_entropy_with_logits(ours(_ids("cls")).logits, several)
    for model in (theirs, ours):
        model(_ids("cls"), labels=classes)
    assert theirs.config.problem_type == "single_label_classification"
    assert ours.config.problem_type is None
    with pytest.raises(ValueError, match=r"Expected input batch_size"):
        theirs(_ids("cls"), labels=several)
    torch.testing.assert_close(ours(_ids("cls"), labels=several).loss, expected, **TOLERANCE)


def _ids(head: str) -> Tensor:
    shape = (BATCH, CHOICES, LENGTH) if head == "mc" else (BATCH, LENGTH)
    return torch.randint(6, 61, shape, generator=torch.Generator().manual_seed(2))
