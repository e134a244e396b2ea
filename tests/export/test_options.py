"""Choices, defaults and what excludes what, without loading torch."""

import subprocess
import sys
from pathlib import Path

import pytest

import erniem_export
from erniem_export.errors import OptionError
from erniem_export.options import EngineOptions, ExportOptions, GraphOptions, Int8, Precision
from erniem_rt.errors import ErnieMError
from erniem_rt.manifest import Manifest, Profile

ATTENTIONS = GraphOptions(attentions=True)
RTX = EngineOptions("tensorrt-rtx")
LINE, PLANE = Profile((1,), (1,), (1,)), Profile((1, 1), (1, 1), (1, 1))


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, "onnxruntime-cpu"),
        ({"precision": Precision("int8")}, "onnxruntime-cpu"),
        ({"precision": Precision("fp16")}, "onnxruntime-cuda"),
        ({"precision": Precision("bf16")}, "onnxruntime-cuda"),
        ({"graph": ATTENTIONS}, "portable"),
        ({"graph": GraphOptions(head_mask=True), "precision": Precision("fp16")}, "portable"),
        ({"graph": GraphOptions(position_ids=True, hidden_states=True)}, "onnxruntime-cpu"),
        ({"precision": Precision("int8"), "engine": RTX}, "portable"),
        ({"engine": RTX}, "onnxruntime-cpu"),
        ({"target": "portable", "precision": Precision("fp16")}, "portable"),
        ({"target": "onnxruntime-cuda-packed"}, "onnxruntime-cuda-packed"),
        ({"target": "openvino", "precision": Precision("int8")}, "openvino"),
    ],
)
def test_the_default_target_is_the_fast_graph_of_the_precision(options, target):
    resolved = ExportOptions("model", **options).resolved()
    assert resolved.target == target
    assert resolved.resolved() == resolved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "qq"}, "head 'qq' is not known; expected one of auto, base, "),
        ({"target": "gpu"}, "target 'gpu' is not known; expected one of auto, portable, "),
        ({"precision": Precision("int4")}, "precision 'int4' is not known; expected one of fp32, "),
        ({"precision": Precision("fp32", "int4")}, "embedding 'int4' is not known; expected one of fp32, "),
        ({"engine": EngineOptions("trt")}, "engine 'trt' is not known"),
        ({"int8": Int8("sse2")}, "cpu 'sse2' is not known"),
        ({"int8": Int8("avx2")}, "--cpu and --calibration are for --int8"),
        ({"int8": Int8(calibration=Path("x"))}, "--cpu and --calibration are for --int8"),
        (
            {"precision": Precision("int8"), "target": "onnxruntime-cuda"},
            "no graph for ONNX Runtime on CUDA",
        ),
        ({"precision": Precision("fp16"), "target": "onnxruntime-cpu"}, "computes in fp32: leave out --fp16"),
        ({"precision": Precision("int8"), "target": "portable"}, "ONNX Runtime's own operators: leave out --target"),
        ({"precision": Precision("int8"), "graph": ATTENTIONS}, "--int8 fuses attention: leave out --with-attentions"),
        ({"target": "openvino"}, "--target openvino is for --int8"),
        ({"target": "openvino", "precision": Precision("fp16")}, "--target openvino is for --int8"),
        ({"target": "openvino", "precision": Precision("int8"), "int8": Int8("avx2")}, "leave out --cpu avx2"),
        ({"target": "openvino", "precision": Precision("int8"), "engine": RTX}, "leave out --engine tensorrt-rtx"),
        ({"target": "openvino", "precision": Precision("int8"), "graph": ATTENTIONS}, "leave out --with-attentions"),
        ({"target": "onnxruntime-cuda", "graph": ATTENTIONS}, "fuses attention: leave out --with-attentions"),
        (
            {"engine": EngineOptions("none", workspace=1)},
            "--workspace applies to TensorRT plans only, and --engine none builds no plan",
        ),
        ({"precision": Precision("int8"), "engine": RTX, "int8": Int8("vnni")}, "--cpu is for --int8 on a CPU"),
        (
            {"precision": Precision("int8"), "engine": RTX, "int8": Int8(calibration=Path("x"))},
            "needs no --calibration: leave it out",
        ),
        (
            {
                "engine": EngineOptions(
                    "tensorrt-rtx", profiles=(Profile((1,), (1,), (1,)), Profile((1, 1), (1, 1), (1, 1)))
                )
            },
            "every --profile must have the same number of axes",
        ),
    ],
)
def test_what_is_not_known_or_contradicts_itself_is_refused(options, message):
    with pytest.raises(OptionError, match=message) as caught:
        ExportOptions("model", **options).resolved()
    assert isinstance(caught.value, (ErnieMError, ValueError))


@pytest.mark.parametrize(("old", "new"), [("any", "portable"), ("onnxruntime", "onnxruntime-cpu")])
def test_old_names_of_targets_work_with_a_warning(old, new):
    with pytest.warns(DeprecationWarning, match=f"--target {old} will go in the next release: write --target {new}"):
        assert ExportOptions("model", target=old).resolved().target == new


def test_export_and_verify_from_python(write_checkpoint, quick_gate, tmp_path, capfd):
    model = write_checkpoint(tmp_path / "model", "qa")
    artifact, manifest = erniem_export.export(model, tmp_path / "out", hidden_states=True, quiet=True)
    assert artifact == tmp_path / "out" / "qa.onnx"
    assert manifest == Manifest.load(tmp_path / "out" / "qa.json")
    assert manifest.target == "onnxruntime-cpu"
    assert "hidden_states.0" in {spec.name for spec in manifest.outputs}
    assert erniem_export.verify(artifact, model, quiet=True).parity
    assert capfd.readouterr() == ("", "")
    with pytest.raises(OptionError, match="expected MIN,OPT,MAX"):
        erniem_export.export(model, tmp_path / "other", profiles=["1x1"])
    with pytest.raises(OptionError, match="precision 'half' is not known"):
        erniem_export.export(model, tmp_path / "other", precision="half")
    assert not (tmp_path / "other").exists()


def test_options_load_no_torch():
    code = (
        "import sys, erniem_export, erniem_export.options; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
