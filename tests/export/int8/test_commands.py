"""``erniem-export --int8``, from the command to the session."""

import json
import shutil

import numpy as np
import pytest

from erniem_export import cli, pipeline
from erniem_export.checkpoint import Checkpoint
from erniem_export.errors import ExportError
from erniem_export.options import GraphOptions, Int8
from erniem_export.progress import Terminal
from erniem_export.quantization import quantize
from erniem_rt import Session, machine
from erniem_rt.manifest import Limits

FAR = 3  # the channel of ``outlying_model`` that its norms let reach far


@pytest.mark.parametrize("cpu", ["auto", "avx2"])
def test_an_export_passes_the_gate_and_says_what_was_done(write_checkpoint, erniem_export, tmp_path, cpu):
    model = write_checkpoint(tmp_path / "model", "ner")
    result = erniem_export("--model", model, "--int8", "--cpu", cpu, "--output", tmp_path / "out").ok()
    manifest = json.loads((tmp_path / "out" / "ner.json").read_text())
    assert manifest["precision"] == {"weights": "int8", "embedding": "int8"}
    assert manifest["target"] == "onnxruntime-cpu"
    done = manifest["engine"]["int8"]
    assert manifest["cpu"] == ("avx2" if cpu == "avx2" or not machine.has_vnni() else "vnni")
    assert done["calibration"].startswith("random ids")
    assert 0 < done["relative_l2"] < 0.1
    products = done["products"]
    assert len(products) == 12
    assert all(0 < product["error"] < 0.2 for product in products.values())
    assert all(product["input_scale"] > 0 for product in products.values())
    assert "int8 against PyTorch" in result.out
    line = f"12 matmuls in int8, 0 of them with outlier channels in fp32; relative L2 {done['relative_l2']:.1e}"
    assert f"{line}, {done['calibration']}\n" in result.out
    with Session(tmp_path / "out" / "ner.onnx") as session:
        assert np.isfinite(session.run(input_ids=np.full((1, 5), 7))["logits"]).all()


@pytest.mark.parametrize("head", ["cls", "ner", "ie", "mc", "base"])
def test_an_export_for_openvino_passes_the_gate(write_checkpoint, erniem_export, tmp_path, head):
    if machine.has_vnni() is False:
        pytest.skip("this CPU has no VNNI")
    model = write_checkpoint(tmp_path / "model", head)
    erniem_export("--model", model, "--int8", "--target", "openvino", "--output", tmp_path / "out").ok()
    manifest = json.loads((tmp_path / "out" / f"{head}.json").read_text())
    assert manifest["target"] == manifest["engine"]["name"] == "openvino"
    assert manifest["packed"]
    assert manifest["cpu"] == "vnni"


def test_an_export_for_openvino_needs_a_cpu_that_can_check_it(monkeypatch):
    monkeypatch.setattr(quantize, "has_vnni", lambda: False)
    with pytest.raises(ExportError, match="--target openvino is int8 for a CPU with VNNI"):
        quantize.check_int8(Int8(), None, target="openvino")


def test_a_part_of_the_vocabulary_is_calibrated_on_the_checkpoint_s_own_text(
    write_checkpoint, tokenizer_dir, erniem_export, tmp_path
):
    model = write_checkpoint(tmp_path / "model", "ner")
    shutil.copytree(tokenizer_dir, model, dirs_exist_ok=True)
    (model / "calibration.txt").write_text("Guten Morgen, Herr Schneider.\nGood morning.\nWie geht es Ihnen?\n")
    options = ("--int8", "--keep-tokens", model / "calibration.txt", "--output", tmp_path / "out")
    erniem_export("--model", model, *options).ok()
    manifest = json.loads((tmp_path / "out" / "ner.json").read_text())
    assert manifest["checkpoint"]["vocabulary"]["kept"] < 1000
    assert manifest["engine"]["int8"]["calibration"] == "calibration.txt, 3 lines"


