"""The manifest: what is written is read, and what is not as it should be is named."""

from __future__ import annotations

import copy
import json

import pytest

import erniem_rt
from erniem_rt import ArtifactError
from erniem_rt.files import FileRecord
from erniem_rt.manifest import FORMAT_VERSION, HEADS, Defaults, Limits, Manifest, TensorSpec

ROWS = ["batch", "sequence"]
EXAMPLE = {
    "format_version": "1.1",
    "head": "qa",
    "task": "question-answering",
    "labels": None,
    "problem_type": None,
    "limits": {"max_length": 512, "vocab_size": 250002, "pad_token_id": 1},
    "inputs": [
        {"name": "input_ids", "dtype": "int64", "shape": ROWS},
        {"name": "attention_mask", "dtype": "int64", "shape": ROWS},
    ],
    "outputs": [
        {"name": "start_logits", "dtype": "float32", "shape": ROWS},
        {"name": "end_logits", "dtype": "float32", "shape": ROWS},
    ],
    "precision": {"weights": "fp32", "embedding": "fp32"},
    "opset": 20,
    "target": "any",
    "artifact": "qa.onnx",
    "files": {
        "qa.onnx": {"sha256": "a" * 64, "size": 123},
        "qa.onnx.data": {"sha256": "0123456789abcdef" * 4, "size": 0},
    },
    "checkpoint": {"source": "somewhere", "sha256": "b" * 64, "architecture": "ErnieMForQuestionAnswering"},
    "versions": {"erniem_rt": "0.1.0"},
    "engine": None,
    "parity": {"passed": True, "outputs": {"start_logits": {"max": 1e-6}}},
    "packed": True,
}
# As it was written before there was a minor version.
FIRST = {key: value for key, value in EXAMPLE.items() if key != "packed"} | {"format_version": 1}


def write(path, content):
    path.write_text(json.dumps(content), "utf-8")
    return path


def refused(path):
    with pytest.raises(ArtifactError) as caught:
        Manifest.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(f"; re-export with this version ({erniem_rt.__version__}).")
    assert "\n" not in message
    return message


def test_the_format_is_read_as_documented(tmp_path):
    manifest = Manifest.load(write(tmp_path / "qa.json", EXAMPLE))
    assert FORMAT_VERSION == "1.1"
    assert (manifest.packed, manifest.cpu) == (True, None)
    assert (manifest.head, manifest.task, manifest.labels) == ("qa", "question-answering", None)
    assert manifest.limits == Limits(max_length=512, vocab_size=250002, pad_token_id=1)
    assert manifest.inputs[0] == TensorSpec("input_ids", "int64", ("batch", "sequence"))
    assert manifest.files["qa.onnx"] == FileRecord("a" * 64, 123)
    assert manifest.parity == EXAMPLE["parity"]


def test_what_is_saved_is_what_was_loaded(tmp_path):
    example = EXAMPLE | {
        "labels": ["да", "нет", "不"],
        "problem_type": "regression",
        "engine": {"flavour": "x"},
        "cpu": "vnni",
    }
    manifest = Manifest.load(write(tmp_path / "qa.json", example))
    manifest.save(tmp_path / "copy.json")
    text = (tmp_path / "copy.json").read_text("utf-8")
    assert json.loads(text) == example
    assert list(json.loads(text)) == list(example)
    assert "нет" in text
    assert Manifest.load(tmp_path / "copy.json") == manifest
    assert manifest.labels == ("да", "нет", "不")


BASE = EXAMPLE | {
    "head": "base",
    "task": "feature-extraction",
    "outputs": [{"name": "last_hidden_state", "dtype": "float32", "shape": [*ROWS, 8]}],
}


def test_the_defaults_of_the_pipelines(tmp_path):
    given = {"max_seq_len": 128, "pooling": "cls", "normalize": True}
    manifest = Manifest.load(write(tmp_path / "base.json", BASE | {"defaults": given}))
    assert manifest.defaults == Defaults(128, "cls", True)
    manifest.save(tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text("utf-8")) == BASE | {"defaults": given}
    one = Manifest.load(write(tmp_path / "qa.json", EXAMPLE | {"defaults": {"max_seq_len": 512}}))
    assert one.defaults == Defaults(max_seq_len=512)
    assert Manifest.load(write(tmp_path / "none.json", EXAMPLE)).defaults == Defaults()


