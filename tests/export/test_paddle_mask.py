"""The mask of uie-m: Paddle's numbers and Taskflow's answers (tests/data/paddle) from short rows with one more key."""

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

import erniem_rt
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import CheckpointError, ExportError
from erniem_export.mask_mode import UIE_M, at_full_width, mask_mode_of
from erniem_export.onnx_export import write
from erniem_export.options import ExportOptions, GraphOptions
from erniem_export.passes.attention import fuse_attention
from erniem_export.tokenizer import check_tokenizer
from erniem_rt import Session
from erniem_rt.machine import has_vnni
from erniem_rt.manifest import Manifest

ROOT = Path(__file__).parents[2]
PADDLE = ROOT / "tests" / "data" / "paddle"
IE = PADDLE / "models" / "ie"
ENGINES = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
SPANS = ("start_logits", "end_logits")


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64)))


def taskflow_rows(model="ie"):
    """Short rows with their mask, and what Paddle computes of them, padded to 24."""
    inputs, outputs = np.load(PADDLE / "inputs.npz"), np.load(PADDLE / "outputs.npz")
    ids, mask = inputs["right_mask/input_ids"], inputs["right_mask/attention_mask"]
    width = ids.shape[1]
    return {"input_ids": ids, "attention_mask": mask}, [outputs[f"{model}/taskflow/{i}"][:, :width] for i in range(2)]


@pytest.fixture(scope="session")
def exported(tmp_path_factory, erniem_export):
    done = {}

    def export(*options, model=IE):
        key = (str(model), *options)
        if key not in done:
            folder = tmp_path_factory.mktemp("artifact")
            result = erniem_export("--model", model, "--output", folder, *options).ok()
            assert "rows are computed as PaddleNLP's Taskflow does it for uie-m (--mask uie-m)" in result.err
            done[key] = folder
        return done[key]

    return export


@pytest.mark.parametrize(
    ("options", "target", "tolerance"),
    [
        (("--target", "portable"), "portable", 1e-5),
        ((), "onnxruntime-cpu", 1e-5),
        (("--fp16",), "portable", 5e-3),
        (("--bf16",), "portable", None),
        (("--int8", "--cpu", "avx2"), "onnxruntime-cpu", 1e-1),
        pytest.param(
            ("--int8", "--target", "openvino"), "openvino", 1e-1,
            marks=pytest.mark.skipif(not has_vnni(), reason="this CPU has no VNNI"),
        ),
    ],
)  # fmt: skip
def test_short_rows_give_paddles_numbers(options, target, tolerance, exported):
    # In half precision, of one layer: two layers of random weights this narrow cost more than the gate allows.
    half = "--fp16" in options or "--bf16" in options
    folder = exported(*options, model=PADDLE / "formats" / "legacy" if half else IE)
    manifest = Manifest.load(folder / "ie.json")
    assert (manifest.mask_mode, manifest.target) == (UIE_M, target)
    if tolerance is None:  # onnxruntime has no bfloat16 on a CPU; the gate has judged its emulation
        return
    feeds, expected = taskflow_rows("formats" if half else "ie")
    real = feeds["attention_mask"] == 1
    for engine in ENGINES:
        with Session(folder, engine=engine) as session:
            found = session.run(feeds)
        for name, probabilities in zip(SPANS, expected, strict=True):
            np.testing.assert_allclose(sigmoid(found[name])[real], probabilities[real], rtol=0, atol=tolerance)


def test_fused_alone(tmp_path, trace_once):
    model = load_checkpoint(str(IE)).model
    graph = trace_once(model, "ie", GraphOptions(mask_mode=UIE_M))
    assert fuse_attention(graph, 2) == 2
    write(graph, tmp_path / "ie.onnx")
    feeds, expected = taskflow_rows()
    found = onnxruntime.InferenceSession(str(tmp_path / "ie.onnx")).run(list(SPANS), feeds)
    real = feeds["attention_mask"] == 1
    for logits, probabilities in zip(found, expected, strict=True):
        np.testing.assert_allclose(sigmoid(logits)[real], probabilities[real], rtol=0, atol=1e-5)


