"""The model against ErnieM's forward pass written out plainly, in float64, query by query.

Independent of transformers' version: where the reference no longer exists this is what proves the numbers.
"""

import math

import pytest
import torch

from erniem_export import modeling

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 35,
}
BATCH, LENGTH, HEADS = 3, 9, 4
TOLERANCE = {"rtol": 0, "atol": 1e-5}


class Oracle:
    """ErnieM over a state dict: ``mask`` is bool ``(batch, heads, query, key)``, True = attend."""

    def __init__(self, model):
        self.weights = {name.removeprefix("ernie_m."): value.double() for name, value in model.state_dict().items()}
        self.layers = 1 + max(int(name.split(".")[2]) for name in self.weights if name.startswith("encoder.layers."))
        self.attentions = []

    def linear(self, states, name):
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, states, name):
        centred = states - states.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def hidden_states(self, words, mask, positions, head_mask):
        """Return the embeddings and every layer's output; ``words`` are embeddings, ``positions`` start at 0."""
        places = self.weights["embeddings.position_embeddings.weight"][positions + 2]
        states = [self.norm(words.double() + places, "embeddings.layer_norm")]
        for index in range(self.layers):
            layer = f"encoder.layers.{index}"
            attended = self.linear(
                self.attend(states[-1], mask, head_mask[index], layer), f"{layer}.self_attn.out_proj"
            )
            middle = self.norm(states[-1] + attended, f"{layer}.norm1")
            inner = self.linear(middle, f"{layer}.linear1")
            gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            states.append(self.norm(middle + self.linear(gelu, f"{layer}.linear2"), f"{layer}.norm2"))
        return states

    def attend(self, states, mask, head_factors, layer):
        query, key, value = (self.linear(states, f"{layer}.self_attn.self_attn.{name}_proj") for name in "qkv")
        context, size = torch.zeros_like(query), query.shape[-1] // HEADS
        weights = torch.zeros(*mask.shape, dtype=torch.float64)
        for row in range(mask.shape[0]):
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                for place in range(mask.shape[2]):
                    seen = mask[row, head, place]
                    if not seen.any():
                        # As in the reference: with nothing to attend to, everything counts alike.
                        weights[row, head, place] = head_factors[head] / len(seen)
                    else:
                        scores = key[row, seen, part] @ query[row, place, part] / math.sqrt(size)
                        weights[row, head, place, seen] = (scores.exp() / scores.exp().sum()) * head_factors[head]
                    context[row, place, part] = weights[row, head, place] @ value[row, :, part]
        self.attentions.append(weights)
        return context

    def pooled(self, states):
        return torch.tanh(self.linear(states[:, 0], "pooler.dense"))


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


ROWS = torch.arange(BATCH)[:, None]
COLUMNS = torch.arange(LENGTH)[None, :]
RANDOM = torch.rand(BATCH, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) > 0.5

# What the caller passes, by name; every one has a query or a row that attends to nothing, but for the first two.
MASKS = {
    "missing": None,
    "right padding": (COLUMNS < 9 - 2 * ROWS).long(),
    "a row of padding": (9 * (ROWS > 0) > COLUMNS).float(),
    "per query": RANDOM[:, 0].index_fill(1, torch.tensor([4]), False).long(),
    "per query, causal": (COLUMNS < COLUMNS.T).expand(BATCH, LENGTH, LENGTH),
    "per query, for all heads": RANDOM[:, :1].index_fill(2, torch.tensor([0]), False).float(),
    "per head and query": RANDOM.index_fill(2, torch.tensor([8]), False),
}


def test_the_masks_differ_per_head_and_query():
    assert not torch.equal(RANDOM[:, 0], RANDOM[:, 1])
    assert not torch.equal(RANDOM[:, :, 0], RANDOM[:, :, 1])


@pytest.mark.parametrize("name", MASKS)
def test_hidden_states_and_attentions_under_every_mask(name):
    model, ids = _model("ErnieMModel"), _ids()
    mask = MASKS[name]
    oracle = Oracle(model)
    expected = _hidden_states(oracle, ids, _expand(mask))
    plain = model(ids, attention_mask=mask)
    full = model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(plain.last_hidden_state.double(), expected[-1], **TOLERANCE)
    torch.testing.assert_close(plain.pooler_output.double(), oracle.pooled(expected[-1]), **TOLERANCE)
    torch.testing.assert_close([states.double() for states in full.hidden_states], expected, **TOLERANCE)
    torch.testing.assert_close([weights.double() for weights in full.attentions], oracle.attentions, **TOLERANCE)


def test_missing_mask_hides_padding_ids():
    model, ids = _model("ErnieMModel"), _ids()
    ids[0, 3:5] = ids[2, :2] = model.config.pad_token_id
    expected = _hidden_states(Oracle(model), ids, _expand(ids != model.config.pad_token_id))
    torch.testing.assert_close(model(ids).last_hidden_state.double(), expected[-1], **TOLERANCE)


