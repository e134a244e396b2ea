"""Adapters of peft: found with their base, merged as peft merges them, exported."""

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from erniem_export import export
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import CheckpointError
from erniem_export.heads import CLASSES

# What peft asks of transformers 5 in training.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
NANO = Path(__file__).parents[2] / "examples" / "nano" / "checkpoints"
ATTENTION = ["q_proj", "v_proj"]
TASKS = {
    "cls": "SEQ_CLS",
    "ner": "TOKEN_CLS",
    "qa": "QUESTION_ANS",
    "base": "FEATURE_EXTRACTION",
    "mc": None,
    "ie": None,
}
TYPES = {
    "LORA": {"target_modules": [*ATTENTION, "linear1", "word_embeddings"], "bias": "all"},
    "DoRA": {"target_modules": ATTENTION, "use_dora": True, "trainable_token_indices": {"word_embeddings": [5, 7]}},
    "IA3": {"target_modules": ["k_proj", "linear2"], "feedforward_modules": ["linear2"]},
    "ADALORA": {"target_modules": ATTENTION, "total_step": 10},
    "LOHA": {"target_modules": ATTENTION},
    "LOKR": {"target_modules": ATTENTION},
    "OFT": {"target_modules": ATTENTION, "oft_block_size": 4, "r": 0},
    "VERA": {"target_modules": ATTENTION},
    "SHIRA": {"target_modules": ATTENTION, "r": 2},
    "LN_TUNING": {"target_modules": ["norm1", "norm2"]},
    "TRAINABLE_TOKENS": {"target_modules": ["word_embeddings"], "token_indices": [5, 6, 7]},
}


def rows(head="cls"):
    """Ids that have every token of the types above."""
    ids = torch.tensor([[0, 5, 6, 7, 9, 2], [0, 900, 7, 5, 44, 2]])
    return {"input_ids": ids[None] if head == "mc" else ids}


def outputs(model, head="cls"):
    with torch.no_grad():
        return model(**rows(head))[0]


def train(base, folder, head="cls", kind="LORA", *, rows=0, **given):
    """Save an adapter of ``base`` whose every part is random; return the adapted model."""
    peft = pytest.importorskip("peft", reason="adapters need peft")
    labels = {"num_labels": given.pop("num_labels", 2 if head == "qa" else 3)}
    model = CLASSES[head].from_pretrained(base, **labels)
    if rows:
        model.resize_token_embeddings(rows)
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING["LORA" if kind == "DoRA" else kind]
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config(**{"task_type": TASKS[head], **TYPES[kind], **given})).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return adapted


def edited(adapter, **values):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def base(tmp_path, write_checkpoint):
    """A model that is not trained for any task."""
    return write_checkpoint(tmp_path / "bases" / "small", "base")


