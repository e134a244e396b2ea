"""Folders of sentence-transformers: what they say becomes the artifact's defaults, or is refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch

import erniem_rt
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import CheckpointError
from erniem_rt.manifest import Defaults

PACKAGE = "sentence_transformers."
OLD = {name: f"{PACKAGE}models.{name}" for name in ("Transformer", "Pooling", "Normalize", "Dense", "Dropout")}
# As version 5.7 writes them.
NEW = {
    "Transformer": f"{PACKAGE}base.modules.transformer.Transformer",
    "Pooling": f"{PACKAGE}sentence_transformer.modules.pooling.Pooling",
    "Normalize": f"{PACKAGE}sentence_transformer.modules.normalize.Normalize",
}
NEW_SETTINGS = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}
CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True, "word_embedding_dimension": 16}


@pytest.fixture
def write_folder(tmp_path, write_checkpoint, tokenizer_dir):
    """A folder as sentence-transformers saves it; ``inner`` is where the model goes."""

    def write(names, pooling, settings=None, *, inner="", kinds=OLD, prompts=None, tokenizer=None):
        root = tmp_path / "sentences"
        write_checkpoint(root / inner, "base")
        shutil.copytree(tokenizer_dir, root / inner, dirs_exist_ok=True)
        paths = [inner if i == 0 else f"{i}_{name}" for i, name in enumerate(names)]
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": kinds.get(name, name)}
            for i, (name, path) in enumerate(zip(names, paths, strict=True))
        ]
        files = {"modules.json": modules, "config_sentence_transformers.json": prompts}
        files |= {f"{inner}/sentence_bert_config.json": settings, f"{inner}/tokenizer_config.json": tokenizer}
        for name, path in zip(names[1:], paths[1:], strict=True):
            (root / path).mkdir()
            files[f"{path}/config.json"] = pooling if name == "Pooling" else None
        for file, content in files.items():
            if content is not None:
                (root / file.removeprefix("/")).write_text(json.dumps(content))
        return root

    return write


@pytest.mark.parametrize(
    ("names", "pooling", "settings", "kinds", "expected"),
    [
        (["Transformer", "Pooling"], MEAN, {"max_seq_length": 64}, OLD, Defaults(64, "mean", False)),
        (["Transformer", "Pooling", "Normalize"], CLS, {"max_seq_length": 128}, OLD, Defaults(None, "cls", True)),
        (["Transformer", "Pooling", "Dropout", "Normalize"], CLS, None, OLD, Defaults(100, "cls", True)),
        (["Transformer", "Pooling"], {}, {"max_seq_length": None}, OLD, Defaults(100, "mean", False)),
        (["Transformer", "Pooling"], {"pooling_mode": "cls"}, NEW_SETTINGS, NEW, Defaults(100, "cls", False)),
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode": ["mean"]}, {}, NEW, Defaults(100, "mean", True)),
    ],
)
@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_they_become_the_defaults(names, pooling, settings, kinds, expected, inner, write_folder):
    root = write_folder(names, pooling, settings, kinds=kinds, inner=inner, tokenizer={"model_max_length": 100})
    checkpoint = load_checkpoint(str(root))
    assert checkpoint.defaults == expected
    assert checkpoint.source == "sentences"
    assert checkpoint.identity() == load_checkpoint(str(root / inner)).identity()
    assert checkpoint.tokenizer_dir == root / inner


def test_the_artifact_s_vectors(write_folder, tmp_path, erniem_export):
    settings = {"max_seq_length": 12, "do_lower_case": True}
    root = write_folder(["Transformer", "Pooling", "Normalize"], MEAN, settings, inner="0_Transformer")
    result = erniem_export("--model", root, "--output", tmp_path / "out").ok()
    assert "pipelines read at most 12 tokens in a row, as sentence_bert_config.json says" in result.err
    text = "GESTERN haben wir viele NACHBARN getroffen, und keiner war da"
    with erniem_rt.pipeline(tmp_path / "out" / "base.onnx") as pipe:
        ids = erniem_rt.Tokenizer.from_dir(root / "0_Transformer")(text.lower()).input_ids
        assert len(ids) > 12
        with torch.no_grad():
            states = load_checkpoint(str(root)).model(torch.tensor([[*ids[:11], ids[-1]]])).last_hidden_state[0]
        mean = states.mean(0).numpy()
        np.testing.assert_allclose(pipe(text), mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize(
    ("names", "pooling", "settings", "said"),
    [
        (["Transformer", "Pooling", "Dense"], MEAN, None, "modules.json lists Transformer, Pooling, Dense, expected"),
        (["Transformer", "mine.WeightedLayerPooling", "Pooling"], MEAN, None, "lists Transformer, mine.WeightedLayer"),
        (["Transformer", "mine.Pooling"], MEAN, None, "lists Transformer, mine.Pooling, expected"),
        (["Transformer", "Normalize", "Pooling"], MEAN, None, "lists Transformer, Normalize, Pooling, expected"),
        (["Transformer"], MEAN, None, "lists Transformer, expected Transformer, Pooling and optionally Normalize"),
        (["BoW", "Dense"], MEAN, None, "modules.json begins with BoW, expected Transformer"),
        (["Transformer", "Pooling"], MEAN | CLS | {"pooling_mode_mean_tokens": True}, None, "pools by cls, mean, exp"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, None, "config.json pools by max, expected one"),
        (["Transformer", "Pooling"], {"pooling_mode": ["mean", "lasttoken"]}, None, "pools by mean, lasttoken, expec"),
        (["Transformer", "Pooling"], MEAN, {"max_seq_length": "64"}, "says max_seq_length = '64', expected a positive"),
        (["Transformer", "Pooling"], MEAN, {"max_seq_length": 2}, "gives a row 2 tokens, of which 2 are special ones"),
        (["Transformer", "Pooling"], MEAN, {"transformer_task": "fill-mask"}, "reads last_hidden_state for fill-mask"),
    ],
)
def test_what_an_artifact_cannot_do(names, pooling, settings, said, write_folder, export_fails):
    assert said in export_fails(write_folder(names, pooling, settings))


def test_prompts(write_folder, export_fails):
    prompts = {"prompts": {"query": "search: ", "document": ""}, "default_prompt_name": "document"}
    root = write_folder(["Transformer", "Pooling"], MEAN, prompts=prompts)
    assert load_checkpoint(str(root)).notes == ("write prompts before the texts yourself: 'search: '",)
    (root / "config_sentence_transformers.json").write_text(json.dumps(prompts | {"default_prompt_name": "query"}))
    assert "puts the prompt 'query' before every text, and an artifact puts none" in export_fails(root)


@pytest.mark.parametrize("content", ["{", "{}", "[]", "[1]", '[{"type": "x"}]', '[{"type": "x", "path": null}]'])
def test_modules_that_are_none(content, write_folder, export_fails):
    root = write_folder(["Transformer", "Pooling"], MEAN)
    (root / "modules.json").write_text(content)
    assert "modules.json must be a list of modules" in export_fails(root) or content == "{"


def test_a_folder_that_is_not_there(write_folder, export_fails):
    root = write_folder(["Transformer", "Pooling", "Normalize"], MEAN, inner="0_Transformer")
    (root / "2_Normalize").rmdir()  # as in a download, where no folder is empty
    assert load_checkpoint(str(root)).defaults.normalize
    shutil.rmtree(root / "1_Pooling")
    assert "modules.json lists Pooling in 1_Pooling, and there is no such folder" in export_fails(root)


def test_another_head_takes_no_pooling(write_folder, write_checkpoint):
    root = write_folder(["Transformer", "Pooling", "Dense"], MEAN, {"max_seq_length": 64, "do_lower_case": True})
    write_checkpoint(root, "cls")
    checkpoint = load_checkpoint(str(root))
    assert (checkpoint.defaults, checkpoint.lower_case, checkpoint.notes) == (Defaults(), False, ())


def test_what_is_left_aside_is_said(write_folder):
    root = write_folder(["Transformer", "Pooling"], MEAN, {"max_seq_length": 64}, inner="0_Transformer")
    (told,) = load_checkpoint(str(root / "0_Transformer")).notes
    assert told.startswith("0_Transformer is part of a sentence-transformers folder: give the whole folder")
    (root / "modules.json").unlink()
    (told,) = load_checkpoint(str(root / "0_Transformer")).notes
    assert told == "not read, because modules.json is missing: sentence_bert_config.json"


def test_keys_that_are_not_read_are_said(write_folder):
    root = write_folder(["Transformer", "Pooling"], MEAN, {"processing_kwargs": {"text": {"max_length": 9}}})
    (told,) = load_checkpoint(str(root)).notes
    assert told == ("sentence_bert_config.json says processing_kwargs = {'text': {'max_length': 9}}, which is not read")


def test_a_pooling_file_that_is_damaged(write_folder):
    root = write_folder(["Transformer", "Pooling"], MEAN)
    (root / "1_Pooling" / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"1_Pooling/config.json cannot be read: Expecting value"):
        load_checkpoint(str(root))
