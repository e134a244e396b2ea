"""What is checked before a plan is loaded, and what is said when it is not as it should be, with the remedy."""

from __future__ import annotations

import json
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from erniem_rt import ArtifactError, EngineError, EngineUnavailableError, InvalidInputError, Session
from erniem_rt.engines.cuda import OutOfMemoryError
from erniem_rt.files import hash_file

from .fake_cuda import FakeRuntime, cudaError_t
from .fake_tensorrt import write_plan
from .support import install


@pytest.fixture
def plan(heads, plan_of):
    return plan_of(heads["qa"].path)


def refused(plan, error, **options):
    with pytest.raises(error) as caught:
        Session(plan, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", ".)"))
    return message


def edit(plan, change):
    path = plan.with_suffix(".json")
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def record(plan):
    edit(plan, lambda m: m["files"].update({plan.name: vars(hash_file(plan))}))


# The device.


def test_a_plan_runs_on_the_first_gpu_unless_told_otherwise(machine, plan):
    with Session(plan) as first, Session(plan, device="cuda:1") as second:
        assert "device='cuda:0'" in repr(first)
        assert "device='cuda:1'" in repr(second)
    assert machine.gpu.used == {0, 1}


def test_a_graph_runs_on_the_cpu_unless_told_otherwise(plan):
    with Session(plan.with_suffix(".onnx")) as graph, Session(plan.with_suffix(".json")) as by_manifest:
        assert "device='cpu'" in repr(graph)
        assert "qa.onnx" in repr(by_manifest)


def test_a_plan_on_the_cpu(machine, plan):
    assert refused(plan, InvalidInputError, device="cpu") == (
        f"{plan} is a TensorRT plan and needs a GPU, but device is 'cpu': leave device out, give 'cuda' or "
        "'cuda:N', or open qa.onnx."
    )


def test_a_gpu_that_is_not_there(machine, plan):
    message = refused(plan, EngineUnavailableError, device="cuda:2")
    assert message == "device 'cuda:2' is not there; this machine has 'cuda:0', 'cuda:1'."


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("cudaErrorInsufficientDriver", "a TensorRT plan needs an NVIDIA driver, and there is none that CUDA can use"),
        ("cudaErrorNoDevice", "a TensorRT plan needs an NVIDIA GPU, and this machine shows none"),
        ("cudaErrorIllegalAddress", "CUDA cannot be used: the words for cudaErrorIllegalAddress"),
    ],
)
def test_no_driver_and_no_gpu(machine, plan, status, message):
    machine.gpu.status = cudaError_t[status]
    assert refused(plan, EngineUnavailableError).startswith(message)


def test_a_driver_that_cuda_python_looks_for_in_vain(machine, monkeypatch, plan):
    """As its versions before 13 say it."""

    def missing(_):
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(FakeRuntime, "cudaGetDeviceCount", missing)
    message = refused(plan, EngineUnavailableError)
    assert "needs an NVIDIA driver, and there is none that CUDA can use (Failed to dlopen libcuda.so.1)" in message


def test_a_machine_with_no_gpu_at_all(monkeypatch, plan):
    install(monkeypatch, devices=0)
    assert "this machine shows none" in refused(plan, EngineUnavailableError)


@pytest.mark.parametrize(
    ("capability", "compatible", "remedy"),
    [
        ((9, 0), False, "build the plan again on this GPU, or on another of 8.0 or later with --hardware-compatible"),
        ((7, 5), False, "build the plan again on this GPU"),
        ((7, 5), True, "build the plan again on this GPU"),
    ],
)
def test_another_gpu(monkeypatch, plan, capability, compatible, remedy):
    """Full TensorRT builds for the GPU that it builds on, and has no --compute-capability."""
    install(monkeypatch, capability=capability)
    edit(plan, lambda m: m["plan"].update(hardware_compatible=compatible))
    assert refused(plan, EngineUnavailableError) == (
        f"{plan} was built for GPUs of compute capability 8.9, 12.0{' and later ones' * compatible}, and this one has "
        f"{capability[0]}.{capability[1]}: {remedy}, or open the .onnx file with device='cuda'."
    )


