"""A checkpoint, loaded: config, head, precision, identity."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from erniem_export import checkpoint as module
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import CheckpointError
from erniem_export.heads import CLASSES
from erniem_rt.manifest import Defaults

HEADS = list(CLASSES)


def test_a_folder_without_config(tmp_path, export_fails):
    assert export_fails(tmp_path) == f"{tmp_path} has no config.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "config.json cannot be read: Expecting value"),
        ('{"model_type": ', "config.json cannot be read: Expecting value"),
        ("\xff\xfe{}", "config.json cannot be read: 'utf-8' codec can't decode"),
        ("[1, 2]", "config.json must hold a JSON object"),
        ("{}", "says model_type = None; expected 'ernie_m'"),
        ('{"model_type": "bert", "architectures": ["BertModel"]}', "says model_type = 'bert'; expected 'ernie_m'"),
        ('{"model_type": "bert", "architectures": ["ErnieMModel"]}', "says model_type = 'bert'; expected 'ernie_m'"),
    ],
)
def test_a_config_that_is_none(text, said, tmp_path, export_fails):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert said in export_fails(tmp_path)


def test_a_config_that_is_a_folder(tmp_path, export_fails):
    (tmp_path / "config.json").mkdir()
    assert "config.json is a folder; expected a file: put the file there" in export_fails(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": "16"}, "hidden_size = '16', expected an integer of at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0, expected an integer of at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0, expected an integer of at least 1"),
        ({"num_attention_heads": 3}, "num_attention_heads (3)"),
        ({"vocab_size": -1}, "vocab_size = -1, expected an integer of at least 1"),
        ({"max_position_embeddings": 2}, "max_position_embeddings = 2, expected an integer of at least 3"),
        ({"intermediate_size": 3.5}, "intermediate_size = 3.5, expected an integer"),
        ({"pad_token_id": -1}, "pad_token_id = -1, expected an integer of at least 0"),
        ({"pad_token_id": 200}, "pad_token_id = 200 is not below max_position_embeddings = 130"),
        ({"pad_token_id": 5000}, "pad_token_id = 5000 is not below vocab_size = 1000"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps = '1e-5', expected a number"),
        ({"hidden_act": "geluX"}, "is not an ErnieM config: hidden_act = 'geluX', expected one of gelu, "),
        ({"hidden_act": ["gelu"]}, "hidden_act = ['gelu'], expected one of gelu, "),
        ({"num_labels": "3"}, "num_labels = '3', expected an integer of at least 0"),
        ({"num_labels": 2.5}, "num_labels = 2.5, expected an integer of at least 0"),
        ({"num_classes": "3"}, "num_classes = '3', expected an integer of at least 0"),
        ({"label2id": ["good", "bad"]}, "label2id = ['good', 'bad'], expected numbers by label, as "),
        ({"pruned_heads": [1]}, "pruned_heads = [1], expected lists of heads by layer"),
        ({"pruned_heads": {"0": 1}}, "pruned_heads = {'0': 1}, expected lists of heads by layer"),
        ({"pruned_heads": {"2": [1]}}, "pruned_heads names layer 2, expected one below num_hidden_layers = 2"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"problem_type": "guessing"}, "guessing"),
        ({"id2label": {"1": "yes", "2": "no", "3": "maybe"}}, "id2label must name the labels 0 to 2"),
        ({"id2label": ["yes", "no"]}, "is not an ErnieM config: id2label = ['yes', 'no'], expected labels by number"),
        ({"id2label": {"yes": 0}}, "is not an ErnieM config: id2label = {'yes': 0}, expected labels by number"),
        ({"architectures": "ErnieMModel"}, "says architectures = 'ErnieMModel'; expected a list of names"),
        ({"dtype": "float99"}, "dtype = 'float99', expected the name of a torch.dtype"),
        ({"torch_dtype": "float99"}, "torch_dtype = 'float99', expected the name of a torch.dtype"),
        ({"quantization_config": {"load_in_8bit": True}}, "expected a checkpoint that is not quantized"),
    ],
)
def test_a_config_that_no_model_can_have(config, said, tmp_path, write_checkpoint, export_fails):
    assert said in export_fails(write_checkpoint(tmp_path / "model", **config))


@pytest.mark.parametrize("value", [7, -0.5, "x", [0], None])
@pytest.mark.parametrize("named", [True, False])
def test_keys_that_only_training_uses_are_not_looked_at(named, value, tmp_path, write_checkpoint):
    keys = ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "act_dropout"]
    folder = write_checkpoint(tmp_path / "model", "cls", **({} if named else {"architectures": None}))
    content = json.loads((folder / "config.json").read_text())
    content |= dict.fromkeys([*keys, "initializer_range", "gradient_checkpointing"], value)
    (folder / "config.json").write_text(json.dumps(content))
    assert load_checkpoint(str(folder)).head == "cls"


def write_nulls(folder, *keys):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **dict.fromkeys(keys)}))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("pad_token_id", "an integer of at least 0"),
        ("hidden_act", "one of gelu, "),
    ],
)
def test_null_for_what_must_be_there(key, expected, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model")
    write_nulls(folder, key)
    assert f"{key} = None, expected {expected}" in export_fails(folder)


def test_null_for_what_has_a_default(tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model", "base")
    write_nulls(
        folder, "classifier_dropout", "dropout", "act_dropout", "num_labels", "id2label", "pruned_heads", "dtype"
    )
    assert load_checkpoint(str(folder)).head == "base"


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_the_head_is_found(head, named, tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model", head, **({} if named else {"architectures": None}))
    assert load_checkpoint(str(folder)).head == head
    assert load_checkpoint(str(folder), head).head == head


def test_the_class_stands_for_the_model_type(tmp_path, write_checkpoint):
    assert load_checkpoint(str(write_checkpoint(tmp_path / "model", "ner", model_type=None))).head == "ner"


def test_one_label_fits_two_heads(tmp_path, write_checkpoint, export_fails):
    one = {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    folder = write_checkpoint(tmp_path / "model", "mc", architectures=None, **one)
    assert export_fails(folder).endswith("the weights fit cls and mc: pass --head cls or --head mc")
    assert load_checkpoint(str(folder), "mc").head == "mc"
    assert load_checkpoint(str(folder), "cls").head == "cls"


@pytest.mark.parametrize(("trained", "asked"), [(a, b) for a in HEADS for b in HEADS if a != b and b != "base"])
def test_a_head_that_contradicts_the_checkpoint(trained, asked, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model", trained)
    message = export_fails(folder, "--head", asked)
    if trained == "base":
        assert f"which head '{asked}' needs: this checkpoint was not trained for it" in message
    else:
        name = CLASSES[trained].__name__
        assert (
            message == f"--head {asked} contradicts the checkpoint: config.json names {name}, which is head {trained}"
        )


@pytest.mark.parametrize(
    ("trained", "asked"), [("ner", "cls"), ("qa", "ie"), ("ie", "qa"), ("mc", "cls"), ("cls", "mc")]
)
def test_a_head_that_contradicts_the_weights(trained, asked, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model", trained, architectures=None)
    message = export_fails(folder, "--head", asked)
    assert (
        f"head '{asked}'" in message or "config.json names 3 labels in id2label, but classifier.weight has 1" in message
    )


@pytest.mark.parametrize("trained", ["cls", "mc", "ie"])
def test_the_base_of_a_fine_tuned_checkpoint(trained, tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model", trained)
    base, whole = load_checkpoint(str(folder), "base"), load_checkpoint(str(folder))
    expected = whole.model.ernie_m.state_dict()
    assert base.architecture == "ErnieMModel"
    assert base.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in base.model.state_dict().items())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("said", "limit"),
    [
        ({"model_max_length": 64}, 64),
        ({"model_max_length": 64.0}, 64),
        ({"max_len": 64}, 64),
        ({"model_max_length": 128}, None),
        ({"model_max_length": 1024}, None),
        ({"model_max_length": 1e30}, None),
        ({"model_max_length": 1000000000000000019884624838656}, None),
        ({"model_max_length": None}, None),
        ({}, None),
    ],
)
def test_the_length_that_the_tokenizer_names(head, said, limit, tmp_path, write_checkpoint, tokenizer_dir):
    folder = write_checkpoint(tmp_path / "model", head)
    shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.defaults == Defaults(max_seq_len=limit)
    note = "pipelines read at most 64 tokens in a row, as tokenizer_config.json says; max_seq_len changes it"
    assert checkpoint.notes == (() if limit is None else (note,))


@pytest.mark.parametrize("limit", [2, 0, -1])
def test_a_length_without_room_for_a_text(limit, tmp_path, write_checkpoint, tokenizer_dir, export_fails):
    folder = write_checkpoint(tmp_path / "model")
    shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    said = f"tokenizer_config.json gives a row {limit} tokens, of which 2 are special ones: set the length"
    assert said in export_fails(folder)


NAMES = {"entailment": 0, "neutral": 1, "contradiction": 2}
UNNAMED = {str(i): f"LABEL_{i}" for i in range(3)}
OTHERS = {"0": "good", "1": "fair", "2": "bad"}


@pytest.mark.parametrize("head", ["cls", "ner"])
@pytest.mark.parametrize("count", [{"num_labels": 3}, {}])
def test_label2id_without_id2label(head, count, tmp_path, write_checkpoint):
    said = {"num_labels": None, **count, "id2label": None, "label2id": NAMES}
    checkpoint = load_checkpoint(str(write_checkpoint(tmp_path / "model", head, **said)))
    assert checkpoint.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert checkpoint.notes == ()


@pytest.mark.parametrize(
    ("id2label", "label2id", "names", "note"),
    [
        (
            UNNAMED,
            NAMES,
            list(NAMES),
            "id2label of config.json names no labels: they are label2id's, entailment",
        ),
        (OTHERS, NAMES, ["good", "fair", "bad"], "id2label and label2id of config.json differ: the labels are id2labe"),
        (OTHERS, {"good": 0, "bad": 1}, ["good", "fair", "bad"], "label2id of config.json does not number 3 labels"),
        (OTHERS, {"good": 0, "fair": 1, "bad": 1}, ["good", "fair", "bad"], "label2id of config.json does not number"),
        (None, {"good": 0, "bad": 2}, ["LABEL_0", "LABEL_1", "LABEL_2"], "label2id of config.json does not number 3"),
        (OTHERS, {"LABEL_0": 0, "LABEL_1": 1}, ["good", "fair", "bad"], None),
        (OTHERS, {"bad": 2, "good": 0, "fair": 1}, ["good", "fair", "bad"], None),
        (UNNAMED, None, ["LABEL_0", "LABEL_1", "LABEL_2"], None),
    ],
)
def test_labels_of_two_maps(id2label, label2id, names, note, tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model", num_labels=3, id2label=id2label, label2id=label2id)
    checkpoint = load_checkpoint(str(folder))
    assert [checkpoint.config.id2label[i] for i in range(3)] == names
    assert [told[: len(note or "")] for told in checkpoint.notes] == ([] if note is None else [note])


def without_pooler(state):
    return {name: tensor for name, tensor in state.items() if "pooler" not in name}


@pytest.mark.parametrize("trained", ["base", "qa", "ner", "ie"])
def test_the_base_of_a_checkpoint_without_pooler(trained, tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model", trained, edit=without_pooler)
    base = load_checkpoint(str(folder), "base")
    encoder = {
        name.removeprefix("ernie_m."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if "embeddings." in name or "encoder." in name
    }
    found = base.model.state_dict()
    assert base.notes == ("the weights have no pooler: the graph has no pooler_output",)
    assert found.keys() == encoder.keys()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in found.items())


def test_information_extraction_reads_no_pooler(tmp_path, write_checkpoint):
    bare = load_checkpoint(str(write_checkpoint(tmp_path / "bare", "ie", edit=without_pooler)))
    whole = load_checkpoint(str(write_checkpoint(tmp_path / "whole", "ie")))
    ids = torch.tensor([[0, 5, 6, 2]])
    assert bare.notes == ()
    assert torch.equal(bare.model(ids).start_logits, whole.model(ids).start_logits)


@pytest.mark.parametrize("head", ["base", "cls", "mc"])
def test_a_pooler_that_lacks_a_part_or_is_needed(head, tmp_path, write_checkpoint, export_fails):
    gone = "pooler.dense.bias" if head == "base" else "pooler"
    folder = write_checkpoint(
        tmp_path / "model", head, edit=lambda state: {key: value for key, value in state.items() if gone not in key}
    )
    assert f"pooler.dense, which head '{head}' needs" in export_fails(folder)


@pytest.mark.parametrize("said", ["float16", "float32", None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_taken_as_they_are(dtype, said, tmp_path, write_checkpoint):
    def halve(state):  # as training leaves them: the norms stay in float32
        return {name: tensor if "norm" in name else tensor.to(dtype) for name, tensor in state.items()}

    folder = write_checkpoint(tmp_path / "model", edit=halve, dtype=said, torch_dtype=said)
    loaded = load_checkpoint(str(folder)).model.state_dict()
    expected = halve(load_checkpoint(str(write_checkpoint(tmp_path / "full"))).model.state_dict())
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in loaded.items())


def test_full_precision_weights_are_not_rounded_to_the_dtype_of_the_config(tmp_path, write_checkpoint):
    rounded = write_checkpoint(tmp_path / "rounded", dtype="float16", torch_dtype="float16")
    plain = write_checkpoint(tmp_path / "plain", dtype=None, torch_dtype=None)
    assert load_checkpoint(str(rounded)).identity() == load_checkpoint(str(plain)).identity()


def test_identity_is_that_of_the_weights(tmp_path, write_checkpoint):
    def identity(name, **options):
        return load_checkpoint(str(write_checkpoint(tmp_path / name, **options))).identity()

    def nudged(state):
        state["classifier.bias"][0] += 1e-6
        return state

    known = identity("safetensors")
    assert identity("pickled", pickled=True) == known
    assert identity("double", edit=lambda state: {name: t.double() for name, t in state.items()}) == known
    assert identity("config", hidden_dropout_prob=0.3) == known
    assert identity("nudged", edit=nudged) != known
    assert identity("seed", seed=1) != known


def test_random_models_are_the_same_every_time():
    first, second = load_checkpoint("random:tiny", "qa"), load_checkpoint("random:tiny", "qa")
    assert first.identity() == second.identity()
    assert (first.source, first.head, first.config_text) == ("random:tiny", "qa", second.config_text)
    assert load_checkpoint("random:tiny").head == "base"


@pytest.mark.parametrize("head", HEADS)
def test_random_models_of_every_head(head):
    assert load_checkpoint("random:tiny", head).architecture == CLASSES[head].__name__


@pytest.mark.parametrize("model", ["random:nope", "random:"])
def test_an_unknown_random_model(model, export_fails):
    assert export_fails(model) == f"{model} is not known; expected one of random:tiny, random:base, random:large"


def test_source_names_no_folders(tmp_path, write_checkpoint, monkeypatch):
    folder = write_checkpoint(tmp_path / "secret" / "my-model")
    assert load_checkpoint(str(folder)).source == "my-model"
    monkeypatch.chdir(folder)
    assert load_checkpoint(".").source == "my-model"


@pytest.mark.parametrize("key", ["_name_or_path", "tokenizer_file", "special_tokens_map_file"])
@pytest.mark.parametrize("value", ["/home/someone/runs/7", "C:\\Users\\someone\\runs", "~/runs", "../runs"])
def test_paths_are_left_out_of_the_config(key, value, tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model")
    original = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**original, key: value}))
    assert json.loads(load_checkpoint(str(folder)).config_text) == original


def test_a_config_without_paths_stays_as_it_is(tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model", _name_or_path="someone/ernie-m", unk_token="/")
    assert load_checkpoint(str(folder)).config_text == (folder / "config.json").read_text()


def test_files_that_cannot_be_read(tmp_path, write_checkpoint, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "model.safetensors")

    monkeypatch.setattr(module, "read_shapes", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read: Permission denied \(model.safetensors\)"):
        load_checkpoint(str(write_checkpoint(tmp_path / "model")))


@pytest.mark.parametrize("head", HEADS)
def test_loaded_as_the_library_loads_it(head, tmp_path, write_checkpoint):
    folder = write_checkpoint(tmp_path / "model", head)
    expected = CLASSES[head].from_pretrained(folder).state_dict()
    found = load_checkpoint(str(folder)).model
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    assert not found.training


@pytest.mark.parametrize("value", ["sdpa", "flash_attention_2", "flex_attention", "eager", None])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_how_it_attended_in_training_is_irrelevant(key, value, tmp_path, write_checkpoint):
    plain = load_checkpoint(str(write_checkpoint(tmp_path / "plain")))
    folder = write_checkpoint(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, key: value, "gradient_checkpointing": True}))
    assert load_checkpoint(str(folder)).identity() == plain.identity()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"num_labels": 3, "id2label": {"0": "no", "1": "yes"}},
            "config.json names 2 labels in id2label, which counts more than num_labels = 3, but classifier.weight "
            "has 3: ",
        ),
        (
            {"id2label": {"0": "no", "1": "yes"}},
            "config.json names 2 labels in id2label, but classifier.weight has 3: ",
        ),
        ({"num_labels": 4, "id2label": None}, "config.json says num_labels = 4, but classifier.weight has 3: "),
        ({"id2label": None}, "config.json names no labels, which means 2, but classifier.weight has 3: "),
    ],
)
def test_other_labels_than_the_weights_have(said, message, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model", label2id=None, **said)
    assert export_fails(folder) == message + "name 3 labels in id2label if the weights are right"


def test_id2label_counts_where_the_weights_agree(tmp_path, write_checkpoint):
    names = {"0": "no", "1": "yes", "2": "maybe"}
    folder = write_checkpoint(tmp_path / "model", num_labels=2, id2label=names, label2id=None)
    assert list(load_checkpoint(str(folder)).config.id2label.values()) == list(names.values())
