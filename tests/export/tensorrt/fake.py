"""Full TensorRT as far as a build needs it, in the releases 10 and 11: what cannot be installed from a package index.

It parses ONNX for real, into layers with the types that the graph says, and builds nothing. What a release does not
have is not there, so that using it is an AttributeError here as it is there; ``tests/tensorrt_api`` compares the two.
"""

import json
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import onnx_ir as ir

PLAN = b"plan of a fake"
_TYPES = {"FLOAT16": "HALF", "BFLOAT16": "BF16"}
_LAYERS = {"MatMul": "MATRIX_MULTIPLY", "DequantizeLinear": "DEQUANTIZE", "QuantizeLinear": "QUANTIZE", "Cast": "CAST"}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2


class IProgressMonitor:
    pass


def named(name):
    return SimpleNamespace(name=name)


class Tensor:
    def __init__(self, value):
        self.name = value.name
        self.shape = tuple(size if isinstance(size, int) else -1 for size in value.shape or ())
        self.dtype = named(_TYPES.get(value.dtype.name, value.dtype.name) if value.dtype else "FLOAT")
        self.dtype.itemsize = value.dtype.itemsize if value.dtype else 4


class Layer:
    def __init__(self, name, kind, inputs, outputs):
        self.name, self.type = name, named(kind)
        self._inputs, self._outputs = inputs, outputs
        self.num_inputs, self.num_outputs = len(inputs), len(outputs)

    def get_input(self, i):
        return self._inputs[i]

    def get_output(self, i):
        return self._outputs[i]


class Network:
    def __init__(self, flags):
        self.flags = flags
        self.layers = []
        self.inputs = []
        self.outputs = []

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_layer(self, i):
        return self.layers[i]

    def get_input(self, i):
        return self.inputs[i]

    def get_output(self, i):
        return self.outputs[i]


class Error:
    def __init__(self, text, node, operator):
        self.desc = lambda: text
        self.node_name, self.node_operator = (lambda: node), (lambda: operator)


class Parser:
    def __init__(self, world, network, logger):
        self._world, self._network, self._errors = world, network, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, i):
        return self._errors[i]

    def parse_from_file(self, path):
        graph = ir.load(path).graph
        for node in graph:
            if node.op_type in self._world.unsupported or node.domain not in ("", "trt"):
                self._errors.append(Error(f"no importer for {node.op_type}", node.name, node.op_type))
                return False
        constants = [Tensor(value) for value in graph.initializers.values()]
        self._network.layers += [Layer(f"{tensor.name}.constant", "CONSTANT", [], [tensor]) for tensor in constants]
        for node in graph:
            ends = [[Tensor(value) for value in values if value is not None] for values in (node.inputs, node.outputs)]
            self._network.layers.append(Layer(node.name, _LAYERS.get(node.op_type, node.op_type.upper()), *ends))
        self._network.inputs += [Tensor(value) for value in graph.inputs]
        self._network.outputs += [Tensor(value) for value in graph.outputs]
        return True


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, *shapes):
        self.shapes[name] = list(shapes)


class Config:
    def __init__(self):
        self.profiles = []
        self.flags = []
        self.cleared = []
        self.limits = {}
        self.timing_cache = None
        self.profiling_verbosity = self.progress_monitor = None
        self.hardware_compatibility_level = 0

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_flag(self, flag):
        self.flags.append(flag)

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def create_timing_cache(self, content):
        return SimpleNamespace(serialize=lambda: content + b"timed ")

    def set_timing_cache(self, cache, ignore_mismatch):
        self.timing_cache = cache
        return True

    def get_timing_cache(self):
        return self.timing_cache


class FakeTensorRT:
    """A module: ``built`` collects the network and the configuration of every build."""

    def __init__(self, version):
        self.__version__ = version
        self.__spec__ = ModuleSpec("tensorrt", None)  # torch looks for it
        self.built = []
        # 10.14 has the first importer of Attention.
        release = tuple(map(int, version.split(".")[:2]))
        self.unsupported = set() if release >= (10, 14) else {"Attention"}
        self.fail = None  # what a build does before it gives None
        self.inspected = ["Half"]
        self.makes_builders = True
        old = release < (11, 0)
        self.ILogger, self.IProgressMonitor = ILogger, IProgressMonitor
        self.NetworkDefinitionCreationFlag = IntEnum("Flag", {"STRONGLY_TYPED": int(old)})
        flags = {"FP16": 0, "INT8": 1, "BF16": 17} if old else {}
        self.BuilderFlag = IntEnum("BuilderFlag", {**flags, "TF32": 6, "VERSION_COMPATIBLE": 13 if old else 12})
        if not old:
            self.AttentionIOForm = IntEnum("AttentionIOForm", {"PADDED_BHND": 0, "PACKED_NHD": 1})
        self.MemoryPoolType = IntEnum("MemoryPoolType", {"WORKSPACE": 0})
        self.ProfilingVerbosity = IntEnum("ProfilingVerbosity", {"DETAILED": 2})
        self.HardwareCompatibilityLevel = IntEnum("Level", {"NONE": 0, "AMPERE_PLUS": 1})
        self.LayerInformationFormat = IntEnum("Format", {"JSON": 1})

    def OnnxParser(self, network, logger):
        return Parser(self, network, logger)

    def Builder(self, logger):
        def build(network, config):
            if config.progress_monitor is not None:
                config.progress_monitor.phase_start("Building", None, 2)
                config.progress_monitor.step_complete("Building", 0)
                config.progress_monitor.phase_finish("Building")
            if self.fail is not None:
                self.fail(logger, network)
                return None
            self.built.append((network, config))
            return PLAN

        if not self.makes_builders:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return SimpleNamespace(
            create_network=Network,
            create_builder_config=Config,
            create_optimization_profile=Profile,
            build_serialized_network=build,
        )

    def Runtime(self, logger):
        names = {"Name": "encoder_mha", "Metadata": "[ONNX Layer: linear1.weight.int8]"}
        tensors = [[{"Name": "linear1.weight.Int8", "Format/Datatype": what}] for what in self.inspected]
        layers = [{**names, "Outputs": outputs} for outputs in tensors]
        inspector = SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": layers}))
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)

        def load(plan):
            flags = self.built[-1][1].flags if self.built else []
            if self.BuilderFlag.VERSION_COMPATIBLE in flags and not runtime.engine_host_code_allowed:
                logger.log(ILogger.ERROR, "host code is not allowed")
                return None
            return engine

        runtime = SimpleNamespace(deserialize_cuda_engine=load, engine_host_code_allowed=False)
        return runtime