@pytest.mark.parametrize(
    ("capability", "remedy"),
    [
        ((7, 5), "build the plan again with --compute-capability 7.5"),
        ((9, 0), "tensorrt-rtx 10.13.0.35 builds none for that, so build one on this GPU with --engine tensorrt"),
    ],
)
def test_another_gpu_and_a_plan_for_rtx(monkeypatch, heads, plan_of, capability, remedy):
    """What it can build for, the library knows."""
    install(monkeypatch, rtx=True, capability=capability)
    plan = plan_of(heads["qa"].path, flavour="tensorrt-rtx")
    assert refused(plan, EngineUnavailableError) == (
        f"{plan} was built for GPUs of compute capability 8.9, 12.0, and this one has {capability[0]}.{capability[1]}: "
        f"{remedy}, or open the .onnx file with device='cuda'."
    )


@pytest.mark.parametrize("capability", [(9, 0), (12, 1), (10, 0)])
def test_a_later_gpu_and_a_plan_for_later_ones(monkeypatch, plan, capability):
    machine = install(monkeypatch, capability=capability)
    assert "and this one has" in refused(plan, EngineUnavailableError)
    edit(plan, lambda m: m["plan"].update(hardware_compatible=True))
    Session(plan).close()
    machine.check()


def test_a_trusted_plan_is_left_to_tensorrt(monkeypatch, plan):
    """The manifest may describe another one: neither its GPUs nor its version count."""
    machine = install(monkeypatch, capability=(9, 0), version="11.0.0.1")
    Session(plan, trust_plan=True).close()
    machine.check()


# The packages.


def test_without_tensorrt(machine, monkeypatch, plan):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert refused(plan, EngineUnavailableError) == (
        f"{plan} was built by tensorrt 10.13.0.35, and running it needs that package: "
        'pip install "erniem-rt[tensorrt]".'
    )


def test_with_the_other_flavour_alone(rtx, plan):
    assert 'pip install "erniem-rt[tensorrt]"' in refused(plan, EngineUnavailableError)


def test_without_cuda_python(machine, monkeypatch, plan):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert refused(plan, EngineUnavailableError) == (
        'Running a TensorRT plan needs the package cuda-python: pip install "erniem-rt[tensorrt]".'
    )


def test_a_library_that_cannot_be_loaded(machine, monkeypatch, plan, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refused(plan, EngineUnavailableError)
    assert message.startswith("tensorrt is installed and cannot be used: libnvinfer.so.10: cannot open")


@pytest.mark.parametrize("installed", ["10.13.0.36", "10.12.0.35", "11.0.0.1", "10.13"])
def test_another_version(monkeypatch, plan, installed):
    install(monkeypatch, version=installed)
    assert refused(plan, EngineUnavailableError) == (
        f"{plan} was built by tensorrt 10.13.0.35 and needs 10.13.0.35, but {installed} is installed: "
        'pip install "tensorrt==10.13.0.35", or build the plan again with the version here.'
    )


@pytest.mark.parametrize(("installed", "runs"), [("10.14.1.2", True), ("10.9.0.34", False), ("11.0.0.1", False)])
def test_another_version_and_a_plan_for_later_ones(monkeypatch, heads, plan_of, installed, runs):
    machine = install(monkeypatch, version=installed)
    plan = plan_of(heads["qa"].path, version_compatible=True, host_code=True)
    if runs:
        Session(plan).close()
        machine.check()
    else:
        assert "needs 10.13.0.35 or a later one of that major" in refused(plan, EngineUnavailableError)
        assert machine.trt.deserialized == []


# The file.


def test_a_plan_whose_hash_is_not_in_the_manifest(machine, heads, plan):
    """It is code: not run, whatever ``verify`` says, unless it is trusted."""
    write_plan(plan, heads["qa"].path, [[[1, 1], [2, 2], [4, 9]]])
    edit(plan, lambda m: m["files"]["qa.plan"].update(size=plan.stat().st_size))
    for verify in (True, False):
        message = refused(plan, ArtifactError, verify=verify)
        assert message.startswith(f"{plan} is not the plan that was exported: expected sha256 ")
        assert message.endswith(
            "so it is not run. Restore it or export again; if you built it yourself, pass trust_plan=True."
        )
    assert machine.trt.deserialized == []
    with Session(plan, trust_plan=True) as session:
        assert session.limits.max_length == 9
        assert session.run(input_ids=[[5, 6]])["start_logits"].shape == (1, 2)


def test_what_is_checked_is_what_is_run(machine, plan, monkeypatch):
    """Another file that takes the plan's place after the check is not seen."""
    from erniem_rt.engines import tensorrt_plan

    good = plan.read_bytes()
    real = tensorrt_plan.read_plan

    def swap(*arguments, **options):
        content = real(*arguments, **options)
        plan.write_bytes(b"another")
        return content

    monkeypatch.setattr(tensorrt_plan, "read_plan", swap)
    Session(plan).close()
    assert machine.trt.deserialized == [good]


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_plan(machine, plan, verify):
    content = plan.read_bytes()
    plan.write_bytes(content[:-7])
    assert refused(plan, ArtifactError, verify=verify) == (
        f"{plan} is truncated: expected {len(content)} bytes, found {len(content) - 7}. Restore the file or export "
        "again."
    )


def test_a_manifest_without_a_plan(machine, plan):
    edit(plan, lambda m: m.pop("plan"))
    assert "qa.json describes no plan, so qa.plan cannot run" in refused(plan, ArtifactError)


def test_a_plan_by_another_name(machine, plan):
    for suffix in (".json", ".plan"):
        plan.with_suffix(suffix).rename(plan.with_name(f"other{suffix}"))
    message = refused(plan.with_name("other.plan"), ArtifactError)
    assert "other.json describes qa.plan, not other.plan" in message


def test_a_plan_of_another_head(machine, heads, plan_of):
    plan = plan_of(heads["qa"].path)
    plan.write_bytes(plan_of(heads["ner"].path).read_bytes())
    refused(plan, ArtifactError)
    record(plan)
    message = refused(plan, ArtifactError)
    assert "does not fit its manifest qa.json: the manifest says outputs start_logits, end_logits" in message


def test_a_plan_that_is_no_erniem_at_all(machine, plan, tmp_path):
    """Trusted, so nothing but its inputs and outputs tells."""
    axes = ["batch", "sequence"]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "foreign", [x], [y])
    foreign = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), foreign)
    write_plan(plan, foreign, [[[1, 1], [2, 2], [4, 9]]])
    message = refused(plan, ArtifactError, trust_plan=True)
    assert (
        "does not fit its manifest qa.json: the manifest says inputs input_ids, attention_mask, the graph has x."
        in (message)
    )