def test_the_reference_at_full_width_is_taskflows_row():
    """What the gate compares with, beside Paddle itself."""
    model, (feeds, expected) = load_checkpoint(str(IE)).model, taskflow_rows()
    inputs = np.load(PADDLE / "inputs.npz")
    wide = at_full_width(feeds["input_ids"], feeds["attention_mask"], model.config)
    np.testing.assert_array_equal(wide["input_ids"].numpy(), inputs["taskflow/input_ids"])
    np.testing.assert_array_equal(wide["position_ids"].numpy(), inputs["taskflow/position_ids"])
    with torch.inference_mode():
        found = model(**wide)
    for logits, probabilities in zip((found.start_logits, found.end_logits), expected, strict=True):
        np.testing.assert_allclose(sigmoid(logits)[:, :14], probabilities, rtol=0, atol=1e-5)


def test_padding_with_the_masked_id_is_refused():
    checkpoint = load_checkpoint(str(IE))
    checkpoint.config.pad_token_id = 0
    with pytest.raises(ExportError, match=r"pad_token_id = 0, which is \[CLS\] .*: set pad_token_id to the id of"):
        mask_mode_of(ExportOptions("model"), checkpoint)
    assert mask_mode_of(ExportOptions("model", mask="padding"), checkpoint) == "padding"


def test_the_config_and_the_tokenizer_pad_with_the_same_id():
    checkpoint = load_checkpoint(str(ROOT / "examples" / "nano" / "checkpoints" / "ie"))
    checkpoint.config.pad_token_id = 2
    check_tokenizer(checkpoint)
    with pytest.raises(CheckpointError, match=r"says pad_token_id = 2, and in the tokenizer \[PAD\] has the id 1, "):
        check_tokenizer(checkpoint, pads_matter=True)


def test_the_gate_catches_a_mask_of_padding(exported, tmp_path, erniem_export, erniem_verify):
    folder = shutil.copytree(exported("--target", "portable"), tmp_path / "copy")
    erniem_verify(folder, "--model", IE).ok()
    manifest = json.loads((folder / "ie.json").read_text())
    del manifest["mask_mode"]
    (folder / "ie.json").write_text(json.dumps(manifest))
    result = erniem_verify(folder, "--model", IE)
    assert (result.code, "does not compute what the PyTorch model computes" in result.err) == (1, True)


def test_padding_can_be_asked_for(tmp_path, erniem_export):
    erniem_export("--model", IE, "--output", tmp_path / "out", "--mask", "padding", "--target", "portable").ok()
    assert "mask_mode" not in json.loads((tmp_path / "out" / "ie.json").read_text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "onnxruntime-cuda", "--fp16"), "--target onnxruntime-cuda masks by key lengths alone"),
        (("--target", "onnxruntime-cuda-packed"), "--target onnxruntime-cuda-packed masks by key lengths alone"),
        (("--with-position-ids",), "--with-position-ids cannot be combined with it: leave it out"),
        (("--with-attentions",), "--with-attentions cannot be combined with it: leave it out"),
        (("--engine", "tensorrt-rtx"), "--engine tensorrt-rtx has no bias on keys: leave it out"),
    ],
)
def test_what_cannot_have_it_is_refused_by_name(options, said, export_fails, erniem_export):
    if "tensorrt-rtx" not in options:  # which may not be installed
        assert f"this checkpoint needs --mask uie-m, and {said}" in export_fails(IE, *options)
    result = erniem_export("--model", "random:tiny", "--head", "ie", "--mask", "uie-m", *options)
    assert (result.code, f"--mask uie-m: {said}" in result.err) == (2, True)


def test_it_is_for_information_extraction(export_fails):
    assert "--mask uie-m is for head ie, and this is head qa" in export_fails(
        PADDLE / "models" / "qa", "--mask", "uie-m"
    )


@pytest.mark.parametrize(
    ("folder", "config", "said"),
    [
        ("uie-m-base_pytorch", {}, True),
        ("model", {"paddlenlp_version": None, "_name_or_path": None}, False),
        ("model", {"_name_or_path": "someone/uie_m_large"}, True),
        ("model", {}, False),
    ],
)
def test_a_copy_in_pytorch_is_said_to_be_one(
    folder, config, said, tmp_path, write_checkpoint, erniem_export, quick_trace, quick_gate
):
    model = write_checkpoint(tmp_path / folder, "ie", **config)
    result = erniem_export("--model", model, "--output", tmp_path / "out")
    assert ("this looks like a copy of uie-m" in result.err) == said


