"""Traces a PyTorch model to the canonical ONNX graph: standard operators, named inputs, dynamic axes.

Every target-specific graph is derived from this one. The weights are external data beside it, which the runtime maps
into memory.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from erniem_export.errors import ExportError
from erniem_export.heads import graph_inputs, graph_outputs
from erniem_export.mask_mode import UIE_M, bias_keys, with_padding_key
from erniem_export.modeling import ErnieMPreTrainedModel
from erniem_export.options import GraphOptions
from erniem_export.passes.rewriter import store
from erniem_rt.engines.onnxruntime import import_onnxruntime
from erniem_rt.errors import ArtifactError
from erniem_rt.manifest import TensorSpec, weights_name

if TYPE_CHECKING:
    import onnxruntime

ort = import_onnxruntime()  # here, so that an export without it fails at once

_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_LOG_ERRORS = 3

# The first opset with Gelu; LayerNormalization exists since 17.
OPSET = 20

# The oldest supported onnxruntime, which `make test-floor` tests: 1.20 gives wrong results if a single query attends to
# padded keys, as in the last layer of cls and mc.
ONNXRUNTIME = "1.21"
# The same for graphs in bfloat16: the first whose MultiHeadAttention takes it.
ONNXRUNTIME_BFLOAT16 = "1.24"

# Sizes for tracing: different from each other and from 1, so that the tracer cannot merge two axes.
_EXAMPLE_SIZES = {"batch": 2, "choices": 3, "sequence": 5}

# Smaller tensors stay in the graph: shapes and scalars, which shape inference needs.
_EXTERNAL_FROM_BYTES = 64


# The prefix of the model's parameters in _Traced.
_MODEL_PREFIX = "model."


class _Traced(nn.Module):
    """The model with its wanted outputs as a tuple.

    Always requests attention weights: attention is then traced as MatMul, Softmax, MatMul, which graph passes and
    TensorRT recognize. Weights that are not outputs of the graph are dropped.
    """

    def __init__(self, model: ErnieMPreTrainedModel, outputs: Sequence[str], options: GraphOptions) -> None:
        super().__init__()
        self.model = model
        self.outputs = [name for name in outputs if "." not in name]
        self.options = options

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        bias = []
        if self.options.mask_mode == UIE_M:
            inputs, key_bias = with_padding_key(inputs["input_ids"], inputs["attention_mask"], self.model.config)
            bias = [key_bias]
        result = self.model(
            **inputs, output_hidden_states=self.options.hidden_states, output_attentions=True, return_dict=True
        )
        tensors = [result[name] for name in self.outputs]
        tensors += result.hidden_states if self.options.hidden_states else ()
        tensors += result.attentions if self.options.attentions else ()
        return (*tensors, *bias)


def trace(model: ErnieMPreTrainedModel, head: str, options: GraphOptions) -> ir.Model:
    """Trace ``model`` into the canonical graph; :class:`ExportError` if the graph differs from its specification."""
    inputs = graph_inputs(head, model.config, options)
    outputs = graph_outputs(head, model, options)
    dims = {axis: torch.export.Dim(axis) for axis in _EXAMPLE_SIZES}
    dynamic = {
        spec.name: {i: dims[axis] for i, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in inputs
    }
    with torch.no_grad(), _quiet_tracer():
        program = torch.onnx.export(
            _Traced(model.eval(), [spec.name for spec in outputs], options),
            kwargs={"inputs": {spec.name: _example(spec) for spec in inputs}},
            dynamic_shapes={"inputs": dynamic},
            input_names=[spec.name for spec in inputs],
            output_names=[*(spec.name for spec in outputs), *(["key_bias"] if options.mask_mode == UIE_M else [])],
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        if program is None:
            raise ExportError("torch.onnx.export returned no program")
        with _without_values(_name_weights(program.model.graph)):
            program.optimize()
        if options.mask_mode == UIE_M:
            bias_keys(program.model.graph)
        for value, spec in zip(program.model.graph.outputs, outputs, strict=True):
            value.name = spec.name  # the optimizer renames a tensor that is two outputs
        _transpose_weights(program.model.graph)
    graph = _tidy(program.model)
    _check(graph, inputs, outputs)
    return graph


def write(graph: ir.Model, path: Path) -> None:
    """Write ``path`` and its weights, in the file of :func:`~erniem_rt.manifest.weights_name`."""
    with _without_shapes(list(graph.graph.initializers.values())):
        ir.save(graph, path, external_data=weights_name(path.name), size_threshold_bytes=_EXTERNAL_FROM_BYTES)


def read(path: Path) -> ir.Model:
    """Read a graph of :func:`write`, also through links and hard links, which onnx-ir refuses as attacks.

    Raises:
        ArtifactError: The graph's weights are in another file than expected.
    """
    graph, weights = ir.load(path), path.with_name(weights_name(path.name))
    for value in graph.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if str(tensor.location) != weights.name:
            raise ArtifactError(f"{path} has weights in {tensor.location!r}, expected {weights.name}; export again.")
        # Without a base_dir, onnx-ir does not check the path.
        value.const_value = ir.ExternalTensor(
            weights.resolve(), tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(tensor.name)
        )
    return graph


def open_session(model: Path | bytes, weights: Path | None = None) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU from a file, or serialized with ``weights`` as the folder of its external data."""
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    if weights is not None:
        options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(weights.resolve()))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _example(spec: TensorSpec) -> Tensor:
    shape = [axis if isinstance(axis, int) else _EXAMPLE_SIZES[axis] for axis in spec.shape]
    return torch.ones(shape, dtype=getattr(torch, spec.dtype))


