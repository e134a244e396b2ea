"""The same code on full TensorRT 10 and 11, which a fake stands for: what it is asked, and what comes of it."""

import json
import shutil
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from erniem_export import pipeline
from erniem_export.errors import EngineBuildError
from erniem_export.options import HALVES
from erniem_export.passes.int8 import int8_weights
from erniem_export.tensorrt import builder, plan
from erniem_export.tensorrt.plan import inspect, prove
from erniem_rt.manifest import Manifest, Profile
from erniem_rt.processes import Terminated

VERSIONS = ("10.4.0", "11.4.0.106")
RUNS = [(version, precision) for version in VERSIONS for precision in ("fp32", "fp16", "bf16")]


@pytest.fixture
def gpu(monkeypatch):
    for module in (builder, plan):
        monkeypatch.setattr(module, "gpu_capability", lambda: "8.0")


@pytest.fixture
def tensorrt(gpu, fake, monkeypatch):
    """``tensorrt(version)``: that release is installed."""

    def install(version):
        module = fake.FakeTensorRT(version)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    return install


@pytest.fixture
def build(write_checkpoint, erniem_export, quick_gate, monkeypatch, tmp_path):
    """Export a micro checkpoint with a plan, without gates; returns the result and the manifest."""
    monkeypatch.setattr(plan, "judge", lambda artifact, *_, **__: {artifact.name: {"passed": True}})
    model = write_checkpoint(tmp_path / "model")

    def run(*arguments, out="out"):
        result = erniem_export("--model", model, "--output", tmp_path / out, "--engine", "tensorrt", *arguments)
        file = tmp_path / out / "cls.json"
        return result, Manifest.load(file) if file.exists() else None

    return run


@pytest.mark.parametrize(("version", "precision"), RUNS)
def test_precision_stands_in_a_strongly_typed_network_alone(tensorrt, build, version, precision):
    module = tensorrt(version)
    module.inspected = {"fp32": ["Float"], "fp16": ["Half"], "bf16": ["BF16"]}[precision]
    result, manifest = build(*([f"--{precision}"] if precision in HALVES else []))
    assert result.code == 0, result.err
    network, config = module.built[-1]
    assert network.flags == 1 << module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert config.flags == []
    assert config.cleared == [module.BuilderFlag.TF32]
    name = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}[precision]
    assert manifest.plan.proof["products"] == {name: 12}
    assert manifest.plan.proof["inspector"][f"in_{name}"] == 1
    assert (manifest.plan.flavour, manifest.plan.version) == ("tensorrt", version)
    assert manifest.plan.compute_capabilities == ("8.0",)


def test_the_plan_lies_beside_the_graph_with_its_hash(tensorrt, build, fake, tmp_path):
    tensorrt(VERSIONS[0])
    _, manifest = build("--fp16")
    assert (tmp_path / "out" / "cls.plan").read_bytes() == fake.PLAN
    manifest.verify(tmp_path / "out")
    assert "cls.plan" in manifest.files


def test_options_reach_the_builder(tensorrt, build, tmp_path):
    module = tensorrt(VERSIONS[1])
    cache = tmp_path / "timing.cache"
    options = ["--hardware-compatible", "--version-compatible", "--workspace", 512, "--timing-cache", cache]
    result, manifest = build("--fp16", *options, "--profile", "1x1,1x8,2x16", "--profile", "1x1,4x8,8x128")
    assert result.code == 0, result.err
    _, config = module.built[-1]
    assert config.flags == [module.BuilderFlag.VERSION_COMPATIBLE]
    assert config.hardware_compatibility_level == module.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.limits == {module.MemoryPoolType.WORKSPACE: 512 << 20}
    assert [profile.shapes["input_ids"] for profile in config.profiles] == [
        [(1, 1), (1, 8), (2, 16)],
        [(1, 1), (4, 8), (8, 128)],
    ]
    assert config.profiles[0].shapes.keys() == {"input_ids", "attention_mask"}
    assert manifest.plan.profiles == (Profile((1, 1), (1, 8), (2, 16)), Profile((1, 1), (4, 8), (8, 128)))
    assert (manifest.plan.hardware_compatible, manifest.plan.version_compatible) == (True, True)
    assert manifest.plan.proof["inspector"]["run"], "such a plan brings code along, which must be allowed"
    assert "9.0" in manifest.plan.compute_capabilities
    # By both trial builds of attention, and by the plan's.
    assert cache.read_bytes() == b"timed timed timed "


