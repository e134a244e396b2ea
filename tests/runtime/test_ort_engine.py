"""ONNX Runtime: which package and version, which options, memory that is given back, and what its failures say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import erniem_rt
from erniem_rt import ArtifactError, EngineError, EngineUnavailableError, InvalidInputError, Session, machine
from erniem_rt.engines import Device, GraphOptions
from erniem_rt.engines.onnxruntime import OrtEngine, ShrinkingRuns, version_of
from erniem_rt.manifest import Manifest, TensorSpec


@pytest.fixture
def created(monkeypatch):
    """The sessions that onnxruntime is asked for, as (path, options, keyword arguments)."""
    calls = []
    real = onnxruntime.InferenceSession

    def spy(path, options, **kwargs):
        calls.append(SimpleNamespace(path=path, options=options, **kwargs))
        return real(path, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    return calls


def fake_onnxruntime(monkeypatch, *, active=("CUDAExecutionProvider", "CPUExecutionProvider"), failure=None):
    """An onnxruntime that offers CUDA; ``active`` is what a session ends up with. Returns the calls."""
    calls = []

    def session(path, options, **kwargs):
        calls.append(kwargs)
        if failure is not None:
            raise failure
        return SimpleNamespace(get_providers=lambda: list(active), get_inputs=list, get_outputs=list)

    module = SimpleNamespace(
        __version__="1.0",
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        InferenceSession=session,
        SessionOptions=onnxruntime.SessionOptions,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return calls


def test_the_graph_speaks_for_itself(heads):
    engine = OrtEngine(heads["base"].path, GraphOptions())
    assert engine.inputs == (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "sequence")),
    )
    assert engine.outputs == (
        TensorSpec("last_hidden_state", "float32", ("batch", "sequence", 8)),
        TensorSpec("pooler_output", "float32", ("batch", 8)),
    )


def test_outputs_come_in_the_order_asked_for(heads):
    engine = OrtEngine(heads["qa"].path, GraphOptions())
    feeds = {"input_ids": np.array([[0, 5, 2]]), "attention_mask": np.ones((1, 3), np.int64)}
    start, end = engine.run(feeds, ["start_logits", "end_logits"])
    swapped = engine.run(feeds, ["end_logits", "start_logits"])
    np.testing.assert_array_equal(swapped, [end, start])
    assert np.abs(start - end).max() > 0.1
    engine.close()
    engine.close()
    with pytest.raises(InvalidInputError, match="the engine is closed; open the artifact again"):
        engine.run(feeds, ["start_logits"])


def test_a_run_that_fails_is_said_once(heads, capfd):
    """By the exception, and not by onnxruntime on standard error as well."""
    engine = OrtEngine(heads["qa"].path, GraphOptions())
    feeds = {"input_ids": np.array([[10**6]]), "attention_mask": np.ones((1, 1), np.int64)}
    with pytest.raises(EngineError) as caught:
        engine.run(feeds, ["start_logits"])
    assert str(caught.value).startswith("onnxruntime failed on cpu: ")
    assert "indices element out of data bounds" in str(caught.value)
    assert str(caught.value).endswith("(a smaller batch_size), or more memory.")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("bad allocation\nmore"), RuntimeError()])
def test_whatever_a_run_fails_with_is_one_error(heads, failure):
    def fail(*_):
        raise failure

    engine = OrtEngine(heads["qa"].path, GraphOptions())
    engine._run = fail
    reason = (str(failure) or type(failure).__name__).splitlines()[0]
    with pytest.raises(EngineError, match=rf"^onnxruntime failed on cpu: {reason}\. If memory ran out, give it fewer"):
        engine.run({}, ["start_logits"])


@pytest.mark.parametrize(("threads", "expected"), [(None, 2), (1, 1), (3, 3)])
def test_threads_reach_the_engine(heads, created, monkeypatch, threads, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "_affinity", lambda: 2)
    monkeypatch.setattr(machine, "_quotas", lambda root: ())
    Session(heads["qa"].path, threads=threads).close()
    (call,) = created
    assert call.options.intra_op_num_threads == expected
    assert call.path == str(heads["qa"].path)
    assert call.providers == ["CPUExecutionProvider"]
    assert call.enable_fallback is False


def normalizing_graph(path):
    """x + x, normalized: what the fusion that is switched off would replace."""
    weights = [numpy_helper.from_array(np.full(4, value, np.float32), name) for name, value in (("g", 1), ("b", 0))]
    axes = ["batch", "sequence", 4]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("x", "y", "z")]
    nodes = [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "g", "b"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "norm", values[:2], values[2:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.mark.parametrize(
    ("disabled", "expected"),
    [(None, ["Add", "LayerNormalization"]), ([], ["SkipLayerNormalization"])],
)
def test_layer_norms_stay_unfused_on_cpu(tmp_path, monkeypatch, disabled, expected):
    """Our setting keeps the pair, and without it the graph is fused: the setting is what does it."""
    normalizing_graph(tmp_path / "norm.onnx")
    real = onnxruntime.InferenceSession

    def spy(path, options, **kwargs):
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 4
        return real(path, options, **(kwargs if disabled is None else {**kwargs, "disabled_optimizers": disabled}))

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    OrtEngine(tmp_path / "norm.onnx", GraphOptions())
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == expected


def test_without_onnxruntime(heads, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineUnavailableError) as caught:
        Session(heads["qa"].path, engine="onnxruntime")
    assert str(caught.value) == (
        'Running an .onnx artifact needs the package onnxruntime: pip install "erniem-rt[ort]".'
    )
    assert isinstance(caught.value, ImportError)


def test_an_onnxruntime_that_is_itself_broken_speaks_for_itself(heads, monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("import a_package_it_needs\n")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_it_needs"):
        Session(heads["qa"].path)


def test_cuda_without_its_provider(heads, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineUnavailableError) as caught:
        Session(heads["qa"].path, device="cuda")
    assert str(caught.value) == (
        "device 'cuda' needs onnxruntime with CUDA, and the one installed offers CPUExecutionProvider: "
        'pip install "erniem-rt[gpu]".'
    )


def test_cuda_where_the_package_without_it_is_installed_too(heads, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(metadata, "version", lambda name: {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}[name])
    with pytest.raises(EngineUnavailableError) as caught:
        Session(heads["qa"].path, device="cuda")
    assert str(caught.value) == (
        "device 'cuda' needs onnxruntime with CUDA, and onnxruntime 1.31.1, without it, lies over the files of "
        "onnxruntime-gpu 1.31.1: pip uninstall onnxruntime, then pip install --force-reinstall --no-deps "
        "onnxruntime-gpu==1.31.1."
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every path is Unicode")
def test_a_path_that_is_not_utf_8(heads, tmp_path):
    folder = tmp_path / os.fsdecode(b"mod\xe8le")
    shutil.copytree(heads["qa"].folder, folder)
    with pytest.raises(ArtifactError) as caught:
        Session(folder / "qa.onnx")
    assert str(caught.value) == (
        f"onnxruntime cannot open {tmp_path}/mod\\xe8le/qa.onnx: it takes UTF-8 paths only. Rename what is shown with "
        "a backslash, or make a link."
    )


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)])
def test_cuda_is_asked_for_by_index(tmp_path, monkeypatch, device, index):
    (call,) = [fake_onnxruntime(monkeypatch)]
    OrtEngine(tmp_path / "qa.onnx", GraphOptions(Device.parse(device)))
    assert call == [
        {
            "providers": [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"],
            "disabled_optimizers": [],
            "enable_fallback": False,
        }
    ]


def test_cuda_graphs_are_asked_for_at_creation(tmp_path, monkeypatch):
    calls = fake_onnxruntime(monkeypatch)
    OrtEngine(tmp_path / "qa.onnx", GraphOptions(Device("cuda", 1), cuda_graphs=True))
    assert calls[0]["providers"] == [
        ("CUDAExecutionProvider", {"device_id": 1, "enable_cuda_graph": "1"}),
        "CPUExecutionProvider",
    ]


def test_cuda_graphs_on_a_cpu_are_an_error(heads):
    with pytest.raises(InvalidInputError) as caught:
        Session(heads["qa"].path, cuda_graphs=True)
    assert str(caught.value) == "cuda_graphs=True needs device='cuda', got device='cpu'."


def test_a_graph_that_cannot_be_captured_is_not_the_fault_of_the_device(tmp_path, monkeypatch):
    failure = RuntimeError("This session cannot use the graph capture feature as requested by the user: CUDA nodes.\n")
    fake_onnxruntime(monkeypatch, failure=failure)
    with pytest.raises(ArtifactError) as caught:
        OrtEngine(tmp_path / "qa.onnx", GraphOptions(Device("cuda"), cuda_graphs=True))
    assert "cannot run as a CUDA graph: This session cannot use the graph capture feature" in str(caught.value)
    assert str(caught.value).endswith("Export with --target onnxruntime-cuda, or leave out cuda_graphs.")


def test_a_packed_graph_is_refused_before_anything_is_loaded(artifact, monkeypatch):
    artifact.edit(lambda manifest: manifest.update(target="onnxruntime-cuda-packed", packed=True))
    calls = fake_onnxruntime(monkeypatch)
    with pytest.raises(ArtifactError, match="the work of a packed graph depends on the mask: leave out cuda_graphs"):
        Session(artifact.path, device="cuda", cuda_graphs=True)
    assert calls == []


def test_a_silent_fallback_to_the_cpu_is_an_error(tmp_path, monkeypatch):
    fake_onnxruntime(monkeypatch, active=["CPUExecutionProvider"])
    with pytest.raises(EngineUnavailableError, match="could not start CUDA on cuda:1 and would have run on the CPU"):
        OrtEngine(tmp_path / "qa.onnx", GraphOptions(Device("cuda", 1)))


@pytest.mark.parametrize(
    "reason",
    [
        "CUDA failure 101: invalid device ordinal",
        "cuda_call.cc:116 CudaCall CUDNN failure 1: CUDNN_STATUS_NOT_INITIALIZED",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDA error cudaErrorNoDevice",
        "CUDA_PATH is set but CUDA wasn't able to be loaded",
        "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open",
    ],
)
def test_a_device_that_fails_is_not_the_fault_of_the_file(tmp_path, monkeypatch, reason):
    fake_onnxruntime(monkeypatch, failure=RuntimeError(f"{reason}\nmore"))
    with pytest.raises(EngineUnavailableError) as caught:
        OrtEngine(tmp_path / "qa.onnx", GraphOptions(Device("cuda", 7)))
    assert str(caught.value) == f"onnxruntime could not use cuda:7: {reason}"


@pytest.mark.parametrize("folder", ["out", "cuda", "CUDA error 1"])
def test_a_file_that_fails_is_not_the_fault_of_the_device(tmp_path, monkeypatch, folder):
    """onnxruntime names the file, whose path may say anything."""
    path = tmp_path / folder / "qa.onnx"
    fake_onnxruntime(monkeypatch, failure=RuntimeError(f"Load model from {path} failed:Protobuf parsing failed."))
    with pytest.raises(ArtifactError, match=r"cannot be loaded by onnxruntime 1\.0: Load model from .*Protobuf"):
        OrtEngine(path, GraphOptions(Device("cuda")))


def test_a_damaged_file_in_a_folder_named_cuda_is_called_changed(make_artifact, monkeypatch, tmp_path):
    artifact = make_artifact(folder=tmp_path / "cuda")
    artifact.path.write_bytes(b"\xff" * artifact.path.stat().st_size)
    failure = RuntimeError(f"Load model from {artifact.path} failed:Protobuf parsing failed.")
    fake_onnxruntime(monkeypatch, failure=failure)
    with pytest.raises(ArtifactError, match=r"qa\.onnx was changed after export"):
        Session(artifact.path, device="cuda")


def test_a_lack_of_threads_is_not_the_fault_of_the_file(tmp_path, monkeypatch):
    told = "PosixThread(...) pthread_create failed, error code: 11 error msg: Resource temporarily unavailable"
    fake_onnxruntime(monkeypatch, failure=RuntimeError(told))
    with pytest.raises(EngineError, match=r"could not start 3 threads: .* Pass fewer threads"):
        OrtEngine(tmp_path / "qa.onnx", GraphOptions(threads=3))


def test_a_lack_of_memory_is_not_the_fault_of_the_file(tmp_path, monkeypatch):
    fake_onnxruntime(monkeypatch, failure=MemoryError())
    with pytest.raises(MemoryError):
        OrtEngine(tmp_path / "qa.onnx", GraphOptions())


ROOT = str(Path(erniem_rt.__file__).parents[1])
NOTE = "import os; __version__ = {version!r}; seen = os.environ.get('ORT_DISABLE_TELEMETRY')\n"
PROGRAM = """
{before}
from erniem_rt.engines.onnxruntime import import_onnxruntime
import_onnxruntime()
print(import_onnxruntime().seen)
"""


def imported(tmp_path, before: str, version: str = "1.31.1", **env: str) -> tuple[str, str]:
    """What the variable was when a stand-in for onnxruntime was imported, and what was said."""
    (tmp_path / "onnxruntime.py").write_text(NOTE.format(version=version), "utf-8")
    known = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        env={**known, **env, "PYTHONPATH": os.pathsep.join([str(tmp_path), ROOT])},
    )
    return done.stdout.strip(), done.stderr


def test_telemetry_is_off_and_nothing_is_said(tmp_path):
    assert imported(tmp_path, "") == ("1", "")


@pytest.mark.parametrize("before", ["", "import onnxruntime"])
@pytest.mark.parametrize("value", ["0", "1"])
def test_the_users_own_value_stays(tmp_path, before, value):
    assert imported(tmp_path, before, ORT_DISABLE_TELEMETRY=value) == (value, "")


def test_an_import_before_ours_is_said_once(tmp_path):
    seen, said = imported(tmp_path, "import onnxruntime, warnings; warnings.simplefilter('always')")
    assert seen == "None"
    assert said.count("UserWarning") == 1
    assert "onnxruntime 1.31.1 was imported before erniem_rt could turn its telemetry off" in said


@pytest.mark.parametrize("version", ["1.28.0", "1.20.1", "dev"])
def test_versions_without_telemetry_need_no_word(tmp_path, version):
    assert imported(tmp_path, "import onnxruntime", version) == ("None", "")


PADDED = np.array([[0, 5, 6, 7, 2, 1, 1, 1], [0, 8, 9, 10, 11, 12, 13, 2]])


@pytest.mark.parametrize("head", ["cls", "mc"])
def test_a_row_in_a_padded_batch_is_the_row_alone(nano_artifact, head):
    """onnxruntime 1.20 gives others, for the last layer has one query per row."""
    with Session(nano_artifact(head)) as session:
        batch, alone = PADDED, PADDED[:1, :5]
        if head == "mc":
            batch, alone = batch[:, None], alone[:, None]
        found, expected = session.run(input_ids=batch)["logits"][0], session.run(input_ids=alone)["logits"][0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if head == "cls":
        np.testing.assert_allclose(found, [-1.52, 2.37, 0.22], atol=0.01)


def needs(artifact: Any, version: object) -> None:
    artifact.edit(lambda manifest: manifest.update(onnxruntime=version))


def test_an_older_onnxruntime_is_refused(artifact, monkeypatch):
    needs(artifact, "1.21")
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    with pytest.raises(EngineUnavailableError) as caught:
        Session(artifact.path)
    assert str(caught.value) == (
        f"{artifact.path} needs onnxruntime 1.21 or newer, and 1.20.1 may compute it wrongly: "
        'pip install --upgrade "onnxruntime>=1.21".'
    )


@pytest.mark.parametrize("found", ["1.21.0", "1.100.0", "2.0.0", "built here"])
def test_a_newer_one_is_taken(artifact, monkeypatch, found):
    needs(artifact, "1.21")
    monkeypatch.setattr(onnxruntime, "__version__", found)
    Session(artifact.path).close()


def test_the_manifest_need_not_say(artifact, tmp_path):
    manifest = Manifest.load(artifact.manifest)
    assert manifest.onnxruntime is None
    manifest.save(tmp_path / "saved.json")
    assert '"onnxruntime"' not in (tmp_path / "saved.json").read_text()
    needs(artifact, "1.9")
    assert Manifest.load(artifact.manifest).onnxruntime == "1.9"
    assert version_of(onnxruntime) > (1, 9)


@pytest.mark.parametrize("version", [1.21, "", "new", "1", "1.21.1"])
def test_what_is_no_version_is_refused(artifact, version):
    needs(artifact, version)
    with pytest.raises(ArtifactError, match=r"'onnxruntime' must be a version such as '1\.21'"):
        Manifest.load(artifact.manifest)


MB = 1 << 20
STATUS = Path("/proc/self/statm")


def resident() -> int:
    return int(STATUS.read_text().split()[1]) * 4096 // MB


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc")
@pytest.mark.parametrize(("shrink", "kept"), [(None, False), (True, False), (False, True)])
def test_what_a_large_run_took_is_given_back(nano_artifact, shrink, kept):
    with erniem_rt.Session(nano_artifact("qa"), threads=2, shrink_memory=shrink) as session:
        small = np.full((1, 8), 5)
        session.run(input_ids=small)
        before = resident()
        session.run(input_ids=np.full((16, 512), 5))  # takes about 250 MB, and of an onnxruntime before 1.30 less
        session.run(input_ids=small)
        session.run(input_ids=small)
        assert (resident() - before > 60) is kept


def test_when_memory_is_given_back(monkeypatch):
    class Ort:
        class RunOptions:
            def add_run_config_entry(self, name: str, value: str) -> None:
                assert (name, value) == ("memory.enable_memory_arena_shrinkage", "cpu:0")

    class Session:
        def run(self, outputs: list[str], feeds: Any, options: Any) -> list[bool]:
            return [options is not None]

    def shrinks(shrink: bool | None, sizes: list[int]) -> list[bool]:
        runs = ShrinkingRuns(Ort, Session(), shrink)
        return [bool(runs.run([], {"attention_mask": np.ones((1, size))})[0]) for size in sizes]

    sizes = [8192, 8192, 4096, 2048, 2048, 10, 3000, 10, 4096, 1024, 4096, 4096]
    expected = [False, False, False, True, False, False, False, False, False, True, False, False]
    assert shrinks(None, sizes) == expected
    assert shrinks(True, sizes) == [True] * len(sizes)
    assert shrinks(False, sizes) == [False] * len(sizes)


def test_it_is_for_graphs_on_a_cpu(nano_artifact):
    with pytest.raises(InvalidInputError, match="shrink_memory=True needs device='cpu', got device='cuda:0'"):
        erniem_rt.Session(nano_artifact("qa"), device="cuda", shrink_memory=True)
