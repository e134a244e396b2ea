"""What comes from transformers' base classes: saving, loading, resizing, pruning, initialisation; on 4.57 and 5."""

import json

import pytest
import torch
from torch import Tensor, nn

from erniem_export import modeling

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 35,
}
CLASSES = [name for name in modeling.__all__ if name not in ("ErnieMConfig", "ErnieMPreTrainedModel")]

EMBEDDINGS = """
embeddings.word_embeddings.weight 61 24
embeddings.position_embeddings.weight 35 24
embeddings.layer_norm.weight 24
embeddings.layer_norm.bias 24
"""
LAYER = """
encoder.layers.{0}.self_attn.self_attn.q_proj.weight 24 24
encoder.layers.{0}.self_attn.self_attn.q_proj.bias 24
encoder.layers.{0}.self_attn.self_attn.k_proj.weight 24 24
encoder.layers.{0}.self_attn.self_attn.k_proj.bias 24
encoder.layers.{0}.self_attn.self_attn.v_proj.weight 24 24
encoder.layers.{0}.self_attn.self_attn.v_proj.bias 24
encoder.layers.{0}.self_attn.out_proj.weight 24 24
encoder.layers.{0}.self_attn.out_proj.bias 24
encoder.layers.{0}.linear1.weight 40 24
encoder.layers.{0}.linear1.bias 40
encoder.layers.{0}.linear2.weight 24 40
encoder.layers.{0}.linear2.bias 24
encoder.layers.{0}.norm1.weight 24
encoder.layers.{0}.norm1.bias 24
encoder.layers.{0}.norm2.weight 24
encoder.layers.{0}.norm2.bias 24
"""
POOLER = """
pooler.dense.weight 24 24
pooler.dense.bias 24
"""
ENCODER = EMBEDDINGS + LAYER.format(0) + LAYER.format(1)
# Class: what is under "ernie_m.", what is beside it.
STATE = {
    "ErnieMForSequenceClassification": (ENCODER + POOLER, "classifier.weight 2 24\nclassifier.bias 2"),
    "ErnieMForTokenClassification": (ENCODER, "classifier.weight 2 24\nclassifier.bias 2"),
    "ErnieMForMultipleChoice": (ENCODER + POOLER, "classifier.weight 1 24\nclassifier.bias 1"),
    "ErnieMForQuestionAnswering": (ENCODER, "qa_outputs.weight 2 24\nqa_outputs.bias 2"),
    "ErnieMForInformationExtraction": (
        ENCODER + POOLER,
        "linear_start.weight 1 24\nlinear_start.bias 1\nlinear_end.weight 1 24\nlinear_end.bias 1",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CLASSES)
def test_state_dict_names_and_shapes(name):
    inner, outer = STATE.get(name, ("", ENCODER + POOLER))
    lines = [f"ernie_m.{line}" for line in inner.split("\n") if line] + outer.split("\n")
    expected = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in lines if line}
    assert {key: tuple(value.shape) for key, value in _model(name).state_dict().items()} == expected


def _save_whole(model, folder):
    model.save_pretrained(folder)
    return "model.safetensors"


def _save_shards(model, folder):
    model.save_pretrained(folder, max_shard_size="10KB")
    return "model.safetensors.index.json"


def _save_pickled(model, folder):
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return "pytorch_model.bin"


@pytest.mark.parametrize("save", [_save_whole, _save_shards, _save_pickled])
@pytest.mark.parametrize("name", CLASSES)
def test_saved_models_load_again(name, save, tmp_path):
    model = _model(name)
    assert (tmp_path / save(model, tmp_path)).is_file()
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    _assert_same_state(loaded, model)
    ids = _ids(name)
    _assert_same_numbers(_numbers(loaded(ids)), _numbers(model(ids)))


def test_sharded_files_are_several(tmp_path):
    _save_shards(_model("ErnieMModel"), tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2


def test_configuration_survives_saving(tmp_path):
    config = modeling.ErnieMConfig(**TINY, act_dropout=None, classifier_dropout=0.3, id2label={0: "a", 1: "b", 2: "c"})
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "ernie_m"
    loaded = modeling.ErnieMConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.num_labels, loaded.num_classes, loaded.dropout) == (3, 3, 0.3)
    assert (loaded.hidden_size, loaded.act_dropout, loaded.pad_token_id) == (24, None, 1)


def test_defaults_are_those_of_the_base_checkpoint():
    config = modeling.ErnieMConfig()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (250002, 768, 3072)
    assert (config.num_hidden_layers, config.num_attention_heads, config.max_position_embeddings) == (12, 12, 514)
    assert (config.hidden_act, config.layer_norm_eps, config.initializer_range) == ("gelu", 1e-5, 0.02)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.act_dropout) == (0.1, 0.1, 0.0)
    assert (config.pad_token_id, config.classifier_dropout, config.num_labels) == (1, None, 2)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "ErnieMModel"])
