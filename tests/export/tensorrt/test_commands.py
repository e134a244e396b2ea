"""What a user can ask of ``erniem-export`` about plans, and what mistakes are answered with."""

import sys
from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from erniem_export.tensorrt import builder
from erniem_rt.manifest import Manifest


@pytest.fixture
def without_builders(monkeypatch):
    """Neither flavour is installed."""
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def export(write_checkpoint, erniem_export, quick_trace, quick_gate, tmp_path):
    """Export a micro checkpoint, without the gate for its graph; the result and its manifest."""
    model = write_checkpoint(tmp_path / "model")

    def run(*arguments):
        result = erniem_export("--model", model, "--output", tmp_path / "out", *arguments)
        file = tmp_path / "out" / "cls.json"
        return result, Manifest.load(file) if file.exists() else None

    return run


USAGE = [
    (["--profile", "1x8,1x4,2x16"], "expected MIN <= OPT <= MAX along every axis, got '1x8,1x4,2x16'"),
    (["--profile", "1x1,1x32,1x16"], "expected MIN <= OPT <= MAX along every axis"),
    (["--profile", "1x1,1x8"], "expected MIN,OPT,MAX such as 1x1,8x128,32x512"),
    (["--profile", "0x1,1x8,1x8"], "expected MIN,OPT,MAX"),
    (["--profile", "1x1,1x8,axb"], "expected MIN,OPT,MAX"),
    (["--profile", "1x1,1x1x8,1x8"], "expected MIN <= OPT <= MAX"),
    (["--profile", "1x1,1x8,1x8", "--profile", "1x1x1,1x1x8,1x1x8"], "must have the same number of axes"),
    (["--compute-capability", "sm89"], "expected a compute capability such as 8.9, got 'sm89'"),
    (["--workspace", "0"], "expected a number of MiB of at least 1, got '0'"),
    (["--engine", "onnx"], "invalid choice: 'onnx'"),
]


@pytest.mark.parametrize(("arguments", "expected"), USAGE, ids=[" ".join(arguments) for arguments, _ in USAGE])
def test_contradictions_end_as_usage_errors(erniem_export, arguments, expected):
    engine = [] if "--engine" in arguments else ["--engine", "tensorrt-rtx"]
    result = erniem_export("--model", "nowhere", *engine, *arguments)
    assert result.code == 2
    assert expected in result.err.splitlines()[-1]


