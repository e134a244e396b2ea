"""Weight files that are damaged, dangerous, of something else, or at odds with their config."""

import json
import os
import re
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from erniem_export.checkpoint import load_checkpoint
from erniem_export.mask_mode import mask_mode_of
from erniem_export.options import ExportOptions
from erniem_export.weights import check_finite


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_truncated(keep, pickled, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model", pickled=pickled)
    file = folder / ("pytorch_model.bin" if pickled else "model.safetensors")
    file.write_bytes(file.read_bytes()[:keep])
    message = export_fails(folder)
    assert str(file) in message
    assert "fetch it again" in message


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_does_not_run(zipped, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model", pickled=True)
    file = folder / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    target = tmp_path / "executed"
    torch.save({**state, "payload": Payload(target)}, file, _use_new_zipfile_serialization=zipped)
    message = export_fails(folder)
    assert "holds more than tensors, which is not loaded because it could run code" in message
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists()  # it would have


@pytest.mark.parametrize("wrap", [lambda state: {"state_dict": state, "epoch": 3}, lambda state: list(state.values())])
def test_a_pickle_of_something_around_the_weights(wrap, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model", pickled=True)
    file = folder / "pytorch_model.bin"
    torch.save(wrap(torch.load(file, weights_only=True)), file)
    assert "holds no state dict: expected tensors by name" in export_fails(folder)


def test_pickles_from_before_torch_1_6(tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model", pickled=True)
    file, identity = folder / "pytorch_model.bin", load_checkpoint(str(folder)).identity()
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert load_checkpoint(str(folder)).identity() == identity


def test_shards(tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model")
    whole, identity = folder / "model.safetensors", load_checkpoint(str(folder)).identity()
    state = dict(load_checkpoint(str(folder)).model.state_dict())
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    assert load_checkpoint(str(folder)).identity() == identity
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors, which is not there" in export_fails(folder)


def as_bert(state):
    """The same tensors under BERT's names."""
    return {
        name.replace("ernie_m.", "bert.").replace(".layers.", ".layer.").replace(".self_attn.self_attn.", ".attention.")
        : tensor
        for name, tensor in state.items()
    }  # fmt: skip


def as_gpt(state):
    return {"wte.weight": torch.zeros(10, 4), "h.0.attn.c_attn.weight": torch.zeros(4, 12)}


@pytest.mark.parametrize("edit", [as_bert, as_gpt])
def test_another_architecture(edit, tmp_path, write_checkpoint, export_fails):
    assert "these are not ErnieM weights: no " in export_fails(write_checkpoint(tmp_path / "model", edit=edit))


def test_missing_weights_are_named(tmp_path, write_checkpoint, export_fails):
    def edit(state):
        return {name: tensor for name, tensor in state.items() if ".norm1." not in name}

    message = export_fails(write_checkpoint(tmp_path / "model", edit=edit))
    assert message == (
        "the weights lack ernie_m.encoder.layers.0.norm1.bias, ernie_m.encoder.layers.0.norm1.weight, "
        "ernie_m.encoder.layers.1.norm1.bias and 1 more"
    )


def test_weights_that_ernie_m_does_not_have_are_named(tmp_path, write_checkpoint, export_fails):
    def edit(state):
        return {**state, "ernie_m.encoder.layers.0.adapter.weight": torch.zeros(2, 2)}

    message = export_fails(write_checkpoint(tmp_path / "model", edit=edit))
    assert message == "the weights hold tensors that ErnieM does not have: ernie_m.encoder.layers.0.adapter.weight"


def resized(name, *sizes):
    """Give the weights whose name ends so another shape."""
    return lambda state: {
        key: torch.zeros(sizes[: tensor.ndim]) if key.rpartition(".")[0].endswith(name) else tensor
        for key, tensor in state.items()
    }


def wide(state):
    changed = resized("linear1", 32, 16)(state)
    return {name: torch.zeros(16, 32) if name.endswith("linear2.weight") else t for name, t in changed.items()}


def deep(state):
    third = {name.replace("layers.1.", "layers.2."): tensor for name, tensor in state.items()}
    return {**{name: tensor.clone() for name, tensor in third.items()}, **state}


@pytest.mark.parametrize(
    ("head", "edit", "key", "in_config", "in_weights"),
    [
        ("cls", wide, "intermediate_size", 24, 32),
        ("cls", resized("word_embeddings", 1001, 16), "vocab_size", 1000, 1001),
        ("cls", resized("position_embeddings", 514, 16), "max_position_embeddings", 130, 514),
        ("cls", lambda state: {name: t[..., :8].clone() for name, t in state.items()}, "hidden_size", 16, 8),
        ("base", deep, "num_hidden_layers", 2, 3),
        ("base", lambda state: {n: t for n, t in state.items() if "layers.1." not in n}, "num_hidden_layers", 2, 1),
    ],
)
def test_config_and_weights_contradict_each_other(
    head, edit, key, in_config, in_weights, tmp_path, write_checkpoint, export_fails
):
    message = export_fails(write_checkpoint(tmp_path / "model", head, edit=edit))
    assert f"config.json says {key} = {in_config}, but " in message
    assert f" {in_weights}" in message.split("but")[1]


def test_weights_of_another_shape_that_no_key_explains(tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model", "qa", edit=resized("qa_outputs", 3, 16))
    assert "qa_outputs.weight has shape (3, 16); head 'qa' needs (2, 16)" in export_fails(folder)


def test_question_answering_with_three_labels(tmp_path, write_checkpoint, export_fails):
    labels = {str(i): f"LABEL_{i}" for i in range(3)}
    edit = resized("qa_outputs", 3, 16)
    folder = write_checkpoint(tmp_path / "model", "qa", edit=edit, id2label=labels, label2id=None)
    message = export_fails(folder)
    assert message == "config.json says num_labels = 3, but a qa head scores 2 things, start and end"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("name", ["ernie_m.embeddings.word_embeddings.weight", "ernie_m.encoder.layers.1.norm2.bias"])
def test_damaged_numbers_are_named(name, value, tmp_path, write_checkpoint, export_fails):
    def edit(state):
        state[name] = state[name].double()
        state[name][3] = value
        return state

    message = export_fails(write_checkpoint(tmp_path / "model", edit=edit))
    assert re.match(rf"{name} holds \d+ NaN or infinite values in float32", message)


def test_large_finite_numbers_are_none():
    check_finite("a", torch.full((4,), 3e38))


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_integers_are_no_weights(dtype, pickled, tmp_path, write_checkpoint, export_fails):
    name = "ernie_m.embeddings.word_embeddings.weight"
    folder = write_checkpoint(
        tmp_path / "model", pickled=pickled, edit=lambda state: {**state, name: state[name].to(dtype)}
    )
    kind = str(dtype).removeprefix("torch.")
    assert f"stores {name} as {kind}; expected floating-point numbers" in export_fails(folder)


def test_paddles_layout_in_a_file_of_pytorch(tmp_path, write_checkpoint, export_fails):
    def edit(state):
        return {n: v.T.contiguous() if v.ndim == 2 and "_embeddings" not in n else v for n, v in state.items()}

    folder = write_checkpoint(tmp_path / "model", edit=edit)
    assert "the weights look transposed: they have Paddle's layout in PyTorch's file" in export_fails(folder)


@pytest.mark.parametrize("metadata", [None, {}, {"note": "mine"}, {"format": "np"}])
def test_whatever_the_metadata_say(metadata, tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model")
    loaded = load_checkpoint(str(folder))
    save_file(dict(loaded.model.state_dict()), folder / "model.safetensors", metadata=metadata)
    assert load_checkpoint(str(folder)).identity() == loaded.identity()


def under(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("head", ["base", "qa"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "base_model.model."])
def test_a_prefix_of_every_name_is_taken_off(prefix, head, pickled, tmp_path, write_checkpoint):
    plain = load_checkpoint(str(write_checkpoint(tmp_path / "plain", head)))
    found = load_checkpoint(str(write_checkpoint(tmp_path / "model", head, edit=under(prefix), pickled=pickled)))
    assert (found.head, found.identity()) == (head, plain.identity())
    assert found.notes == (f"the names of the tensors begin with {prefix}, which was taken off",)
    assert plain.notes == ()


def part_under_module(state):
    return {("module." if name.startswith("ernie_m.") else "") + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("edit", "prefix", "rest"),
    [
        (under("student."), "student.", ""),
        (under("module._orig_mod."), "module._orig_mod.", ""),
        (part_under_module, "module.", ", which classifier.bias, classifier.weight do not"),
    ],
)
def test_another_prefix_is_named(edit, prefix, rest, tmp_path, write_checkpoint, export_fails):
    words = "ernie_m.embeddings.word_embeddings.weight"
    assert export_fails(write_checkpoint(tmp_path / "model", edit=edit)) == (
        f"the weights have {prefix}{words} in place of {words}: take {prefix} off the names that begin with it{rest}"
    )


def renamed(old, new):
    return lambda state: {name.replace(old, new): tensor for name, tensor in state.items()}


def as_uie_pytorch(state, saved=False):
    """With the names of uie_pytorch, from its converter or ``saved`` by its class."""
    named = {
        "ernie_m.": "encoder.", "layers.": "layer.", "self_attn.self_attn.q_proj": "attention.self.query",
        "self_attn.self_attn.k_proj": "attention.self.key", "self_attn.self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense", "linear1": "intermediate.dense", "linear2": "output.dense",
        "norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm", "layer_norm": "LayerNorm",
    }  # fmt: skip
    if not saved:
        named |= {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for old, new in named.items():
        state = renamed(old, new)(state)
    return {**state, "encoder.embeddings.position_ids": torch.arange(130)[None]} if saved else state


@pytest.mark.parametrize("saved", [False, True])
def test_the_layout_of_uie_pytorch(saved, tmp_path, write_checkpoint):
    expected = load_checkpoint(str(write_checkpoint(tmp_path / "plain", "ie")))
    said = {"architectures": ["UIEM" if saved else "UIE"], "model_type": "ernie_m" if saved else None}
    edit = partial(as_uie_pytorch, saved=saved)
    found = load_checkpoint(str(write_checkpoint(tmp_path / "model", "ie", edit=edit, pickled=True, **said)))
    assert (found.head, found.identity()) == ("ie", expected.identity())
    assert json.loads(found.config_text)["architectures"] == ["ErnieMForInformationExtraction"]
    assert found.notes[0] == "the tensors have uie_pytorch's names, which were changed to those of transformers"
    assert mask_mode_of(ExportOptions("x"), found) == "uie-m"  # its classes give no mask


def test_uie_of_uie_pytorch_is_no_ernie_m(tmp_path, write_checkpoint, export_fails):
    def edit(state):
        return {**as_uie_pytorch(state), "encoder.embeddings.token_type_embeddings.weight": torch.zeros(4, 16)}

    said = {"architectures": ["UIE"], "model_type": None}
    folder = write_checkpoint(tmp_path / "model", "ie", edit=edit, **said, type_vocab_size=4)
    assert export_fails(folder).startswith(f"{folder}/config.json describes UIE; expected 'ernie_m'")
    folder = write_checkpoint(tmp_path / "other", "ie", edit=edit, **said)
    assert export_fails(folder).startswith(
        "the weights hold tensors that ErnieM does not have: ernie_m.embeddings.token_"
    )


def test_an_encoder_in_a_class_of_one_s_own(tmp_path, write_checkpoint):
    expected = load_checkpoint(str(write_checkpoint(tmp_path / "plain", "ie")))
    found = load_checkpoint(str(write_checkpoint(tmp_path / "model", "ie", edit=renamed("ernie_m.", "encoder."))))
    assert (found.head, found.identity()) == ("ie", expected.identity())


def test_the_tensors_of_an_adapter_are_recognised(tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model", "ie", edit=renamed("q_proj.", "q_proj.base_layer."))
    assert export_fails(folder).startswith("the weights hold an adapter's tensors (ernie_m.encoder.layers.0.self")


@pytest.mark.parametrize(
    "name",
    [
        "ernie_m.embeddings.position_ids",
        "ernie_m.embeddings.token_type_ids",
        "embeddings.position_ids",
        "loss_fct.weight",
        "lm_head.decoder.weight",
        "cls.predictions.transform.dense.bias",
        "n_averaged",
    ],
)
def test_what_no_output_depends_on_is_left_out_and_said(name, tmp_path, write_checkpoint):
    def edit(state):
        return {**state, name: torch.ones(3)}

    plain = load_checkpoint(str(write_checkpoint(tmp_path / "plain")))
    found = load_checkpoint(str(write_checkpoint(tmp_path / "model", edit=edit)))
    assert found.identity() == plain.identity()
    assert found.notes == (f"weights left out, because no output depends on them: {name}",)


@pytest.mark.parametrize(
    "name",
    [
        "ernie_m.embeddings.token_type_embeddings.weight",
        "ernie_m.encoder.layers.0.classifier.weight",
        "ernie_m.encoder.loss_fct.weight",
        "crf.transitions",
    ],
)
def test_what_an_output_may_depend_on_is_refused(name, tmp_path, write_checkpoint, export_fails):
    def edit(state):
        return {**state, name: torch.ones(3)}

    message = export_fails(write_checkpoint(tmp_path / "model", edit=edit))
    assert message == f"the weights hold tensors that ErnieM does not have: {name}"


@pytest.mark.parametrize("which", ["", "word_embeddings", "layers.1.linear2"])
def test_placeholders_of_zero_3(which, tmp_path, write_checkpoint, export_fails):
    def edit(state):
        return {name: torch.empty(0) if which in name else tensor for name, tensor in state.items()}

    message = export_fails(write_checkpoint(tmp_path / "model", edit=edit))
    assert "of shape (0,): DeepSpeed ZeRO-3 leaves such placeholders where it did not gather the weights" in message
    assert "zero_to_fp32.py" in message
