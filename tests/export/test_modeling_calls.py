"""Calls as the documentation writes them, wrong calls, and what is computed under way; on transformers 4.57 and 5."""

import pytest
import torch
from torch import nn

from erniem_export import modeling

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 35,
}


class TestDocumentedExamples:
    """The published documentation's examples on a tiny random model, with ids in place of a tokenizer's output."""

    inputs = {"input_ids": torch.tensor([[0, 17, 29, 11, 8, 42, 2]])}

    def test_base_model(self):
        outputs = _model("ErnieMModel")(**self.inputs)
        assert outputs.last_hidden_state.shape == (1, 7, 24)
        assert outputs.pooler_output.shape == (1, 24)

    def test_sequence_classification(self):
        model = _model("ErnieMForSequenceClassification")
        with torch.no_grad():
            logits = model(**self.inputs).logits
        assert model.config.id2label[logits.argmax().item()] in ("LABEL_0", "LABEL_1")
        loss = model(**self.inputs, labels=torch.tensor([1])).loss
        torch.testing.assert_close(loss, -logits.log_softmax(-1)[0, 1])

    def test_multi_label_classification(self):
        model = _model("ErnieMForSequenceClassification", problem_type="multi_label_classification", num_labels=4)
        with torch.no_grad():
            logits = model(**self.inputs).logits
        predicted = torch.arange(0, logits.shape[-1])[torch.sigmoid(logits).squeeze(dim=0) > 0.5]
        labels = torch.sum(nn.functional.one_hot(predicted[None, :].clone(), num_classes=4), dim=1).to(torch.float)
        loss = model(**self.inputs, labels=labels).loss
        torch.testing.assert_close(loss, -nn.functional.logsigmoid(logits.abs()).mean())

    def test_multiple_choice(self):
        encoding = {"input_ids": torch.tensor([[0, 9, 2, 2, 8, 2, 1], [0, 9, 2, 2, 7, 30, 2]])}
        labels = torch.tensor(0).unsqueeze(0)
        outputs = _model("ErnieMForMultipleChoice")(**{k: v.unsqueeze(0) for k, v in encoding.items()}, labels=labels)
        assert outputs.logits.shape == (1, 2)
        torch.testing.assert_close(outputs.loss, -outputs.logits.log_softmax(-1)[0, 0])

    def test_token_classification(self):
        model = _model("ErnieMForTokenClassification", num_labels=5)
        with torch.no_grad():
            logits = model(**self.inputs).logits
        predicted = logits.argmax(-1)
        assert len([model.config.id2label[label.item()] for label in predicted[0]]) == 7
        loss = model(**self.inputs, labels=predicted).loss
        torch.testing.assert_close(loss, -logits.log_softmax(-1).amax(-1).mean())

    def test_question_answering(self):
        model = _model("ErnieMForQuestionAnswering")
        with torch.no_grad():
            outputs = model(**self.inputs)
        start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
        assert 0 <= start < 7
        assert 0 <= end < 7
        loss = model(**self.inputs, start_positions=torch.tensor([4]), end_positions=torch.tensor([5])).loss
        expected = -(outputs.start_logits.log_softmax(-1)[0, 4] + outputs.end_logits.log_softmax(-1)[0, 5]) / 2
        torch.testing.assert_close(loss, expected)

    def test_integration_shape(self):
        """The reference's published check: six ids, no mask."""
        model = _model("ErnieMModel")
        with torch.no_grad():
            output = model(torch.tensor([[0, 1, 2, 3, 4, 5]]))[0]
        assert output.shape == torch.Size((1, 6, 24))
        assert output.isfinite().all()