MISTAKES = [
    (["--profile", "1x1,1x128,1x513"], "goes up to 513 positions, and the model takes at most 128: give a MAX of"),
    (["--profile", "1x1x1,1x1x8,1x1x8"], "has 3 axes, and head cls has 2: batch x sequence"),
    (["--embedding", "int8"], "--engine tensorrt-rtx: TensorRT looks up no word embeddings in int8"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_what_cannot_be_built_is_said_in_a_line(rtx, write_checkpoint, export_fails, tmp_path, arguments, expected):
    assert expected in export_fails(write_checkpoint(tmp_path / "model"), "--engine", "tensorrt-rtx", *arguments)


@pytest.mark.parametrize("option", ["--with-hidden-states", "--with-attentions"])
def test_a_plan_that_no_session_could_run_is_not_built(
    rtx, write_checkpoint, export_fails, erniem_export, monkeypatch, tmp_path, option
):
    """The choices of a question are rows to the encoder, and what it gives of them has no axis of questions."""
    model = write_checkpoint(tmp_path / "model", "mc", num_labels=1)
    expected = "the hidden states and attentions of head mc are not by row, and a plan runs rows: leave out --with"
    line = export_fails(model, "--head", "mc", option, "--engine", "tensorrt-rtx")
    assert line.startswith(f"--engine tensorrt-rtx: {expected}")
    arguments = ("--head", "mc", option, "--fp16", "--engine", "auto", "--output", tmp_path / "out")
    result = erniem_export("--model", model, *arguments).ok()
    assert f"no TensorRT plan: {expected}" in result.err
    assert not (tmp_path / "out" / "mc.plan").exists()


BUILDS = [
    (["--workspace", "1", "--profile", "1x1,4x8,64x128"], "ran out of memory while building"),
    (["--hardware-compatible"], "has no plans for all GPUs"),
    (["--version-compatible"], "try without --version-compatible"),
    (["--compute-capability", "9.0"], "cannot build for compute capability 9.0: it knows 7.5, 8.0, 8.6"),
    (["--compute-capability", "7.5"], "cannot build this graph: node encoder.layers."),
]


@pytest.mark.parametrize(("arguments", "expected"), BUILDS, ids=[" ".join(arguments) for arguments, _ in BUILDS])
def test_what_the_library_refuses_is_said_in_a_line_and_leaves_nothing(
    rtx, write_checkpoint, quick_trace, quick_gate, export_fails, monkeypatch, tmp_path, arguments, expected
):
    monkeypatch.setattr("erniem_export.tensorrt.plan.judge", lambda *_, **__: {})
    line = export_fails(write_checkpoint(tmp_path / "model"), "--engine", "tensorrt-rtx", *arguments)
    assert "TensorRT for RTX" in line
    assert expected in line


def test_a_timing_cache_that_would_do_nothing_is_refused(
    rtx, write_checkpoint, quick_trace, quick_gate, export_fails, tmp_path
):
    cache = tmp_path / "timing.cache"
    line = export_fails(write_checkpoint(tmp_path / "model"), "--engine", "tensorrt-rtx", "--timing-cache", cache)
    assert "has no timing cache" in line
    assert not cache.exists()


def test_a_profile_without_a_plan_is_refused(without_builders, erniem_export, export_fails, write_checkpoint, tmp_path):
    profile = ("--profile", "1x1,1x8,1x8")
    for engine, said in (
        (("--engine", "auto"), "--profile applies to TensorRT plans only: in fp32, name a builder with --engine"),
        (("--engine", "none"), "--profile applies to TensorRT plans only, and --engine none builds no plan"),
    ):
        result = erniem_export("--model", "nowhere", *engine, *profile)
        assert result.code == 2
        assert said in result.err.splitlines()[-1]
    line = export_fails(write_checkpoint(tmp_path / "model"), "--fp16", "--engine", "auto", *profile)
    assert line.startswith("--profile applies to TensorRT plans only, and no builder is installed: pip install ")


def test_the_extra_asks_for_the_release_that_was_tried_and_later_ones(rtx):
    content = (Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8")
    tried = ".".join(rtx.__version__.split(".")[:2])
    assert f'tensorrt-rtx = ["tensorrt-rtx>={tried}", ' in content


def test_none_builds_none_and_says_nothing(rtx, export):
    result, manifest = export("--engine", "none")
    assert manifest.plan is None
    assert "TensorRT" not in result.err


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_a_builder_that_was_asked_for_must_be_there(
    without_builders, write_checkpoint, export_fails, monkeypatch, tmp_path, engine
):
    monkeypatch.setattr(builder, "gpu_capability", lambda: "8.9")
    line = export_fails(write_checkpoint(tmp_path / "model"), "--engine", engine)
    assert line.startswith(f"--engine {engine} needs the package {engine}")
    assert f'pip install "erniem-rt[{engine}]"' in line


def test_full_tensorrt_without_a_gpu_is_told_so(write_checkpoint, export_fails, monkeypatch, tmp_path):
    monkeypatch.setattr(builder, "gpu_capability", lambda: None)
    line = export_fails(write_checkpoint(tmp_path / "model"), "--engine", "tensorrt")
    assert line.startswith("--engine tensorrt builds on the GPU that it builds for, and there is none here")


@pytest.mark.parametrize("arguments", [[], ["--int8"], ["--fp16", "--embedding", "int8"]])
def test_no_plan_is_built_where_none_was_asked_for(
    rtx, erniem_export, write_checkpoint, quick_gate, tmp_path, arguments
):
    """In fp32 and int8, and where TensorRT could not have it: nothing about TensorRT is said."""
    model = write_checkpoint(tmp_path / "model")
    result = erniem_export("--model", model, "--output", tmp_path / "out", "--engine", "auto", *arguments).ok()
    assert "TensorRT" not in result.err + result.out
    assert not (tmp_path / "out" / "cls.plan").exists()


def test_half_precision_has_a_plan_beside_the_fast_graph(rtx, export, tmp_path):
    result, manifest = export("--fp16", "--engine", "auto", "--profile", "1x1,1x8,2x16", "--compute-capability", "8.9")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "cls.plan").is_file()
    assert manifest.target == "onnxruntime-cuda"
    assert manifest.plan.precision["weights"] == "fp16"
    counts = Counter(node.op_type for node in ir.load(tmp_path / "out" / "cls.onnx").graph)
    assert counts["MultiHeadAttention"] == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == []


def test_half_precision_without_a_builder_says_nothing(without_builders, export):
    result, manifest = export("--fp16", "--engine", "auto")
    assert result.code == 0, result.err
    assert manifest.plan is None
    assert "TensorRT" not in result.err + result.out


def test_a_plan_goes_when_its_graph_is_exported_again_without_one(rtx, export, tmp_path):
    result, manifest = export("--engine", "tensorrt-rtx", "--profile", "1x1,1x8,2x16", "--compute-capability", "8.9")
    assert result.code == 0, result.err
    plan = tmp_path / "out" / "cls.plan"
    assert plan.is_file()
    assert manifest.plan.compute_capabilities == ("8.9",)
    assert f"{plan}: built with tensorrt-rtx" in result.out
    assert result.out.rstrip().endswith("8.9; not run")
    _, manifest = export("--engine", "none")
    assert manifest.plan is None
    assert not plan.exists()
