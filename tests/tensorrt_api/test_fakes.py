"""The stand-ins for full TensorRT have nothing that its bindings have not: see ``record.py`` for where that is from."""

from __future__ import annotations

import enum
import inspect
import json
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.export.tensorrt import fake
from tests.runtime.tensorrt import fake_tensorrt
from tests.runtime.tensorrt.fake_cuda import FakeGpu

RECORD = json.loads(Path(__file__).with_name("bindings.json").read_text("utf-8"))
# What only tests use.
OURS = {
    "layers",
    "inputs",
    "outputs",
    "profiles",
    "cleared",
    "limits",
    "timing_cache",
    "shapes",
    "set_aside",
}


@pytest.fixture(params=RECORD)
def version(request):
    return request.param


@pytest.fixture
def module(version):
    return fake.FakeTensorRT(version)


def wrong(made, recorded):
    """Members of ``made`` that the bindings lack, or that take other arguments there."""
    found = []
    for name in dir(made):
        if name.startswith("_") or name in OURS:
            continue
        if name not in recorded:
            found.append(name)
        elif callable(getattr(made, name)) and recorded[name] and not takes_one_of(getattr(made, name), recorded[name]):
            found.append(f"{name}{inspect.signature(getattr(made, name))}")
    return found


def takes_one_of(method, overloads):
    for parameters in overloads:
        try:
            inspect.signature(method).bind(*parameters)
        except TypeError:
            continue
        return True
    return False


def builds(module):
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    logger = fake.ILogger()
    network = fake.Network(0)
    return {
        "Builder": module.Builder(logger),
        "IBuilderConfig": fake.Config(),
        "INetworkDefinition": network,
        "ILayer": fake.Layer("x", "CAST", [], []),
        "ITensor": fake.Tensor(value),
        "IOptimizationProfile": fake.Profile(),
        "ITimingCache": fake.Config().create_timing_cache(b""),
        "OnnxParser": module.OnnxParser(network, logger),
        "ParserError": fake.Error("", "", ""),
        "Runtime": module.Runtime(logger),
        "EngineInspector": module.Runtime(logger).deserialize_cuda_engine(b"").create_engine_inspector(),
        "ILogger": logger,
    }


def test_what_builds_has_the_members_of_the_bindings(module, version):
    for name, made in builds(module).items():
        assert wrong(made, RECORD[version]["classes"][name]) == [], name


def test_what_runs_has_the_members_of_the_bindings(version):
    for kind in (fake_tensorrt.Runtime, fake_tensorrt.ICudaEngine, fake_tensorrt.IExecutionContext):
        name = kind.__name__
        recorded = RECORD[version]["classes"][name]
        methods = {member for member in vars(kind) if not member.startswith("_")} - {"check_unchanged"}
        assert methods <= recorded.keys()
        for method in methods:
            (_, *parameters) = inspect.signature(getattr(kind, method)).parameters
            assert len(parameters) in map(len, recorded[method] or [[]]) or "strategy" in parameters, method
    assert {"device_memory_size_v2", "num_io_tensors"} <= RECORD[version]["classes"]["ICudaEngine"].keys()


def test_values_are_those_of_the_bindings(module, version):
    running = fake_tensorrt.FakeTensorRT(FakeGpu())
    compared = 0
    for made in (module, running):
        for name, kind in vars(made).items():
            if isinstance(kind, enum.EnumType):
                recorded = RECORD[version]["values"][name]
                numbers = {value.name: value.value for value in kind}
                # The runtime goes by names.
                assert numbers.keys() <= recorded.keys(), name
                assert made is running or numbers.items() <= recorded.items(), name
                compared += len(numbers)
    assert compared > 20
    assert {*fake._LAYERS.values(), "CONSTANT"} <= RECORD[version]["values"]["LayerType"].keys()


# What the exporter and the runtime look for before they use it.
FEATURES = [
    ("values", "AttentionIOForm"),
    ("values", "ComputeCapability"),
    ("values", "EngineValidity"),
    ("values", "CudaGraphStrategy"),
    ("values", "HardwareCompatibilityLevel"),
    ("values", "ProfilingVerbosity"),
    ("classes", "IProgressMonitor"),
]


@pytest.mark.parametrize(("section", "name"), FEATURES)
def test_features_are_there_and_missing_as_in_the_bindings(module, version, section, name):
    assert hasattr(module, name) == (name in RECORD[version][section])


@pytest.mark.parametrize("member", ["set_compute_capability", "create_timing_cache", "progress_monitor"])
def test_features_of_the_configuration_too(version, member):
    assert hasattr(fake.Config(), member) == (member in RECORD[version]["classes"]["IBuilderConfig"])


def test_the_comparison_sees_what_is_not_there(version):
    recorded = RECORD[version]["classes"]["IBuilderConfig"]
    config = fake.Config()
    config.set_flag = lambda flag, too_many: None
    config.invented = True
    assert [name.partition("(")[0] for name in wrong(config, recorded)] == ["invented", "set_flag"]