@pytest.mark.parametrize("moment", ["while it is written", "before it is in place"])
def test_an_interrupted_build_leaves_the_timing_cache_as_it_was(tensorrt, build, monkeypatch, tmp_path, moment):
    tensorrt(VERSIONS[1])
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"earlier ")
    replacing = builder.replacing

    @contextmanager
    def interrupted(path):
        with replacing(path) as file:
            part = SimpleNamespace(write=lambda content: file.write(bytes(content)[:3]))
            yield part if moment == "while it is written" else file
            raise KeyboardInterrupt

    monkeypatch.setattr(builder, "replacing", interrupted)
    result, _ = build("--fp16", "--timing-cache", cache)
    assert result.err.splitlines()[-1] == "error: interrupted; nothing was written"
    assert cache.read_bytes() == b"earlier "
    assert [file.name for file in tmp_path.iterdir() if "timing" in file.name] == [cache.name]


def test_a_timing_cache_that_cannot_be_used_is_one_clear_error(tensorrt, build, monkeypatch, fake, tmp_path):
    tensorrt(VERSIONS[1])
    (tmp_path / "folder").mkdir()
    for path, expected in (
        (tmp_path / "folder", f"--timing-cache {tmp_path / 'folder'} cannot be read: Is a directory"),
        (
            tmp_path / "no" / "timing.cache",
            f"--timing-cache {tmp_path / 'no' / 'timing.cache'} cannot be written: No su",
        ),
    ):
        result, _ = build("--fp16", "--timing-cache", path)
        assert (result.code, result.err.splitlines()[-1].startswith(f"error: {expected}")) == (1, True), result.err
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr(fake.Config, "set_timing_cache", lambda *_: False)
    other = tmp_path / "other.cache"
    other.write_bytes(b"of another release")
    result, _ = build("--fp16", "--timing-cache", other)
    assert result.err.splitlines()[-1] == (
        f"error: TensorRT {VERSIONS[1]} has no timing cache, or none that this file fits: leave out "
        f"--timing-cache {other}"
    )
    assert other.read_bytes() == b"of another release"


def test_a_network_that_lacks_a_product_is_not_proven(tensorrt, build, monkeypatch, tmp_path):
    tensorrt(VERSIONS[0])

    def without_one(network, *given, **named):
        network.layers = [layer for layer in network.layers if layer.name != "encoder.layers.1.linear2"]
        return prove(network, *given, **named)

    monkeypatch.setattr(plan, "prove", without_one)
    result, _ = build("--fp16")
    expected = (
        "error: the precision cannot be proven: the network lacks matmuls of the layers, encoder.layers.1.linear2"
    )
    assert (result.code, result.err.splitlines()[-1]) == (1, expected)
    assert not (tmp_path / "out").exists()


def test_a_compute_capability_is_for_the_other_flavour(tensorrt, build, tmp_path):
    tensorrt(VERSIONS[1])
    result, _ = build("--fp16", "--compute-capability", "8.9")
    assert (result.code, result.err.splitlines()[-1]) == (
        1,
        "error: TensorRT 11.4.0.106 builds for the GPU that it builds on: leave out --compute-capability, or try "
        "--hardware-compatible",
    )
    assert not (tmp_path / "out").exists()


def test_without_profiles_there_is_one_for_latency_and_one_for_throughput(tensorrt, build):
    tensorrt(VERSIONS[0])
    _, manifest = build("--fp16")
    latency, throughput = manifest.plan.profiles
    assert (latency.opt, throughput.opt) == ((1, 128), (32, 128))
    assert latency.max[-1] == throughput.max[-1] == 128  # all that the model takes
    assert throughput.max[0] >= 32


def test_without_a_kernel_for_attention_it_is_made_of_primitives(tensorrt, build):
    module = tensorrt(VERSIONS[0])
    result, manifest = build("--fp16")
    assert result.code == 0, result.err
    assert manifest.plan.attention["form"] == "MatMul-Softmax-MatMul"
    assert "no importer for Attention" in manifest.plan.attention["reason"]
    kinds = {layer.type.name for layer in module.built[-1][0].layers}
    assert "SOFTMAX" in kinds
    assert "ATTENTION" not in kinds


