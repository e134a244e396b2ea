"""The options of ``erniem-export`` on size and precision, and ``erniem-verify`` on what they made."""

import json
import shutil
import sys

import numpy as np
import pytest

import erniem_rt
from erniem_rt.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory, write_checkpoint, tokenizer_dir):
    """A checkpoint with a tokenizer."""
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")
    return shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_size_with_all_tokens_is_what_it_would_be(precision, checkpoint_dir, tmp_path, erniem_export, monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    weights = () if precision == "fp32" else (f"--{precision}",)
    for name, more in (("whole", ()), ("part", ("--languages", "zh"))):
        erniem_export("--model", checkpoint_dir, *weights, *more, "--output", tmp_path / name).ok()
    whole, part = (json.loads((tmp_path / name / "cls.json").read_text()) for name in ("whole", "part"))
    size = sum(record["size"] for name, record in whole["files"].items() if name.startswith("cls.onnx"))
    vocabulary = part["checkpoint"]["vocabulary"]
    assert "vocabulary" not in whole["checkpoint"]
    # Of the graph: calibrated scales and the alignment of tensors.
    assert vocabulary["bytes_before"] == pytest.approx(size, abs=1000)
    assert size - vocabulary["bytes_after"] > 10_000


def test_fp16_with_int8_embeddings_of_two_languages(
    checkpoint_dir, tmp_path, erniem_export, erniem_verify, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    output = tmp_path / "out"
    options = ("--fp16", "--embedding", "int8", "--languages", "de,en")
    done = erniem_export("--model", checkpoint_dir, "--output", output, *options).ok()
    manifest = json.loads((output / "cls.json").read_text())
    assert manifest["precision"] == {"weights": "fp16", "embedding": "int8"}
    assert [spec["dtype"] for spec in manifest["inputs"] + manifest["outputs"]] == ["int64", "int64", "float32"]
    kept = len(Tokenizer.from_dir(output))
    assert manifest["limits"]["vocab_size"] == kept < 1000
    vocabulary = manifest["checkpoint"]["vocabulary"]
    assert vocabulary["kept"] == kept
    assert vocabulary["rules"] == {"de": "alphabet", "en": "alphabet"}
    assert f'kept {kept} of 1000 tokens; de, en by the alphabet (for fewer tokens: pip install "erniem-rt[l' in done.err
    size = sum((output / name).stat().st_size for name in ("cls.onnx", "cls.onnx.data"))
    assert (vocabulary["bytes_after"], vocabulary["bytes_before"]) == (size, size + (1000 - kept) * (16 + 4))
    assert f"{kept} of 1000 tokens: graph and weights are {size / 1e6:.1f} MB, " in done.out
    assert list(manifest["parity"]) == ["cls.onnx", "cls.onnx as onnxruntime runs it on CPU"]
    assert all(report["passed"] for report in manifest["parity"].values())
    assert "real text" in manifest["parity"]["cls.onnx"]["cases"]
    assert "rounded as a GPU rounds it" in done.out
    with erniem_rt.Session(output / "cls.onnx") as session:
        logits = session.run(input_ids=[Tokenizer.from_dir(output)("Straßenfest in Zürich").input_ids])["logits"]
    assert logits.dtype == np.float32
    verified = erniem_verify(output / "cls.onnx", "--model", checkpoint_dir).ok()
    assert "fp16, embedding int8, against PyTorch" in verified.out


def test_bf16_is_proven_without_a_cpu_that_could_run_it(checkpoint_dir, tmp_path, erniem_export):
    erniem_export("--model", checkpoint_dir, "--output", tmp_path / "out", "--bf16").ok()
    manifest = json.loads((tmp_path / "out" / "cls.json").read_text())
    assert manifest["precision"] == {"weights": "bf16", "embedding": "bf16"}
    assert manifest["onnxruntime"] == "1.24", "older versions refuse attention in bfloat16"
    assert list(manifest["parity"]) == ["cls.onnx"]
    assert "by a float32 graph on CPU" in manifest["parity"]["cls.onnx"]["method"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted([*manifest["files"], "cls.json"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fp16", "--bf16"), "argument --bf16: not allowed with argument --fp16"),
        (("--languages", "en,xx"), "argument --languages: language 'xx' is not known; known are af, am, ar,"),
        (("--languages", ""), "argument --languages: language '' is not known"),
        (("--embedding", "int4"), "argument --embedding: invalid choice: 'int4'"),
    ],
)
def test_usage(options, message, tmp_path, erniem_export):
    result = erniem_export("--model", "random:tiny", "--output", tmp_path / "out", *options)
    assert result.code == 2
    assert message in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--languages", "en"), "random:tiny has no tokenizer; without one, the tokens to keep are unknown"),
        (("--embedding", "int8", "--with-inputs-embeds"), "the graph takes inputs_embeds and has no word embeddings"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(options, message, export_fails):
    assert export_fails("random:tiny", *options).startswith(message)


def test_a_missing_text_leaves_nothing(checkpoint_dir, tmp_path, export_fails):
    said = "none.txt, cannot be read: No such file or directory"
    assert said in export_fails(checkpoint_dir, "--keep-tokens", tmp_path / "none.txt")