def test_a_base_checkpoint_loads_into_every_head(name, tmp_path):
    base = _model("ErnieMModel")
    base.save_pretrained(tmp_path)
    loaded, report = getattr(modeling, name).from_pretrained(tmp_path, output_loading_info=True)
    inner, outer = STATE[name]
    assert set(report["missing_keys"]) == {line.split()[0] for line in outer.split("\n")}
    assert set(report["unexpected_keys"]) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert bool(report["unexpected_keys"]) == (POOLER not in inner)
    state = base.state_dict()
    for key, value in loaded.ernie_m.state_dict().items():
        assert torch.equal(value, state[key]), key
    for key in report["missing_keys"]:
        value = loaded.state_dict()[key]
        assert value.eq(0).all() if key.endswith("bias") else 0 < value.abs().max() < 0.2, key


@pytest.mark.parametrize("name", ["ErnieMForSequenceClassification", "ErnieMForQuestionAnswering"])
def test_a_head_checkpoint_loads_into_the_base_model(name, tmp_path):
    head = _model(name)
    head.save_pretrained(tmp_path)
    loaded, report = modeling.ErnieMModel.from_pretrained(tmp_path, output_loading_info=True)
    inner, outer = STATE[name]
    assert set(report["unexpected_keys"]) == {line.split()[0] for line in outer.split("\n")}
    assert set(report["missing_keys"]) == (set() if POOLER in inner else {"pooler.dense.weight", "pooler.dense.bias"})
    for key, value in head.ernie_m.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_the_number_of_labels_may_be_given_on_loading(tmp_path):
    _model("ErnieMModel").save_pretrained(tmp_path)
    loaded = modeling.ErnieMForTokenClassification.from_pretrained(tmp_path, num_labels=7)
    assert loaded(_ids("ErnieMModel")).logits.shape == (2, 9, 7)


@pytest.mark.parametrize("deviation", [0.02, 0.5])
def test_fresh_weights(deviation):
    torch.manual_seed(0)
    options = TINY | {"vocab_size": 800, "max_position_embeddings": 200, "hidden_size": 64, "intermediate_size": 128}
    config = modeling.ErnieMConfig(**options, initializer_range=deviation)
    model = modeling.ErnieMForSequenceClassification(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all(), name
            assert module.bias.eq(0).all(), name
        if isinstance(module, nn.Embedding):
            assert module.weight[1].eq(0).all(), name
        if isinstance(module, nn.Linear):
            assert module.bias.eq(0).all(), name
        if isinstance(module, nn.Linear | nn.Embedding) and module is not model.classifier:
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.05), name


@pytest.mark.parametrize("name", CLASSES)
def test_input_embeddings_are_the_word_embedding(name):
    model = _model(name)
    words = getattr(model, "ernie_m", model).embeddings.word_embeddings
    assert model.get_input_embeddings() is words
    other = nn.Embedding(61, 24)
    model.set_input_embeddings(other)
    assert getattr(model, "ernie_m", model).embeddings.word_embeddings is other


@pytest.mark.parametrize("size", [70, 40])
@pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForTokenClassification"])
def test_token_embeddings_can_be_resized(name, size, tmp_path):
    model = _model(name)
    ids = torch.arange(6, 24).reshape(2, 9)
    before, old = _numbers(model(ids)), model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    kept = min(size, 61)
    assert torch.equal(model.get_input_embeddings().weight[:kept], old[:kept])
    _assert_same_numbers(_numbers(model(ids)), before)
    ids[0, 0] = size - 1
    model.save_pretrained(tmp_path)
    _assert_same_numbers(_numbers(type(model).from_pretrained(tmp_path)(ids)), _numbers(model(ids)))


@pytest.mark.parametrize("name", CLASSES)
def test_a_pruned_model_is_the_whole_one_under_a_head_mask(name, tmp_path):
    model, ids = _model(name), _ids(name)
    head_mask = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    expected = model(ids, head_mask=head_mask).to_tuple()
    model.prune_heads({0: [1], 1: [0, 3]})
    model.prune_heads({1: [3, 2], 0: []})
    layers = getattr(model, "ernie_m", model).encoder.layers
    assert [layer.self_attn.self_attn.q_proj.weight.shape for layer in layers] == [(18, 24), (6, 24)]
    torch.testing.assert_close(model(ids).to_tuple(), expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.pruned_heads == {0: [1], 1: [0, 2, 3]}
    _assert_same_state(loaded, model)
    _assert_same_numbers(_numbers(loaded(ids)), _numbers(model(ids)))


def test_a_layer_keeps_at_least_one_head():
    model = _model("ErnieMModel")
    before = _numbers(model(_ids("ErnieMModel")))
    with pytest.raises(ValueError, match="layer 1 must keep at least one of its attention heads"):
        model.prune_heads({1: [0, 1, 2, 3]})
    _assert_same_numbers(_numbers(model(_ids("ErnieMModel"))), before)


def _model(name):
    torch.manual_seed(0)
    model = getattr(modeling, name)(modeling.ErnieMConfig(**TINY)).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def _ids(name):
    shape = (2, 2, 9) if name == "ErnieMForMultipleChoice" else (2, 9)
    return torch.randint(6, 61, shape, generator=torch.Generator().manual_seed(1))


def _assert_same_state(actual, expected):
    assert actual.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[key], value), key


def _numbers(output):
    return [tensor for tensor in output.values() if isinstance(tensor, Tensor)]


def _assert_same_numbers(found, expected):
    """Equal but for the last bits, which in a product may depend on where its operands lie in memory."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