# --- nano's weights in Paddle's format, beside the real Taskflow ---


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """nano's ie checkpoint as PaddleNLP has it: its feed-forward layers filled up with zeros to 4 x hidden."""
    source, folder = ROOT / "examples" / "nano" / "checkpoints" / "ie", tmp_path_factory.mktemp("nano")
    arrays = {}
    for name, array in load_file(source / "model.safetensors").items():
        if ".linear1." in name:
            array = np.pad(array, [(0, 96), (0, 0)][: array.ndim])
        elif name.endswith("linear2.weight"):
            array = np.pad(array, [(0, 0), (0, 96)])
        transposed = array.ndim == 2 and not name.endswith("_embeddings.weight")
        arrays[name.replace("self_attn.self_attn.", "self_attn.")] = np.ascontiguousarray(
            array.T if transposed else array
        )
    (folder / "model_state.pdparams").write_bytes(pickle.dumps(arrays, protocol=4))
    config = json.loads((source / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["UIEM"]}))
    for name in ("sentencepiece.bpe.model", "vocab.txt"):
        shutil.copy(source / name, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(PADDLE / "released" / name, folder)
    return folder


@pytest.fixture(scope="session")
def artifact(nano, exported):
    return exported(model=nano)


def test_the_tokenizer_drops_lone_marks(artifact, nano):
    content = json.loads((artifact / "tokenizer_config.json").read_text("utf-8"))
    assert content.pop("drop_lone_marks") is True
    assert content.pop("model_input_names") == ["input_ids", "attention_mask"]
    assert content == json.loads((nano / "tokenizer_config.json").read_text("utf-8"))


def test_rows_of_512_from_70_columns(artifact):
    rows = np.load(PADDLE / "nano" / "rows.npz")
    mask = rows["attention_mask"]
    width = int(mask.sum(1).max())
    with Session(artifact) as session:
        found = session.run(input_ids=rows["input_ids"][:, :width], attention_mask=mask[:, :width])
    assert width == 69
    for name in ("start", "end"):
        difference = sigmoid(found[f"{name}_logits"]) - rows[f"{name}_real"][:, :width]
        assert np.abs(difference[mask[:, :width] == 1]).max() < 2e-5


CALLS = json.loads((PADDLE / "nano" / "taskflow_real.json").read_text("utf-8"))
# Where our answers are not Taskflow's, and why.
OTHERS = {
    "long": "pieces end where sentences do, so that no name is cut",
    "long_list": "the same",
    "long_split_sentence": "the same; Taskflow makes a row of each sentence",
    "empty": "a text without tokens is an error",
    "only_dropped": "a text without tokens is an error",
    "options_zh": "an option is chosen, or none; Taskflow takes an answer from the text too",
    "long_prompt": "a prompt of 500 characters leaves the text room; Taskflow's count of characters does not",
    "dense_tokens": "a text of more tokens than a row holds is split; Taskflow cuts off the rest",
}


def flat(answers, place=()):
    found = {}
    for name, given in answers.items():
        for answer in given:
            key = (*place, name, answer["text"], answer.get("start"), answer.get("end"))
            found[key] = answer["probability"]
            found |= flat(answer.get("relations", {}), key)
    return found


def language(call):
    return "zh" if call["lang"] == "ch" else "en"


def test_the_answers_are_taskflows(artifact):
    pipe = erniem_rt.pipeline("information-extraction", artifact)
    compared = 0
    for call in CALLS:
        if call["kind"] in OTHERS:
            continue
        found = pipe(call["texts"], schema=call["schema"], schema_lang=language(call))
        for ours, theirs in zip(found, call["result"], strict=True):
            assert flat(ours) == pytest.approx(flat(theirs), abs=1e-4), call
            compared += 1
    assert len(CALLS) == 108
    assert compared == 110


def test_long_texts_cut_as_taskflow_cuts_them_give_its_answers(artifact):
    pipe = erniem_rt.pipeline("information-extraction", artifact)
    # Not the Chinese one: a piece of 507 tokens does not fit beside the prompt, of which Taskflow cuts off the last.
    calls = [call for call in CALLS if call["kind"] in ("long", "long_list") and call["lang"] == "en"]
    for call in calls:
        size = 509 - len(call["schema"][0])
        for text, theirs in zip(call["texts"], call["result"], strict=True):
            pieces = [text[start : start + size] for start in range(0, len(text), size)]
            found = {}
            for i, answers in enumerate(pipe(pieces, schema=call["schema"], schema_lang=language(call))):
                for (name, answer, start, end), probability in flat(answers).items():
                    found[name, answer, start + i * size, end + i * size] = probability
            assert found == pytest.approx(flat(theirs), abs=1e-4)
    assert len(calls) == 3
