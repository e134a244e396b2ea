"""TensorRT without a GPU: a "plan" names an ONNX file, and running it runs that on what lies on the fake device.

It keeps TensorRT's rules: profiles, shapes before addresses are used, one run at a time per context and scratch memory,
no change of a context that a graph was recorded from. Names are those of ``tensorrt`` 10 and ``tensorrt_rtx``
(``test_fakes.py`` compares them with the real module).
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .fake_cuda import FakeGpu, Work

MAGIC = b"fake plan\n"
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
DataType = enum.Enum("DataType", [*NUMPY, "BF16"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
EngineValidity = enum.Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
DynamicShapesKernelSpecializationStrategy = enum.Enum(
    "DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"]
)
ComputeCapability = enum.Enum("ComputeCapability", ["SM75", "SM80", "SM86", "SM89", "SM120", "SM121"])
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
)


class EngineInvalidityDiagnostics(enum.IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


def write_plan(path: Path, onnx: Path, profiles: Sequence[Any], **settings: Any) -> None:
    """Write a fake plan: ``profiles`` of min, opt, max of the ids, and, by name, dtypes other than the graph's."""
    path.write_bytes(MAGIC + json.dumps(settings_of_plan(onnx, profiles, **settings)).encode())


def settings_of_plan(onnx: Path, profiles: Sequence[Any], **settings: Any) -> dict[str, Any]:
    """What a fake plan holds."""
    return {"onnx": str(onnx), "profiles": profiles, "dtypes": {}, "scratch": 512, "host_code": False, **settings}


class FakeTensorRT:
    """The module, of one of the two flavours; what it makes lives on ``gpu``."""

    def __init__(self, gpu: FakeGpu, version: str = "10.13.0.35", *, rtx: bool = False) -> None:
        self.__version__ = version
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        self.rtx, self.gpu = rtx, gpu
        self.ILogger, self.DataType, self.TensorIOMode = ILogger, DataType, TensorIOMode
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        self.diagnostics = 0
        self.executions: list[tuple[int, dict[str, tuple[int, ...]]]] = []
        self.on_execute: Any = lambda: None
        self.failing: dict[str, str] = {}  # method to what TensorRT logs when it returns False or None
        self.alive: dict[str, int] = {"Runtime": 0, "ICudaEngine": 0, "IExecutionContext": 0}
        self.deserialized: list[bytes] = []
        self.built: dict[bytes, dict[str, Any]] = {}  # plans of the real library, and what is run in their stead
        if rtx:
            self.ComputeCapability = ComputeCapability
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
            self.EngineValidity = EngineValidity
            self.EngineInvalidityDiagnostics = EngineInvalidityDiagnostics

    def Runtime(self, logger: ILogger) -> Any:
        return (RtxRuntime if self.rtx else Runtime)(self, logger)

    def fails(self, name: str, logger: ILogger) -> bool:
        if name in self.failing:
            logger.log(ILogger.ERROR, self.failing[name])
        return name in self.failing


class _Living:
    """Counts itself."""

    def _born(self, trt: FakeTensorRT, kind: str) -> None:
        self._kept = (trt, kind)
        trt.alive[kind] += 1

    def __del__(self) -> None:
        if hasattr(self, "_kept"):
            trt, kind = self._kept
            trt.alive[kind] -= 1
            trt.gpu.events.append(f"destroy {kind}")


class Runtime(_Living):
    def __init__(self, trt: FakeTensorRT, logger: ILogger) -> None:
        self._born(trt, "Runtime")
        self.trt, self.logger = trt, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        content = bytes(serialized_engine)
        self.trt.deserialized.append(content)
        if self.trt.fails("deserialize_cuda_engine", self.logger):
            return None
        if content not in self.trt.built and not content.startswith(MAGIC):
            self.logger.log(ILogger.ERROR, "the magic tag does not match")
            return None
        settings = self.trt.built.get(content) or json.loads(content[len(MAGIC) :])
        if settings["host_code"] and not self.engine_host_code_allowed:
            self.logger.log(ILogger.ERROR, "host code is not allowed")
            return None
        return (RtxEngine if self.trt.rtx else ICudaEngine)(self, settings)


class RtxRuntime(Runtime):
    engine_header_size = 64

    def get_engine_validity(self, buffer: Any) -> tuple[EngineValidity, int]:
        content = bytes(buffer)
        known = content in self.trt.built or content.startswith(MAGIC)
        flags = self.trt.diagnostics or (0 if known else 32)
        return (EngineValidity.INVALID if flags else EngineValidity.VALID), flags