@pytest.mark.parametrize(
    ("defaults", "said"),
    [
        (None, "key 'defaults' must be an object, got null"),
        ({"max_seq_len": 0}, "key 'defaults.max_seq_len' must be an integer of at least 1, got 0"),
        ({"max_seq_len": None}, "key 'defaults.max_seq_len' must be an integer of at least 1, got null"),
        ({"max_seq_len": 513}, "defaults.max_seq_len is 513, over limits.max_length, 512"),
        ({"pooling": "max"}, "key 'defaults.pooling' must be 'mean' or 'cls' or 'pooler' or 'none', got \"max\""),
        ({"normalize": 1}, "key 'defaults.normalize' must be true or false, got 1"),
        ({"stride": 8}, "unknown key 'defaults.stride'"),
    ],
)
def test_defaults_that_are_none(defaults, said, tmp_path):
    assert said in refused(write(tmp_path / "base.json", BASE | {"defaults": defaults}))


def test_only_a_base_model_has_defaults_of_pooling(tmp_path):
    said = refused(write(tmp_path / "qa.json", EXAMPLE | {"defaults": {"pooling": "mean"}}))
    assert "unknown key 'defaults.pooling'" in said


def test_a_base_model_may_lack_its_pooler_output_alone(tmp_path):
    assert [spec.name for spec in Manifest.load(write(tmp_path / "base.json", BASE)).outputs] == ["last_hidden_state"]
    pooled = [{"name": "pooler_output", "dtype": "float32", "shape": ["batch", 8]}]
    assert "lacks last_hidden_state" in refused(write(tmp_path / "base.json", BASE | {"outputs": pooled}))


def test_every_head_is_in_the_table():
    assert {head: spec.task for head, spec in HEADS.items()} == {
        "base": "feature-extraction",
        "cls": "text-classification",
        "ner": "token-classification",
        "mc": "multiple-choice",
        "qa": "question-answering",
        "ie": "information-extraction",
    }
    assert {head: list(spec.outputs) for head, spec in HEADS.items()} == {
        "base": ["last_hidden_state", "pooler_output"],
        "cls": ["logits"],
        "ner": ["logits"],
        "mc": ["logits"],
        "qa": ["start_logits", "end_logits"],
        "ie": ["start_logits", "end_logits"],
    }


@pytest.mark.parametrize("key", EXAMPLE)
def test_every_key_is_needed(tmp_path, key):
    content = {name: value for name, value in EXAMPLE.items() if name != key}
    assert f"key {key!r} is missing" in refused(write(tmp_path / "qa.json", content))


@pytest.mark.parametrize(
    ("engine", "packed", "cpu"),
    [
        (None, False, None),
        ({"name": "onnxruntime-cpu", "packed": True}, True, None),
        ({"packed": False, "int8": {"cpu": "vnni", "products": {}}}, False, "vnni"),
        ({"name": "tensorrt", "int8": {"products": {}}}, False, None),
        ({"packed": "yes", "int8": [1]}, False, None),
    ],
)
def test_a_manifest_of_the_first_version_says_it_in_the_engines_record(engine, packed, cpu, tmp_path):
    manifest = Manifest.load(write(tmp_path / "qa.json", FIRST | {"engine": engine}))
    assert (manifest.packed, manifest.cpu) == (packed, cpu)
    manifest.save(tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text("utf-8"))["format_version"] == "1.1"
    assert Manifest.load(tmp_path / "copy.json") == manifest


@pytest.mark.parametrize("content", [EXAMPLE, FIRST])
def test_unknown_keys_are_refused(content, tmp_path):
    assert "unknown key 'packing'" in refused(write(tmp_path / "qa.json", content | {"packing": True}))