def test_attention_over_packed_rows_is_tried_where_the_library_knows_it(tensorrt, build):
    tensorrt(VERSIONS[0])
    _, manifest = build("--fp16", out="old")
    assert manifest.plan.attention["packed"] == {
        "available": False,
        "reason": "TensorRT 10.4.0 knows no attention over packed rows",
    }
    module = tensorrt(VERSIONS[1])
    _, manifest = build("--fp16", out="new")
    assert manifest.plan.attention["packed"]["available"]
    assert "rows still run in buckets of similar length" in manifest.plan.attention["packed"]["reason"]
    _, (network, config), _ = module.built
    assert [layer.type.name for layer in network.layers] == ["TRT_ATTENTION"]
    # All rows of the largest profile one after another, and where each of them ends.
    assert config.profiles[-1].shapes["query"][-1] == (32 * 128, 2, 8)
    assert config.profiles[-1].shapes["ends"][-1] == (33,)
    module.unsupported = {"TRT_Attention"}
    _, manifest = build("--fp16", out="refusing")
    assert manifest.plan.attention["form"] == "Attention"
    assert not manifest.plan.attention["packed"]["available"]
    assert "no importer for TRT_Attention" in manifest.plan.attention["packed"]["reason"]


def test_a_library_that_makes_no_builder_says_why(tensorrt, build, tmp_path):
    tensorrt(VERSIONS[1]).makes_builders = False
    result, _ = build("--fp16")
    assert result.code == 1
    line = result.err.splitlines()[-1]
    assert line.startswith(
        "error: TensorRT 11.4.0.106 cannot create a builder here: CUDA initialization failure with error: 35"
    )
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_parser_names_the_node(tensorrt, build, tmp_path):
    module = tensorrt(VERSIONS[0])
    module.unsupported = {"Gelu"}
    result, manifest = build("--fp16")
    assert (result.code, manifest) == (1, None)
    assert not (tmp_path / "out").exists()
    line = result.err.splitlines()[-1]
    assert line.startswith("error: TensorRT 10.4.0 cannot take cls.onnx: ")
    assert "node node_gelu (Gelu): no importer for Gelu" in line


def test_an_error_of_the_builder_names_the_node(tensorrt, build):
    module = tensorrt(VERSIONS[1])

    def fail(logger, network):
        if network.num_inputs == 2:  # the plan, not the trial
            logger.log(module.ILogger.ERROR, "no tactic for encoder.layers.1.linear2 in\nthis graph")

    module.fail = fail
    result, _ = build("--fp16")
    assert result.code == 1
    name = "encoder.layers.1.linear2"
    expected = f"cannot build this graph: node {name}: no tactic for {name} in this graph"
    assert expected in result.err.splitlines()[-1]


