"""The rewrites for TensorRT: how often each fires, that the numbers stay, and what is refused."""

import numpy as np
import onnx_ir as ir
import pytest

from erniem_export.errors import FusionError
from erniem_export.onnx_export import open_session
from erniem_export.options import GraphOptions
from erniem_export.passes.attention import ATTENTION_OPSET, keep_masks_alive, to_attention
from erniem_export.passes.int8 import int8_weights
from erniem_export.passes.precision import to_half
from erniem_export.passes.rewriter import name_products

LAYERS = 2


@pytest.fixture
def canonical(micro_model, trace_once):
    """``canonical(head)``: a fresh copy of the traced graph of a micro model."""

    def copy(head="cls", **options):
        graph = trace_once(micro_model(head), head, GraphOptions(**options))
        return ir.external_data.load_to_model(graph)  # these graphs are run from memory

    return copy


def run(model, feeds):
    return open_session(ir.to_proto(model).SerializeToString()).run(None, feeds)


def feeds(head, seed=0):
    """Right, left and scattered padding, and a row of padding only."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((4, 9)) < 0.6).astype(np.int64)
    mask[1] = 0
    ids = rng.integers(0, 1000, mask.shape)
    shape = (2, 2, 9) if head == "mc" else (4, 9)
    return {"input_ids": ids.reshape(shape), "attention_mask": mask.reshape(shape)}


def kinds(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("head", ["cls", "mc", "ner", "qa"])
@pytest.mark.parametrize("form", ["primitives", "attention"])
def test_the_numbers_stay(canonical, head, form):
    model, plain = canonical(head), canonical(head)
    attentions = keep_masks_alive(model, LAYERS)
    assert len(attentions) == LAYERS
    if form == "attention":
        assert to_attention(model, attentions) == (LAYERS, {})
        assert kinds(model).count("Attention") == LAYERS
        assert "Softmax" not in kinds(model)
        assert model.opset_imports[""] == ATTENTION_OPSET
    for seed in range(3):
        for found, expected in zip(run(model, feeds(head, seed)), run(plain, feeds(head, seed)), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


def test_no_scale_stands_on_scores_and_no_row_of_a_mask_is_empty(canonical):
    model = canonical()
    keep_masks_alive(model, LAYERS)
    assert "Div" not in kinds(model)
    for node in model.graph:
        if node.op_type == "Softmax":
            masked = node.inputs[0].producer()
            assert (masked.op_type, masked.inputs[0].name) == ("Where", "mask.safe")
    safe = next(node for node in model.graph if node.name == "mask.safe").outputs[0]
    model.graph.outputs.append(safe)
    found = run(model, feeds("cls"))[-1]
    attended = feeds("cls")["attention_mask"].astype(bool)
    assert found[1].all()
    assert (found[[0, 2, 3], 0, 0] == attended[[0, 2, 3]]).all()


def test_in_half_a_row_of_padding_only_is_no_nan(canonical):
    model = canonical("ner")
    to_half(model, "fp16", {})
    attentions = keep_masks_alive(model, LAYERS)
    assert to_attention(model, attentions) == (LAYERS, {})
    (logits,) = run(model, feeds("ner"))
    assert np.isfinite(logits).all()


def test_a_layer_in_two_types_keeps_its_primitives_and_says_why(canonical):
    model = canonical()
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    to_half(model, "fp16", {str(softmax.inputs[0].name): 1e9})
    attentions = keep_masks_alive(model, LAYERS)
    count, declined = to_attention(model, attentions)
    assert count == LAYERS - 1
    assert list(declined) == ["layer 0"]
    assert kinds(model).count("Softmax") == 1
    assert np.isfinite(run(model, feeds("cls"))[0]).all()


def test_attention_weights_that_are_an_output_stay(canonical):
    model = canonical(attentions=True)
    attentions = keep_masks_alive(model, LAYERS)
    count, declined = to_attention(model, attentions)
    assert count == 0
    assert all("MatMul alone" in reason for reason in declined.values())
    assert kinds(model).count("Softmax") == LAYERS


def test_a_graph_that_is_not_canonical_is_refused(canonical):
    with pytest.raises(FusionError, match="found 2 attentions in a model of 3 layers"):
        keep_masks_alive(canonical(), 3)
    model = canonical()
    keep_masks_alive(model, LAYERS)
    with pytest.raises(FusionError, match="attention of layer 0, mask: expected Not, found Or"):
        keep_masks_alive(model, LAYERS)


def test_products_are_named_after_their_layers(canonical):
    products = name_products(canonical())
    encoder = {name for name in products if name.startswith("encoder.")}
    parts = ("self_attn.self_attn.q_proj", "self_attn.self_attn.k_proj", "self_attn.self_attn.v_proj")
    parts += ("self_attn.out_proj", "linear1", "linear2")
    assert encoder == {f"encoder.layers.{layer}.{part}" for layer in range(LAYERS) for part in parts}


def test_int8_weights_are_the_nearest_steps(canonical, micro_model):
    parameters = {name: tensor.numpy() for name, tensor in micro_model("cls").state_dict().items()}
    model, plain = canonical(), canonical()
    assert int8_weights(model, parameters) == 6 * LAYERS
    stored = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    weights = [name.removesuffix(".int8") for name in stored if name.endswith(".weight.int8")]
    assert len(weights) == 6 * LAYERS
    for name in weights:
        steps, scale = stored[f"{name}.int8"], stored[f"{name}.scale"]
        assert steps.dtype == np.int8
        assert np.abs(steps).max() == 127
        assert (np.abs(steps * scale - parameters[name].T) <= scale * 0.501).all()
        assert f"{name}.T" not in stored
    for found, expected in zip(run(model, feeds("cls")), run(plain, feeds("cls")), strict=True):
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_int8_weights_need_products(canonical, micro_model):
    model = canonical()
    for value in list(model.graph.initializers.values()):
        value.name = f"other.{value.name}"
    with pytest.raises(FusionError, match="found no matmul"):
        int8_weights(model, {})