def test_what_was_decided_for_each_product_is_told(outlying_model, trace_once, tmp_path):
    graph = trace_once(outlying_model, "cls", GraphOptions())
    checkpoint = Checkpoint(outlying_model, "cls", "test", outlying_model.config.to_json_string(), None)
    done = quantize.quantize(graph, checkpoint, tmp_path, Int8("avx2"), Limits(64, 1000, 1), Terminal())
    products = {name.partition("layers.")[2]: product for name, product in done["products"].items()}
    assert len(products) == 12
    assert all(0 < product["error"] < 0.1 and product["smoothed_channels"] > 0 for product in products.values())
    assert all(len(product["channels_in_fp32"]) == 4 for product in products.values())
    assert all(FAR in products[f"{layer}.linear1"]["channels_in_fp32"] for layer in range(2))
    assert FAR not in products["0.self_attn.self_attn.q_proj"]["channels_in_fp32"], "before the norm that reaches far"
    assert products["0.linear2"]["input_zero_point"] < 30, "what Gelu gives is hardly below zero"
    line = "12 matmuls in int8, 12 of them with outlier channels in fp32; "
    assert cli._int8_line(done)[0].startswith(f"{line}relative L2 {done['relative_l2']:.1e}, random ids")
    assert cli._int8_line({"weights_only": 12}) == cli._int8_line({}) == []


@pytest.mark.parametrize(
    ("flags", "vnni", "cpu", "message"),
    [
        ({"avx2"}, False, "vnni", "--cpu vnni cannot be checked here"),
        ({"avx2"}, False, "arm64", "--cpu arm64 cannot be checked here"),
        ({"sse4_1"}, False, "auto", "needs a CPU with AVX2"),
    ],
)
def test_a_cpu_that_is_not_fit_is_one_clear_error(export_fails, monkeypatch, flags, vnni, cpu, message):
    monkeypatch.setattr(quantize, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(quantize, "has_vnni", lambda: vnni)
    monkeypatch.setattr(pipeline, "load_checkpoint", None)  # it is refused before anything is loaded
    assert message in export_fails("random:tiny", "--int8", "--cpu", cpu)


def test_sums_for_arm_are_not_those_of_16_bits(outlying_model, trace_once, tmp_path, monkeypatch):
    """No weight is held back for its neighbour, and the scales are those for VNNI. An ARM machine was not at hand."""
    checkpoint = Checkpoint(outlying_model, "cls", "test", outlying_model.config.to_json_string(), None)
    monkeypatch.setattr(quantize, "has_vnni", lambda: None)
    monkeypatch.setattr(quantize, "cpu_flags", frozenset)
    monkeypatch.setattr(quantize, "is_arm", lambda: True)
    assert quantize.cpu_for(Int8()) == quantize.cpu_for(Int8("arm64")) == "arm64"
    stored = {}
    for cpu in ("arm64", "vnni", "avx2"):
        graph = trace_once(outlying_model, "cls", GraphOptions())
        done = quantize.quantize(graph, checkpoint, tmp_path, Int8(cpu), Limits(64, 1000, 1), Terminal())
        assert done["cpu"] == cpu
        values = graph.graph.initializers.items()
        stored[cpu] = {name: value.const_value.numpy() for name, value in values if ".int8" in name}
    assert all((stored["arm64"][name] == stored["vnni"][name]).all() for name in stored["vnni"])
    assert any((stored["arm64"][name] != stored["avx2"][name]).any() for name in stored["vnni"])


def test_flags_are_read_as_linux_lists_them(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert machine.cpu_flags(path) == {"fpu", "avx2", "avx_vnni"}
    assert machine.cpu_flags(tmp_path / "missing") == frozenset()


def test_an_artifact_for_vnni_warns_where_there_is_none(monkeypatch):
    monkeypatch.setattr(machine, "has_vnni", lambda: False)
    with pytest.warns(UserWarning, match="again with --int8 --cpu avx2"):
        machine.warn_of_cpu("vnni")
    with pytest.warns(UserWarning, match="for arm64, and this CPU is another, without VNNI"):
        machine.warn_of_cpu("arm64")
    for other in (None, "avx2"):
        machine.warn_of_cpu(other)
