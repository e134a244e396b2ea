"""Where the reference crashes or misbehaves and ours does not: each test shows both.

``docs/reference-differences.md`` is the list in words; the losses are in ``test_modeling_loss_differences``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import erniem_export.modeling as erniem_modeling

MakePair = Callable[..., tuple[nn.Module, nn.Module]]
BATCH, LENGTH, CHOICES = 4, 9, 2
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class TestInputs:
    def test_position_ids_are_left_alone(self, head, make_pair):
        theirs, ours = make_pair(head)
        ids = _ids(head)
        positions = torch.arange(LENGTH).expand(ids.shape).contiguous()
        before = positions.clone()
        ours(ids, position_ids=positions)
        assert torch.equal(positions, before)
        theirs(ids, position_ids=positions)
        assert torch.equal(positions, before + 2)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
    @pytest.mark.parametrize("shape", [(LENGTH, LENGTH), (1, LENGTH, LENGTH), (4, LENGTH, LENGTH)])
    def test_masks_per_query_and_per_head_work(self, shape, dtype, make_pair):
        """The oracle is the reference's own encoder, handed the additive mask that its model fails to build."""
        theirs, ours = make_pair("base")
        ids = _ids("base")
        mask = torch.rand(BATCH, *shape, generator=torch.Generator().manual_seed(5)) > 0.4
        mask[0, ..., 2, :] = False
        with pytest.raises(RuntimeError, match="number of dimensions"):
            theirs(ids, attention_mask=mask.float())
        additive = (1.0 - mask.float()) * torch.finfo(torch.float32).min
        if additive.ndim == 3:
            additive = additive[:, None]
        expected = theirs.encoder(theirs.embeddings(ids), additive, output_hidden_states=True, output_attentions=True)
        plain = ours(ids, attention_mask=mask.to(dtype))
        full = ours(ids, attention_mask=mask.to(dtype), output_hidden_states=True, output_attentions=True)
        torch.testing.assert_close(plain.last_hidden_state, expected.last_hidden_state, **TOLERANCE)
        torch.testing.assert_close(full.hidden_states, expected.hidden_states, **TOLERANCE)
        torch.testing.assert_close(full.attentions, expected.attentions, **TOLERANCE)

    def test_masks_per_query_reach_every_head(self, head, make_pair):
        theirs, ours = make_pair(head)
        ids = _ids(head)
        row_mask = torch.ones_like(ids).index_fill(-1, torch.tensor([1, 7]), 0)
        query_mask = row_mask[..., None, :].expand(*ids.shape, LENGTH)
        with pytest.raises(RuntimeError, match=r"number of dimensions|shape|view size"):
            theirs(ids, attention_mask=query_mask)
        expected = theirs(ids, attention_mask=row_mask)
        _assert_equal(ours(ids, attention_mask=query_mask), expected)

    def test_mask_values_above_one_attend(self, make_pair):
        """The reference multiplies 1 - mask by the lowest float: a 2 drowns every other token."""
        theirs, ours = make_pair("base")
        ids = _ids("base")
        ones = torch.ones_like(ids)
        counts = ones.index_fill(-1, torch.tensor([3]), 2)
        expected = theirs(ids, attention_mask=ones).last_hidden_state
        torch.testing.assert_close(ours(ids, attention_mask=counts).last_hidden_state, expected, **TOLERANCE)
        assert (theirs(ids, attention_mask=counts).last_hidden_state - expected).abs().max() > 0.1

    def test_inputs_embeds_need_no_mask(self, head, make_pair):
        theirs, ours = make_pair(head)
        ids = _ids(head)
        embeds = torch.randn(*ids.shape, theirs.config.hidden_size, generator=torch.Generator().manual_seed(1))
        with pytest.raises(AttributeError, match="'bool' object has no attribute 'to'"):
            theirs(inputs_embeds=embeds)
        _assert_equal(ours(inputs_embeds=embeds), theirs(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)))

    def test_missing_tokens_are_named(self, head, make_pair):
        theirs, ours = make_pair(head)
        with pytest.raises(AttributeError):
            theirs()
        with pytest.raises(ValueError, match="expected exactly one of input_ids and inputs_embeds"):
            ours()

    def test_a_sequence_over_the_limit_is_named(self, make_pair):
        theirs, ours = make_pair("base")
        ids = torch.full((1, 34), 6)
        with pytest.raises(IndexError, match="index out of range in self"):
            theirs(ids)
        with pytest.raises(ValueError, match="a sequence of 34 tokens is over the limit of 33; truncate it"):
            ours(ids)

    @pytest.mark.parametrize("memory", ["input_ids", "attention_mask", "position_ids"])
    def test_choices_need_not_be_contiguous(self, memory, make_pair):
        theirs, ours = make_pair("mc")
        ids = _ids("mc")
        inputs = {
            "input_ids": ids,
            "attention_mask": (ids % 3 != 0).long(),
            "position_ids": torch.arange(LENGTH).expand(ids.shape).flip(-1).contiguous(),
        }
        expected = theirs(**{name: tensor.clone() for name, tensor in inputs.items()}).logits
        inputs[memory] = inputs[memory].transpose(0, 1).contiguous().transpose(0, 1)
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            theirs(**inputs)
        torch.testing.assert_close(ours(**inputs).logits, expected, **TOLERANCE)