@pytest.fixture
def adapter(tmp_path, base):
    """For three labels."""
    train(base, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning", "ignore:Sparse invariant:UserWarning")
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_that_can_be_merged_is_merged_as_peft_does(kind, tmp_path, write_checkpoint):
    base = write_checkpoint(tmp_path / "small")
    expected = outputs(train(base, tmp_path / "adapter", kind=kind))
    found = load_checkpoint(str(tmp_path / "adapter"))
    assert float((outputs(found.model) - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    # It is an adapter that changes something.
    again = {name: value for name, value in found.model.state_dict().items() if not name.startswith("classifier.")}
    plain = load_checkpoint(str(base)).model.state_dict()
    assert any(not torch.equal(value, plain[name]) for name, value in again.items())
    assert found.adapter == {"adapter": "LORA" if kind == "DoRA" else kind, "base": "small"}


@pytest.mark.parametrize("head", CLASSES)
def test_an_adapter_tells_its_head_and_brings_what_its_base_lacks(head, base, tmp_path):
    modules = {"mc": ["classifier"], "ie": ["linear_start", "linear_end"]}.get(head)
    expected = outputs(train(base, tmp_path / "adapter", head, modules_to_save=modules), head)
    found = load_checkpoint(str(tmp_path / "adapter"))
    assert found.head == head
    torch.testing.assert_close(outputs(found.model, head), expected, rtol=1e-4, atol=1e-4)
    assert json.loads(found.config_text)["architectures"] == [CLASSES[head].__name__]


def test_an_adapter_that_does_not_tell_its_head(adapter, tmp_path, write_checkpoint):
    """As transformers' own save_pretrained writes it: the base tells, or the user."""
    edited(adapter, task_type=None, auto_mapping=None)
    with pytest.raises(CheckpointError, match="neither the adapter nor its base tells which head: pass --head"):
        load_checkpoint(str(adapter))
    assert load_checkpoint(str(adapter), "cls").head == "cls"
    assert load_checkpoint(str(adapter), "base").head == "base"  # it leaves the classifier out
    assert load_checkpoint(str(adapter), base=str(write_checkpoint(tmp_path / "other", "cls"))).head == "cls"


def test_the_encoder_of_an_adapted_classifier(base, tmp_path):
    adapted = train(base, tmp_path / "adapter")
    found = load_checkpoint(str(tmp_path / "adapter"), "base")
    with torch.no_grad():
        expected = adapted.get_base_model().ernie_m(**rows())[0]
    assert found.head == "base"
    torch.testing.assert_close(outputs(found.model), expected, rtol=1e-4, atol=1e-4)


def about_labels(notes):
    return [note for note in notes if "label" in note]


TO_NAME = "save the trained model's config.json, with its id2label, beside the adapter to name them"


def test_labels_come_from_the_config_beside_the_adapter(adapter, base):
    found = load_checkpoint(str(adapter))
    assert found.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert about_labels(found.notes) == [
        f"config.json of small names no labels, so they are LABEL_0 to LABEL_2: {TO_NAME}"
    ]
    said = json.loads((base / "config.json").read_text())
    said |= {"architectures": ["ErnieMForSequenceClassification"], "id2label": {"0": "no", "1": "yes", "2": "both"}}
    (adapter / "config.json").write_text(json.dumps(said))
    found = load_checkpoint(str(adapter))
    assert found.config.id2label == {0: "no", 1: "yes", 2: "both"}
    assert not about_labels(found.notes)


def test_labels_where_the_config_beside_the_adapter_names_others(adapter, base, tmp_path, write_checkpoint):
    said = {**json.loads((base / "config.json").read_text()), "id2label": {"0": "no", "1": "yes"}, "num_labels": None}
    (adapter / "config.json").write_text(json.dumps(said))
    differs = "the adapter's classifier has 3 labels, and config.json beside the adapter 2"
    found = load_checkpoint(str(adapter))
    assert found.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert about_labels(found.notes) == [f"{differs}: they are LABEL_0 to LABEL_2; {TO_NAME}"]
    named = write_checkpoint(tmp_path / "named", "cls", id2label={"0": "a", "1": "b", "2": "c"})
    found = load_checkpoint(str(adapter), base=str(named))
    assert found.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert json.loads(found.config_text)["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert about_labels(found.notes) == [f"{differs}: the names are those of named, a, b, c; {TO_NAME}"]


@pytest.mark.parametrize("labels", [2, 5])
def test_another_number_of_labels_than_the_base_has(labels, tmp_path, write_checkpoint):
    base = write_checkpoint(tmp_path / "base", "cls", id2label={"0": "a", "1": "b", "2": "c"})
    bare = write_checkpoint(tmp_path / "bare", "base")
    expected = outputs(train(bare, tmp_path / "adapter", num_labels=labels))
    found = load_checkpoint(str(tmp_path / "adapter"), base=str(base))
    assert found.config.num_labels == labels
    assert about_labels(found.notes) == [
        f"the adapter's classifier has {labels} labels, and config.json of base 3: they are LABEL_0 to "
        f"LABEL_{labels - 1}; {TO_NAME}"
    ]
    assert found.model.classifier.weight.shape[0] == labels
    assert expected.shape[1] == labels


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_a_vocabulary_that_grew(base, tmp_path):
    expected = outputs(train(base, tmp_path / "adapter", rows=1003))
    found = load_checkpoint(str(tmp_path / "adapter"))
    assert found.config.vocab_size == json.loads(found.config_text)["vocab_size"] == 1003
    torch.testing.assert_close(outputs(found.model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("named", ["absolute", "from here", "from the adapter", "hub"])
def test_where_the_base_is(named, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"absolute": base, "from here": "bases/small", "from the adapter": "../../bases/small", "hub": "some/small"}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(base))
    train(base, tmp_path / "of" / "me")
    edited(tmp_path / "of" / "me", base_model_name_or_path=str(given[named]))
    monkeypatch.chdir(tmp_path / "bases" if named == "from the adapter" else tmp_path)
    found = load_checkpoint(str(tmp_path / "of" / "me"))
    assert found.adapter["base"] == ("some/small" if named == "hub" else "small")
    assert found.source == "me"


def test_another_base(adapter, base, tmp_path, write_checkpoint):
    other = write_checkpoint(tmp_path / "other", "base", seed=7)
    named, given = (load_checkpoint(str(adapter), base=where) for where in (None, str(other)))
    assert given.adapter["base"] == "other"
    assert named.identity() != given.identity()
    shutil.rmtree(base)
    assert load_checkpoint(str(adapter), base=str(other)).identity() == given.identity()


@pytest.mark.parametrize("pickled", [True, False])
def test_an_adapter_from_the_hub(pickled, adapter, base, monkeypatch):
    if pickled:
        torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
        (adapter / "adapter_model.safetensors").unlink()
    asked = {}

    def download(name, *, allow_patterns, revision=None):
        asked[name] = revision, allow_patterns
        return str({"some/adapter": adapter, "some/base": base}[name])

    expected = load_checkpoint(str(adapter))
    said = json.loads((adapter / "adapter_config.json").read_text())
    said |= {"base_model_name_or_path": "some/base", "revision": "v2"}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = load_checkpoint("some/adapter")
    assert found.identity() == expected.identity()
    assert (found.source, found.adapter["base"]) == ("some/adapter", "some/base")
    assert asked["some/base"][0] == "v2"
    assert {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"} <= set(asked["some/adapter"][1])


def test_an_adapter_of_nano_from_folder_to_artifact(tmp_path, erniem_verify, capsys):
    train(NANO / "cls", tmp_path / "my-adapter", init_lora_weights=True)
    _, manifest = export(tmp_path / "my-adapter", tmp_path / "out", base=NANO / "cls", tokenizer=NANO / "qa")
    assert "an adapter of type LORA: merged into cls" in capsys.readouterr().err
    said = manifest.checkpoint
    assert (said["source"], said["adapter"], said["base"]) == ("my-adapter", "LORA", "cls")
    for file in (tmp_path / "out").glob("*.json"):
        assert str(NANO) not in file.read_text()
        assert str(tmp_path) not in file.read_text()
    assert manifest.labels == ("entailment", "neutral", "contradiction")
    assert (tmp_path / "out" / "sentencepiece.bpe.model").is_file()
    erniem_verify(tmp_path / "out", "--model", tmp_path / "my-adapter").ok()
    erniem_verify(tmp_path / "out", "--model", tmp_path / "my-adapter", "--base", NANO / "cls").ok()
    assert erniem_verify(tmp_path / "out", "--model", NANO / "cls").code == 1


@pytest.mark.usefixtures("quick_trace", "quick_gate")
def test_in_an_adapter_s_folder(adapter, base, monkeypatch, erniem_export):
    monkeypatch.chdir(adapter)
    erniem_export("--base", base).ok()
    assert (adapter / "out" / "cls.onnx").is_file()
    assert not (adapter / "config.json").exists()


BESIDE = (
    "holds an adapter (adapter_config.json) beside a model's weights: remove adapter_config.json if they are merged"
)


@pytest.mark.parametrize("installed", [True, False])
def test_an_adapter_beside_weights(installed, tmp_path, write_checkpoint, export_fails, monkeypatch):
    """With peft installed, transformers would load it into the model, and without it not."""
    if not installed:
        monkeypatch.setitem(sys.modules, "peft", None)
    folder = write_checkpoint(tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/ernie-m"}')
    (folder / "adapter_model.safetensors").touch()
    assert export_fails(folder) == (f"{folder} {BESIDE} already, or else name the adapter's base, as --base {folder}")


def test_an_adapter_beside_its_base(tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model")
    expected = outputs(train(folder, folder))
    torch.testing.assert_close(outputs(load_checkpoint(str(folder), base=str(folder)).model), expected)


def test_without_peft(adapter, export_fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert export_fails(adapter) == 'adapters need the package peft: pip install "erniem-rt[adapters]"'


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("not JSON", "/adapter_config.json cannot be read: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "/adapter_config.json must hold a JSON object"),
        ("{}", "/adapter_config.json names no peft_type; expected an adapter that peft saved"),
        ('{"peft_type": "LORA"}', "/adapter_config.json does not name the adapter's base: give it with --base"),
        (
            '{"peft_type": "PROMPT_TUNING"}',
            " holds an adapter of type PROMPT_TUNING, which cannot be merged into the weights",
        ),
        (
            '{"peft_type": "LORA", "base_model_name_or_path": "/gone/away"}',
            " is an adapter of /gone/away: there is no folder /gone/away; name its base with --base",
        ),
    ],
)
def test_adapters_that_say_too_little(said, expected, tmp_path, export_fails):
    """All of them without peft."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(said)
    save_file({"base_model.model.classifier.weight": torch.zeros(3, 16)}, folder / "adapter_model.safetensors")
    assert export_fails(folder).startswith(f"{folder}{expected}")


def test_an_adapter_without_weights(adapter, export_fails):
    (adapter / "adapter_model.safetensors").unlink()
    expected = (
        f"{adapter} has adapter_config.json but no weights: expected adapter_model.safetensors or adapter_model.bin"
    )
    assert export_fails(adapter) == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "/config.json says model_type = 'bert'; expected "),
        (
            {"model_type": "xlm-roberta"},
            "it is an XLM-R, and adapters are merged into ErnieM alone: merge this one with",
        ),
    ],
)
def test_a_base_that_is_no_ernie_m(config, said, adapter, base, export_fails):
    (base / "config.json").write_text(json.dumps(config))
    message = export_fails(adapter)
    assert message.startswith(f"{adapter} is an adapter of small: ")
    assert said in message


def test_a_base_that_is_an_adapter(adapter, tmp_path, base, export_fails):
    shutil.copytree(adapter, tmp_path / "other")
    assert export_fails(adapter, "--base", tmp_path / "other") == (
        f"{adapter} is an adapter of {tmp_path / 'other'}, which holds an adapter too: merge that one first, with "
        "peft's merge_and_unload() and save_pretrained, and name the result with --base"
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_base_of_other_shapes(adapter, tmp_path, export_fails):
    model = CLASSES["base"](CLASSES["base"].config_class(
        vocab_size=1000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=130,
    ))  # fmt: skip
    model.save_pretrained(tmp_path / "wide")
    assert export_fails(adapter, "--base", tmp_path / "wide") == (
        f"{adapter} is an adapter of wide: the adapter is of a model with hidden_size = 16, and this one has 32: name "
        "the right one with --base"
    )
    train(tmp_path / "wide", tmp_path / "bare", "base", bias="none")
    message = export_fails(tmp_path / "bare", "--base", tmp_path / "bases" / "small")
    assert "into small: size mismatch for base_model.model." in message


def test_a_base_of_fewer_layers(adapter, tmp_path, base, export_fails):
    state = load_file(base / "model.safetensors")
    save_file({k: v for k, v in state.items() if "layers.1." not in k}, base / "model.safetensors", {"format": "pt"})
    said = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**said, "num_hidden_layers": 1}))
    assert "has tensors that have no place in small: base_model.model.ernie_m.encoder.layers.1." in export_fails(
        adapter
    )


def test_an_adapter_with_a_tensor_less(adapter, export_fails):
    state = load_file(adapter / "adapter_model.safetensors")
    gone = next(name for name in state if "lora_B" in name)
    save_file({name: value for name, value in state.items() if name != gone}, adapter / "adapter_model.safetensors")
    assert export_fails(adapter) == (
        f"{adapter}/adapter_model.safetensors lacks {gone}: save the adapter again, or fetch it again"
    )


def test_neither_has_the_head(adapter, export_fails):
    state = load_file(adapter / "adapter_model.safetensors")
    state = {name: value for name, value in state.items() if "classifier" not in name}
    save_file(state, adapter / "adapter_model.safetensors")
    assert export_fails(adapter) == (
        f"{adapter} is an adapter of small: the weights have no classifier, which head 'cls' needs: this checkpoint "
        "was not trained for it"
    )


def test_another_head_than_it_was_trained_with(adapter, export_fails):
    assert export_fails(adapter, "--head", "ner") == (
        f"{adapter} is an adapter of small: --head ner contradicts the adapter, which was trained with head cls"
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [("NEWTUNING", "holds an adapter of type NEWTUNING, which peft "), ("LILY", " of type LILY, into small: ")],
)
def test_types_that_this_peft_cannot_merge(kind, said, adapter, export_fails):
    edited(adapter, peft_type=kind)
    assert said in export_fails(adapter)


def test_what_peft_does_not_know_is_passed_on(adapter):
    edited(adapter, new_way=True)
    assert any("peft warns: " in note and "new_way" in note for note in load_checkpoint(str(adapter)).notes)


@pytest.mark.parametrize("model", ["random:tiny", "a checkpoint"])
def test_a_base_without_an_adapter(model, base, export_fails):
    given = str(base) if model == "a checkpoint" else model
    assert export_fails(given, "--base", base).startswith("--base is for adapters, and ")


@pytest.mark.parametrize("where", ["the adapter", "its base"])
def test_the_tokenizer_of_an_adapter(where, adapter, base, tokenizer_dir):
    folder = adapter if where == "the adapter" else base
    shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)
    assert load_checkpoint(str(adapter)).tokenizer_dir == folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_of_nan(value, adapter, export_fails):
    pytest.importorskip("peft")
    state = load_file(adapter / "adapter_model.safetensors")
    next(iter(state.values())).fill_(value)
    save_file(state, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    said = export_fails(adapter)
    assert "NaN or infinite values" in said or "cannot merge" in said


def stored(adapter, change):
    state = {name: change(name, value) for name, value in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(state, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("part", ["lora_A", "classifier"])
def test_an_adapter_in_other_types(part, dtype, adapter, export_fails):
    stored(adapter, lambda name, value: value.to(dtype) if part in name else value)
    said = export_fails(adapter)
    assert said.startswith(f"{adapter}/adapter_model.safetensors stores base_model.model.")
    assert f" as {str(dtype).removeprefix('torch.')}; expected floating-point numbers" in said
    assert part in said


def test_an_adapter_without_tensors(adapter, export_fails):
    save_file({}, adapter / "adapter_model.safetensors")
    said = f"{adapter}/adapter_model.safetensors holds no tensors: fetch it again, or save the model again"
    assert export_fails(adapter) == said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number(value, adapter, export_fails):
    said = f"{adapter}/adapter_config.json says %s = {value}; expected a finite number: save the adapter again"
    edited(adapter, alpha_pattern={"q_proj": value})
    assert export_fails(adapter) == said % "alpha_pattern.q_proj"
    edited(adapter, alpha_pattern={}, lora_alpha=value)
    assert export_fails(adapter) == said % "lora_alpha"
    edited(adapter, lora_alpha="x")
    assert "says lora_alpha = 'x'; expected a number" in export_fails(adapter)


def test_an_alpha_of_zero_changes_nothing_and_that_is_said(adapter):
    edited(adapter, lora_alpha=0)
    said = "adapter_config.json says lora_alpha = 0: the matrices of the adapter change nothing"
    assert said in load_checkpoint(str(adapter)).notes


def test_another_rank_than_the_config_says(adapter, export_fails):
    edited(adapter, r=5)
    assert export_fails(adapter).endswith(
        "adapter_model.safetensors is not of the training that adapter_config.json describes (r, target_modules), or "
        "the base is another; name the right one with --base"
    )


@pytest.mark.parametrize("named", [".", "itself"])
def test_an_adapter_that_names_itself(named, adapter, export_fails, monkeypatch):
    monkeypatch.chdir(adapter)
    edited(adapter, base_model_name_or_path=named.replace("itself", str(adapter)))
    assert export_fails(adapter) == (
        f"{adapter} is an adapter of itself, which has no model's weights; it holds adapter_model.safetensors; name "
        "its base with --base"
    )


def test_merging_that_changes_the_outputs_is_noticed(adapter, monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(peft.tuners.lora.layer.Linear, "merge", lambda *_, **__: None)
    with pytest.raises(CheckpointError, match="which cannot be merged: the merged model has other outputs"):
        load_checkpoint(str(adapter))