class TestComputation:
    @pytest.mark.parametrize(
        ("options", "fused"),
        [
            ({}, True),
            ({"output_hidden_states": True}, True),
            ({"output_attentions": True}, False),
            ({"head_mask": torch.ones(4)}, False),
        ],
    )
    @pytest.mark.parametrize("training", [False, True])
    def test_attention_is_fused_unless_the_weights_are_needed(self, options, fused, training, monkeypatch):
        calls = []
        for name in ("scaled_dot_product_attention", "softmax"):
            monkeypatch.setattr(modeling.functional, name, _recording(name, calls))
        _model("ErnieMModel").train(training)(torch.arange(6, 23)[None], **options)
        assert calls == ["scaled_dot_product_attention" if fused else "softmax"] * 2

    @pytest.mark.parametrize("asked", [False, True])
    def test_weights_are_not_kept_for_the_backward_pass_either(self, asked):
        shapes = []

        def keep(tensor):
            shapes.append(tensor.shape)
            return tensor

        model = _model("ErnieMModel", attention_probs_dropout_prob=0.0)
        ids = torch.arange(6, 23)[None]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train()(ids, output_attentions=asked)
        assert shapes
        assert any(shape[-2:] == (17, 17) for shape in shapes) == asked

    def test_dropout_acts_in_training_only(self):
        model = _model("ErnieMForTokenClassification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
        ids = torch.arange(6, 23)[None]
        with torch.no_grad():
            once, again = model(ids).logits, model(ids).logits
            assert torch.equal(once, again)
            for options in ({}, {"output_attentions": True}):
                noisy = model.train()(ids, **options).logits
                assert not torch.allclose(noisy, once, atol=1e-3)

    def test_positions_of_the_caller_are_left_alone(self):
        positions = torch.arange(17)[None]
        _model("ErnieMModel")(torch.arange(6, 23)[None], position_ids=positions)
        assert torch.equal(positions, torch.arange(17)[None])


class TestErrors:
    ids = torch.arange(6, 15)[None]

    @pytest.mark.parametrize(
        "cache", [{"past_key_values": ((torch.ones(1), torch.ones(1)),)}, {"use_cache": True}], ids=["values", "use"]
    )
    @pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForSequenceClassification"])
    def test_caches(self, name, cache):
        with pytest.raises(ValueError) as caught:
            _model(name)(self.ids, **cache)
        assert str(caught.value) == (
            "ErnieM is an encoder and has no key/value cache: leave past_key_values and use_cache at None"
        )

    def test_sequence_over_the_limit(self):
        model = _model("ErnieMModel")
        assert model(torch.full((1, 33), 6)).last_hidden_state.shape == (1, 33, 24)
        with pytest.raises(ValueError, match=r"^a sequence of 34 tokens is over the limit of 33; truncate it$"):
            model(torch.full((1, 34), 6))
        with pytest.raises(ValueError, match="over the limit"):
            model(inputs_embeds=torch.zeros(1, 34, 24))

    @pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForMultipleChoice", "ErnieMForInformationExtraction"])
    def test_both_or_neither_of_ids_and_embeddings(self, name):
        choices = (1,) if name == "ErnieMForMultipleChoice" else ()
        ids, embeds = self.ids.reshape(1, *choices, 9), torch.zeros(1, *choices, 9, 24)
        for given in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
            with pytest.raises(ValueError, match=r"^expected exactly one of input_ids and inputs_embeds$"):
                _model(name)(**given)

    @pytest.mark.parametrize("shape", [(9,), (1, 1, 1, 9, 9)])
    def test_masks_of_other_ranks(self, shape):
        with pytest.raises(ValueError, match=f"attention_mask must have 2, 3 or 4 dimensions, not {len(shape)}"):
            _model("ErnieMModel")(self.ids, attention_mask=torch.ones(shape))

    def test_head_masks_of_other_ranks(self):
        with pytest.raises(ValueError, match=r"head_mask must be \(heads,\) or \(layers, heads\), not \(1, 2, 4\)"):
            _model("ErnieMModel")(self.ids, head_mask=torch.ones(1, 2, 4))

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"num_attention_heads": 5}, r"hidden_size \(24\) must be a multiple of num_attention_heads \(5\)"),
            (
                {"position_embedding_type": "relative_key"},
                "position_embedding_type 'relative_key' is not supported; ErnieM checkpoints use 'absolute'",
            ),
        ],
    )
    def test_configurations(self, config, message):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            _model("ErnieMModel", **config)

    def test_question_answering_has_two_labels(self):
        with pytest.raises(ValueError, match=r"^question answering has two labels, start and end; num_labels is 3$"):
            _model("ErnieMForQuestionAnswering", num_labels=3)

    def test_unknown_problem_type(self):
        model = _model("ErnieMForSequenceClassification")
        model.config.problem_type = "ranking"
        with pytest.raises(ValueError, match=r"unknown config\.problem_type 'ranking'"):
            model(self.ids, labels=torch.tensor([1]))


def _model(name, **config):
    torch.manual_seed(0)
    model = getattr(modeling, name)(modeling.ErnieMConfig(**TINY | config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def _recording(name, calls):
    original = getattr(nn.functional, name)

    def recording(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    return recording