def test_outputs_that_are_not_by_row_are_refused_before_the_plan_is_loaded(machine, heads, plan_of):
    """Hidden states of the choices of all questions together: rows could not be put in their places."""
    plan = plan_of(heads["mc"].path)
    hidden = {"name": "hidden_states.0", "dtype": "float32", "shape": ["batch*choices", "sequence", 8]}
    edit(plan, lambda m: m["outputs"].append(hidden))
    assert refused(plan, ArtifactError) == (
        f"{plan} has inputs or outputs that cannot be split into rows: open the .onnx file instead."
    )
    assert machine.trt.deserialized == []


def test_other_profiles_than_the_manifest_says(machine, plan):
    edit(plan, lambda m: m["plan"]["profiles"][0].update(max=[8, 16]))
    assert "the manifest says profiles (1, 1) to (8, 16), the plan has (1, 1) to (4, 16)" in refused(
        plan, ArtifactError
    )


def test_dtypes_that_nothing_is_converted_to(machine, heads, plan_of):
    plan = plan_of(heads["qa"].path, dtypes={"start_logits": "INT32"})
    assert "output start_logits of float32, the graph has int32" in refused(plan, ArtifactError)


@pytest.mark.parametrize("verify", [True, False])
def test_other_files_are_checked_as_ever(machine, plan, verify):
    plan.with_name("config.json").write_text('{"model_type": "ernie_n"}\n')
    if verify:
        assert "config.json was changed" in refused(plan, ArtifactError)
    else:
        Session(plan, verify=False).close()


# What TensorRT says.


@pytest.mark.parametrize(
    ("flag", "error", "text"),
    [
        (1, EngineUnavailableError, "was built by another version"),
        (2, EngineUnavailableError, "was built for other GPUs"),
        (4, EngineUnavailableError, "needs a newer NVIDIA driver"),
        (8, EngineUnavailableError, "needs a newer CUDA runtime"),
        (16, OutOfMemoryError, "needs more memory than the GPU has"),
        (32, ArtifactError, "is not a plan or is damaged"),
        (64, EngineError, "could not be checked, because CUDA failed"),
        (1 << 20, ArtifactError, "is not valid"),
    ],
)
def test_the_header_is_looked_at_before_the_plan_is_loaded(rtx, heads, plan_of, flag, error, text):
    plan = plan_of(heads["qa"].path, flavour="tensorrt-rtx")
    rtx.trt.diagnostics = flag
    assert refused(plan, error).startswith(f"{plan} {text}, says tensorrt_rtx 10.13.0.35. ")
    assert rtx.trt.deserialized == []