def test_positions_head_mask_and_embeddings():
    model, ids = _model("ErnieMModel"), _ids()
    positions = (torch.arange(LENGTH) * 5 % 33).expand(BATCH, LENGTH).flip(0)
    head_mask = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, 0.25]])
    words = model.get_input_embeddings()(ids)
    oracle = Oracle(model)
    expected = oracle.hidden_states(words, _expand(None), positions, head_mask)[-1]
    for tokens in ({"input_ids": ids}, {"inputs_embeds": words}):
        actual = model(**tokens, position_ids=positions, head_mask=head_mask).last_hidden_state
        torch.testing.assert_close(actual.double(), expected, **TOLERANCE)
    one = model(ids, head_mask=head_mask[0]).last_hidden_state
    expected = oracle.hidden_states(words, _expand(None), torch.arange(LENGTH), head_mask[:1].expand(2, -1))[-1]
    torch.testing.assert_close(one.double(), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("ErnieMForSequenceClassification", {"logits": ("classifier", "pooled")}),
        ("ErnieMForTokenClassification", {"logits": ("classifier", "tokens")}),
        (
            "ErnieMForInformationExtraction",
            {"start_logits": ("linear_start", "tokens"), "end_logits": ("linear_end", "tokens")},
        ),
    ],
)
def test_heads(name, outputs):
    model, mask = _model(name), MASKS["right padding"]
    oracle = Oracle(model)
    states = _hidden_states(oracle, _ids(), _expand(mask))[-1]
    actual = model(_ids(), attention_mask=mask)
    for output, (layer, source) in outputs.items():
        expected = oracle.linear(oracle.pooled(states) if source == "pooled" else states, layer)
        shape = expected.shape if output == "logits" else expected.shape[:-1]
        torch.testing.assert_close(actual[output].double(), expected.reshape(shape), **TOLERANCE)


def test_question_answering_head():
    model, mask = _model("ErnieMForQuestionAnswering"), MASKS["right padding"]
    oracle = Oracle(model)
    logits = oracle.linear(_hidden_states(oracle, _ids(), _expand(mask))[-1], "qa_outputs")
    actual = model(_ids(), attention_mask=mask)
    torch.testing.assert_close(actual.start_logits.double(), logits[..., 0], **TOLERANCE)
    torch.testing.assert_close(actual.end_logits.double(), logits[..., 1], **TOLERANCE)


def test_multiple_choice_head_scores_each_choice_alone():
    model = _model("ErnieMForMultipleChoice")
    ids = torch.stack([_ids(), _ids().flip(0)], dim=1)
    mask = torch.stack([COLUMNS < 9 - 2 * ROWS, COLUMNS >= ROWS], dim=1)
    oracle = Oracle(model)
    actual = model(ids, attention_mask=mask).logits
    assert actual.shape == (BATCH, 2)
    for choice in range(2):
        states = _hidden_states(oracle, ids[:, choice], _expand(mask[:, choice]))[-1]
        expected = oracle.linear(oracle.pooled(states), "classifier")[:, 0]
        torch.testing.assert_close(actual[:, choice].double(), expected, **TOLERANCE)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near(dtype, name):
    """With strongly negative scores, which on top of float16's lowest value would overflow to -inf."""
    model = _model("ErnieMModel")
    for layer in model.encoder.layers:
        layer.self_attn.self_attn.q_proj.bias += 8
        layer.self_attn.self_attn.k_proj.bias -= 8
    expected = _hidden_states(Oracle(model), _ids(), _expand(MASKS[name]))[-1]
    half = model.to(dtype)
    for asked in (False, True):
        actual = half(_ids(), attention_mask=MASKS[name], output_attentions=asked).last_hidden_state
        assert actual.dtype == dtype
        assert actual.isfinite().all()
        error = (actual.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() < {torch.float16: 0.05, torch.bfloat16: 0.4}[dtype]


def _model(name):
    """Return a model with sharp attention and no parameter near its neutral value."""
    model = getattr(modeling, name)(modeling.ErnieMConfig(**TINY)).eval()
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            values = 0.3 * values + ("norm" in key and key.endswith("weight"))
        elif "embeddings" not in key:
            values *= (2 if "q_proj" in key or "k_proj" in key else 1) / parameter.shape[1] ** 0.5
        parameter.copy_(values)
    return model


def _ids():
    return torch.randint(6, 61, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


def _expand(mask):
    """Return the mask as bool ``(batch, heads, query, key)``."""
    mask = torch.ones(BATCH, LENGTH) if mask is None else mask
    mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    return mask.bool().expand(BATCH, HEADS, LENGTH, LENGTH)


def _hidden_states(oracle, ids, mask):
    words = oracle.weights["embeddings.word_embeddings.weight"][ids]
    return oracle.hidden_states(words, mask, torch.arange(LENGTH), torch.ones(oracle.layers, HEADS))
