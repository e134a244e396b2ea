"""The fakes offer nothing that the real modules have not, under the names that those have."""

from __future__ import annotations

import enum
import inspect
import re

import pytest

from . import fake_cuda, fake_tensorrt
from .fake_cuda import FakeGpu, FakeRuntime

FUNCTIONS = [name[1:] for name in vars(FakeGpu) if name.startswith("_cuda")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_cuda_functions_take_as_many_arguments(name):
    runtime = pytest.importorskip("cuda.bindings.runtime")
    first = getattr(runtime, name).__doc__.splitlines()[0]
    real = [part for part in re.search(r"\((.*)\)", first)[1].split(",") if part.strip()]
    assert len(real) == len(inspect.signature(getattr(FakeGpu, f"_{name}")).parameters) - 1


def test_cuda_values_are_the_real_ones():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    kinds = [kind for kind in vars(fake_cuda).values() if isinstance(kind, enum.EnumType)]
    assert len(kinds) == 4
    for kind in kinds:
        for value in kind:
            assert getattr(getattr(runtime, kind.__name__), value.name).value == value
    assert runtime.cudaStreamNonBlocking == FakeRuntime.cudaStreamNonBlocking
    assert runtime.cudaHostAllocDefault == FakeRuntime.cudaHostAllocDefault


def test_real_functions_answer_with_a_status_and_a_value():
    """On this machine, with or without a GPU: what :class:`erniem_rt.engines.cuda.Cuda` unpacks."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for call in (runtime.cudaGetDeviceCount, lambda: runtime.cudaMalloc(16), lambda: runtime.cudaHostAlloc(16, 0)):
        status, value = call()
        assert status.name.startswith("cuda")
        assert value is None or status == runtime.cudaError_t.cudaSuccess
    assert len(runtime.cudaSetDevice(0)) == 1
    assert isinstance(runtime.cudaGetErrorString(runtime.cudaError_t.cudaErrorNoDevice)[1], bytes)


CLASSES = {
    "Runtime": [fake_tensorrt.Runtime, fake_tensorrt.RtxRuntime],
    "ICudaEngine": [fake_tensorrt.ICudaEngine, fake_tensorrt.RtxEngine],
    "IExecutionContext": [fake_tensorrt.IExecutionContext],
    "IRuntimeConfig": [fake_tensorrt.RuntimeConfig],
    "IRuntimeCache": [fake_tensorrt.RuntimeCache],
    "ILogger": [fake_tensorrt.ILogger],
}
# What only tests use of the fakes.
OURS = {"check_unchanged"}


@pytest.mark.parametrize("name", CLASSES)
def test_tensorrt_classes_have_these_methods(name):
    trt = pytest.importorskip("tensorrt_rtx")
    for fake in CLASSES[name]:
        members = {member for member in vars(fake) if not member.startswith("_")} - OURS
        assert members
        assert {member for member in members if not hasattr(getattr(trt, name), member)} == set()


@pytest.mark.parametrize("attribute", ["device_memory_size_v2", "num_io_tensors", "num_optimization_profiles"])
def test_tensorrt_engines_have_these_attributes(attribute):
    trt = pytest.importorskip("tensorrt_rtx")
    assert hasattr(trt.ICudaEngine, attribute)
    assert hasattr(trt.Runtime, "engine_host_code_allowed")
    assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")


def test_tensorrt_names_of_values_are_the_real_ones():
    trt = pytest.importorskip("tensorrt_rtx")
    for name in (
        "DataType",
        "TensorIOMode",
        "EngineValidity",
        "ComputeCapability",
        "CudaGraphStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "ExecutionContextAllocationStrategy",
    ):
        for value in getattr(fake_tensorrt, name):
            assert hasattr(getattr(trt, name), value.name), f"{name}.{value.name}"
    for flag in fake_tensorrt.EngineInvalidityDiagnostics:
        assert getattr(trt.EngineInvalidityDiagnostics, flag.name).value == flag