def test_a_plan_that_tensorrt_does_not_take(machine, plan):
    plan.write_bytes(b"not a plan")
    record(plan)
    assert refused(plan, ArtifactError) == (
        f"{plan} cannot be loaded by tensorrt 10.13.0.35: the magic tag does not match. Restore the file or export "
        "again."
    )


def test_code_in_a_plan_runs_only_where_the_manifest_says_so(machine, heads, plan_of):
    plan = plan_of(heads["qa"].path, host_code=True)
    assert "host code is not allowed" in refused(plan, ArtifactError)


def test_no_room_for_the_plan(machine, plan):
    machine.trt.failing = {"deserialize_cuda_engine": "[E] OutOfMemory: requested 1117 MB"}
    message = refused(plan, EngineError)
    assert message.startswith(f"{plan} does not fit into the memory of the GPU: [E] OutOfMemory: requested 1117 MB. ")


def test_no_room_for_a_context(machine, plan):
    machine.trt.failing = {"create_execution_context": "CUDA out of memory"}
    message = refused(plan, EngineError)
    assert message.startswith(f"{plan} ran out of GPU memory: CUDA out of memory. Free some, or build the plan with sm")


@pytest.mark.parametrize("said", ["Error Code 1: Cuda Runtime (out of memory)", "[E] OutOfMemory: 96 MB"])
def test_no_room_for_a_run(machine, plan, said):
    with Session(plan) as session:
        machine.trt.failing = {"execute_async_v3": said}
        with pytest.raises(OutOfMemoryError) as caught:
            session.run(input_ids=[[5, 6]])
        machine.trt.failing = {}
        assert session.run(input_ids=[[5, 6]])["start_logits"].shape == (1, 2)
    assert str(caught.value) == (
        f"{plan} ran out of GPU memory: {said}. Free some, or build the plan with smaller profiles (--profile)."
    )


def test_no_room_for_the_buffers(monkeypatch, plan):
    machine = install(monkeypatch, memory=600)
    message = refused(plan, EngineError)
    assert message == (
        "out of memory on cuda:0 (cudaMalloc of 512 bytes): free some, give it fewer rows at once, or build the plan "
        "with smaller profiles (--profile)."
    )
    machine.check()


def test_no_room_for_a_second_lane_is_no_error(monkeypatch, heads, plan_of):
    """Runs then wait for the one that there is."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    plan = plan_of(heads["qa"].path)
    with Session(plan.with_suffix(".onnx")):
        machine = install(monkeypatch, memory=512 * 5 + 100)
    with Session(plan) as session, ThreadPoolExecutor(4) as pool:
        start = threading.Barrier(4)

        def run(_):
            start.wait(5)
            return session.run(input_ids=[[5, 6]])["start_logits"].shape

        for _ in range(500):  # until two runs happen to overlap
            assert list(pool.map(run, range(4))) == [(1, 2)] * 4
            if (tried := machine.gpu.calls.count("cudaStreamCreateWithFlags")) > 1:
                break
    machine.check()
    # Each thread may have tried once before the first was refused.
    assert 1 < tried <= 4


# Options.


@pytest.mark.parametrize("options", [{"trust_plan": True}, {"runtime_cache": "kernels"}])
def test_what_is_for_plans(heads, options):
    (name,) = options
    message = refused(heads["qa"].path, InvalidInputError, **options)
    assert message == f"{name} applies to TensorRT plans only; {heads['qa'].path} is an ONNX graph. Remove it."


def test_sharing_weights_is_for_graphs(machine, plan):
    message = refused(plan, InvalidInputError, share_weights=True)
    assert message == f"share_weights applies to ONNX graphs only; {plan} is a TensorRT plan. Remove it."


def test_threads_are_for_a_cpu(machine, plan):
    assert refused(plan, InvalidInputError, threads=2).startswith("threads applies to a CPU only; ")


def test_a_library_that_makes_no_runtime_says_why(machine, plan):
    """The bindings make a TypeError of the null pointer that they get."""

    def refuse(logger):
        logger.log(logger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    machine.trt.Runtime = refuse
    said = "CUDA initialization failure with error: 35. Check nvidia-smi and update the driver."
    assert refused(plan, EngineError) == f"tensorrt {machine.trt.__version__} cannot create a runtime here: {said}"
