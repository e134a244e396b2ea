"""Real engines of TensorRT for RTX, built here without a GPU: what a machine that has none says of them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from erniem_rt import ArtifactError, EngineUnavailableError, Session
from erniem_rt.engines.tensorrt_plan import check_header, logger_of, reason
from erniem_rt.files import hash_file

trt = pytest.importorskip("tensorrt_rtx")
runtime = pytest.importorskip("cuda.bindings.runtime")
HAS_GPU = runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess
no_gpu = pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def engine():
    """exp of the mask, as bytes: the smallest network with a profile of two axes."""
    builder = trt.Builder(logger_of(trt))
    network = builder.create_network(0)
    given = network.add_input("attention_mask", trt.float32, (-1, -1))
    result = network.add_unary(given, trt.UnaryOperation.EXP).get_output(0)
    result.name = "start_logits"
    network.mark_output(result)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("attention_mask", (1, 1), (2, 2), (4, 16))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture
def plan(heads, plan_of, engine):
    """An artifact whose plan is that engine, as its manifest says."""
    path = plan_of(heads["qa"].path, flavour="tensorrt-rtx", version=trt.__version__)
    path.write_bytes(engine)
    manifest = path.with_suffix(".json")
    content = json.loads(manifest.read_text("utf-8"))
    content["files"][path.name] = vars(hash_file(path))
    manifest.write_text(json.dumps(content), "utf-8")
    return path


@no_gpu
def test_without_a_gpu_the_driver_is_what_is_missing(plan):
    with pytest.raises(EngineUnavailableError, match=r"needs an NVIDIA (driver|GPU), and ") as caught:
        Session(plan)
    assert "\n" not in str(caught.value)


@no_gpu
def test_on_the_command_line_too(plan, capsys):
    from erniem_rt.cli import main

    assert main([str(plan)]) == 1
    assert capsys.readouterr().err.startswith("error: a TensorRT plan needs an NVIDIA ")


def test_the_exact_version_is_asked_for(plan):
    manifest = plan.with_suffix(".json")
    content = json.loads(manifest.read_text("utf-8"))
    content["plan"]["version"] = "1.6.1.120"
    manifest.write_text(json.dumps(content), "utf-8")
    with pytest.raises(EngineUnavailableError) as caught:
        Session(plan)
    assert f'but {trt.__version__} is installed: pip install "tensorrt-rtx==1.6.1.120"' in str(caught.value)


@pytest.mark.parametrize("change", [lambda plan: b"x" * len(plan), lambda plan: b"", lambda plan: plan[64:]])
def test_damaged_headers_are_seen_by_the_real_library(engine, tmp_path, change):
    content = np.frombuffer(change(engine), np.uint8)
    with pytest.raises(ArtifactError, match="is not a plan or is damaged, says tensorrt_rtx"):
        check_header(tmp_path / "qa.plan", trt, trt.Runtime(logger_of(trt)), content)


@no_gpu
def test_a_good_header_is_not_called_damaged(engine, tmp_path):
    """Without a GPU it is not valid for this machine either, but for another reason."""
    with pytest.raises(ArtifactError, match="is not valid, says tensorrt_rtx"):
        check_header(tmp_path / "qa.plan", trt, trt.Runtime(logger_of(trt)), np.frombuffer(engine, np.uint8))


@no_gpu
def test_the_log_holds_the_reason(engine):
    reason(trt)
    assert trt.Runtime(logger_of(trt)).deserialize_cuda_engine(np.frombuffer(engine, np.uint8)) is None
    said = reason(trt)
    assert "cudaError" in said
    assert "\n" not in said
    assert reason(trt) == ""


TOGETHER = """
import numpy as np, tensorrt_rtx as trt
from erniem_export.tensorrt.builder import make_builder
from erniem_export.tensorrt.builder import load_library
from erniem_rt.engines.tensorrt_plan import logger_of, reason

library = load_library("tensorrt-rtx")
make_builder(library)
reason(trt)
with library.listening() as messages:
    assert trt.Runtime(logger_of(trt)).deserialize_cuda_engine(np.zeros(4096, np.uint8)) is None
print(messages[0] == reason(trt) != "")
"""


def test_a_process_that_exports_and_then_opens_a_plan_knows_the_reasons():
    """TensorRT keeps the first logger that it gets, here the exporter's; a fresh process has no earlier one."""
    done = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