class TestCaches:
    @pytest.mark.parametrize("head", ["base", "cls", "ner"])
    def test_past_key_values_are_refused(self, head, make_pair):
        theirs, ours = make_pair(head)
        with pytest.raises(AttributeError, match="get_seq_length"):
            theirs(_ids(head), past_key_values=((torch.ones(1), torch.ones(1)),))
        with pytest.raises(ValueError, match="ErnieM is an encoder and has no key/value cache"):
            ours(_ids(head), past_key_values=((torch.ones(1), torch.ones(1)),))

    @pytest.mark.parametrize("head", ["base", "cls"])
    def test_use_cache_is_refused_where_it_was_ignored(self, head, make_pair):
        theirs, ours = make_pair(head)
        assert theirs(_ids(head), use_cache=True).keys() == theirs(_ids(head)).keys()
        with pytest.raises(ValueError, match="ErnieM is an encoder and has no key/value cache"):
            ours(_ids(head), use_cache=True)
        _assert_equal(ours(_ids(head), use_cache=False), theirs(_ids(head)))

    def test_is_decoder_changes_nothing(self, make_pair):
        theirs, ours = make_pair("base", is_decoder=True)
        with pytest.raises(ValueError, match="too many values to unpack"):
            theirs(_ids("base"))
        encoder, _ = make_pair("base")
        _assert_equal(ours(_ids("base")), encoder(_ids("base")))