@pytest.mark.parametrize("how", ["logged", "raised"])
def test_running_out_of_memory_says_what_to_do(tensorrt, build, how, tmp_path):
    module = tensorrt(VERSIONS[1])

    def fail(logger, network):
        if how == "raised":
            raise MemoryError
        logger.log(module.ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 1000 bytes.)")

    module.fail = fail
    result, _ = build("--fp16")
    assert result.code == 1
    assert "ran out of memory while building" in result.err
    assert "--workspace" in result.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("interruption", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_an_interruption_stops_the_build_and_leaves_nothing(tensorrt, build, monkeypatch, tmp_path, interruption, code):
    module = tensorrt(VERSIONS[1])

    def interrupted(*_):
        raise interruption

    monkeypatch.setattr("erniem_export.progress.Terminal.phase", lambda _, name, *__: name and interrupted())
    result, _ = build("--fp16")
    assert (result.code, module.built[1:]) == (code, [])
    assert result.err.splitlines()[-1] == "error: interrupted; nothing was written"
    assert not (tmp_path / "out").exists()


def test_an_engine_of_another_precision_is_refused(tensorrt, build, tmp_path):
    tensorrt(VERSIONS[0]).inspected = ["Float", "Int8"]
    result, _ = build("--fp16")
    assert result.code == 1
    assert "asked for fp16, but no layer of the engine (2) has a tensor in HALF" in result.err
    assert not (tmp_path / "out").exists()


def test_an_engine_without_int8_is_refused_where_products_were_to_be_int8(tensorrt, fake):
    module = tensorrt(VERSIONS[1])
    found = builder.load_library("tensorrt")
    precision = {"weights": "int8", "products": "fp16"}
    expected = r"asked for int8, but no layer of the engine \(1\) has a tensor in INT8"
    with pytest.raises(EngineBuildError, match=expected):
        inspect(found, memoryview(fake.PLAN), precision, whole=True)
    assert inspect(found, memoryview(fake.PLAN), precision)["in_HALF"] == 1, "weights alone leave no such layer"
    module.inspected = ["Half", "Row major linear INT8 format", "Int8"]
    counted = inspect(found, memoryview(fake.PLAN), precision, whole=True)
    assert (counted["in_HALF"], counted["in_INT8"]) == (1, 2)


def test_a_network_of_another_precision_is_refused(tensorrt, build, monkeypatch):
    tensorrt(VERSIONS[0])
    monkeypatch.setattr("erniem_export.pipeline.apply_precision", lambda *_: {"weights": "fp16", "embedding": "fp16"})
    result, _ = build("--fp16")
    assert result.code == 1
    assert "asked for fp16, but the matmul encoder.layers.0.linear1 computes in FLOAT" in result.err


@pytest.mark.parametrize(("whole", "expected"), [(True, "12 have int8 weights and 0 int8 inputs"), (False, None)])
def test_int8_weights_alone_are_no_int8_products(tensorrt, build, monkeypatch, whole, expected):
    """Full TensorRT is asked for matmuls in int8; weights alone are another precision."""
    tensorrt(VERSIONS[0]).inspected = ["Half", "Int8"]

    def weights_only(graph, checkpoint, *_):
        parameters = {name: tensor.numpy() for name, tensor in checkpoint.model.state_dict().items()}
        return {"weights_only": int8_weights(graph, parameters)}

    monkeypatch.setattr(pipeline, "quantize_for_engine", weights_only)
    if not whole:
        monkeypatch.setattr(plan, "prove", lambda *given, **_: prove(*given, whole=False))
    result, manifest = build("--int8")
    if expected:
        assert result.code == 1
        assert f"asked for int8 matmuls, but of 12 matmuls {expected}" in result.err
    else:
        assert manifest.plan.proof["int8"] == {"weights": 12, "inputs": 0}


@pytest.mark.slow
def test_int8_products_pass_the_gate_and_are_proven(tensorrt, erniem_export, tmp_path):
    module = tensorrt(VERSIONS[1])
    module.inspected = ["Half", "Int8"]
    erniem_export(
        "--model", "examples/nano/checkpoints/cls", "--output", tmp_path, "--int8", "--engine", "tensorrt"
    ).ok()
    content = json.loads((tmp_path / "cls.json").read_text("utf-8"))
    assert content["precision"] == {"weights": "int8", "embedding": "fp16", "products": "fp16"}
    assert content["plan"]["proof"]["int8"] == {"weights": 24, "inputs": 24}
    assert content["engine"]["int8"]["calibration"].startswith("calibration.txt")
    points = {product["input_zero_point"] for product in content["engine"]["int8"]["products"].values()}
    assert points == {128}
    kinds = [layer.type.name for layer in module.built[-1][0].layers]
    assert kinds.count("QUANTIZE") == 4 * 4  # an input for each group of products


def test_calibration_shows_how_many_layers_are_done(tensorrt, build, tokenizer_dir, monkeypatch, tmp_path):
    tensorrt(VERSIONS[1]).inspected = ["Half", "Int8"]
    shutil.copytree(tokenizer_dir, tmp_path / "model", dirs_exist_ok=True)
    shown = []

    def track(_, items, unit):
        for item in items:
            yield item
            shown.append(unit)

    monkeypatch.setattr("erniem_export.progress.Terminal.track", track)
    result, _ = build("--int8")
    assert result.code == 0, result.err
    assert shown == ["layer", "layer"], "both of the model's"


def test_int8_without_text_to_calibrate_on_is_refused(tensorrt, build, tmp_path):
    tensorrt(VERSIONS[1])
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    for options, expected in (
        ([], "--int8 for TensorRT is calibrated on text, and this checkpoint has no tokenizer to read it with"),
        (["--calibration", empty], "is empty"),
    ):
        result, _ = build("--int8", *options)
        assert result.code == 1
        assert expected in result.err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