def test_unknown_keys_of_a_newer_minor_version_are_ignored_with_one_warning(tmp_path):
    content = BASE | {"format_version": "1.12", "packing": True, "defaults": {"stride": 8, "max_seq_len": 5}}
    path = write(tmp_path / "base.json", content)
    with pytest.warns(UserWarning, match="by a newer version") as caught:
        manifest = Manifest.load(path)
    assert [str(warning.message) for warning in caught] == [
        f"{path} was exported by a newer version: 'defaults.stride', 'packing' is not known to erniem-rt "
        f"{erniem_rt.__version__} and ignored. Update erniem-rt."
    ]
    known = BASE | {"defaults": {"max_seq_len": 5}}
    assert manifest == Manifest.load(write(tmp_path / "base.json", known))
    assert Manifest.load(write(tmp_path / "base.json", known | {"format_version": "1.12"})) == manifest


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (2, "update erniem-rt, or export again with this version."),
        ("2.0", "update erniem-rt, or export again with this version."),
        (0, "export again with this version."),
        ("0.9", "export again with this version."),
    ],
)
def test_another_major_version_is_refused(version, remedy, tmp_path):
    path = write(tmp_path / "qa.json", EXAMPLE | {"format_version": version, "packing": True})
    with pytest.raises(ArtifactError) as caught:
        Manifest.load(path)
    shown = version if isinstance(version, str) else f"{version}.0"
    reads = f"has format version {shown}, and erniem-rt {erniem_rt.__version__} reads 1.x: {remedy}"
    assert str(caught.value) == f"{path} {reads}"


BAD = [
    ("format_version", "1", "key 'format_version' must be a version such as '1.1', got \"1\""),
    ("format_version", 1.1, "key 'format_version' must be a version such as '1.1', got 1.1"),
    ("format_version", True, "key 'format_version' must be a version such as '1.1', got true"),
    ("packed", 1, "key 'packed' must be true or false, got 1"),
    ("cpu", 1, "key 'cpu' must be a non-empty string, got 1"),
    ("head", "squad", "key 'head' must be 'base' or 'cls' or"),
    ("head", ["qa"], "key 'head' must be"),
    ("task", "text-classification", "key 'task' must be 'question-answering', got \"text-classification\""),
    ("labels", "yes", "key 'labels' must be a list of strings, got \"yes\""),
    ("labels", ["yes", 1], "key 'labels' must be a list of strings"),
    ("problem_type", "other", "key 'problem_type' must be 'regression' or"),
    ("limits", [], "key 'limits' must be an object, got []"),
    ("limits.max_length", 0, "key 'limits.max_length' must be an integer of at least 1, got 0"),
    ("limits.vocab_size", 1.5, "key 'limits.vocab_size' must be an integer of at least 1, got 1.5"),
    ("limits.pad_token_id", -1, "key 'limits.pad_token_id' must be an integer of at least 0"),
    ("inputs", [], "key 'inputs' must be a non-empty list of objects, got []"),
    ("inputs", {}, "key 'inputs' must be a non-empty list of objects"),
    ("inputs.0", "input_ids", "key 'inputs' must be a non-empty list of objects"),
    ("inputs.1.name", "", "key 'inputs[1].name' must be a non-empty string"),
    ("inputs.1.dtype", "bfloat", "key 'inputs[1].dtype' must be 'int64' or"),
    ("inputs.0.shape", ["batch", 0], "key 'inputs[0].shape' must be a list of positive integers and axis names"),
    ("inputs.0.shape", ["batch", ""], "key 'inputs[0].shape'"),
    ("inputs.0.shape", ["batch", True], "key 'inputs[0].shape'"),
    ("inputs.0.shape", "batch", "key 'inputs[0].shape'"),
    ("inputs.0.shape", ["batch"], "input input_ids must have 2 axes, got ['batch']"),
    ("inputs.1.shape", ["batch", "other"], "input attention_mask has an axis of its own"),
    ("inputs.0.name", "ids", "inputs must be attention_mask and input_ids (or inputs_embeds), got ids, attention_mask"),
    ("inputs.1.name", "mask", "inputs must be attention_mask and input_ids"),
    ("inputs.1.name", "input_ids", "inputs lists a name twice"),
    ("outputs.0.name", "end_logits", "outputs lists a name twice"),
    ("outputs.0.name", "logits", "outputs lacks start_logits of head 'qa'"),
    ("precision", None, "key 'precision' must be an object"),
    ("precision.weights", 16, "key 'precision.weights' must be a non-empty string"),
    ("opset", None, "key 'opset' must be an integer"),
    ("target", 1, "key 'target' must be a non-empty string"),
    ("artifact", "cls.onnx", "artifact is 'cls.onnx', which files does not list"),
    ("files", [], "key 'files' must be an object"),
    ("files.qa.onnx", 7, "key 'files.qa.onnx' must be an object, got 7"),
    ("files.qa.onnx", {"size": 1}, "key 'files.qa.onnx.sha256' is missing"),
    ("files.qa.onnx", {"size": -1, "sha256": "a" * 64}, "key 'files.qa.onnx.size' must be an integer of at least 0"),
    ("files.qa.onnx", {"size": 1, "sha256": "A" * 64}, "key 'files.qa.onnx.sha256' must be 64 lower-case hex digits"),
    ("checkpoint", "hub", "key 'checkpoint' must be an object"),
    ("versions", None, "key 'versions' must be an object"),
    ("engine", 3, "key 'engine' must be an object, got 3"),
    ("parity", None, "key 'parity' must be an object"),
]