class TestPrecision:
    @pytest.mark.parametrize("with_mask", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_runs(self, dtype, with_mask, head, make_pair):
        theirs, ours = make_pair(head)
        ids = _ids(head)
        ids[1] = theirs.config.pad_token_id
        inputs = {"input_ids": ids}
        if with_mask:
            inputs["attention_mask"] = (ids != theirs.config.pad_token_id).long()
        expected = theirs(**inputs)
        with pytest.raises(RuntimeError, match="same dtype"):
            theirs.to(dtype)(**inputs)
        actual = ours.to(dtype)(**inputs)
        for name, tensor in expected.items():
            assert actual[name].dtype == dtype
            assert actual[name].isfinite().all()
            # Ten and seven bits of mantissa, through two sharp layers.
            error = (actual[name].float() - tensor).norm() / tensor.norm()
            assert error < {torch.float16: 0.01, torch.bfloat16: 0.08}[dtype], name


class TestReturns:
    def test_information_extraction_returns_tuples(self, make_pair):
        theirs, ours = make_pair("ie")
        ids = _ids("ie")
        spans = torch.zeros(BATCH, LENGTH)
        inputs = {"start_positions": spans, "end_positions": spans, "output_hidden_states": True}
        with pytest.raises(AttributeError, match="'tuple' object has no attribute 'hidden_states'"):
            theirs(ids, **inputs, return_dict=False)
        expected = theirs(ids, **inputs)
        _assert_equal(ours(ids, **inputs, return_dict=False), expected.to_tuple())
        _assert_equal(ours(ids, return_dict=False), theirs(ids).to_tuple())

    def test_information_extraction_asks_the_config_when_return_dict_is_none(self, make_pair):
        theirs, ours = make_pair("ie")
        assert theirs.config.return_dict
        assert isinstance(theirs(_ids("ie"), return_dict=None), tuple)
        _assert_equal(ours(_ids("ie"), return_dict=None), theirs(_ids("ie")))

    @pytest.mark.parametrize("asked", [False, True])
    def test_attention_weights_are_computed_only_when_asked_for(self, asked, make_pair, monkeypatch):
        """The reference's layers default to output_attentions=True, and its encoder does not say otherwise."""
        theirs, ours = make_pair("base")
        shapes = _record_softmax(monkeypatch)
        theirs(_ids("base"), output_attentions=asked)
        assert shapes == [(BATCH, 4, LENGTH, LENGTH)] * 2
        shapes.clear()
        ours(_ids("base"), output_attentions=asked)
        assert shapes == ([(BATCH, 4, LENGTH, LENGTH)] * 2 if asked else [])


class TestConfigurations:
    def test_question_answering_has_two_labels(self, reference, make_pair):
        theirs = reference.ErnieMForQuestionAnswering(make_pair("cls", num_labels=3)[0].config)
        with pytest.raises(ValueError, match="too many values to unpack"):
            theirs(_ids("qa"))
        with pytest.raises(ValueError, match="question answering has two labels, start and end; num_labels is 3"):
            erniem_modeling.ErnieMForQuestionAnswering(make_pair("cls", num_labels=3)[1].config)

    def test_dropout_is_an_alias_at_construction(self, reference):
        """Both map the attribute dropout to classifier_dropout; the reference's constructor overwrites it."""
        assert reference.ErnieMConfig(dropout=0.3).classifier_dropout is None
        config = erniem_modeling.ErnieMConfig(dropout=0.3)
        assert config.classifier_dropout == config.dropout == 0.3

    def test_relative_positions_are_refused(self, reference, make_pair):
        """The reference has code for them that no ErnieM checkpoint uses; here they are not supported."""
        theirs, ours = make_pair("base")
        config = theirs.config
        config.position_embedding_type = ours.config.position_embedding_type = "relative_key"
        assert reference.ErnieMModel(config).eval()(_ids("base")).last_hidden_state.isfinite().all()
        with pytest.raises(ValueError, match="position_embedding_type 'relative_key' is not supported"):
            erniem_modeling.ErnieMModel(ours.config)


def _ids(head: str) -> Tensor:
    shape = (BATCH, CHOICES, LENGTH) if head == "mc" else (BATCH, LENGTH)
    return torch.randint(6, 61, shape, generator=torch.Generator().manual_seed(2))


def _record_softmax(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that grows by the shape of every softmax's input."""
    shapes = []
    softmax = nn.functional.softmax

    def recording(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append(tuple(scores.shape))
        return softmax(scores, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "softmax", recording)
    return shapes


def _assert_equal(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert list(actual.keys()) == list(expected.keys())
        actual, expected = tuple(actual.values()), tuple(expected.values())
    assert isinstance(actual, tuple)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_gradient_checkpointing_is_there(make_pair):
    theirs, ours = make_pair("base")
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        theirs.gradient_checkpointing_enable()
    ours.gradient_checkpointing_enable()
    assert ours.is_gradient_checkpointing