@contextlib.contextmanager
def _quiet_tracer() -> Iterator[None]:
    """Silence irrelevant messages of torch's tracer (missing torchvision, deprecated internals)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_weights(graph: ir.Graph) -> list[ir.Value]:
    """Give each weight the name of its parameter, and return them."""
    weights = [value for name, value in graph.initializers.items() if name.startswith(_MODEL_PREFIX)]
    for value in weights:
        value.name = str(value.name).removeprefix(_MODEL_PREFIX)
    return weights


@contextlib.contextmanager
def _without_values(weights: Sequence[ir.Value]) -> Iterator[None]:
    """Hide the weights' values, so that the graph depends on the model's architecture only.

    Otherwise the optimizer merges equal weights and their matmuls, and drops biases of zeros.
    """
    values = {value: value.const_value for value in weights}
    for value in values:
        value.const_value = None
    try:
        yield
    finally:
        for value, content in values.items():
            value.const_value = content


@contextlib.contextmanager
def _without_shapes(weights: Sequence[ir.Value]) -> Iterator[None]:
    """Hide what the weights' tensors say as well: tools that change a tensor in place, as ONNX Runtime's quantizer
    does, leave a second note of its shape as it was.
    """
    known = [(value, value.type, value.shape) for value in weights]
    for value in weights:
        value.type = value.shape = None
    try:
        yield
    finally:
        for value, kind, shape in known:
            value.type, value.shape = kind, shape


def _transpose_weights(graph: ir.Graph) -> None:
    """Store the weights of linear layers transposed, as their matmuls read them, with ``.T`` after the name."""
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            continue
        array = weight.const_value.numpy().transpose(node.attributes["perm"].as_ints())
        stored = store(graph, f"{weight.name}.T", array)
        ir.convenience.replace_all_uses_with(node.outputs[0], stored)
        graph.remove(node, safe=True)
        if not weight.uses():
            del graph.initializers[str(weight.name)]


def _tidy(model: ir.Model) -> ir.Model:
    """Set the graph's producer and remove the tracer's metadata (stack traces)."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version = "erniem-rt", None
    model.graph.name = "ernie_m"
    return model


def _check(model: ir.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check the graph against its specification: opset, operator domains, names, dtypes and axes."""
    if dict(model.opset_imports) != {"": OPSET} or model.functions:
        raise ExportError(f"expected standard operators of opset {OPSET} only, got {dict(model.opset_imports)}")
    for kind, specs, values in (("inputs", inputs, model.graph.inputs), ("outputs", outputs, model.graph.outputs)):
        found = [_spec(value) for value in values]
        if found != list(specs):
            raise ExportError(f"the graph's {kind} are {found}, expected {list(specs)}")


def _spec(value: Any) -> TensorSpec:
    axes = tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape or ())
    return TensorSpec(value.name, value.dtype.numpy().name, axes)