@pytest.mark.parametrize(("key", "value", "fragment"), BAD, ids=[f"{key}={value!r}"[:50] for key, value, _ in BAD])
def test_wrong_values_are_named(tmp_path, key, value, fragment):
    content = copy.deepcopy(EXAMPLE)
    *parents, last = key.split(".", 1 if key.startswith("files") else -1)
    target = content
    for name in parents:
        target = target[int(name) if name.isdigit() else name]
    target[int(last) if last.isdigit() else last] = value
    assert fragment in refused(write(tmp_path / "qa.json", content))


def test_an_input_that_this_version_does_not_know(tmp_path):
    content = EXAMPLE | {"inputs": [*EXAMPLE["inputs"], {"name": "token_type_ids", "dtype": "int64", "shape": ROWS}]}
    assert "'token_type_ids', which this version does not know" in refused(write(tmp_path / "qa.json", content))


OUTSIDE = ["../x", "../b", "//b", "/etc/passwd", "..", ".", "", "a/..", "./b", "a\\b", "C:x", "C:\\x", "C:/x", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE, "x/", "a/b/c", "a\\b/c"])
def test_files_lie_in_the_folder(tmp_path, name):
    content = EXAMPLE | {"files": {**EXAMPLE["files"], name: {"sha256": "a" * 64, "size": 1}}}
    message = refused(write(tmp_path / "qa.json", content))
    assert f"key 'files' must hold plain file names inside the folder, got {name!r}" in message


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 100_000, b"not json", b"1" * 5000],
    ids=["empty", "open", "list", "null", "text", "binary", "deep", "words", "digits"],
)
def test_malformed_json(tmp_path, content):
    (tmp_path / "qa.json").write_bytes(content)
    assert "expected " in refused(tmp_path / "qa.json")


def test_long_values_are_shortened(tmp_path):
    assert len(refused(write(tmp_path / "qa.json", EXAMPLE | {"labels": "x" * 10_000}))) < 300 + len(str(tmp_path))


def test_no_manifest(tmp_path):
    assert "there is no such file" in refused(tmp_path / "qa.json")


def test_a_folder_in_its_place(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        Manifest.load(tmp_path)


def test_the_mask_mode_is_there_where_it_is_not_the_usual_one(tmp_path):
    manifest = Manifest.load(write(tmp_path / "qa.json", EXAMPLE))
    assert manifest.mask_mode == "padding"
    manifest.save(tmp_path / "qa.json")
    assert "mask_mode" not in json.loads((tmp_path / "qa.json").read_text())
    other = Manifest.load(write(tmp_path / "qa.json", {**EXAMPLE, "mask_mode": "uie-m"}))
    other.save(tmp_path / "qa.json")
    assert Manifest.load(tmp_path / "qa.json").mask_mode == "uie-m"
    assert "mask_mode" in refused(write(tmp_path / "qa.json", {**EXAMPLE, "mask_mode": "none"}))