class ICudaEngine(_Living):
    def __init__(self, runtime: Runtime, settings: dict[str, Any]) -> None:
        self._born(runtime.trt, "ICudaEngine")
        # As pybind11's keep_alive does for the real ones.
        self.runtime, self.trt, self.logger = runtime, runtime.trt, runtime.logger
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(settings["onnx"], options, providers=["CPUExecutionProvider"])
        self.settings = settings
        self.nodes = {node.name: node for node in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.names = list(self.nodes)
        self.num_io_tensors = len(self.nodes)
        self.num_optimization_profiles = len(settings["profiles"])
        self.device_memory_size_v2 = settings["scratch"]

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        default = {"tensor(int64)": "INT64", "tensor(float)": "FLOAT"}[self.nodes[name].type]
        return DataType[self.settings["dtypes"].get(name, default)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else -1 for axis in self.nodes[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        axes = self.nodes.get("attention_mask", self.nodes[self.inputs[0]]).shape
        found = []
        for shape in self.settings["profiles"][profile_index]:
            sizes = dict(zip(axes, shape, strict=True))
            found.append(tuple(sizes.get(axis, axis) for axis in self.nodes[name].shape))
        return found

    def create_execution_context(self, strategy: Any = ExecutionContextAllocationStrategy.STATIC) -> Any:
        if self.trt.fails("create_execution_context", self.logger):
            return None
        return IExecutionContext(self, strategy)


class RtxEngine(ICudaEngine):
    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.trt, self.logger)


class RuntimeConfig:
    def __init__(self, trt: FakeTensorRT, logger: ILogger) -> None:
        self._trt, self._logger = trt, logger
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        if self._trt.fails("set_runtime_cache", self._logger):
            return False
        self.cache = cache
        return True


class RuntimeCache:
    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def deserialize(self, blob: Any) -> bool:
        try:
            self.kernels = set(json.loads(bytes(blob)))
        except ValueError:
            return False
        return True

    def serialize(self) -> bytes:
        return json.dumps(sorted(self.kernels)).encode()


class IExecutionContext(_Living):
    def __init__(self, engine: ICudaEngine, how: Any) -> None:
        self._born(engine.trt, "IExecutionContext")
        self.engine, self.gpu, self.logger = engine, engine.trt.gpu, engine.logger
        self.config = how if isinstance(how, RuntimeConfig) else None
        self.strategy = how
        self.scratch: tuple[int, int] | None = None
        self.profile = 0
        self.profile_stream = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.version = 0
        self.recorded_at: int | None = None
        self.warm: set[str] = set()

    def check_unchanged(self) -> None:
        if self.recorded_at != self.version:
            self.gpu.violate("a graph is launched whose context was changed after it was recorded")

    def set_device_memory(self, memory: int, size: int) -> None:
        self.version += 1
        self.gpu.at(memory, "device", size)
        self.scratch = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.gpu.stream_of(stream_handle)
        if self.engine.trt.fails("set_optimization_profile_async", self.logger):
            return False
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return False
        self.version += 1
        self.profile, self.profile_stream, self.shapes = profile_index, stream_handle, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.engine.trt.fails("set_input_shape", self.logger):
            return False
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if not fits:
            self.logger.log(ILogger.ERROR, f"{name} of shape {shape} is outside of profile {self.profile}")
            return False
        self.version += 1
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.engine.trt.fails("set_tensor_address", self.logger) or name not in self.engine.nodes:
            return False
        self.gpu.at(memory, "device", 0)
        self.version += 1
        self.addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        if self.engine.trt.fails("infer_shapes", self.logger):
            return ["start_logits"]
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[Any, int] = {}
        for given, shape in self.shapes.items():
            sizes.update(zip(self.engine.nodes[given].shape, shape, strict=True))
        return tuple(sizes.get(axis, axis if isinstance(axis, int) else -1) for axis in self.engine.nodes[name].shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = self.gpu.stream_of(stream_handle)
        if self.engine.trt.fails("execute_async_v3", self.logger):
            return False
        if self.infer_shapes() or set(self.addresses) != set(self.engine.nodes):
            self.logger.log(ILogger.ERROR, "shapes or addresses are missing")
            return False
        if self.profile_stream not in (0, stream_handle):
            self.gpu.violate("the profile was selected on another stream")
        if stream.captured is not None:
            if str(self.shapes) not in self.warm:
                self.gpu.violate("a capture before one warm run of this shape")
            self.recorded_at = self.version
        self.gpu.enqueue(stream_handle, self._work(stream_handle))
        return True

    def _work(self, stream_handle: int) -> Work:
        places = {name: (self.addresses[name], self.get_tensor_shape(name)) for name in self.engine.nodes}
        for name, (address, shape) in places.items():
            self.gpu.at(address, "device", self._size(name, shape))
        touches = [address for address, _ in places.values()]
        if self.strategy is ExecutionContextAllocationStrategy.USER_MANAGED and self.engine.device_memory_size_v2:
            if self.scratch is None or self.scratch[1] < self.engine.device_memory_size_v2:
                self.gpu.violate("a context without the memory to compute in")
            touches.append(self.scratch[0])
        for other, work in self.gpu.pending():
            if other != stream_handle and (work.context is self or set(touches) & set(work.touches)):
                self.gpu.violate("two streams compute in the same memory")
        profile, shapes = self.profile, dict(self.shapes)
        return Work(lambda: self._execute(places, profile, shapes), tuple(touches), context=self)

    def _size(self, name: str, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * np.dtype(self._numpy(name)).itemsize

    def _numpy(self, name: str) -> Any:
        return NUMPY[self.engine.get_tensor_dtype(name).name]

    def _execute(self, places: dict[str, tuple[int, tuple[int, ...]]], profile: int, shapes: Any) -> None:
        self.engine.trt.on_execute()
        feeds = {}
        for name in self.engine.inputs:
            address, shape = places[name]
            content = self.gpu.at(address, "device", 0).bytes(self._size(name, shape))
            array = np.frombuffer(content, self._numpy(name)).reshape(shape)
            feeds[name] = array.astype({"tensor(int64)": np.int64}.get(self.engine.nodes[name].type, np.float32))
        names = [name for name in self.engine.names if name not in self.engine.inputs]
        for name, array in zip(names, self.engine.session.run(names, feeds), strict=True):
            address, shape = places[name]
            if array.shape != shape:
                self.gpu.violate(f"{name} has shape {array.shape}, and memory for {shape}")
            content = np.ascontiguousarray(array, self._numpy(name)).tobytes()
            ctypes.memmove(self.gpu.at(address, "device", len(content)).memory, content, len(content))
        self.engine.trt.executions.append((profile, shapes))
        self.warm.add(str(shapes))
        if self.config is not None and self.config.cache is not None:
            self.config.cache.kernels.add(str(sorted(shapes.values())))
