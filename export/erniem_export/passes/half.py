"""Converts the encoder's layers to float16 or bfloat16; the residual stream stays in float32.

In the half type: each layer's matmuls with their biases, the attention between them, and Gelu. In float32: the residual
sums and the norms after them (rounding errors would accumulate over the layers), the embeddings, and all that follows
the encoder (cheap next to a layer, and it computes the answer). A node also stays in float32 if one of its inputs,
outputs or weights overflows the half type.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from erniem_export.options import HALVES
from erniem_export.passes.rewriter import cast_uses

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

__all__ = ["HALF_TYPES", "LARGEST", "to_half"]

HALF_TYPES = {name: ir.DataType[title.upper()] for name, title in HALVES.items()}

# The largest finite value of each type.
LARGEST = {
    ir.DataType.FLOAT16: torch.finfo(torch.float16).max,
    ir.DataType.BFLOAT16: torch.finfo(torch.bfloat16).max,
}

# Margin for text outside the calibration set: values may be this many times larger.
_HEADROOM = 4.0
_NORM = "LayerNormalization"

# In encoder.layers.3.self_attn.out_proj.weight.T the module ends before .weight, and the layer is encoder.layers.3.
_PARAMETER = re.compile(r"(?P<module>(?P<layer>encoder\.layers\.\d+)\.[\w.]+?)\.(weight|bias)(\.T)?$")
# encoder.layers.3.self_attn or encoder.layers.3.linear
_PART = re.compile(r"encoder\.layers\.\d+\.(?:self_attn|linear|norm)")
_TRIVIAL = frozenset({"Reshape", "Transpose", "Where"})


def to_half(
    model: ir.Model, precision: str, ranges: Mapping[str, float], keep: Collection[str] = ()
) -> tuple[str, ...]:
    """Rewrite the encoder's layers to ``fp16`` or ``bf16``, in place; inputs and outputs stay float32.

    The mask's constant becomes the lowest finite value of the type. It overwrites scores (Where) instead of being added
    to them, so it cannot overflow, and a row that is all padding keeps its uniform attention.

    Args:
        model: The canonical graph, or one derived from it.
        precision: A key of :data:`HALF_TYPES`.
        ranges: Largest magnitude of the graph's float32 values by name, measured on calibration data; values that are
            not listed count as in range.
        keep: Parts that stay in float32 as a whole: the attention of a layer (``encoder.layers.3.self_attn``) or its
            feed-forward part (``encoder.layers.3.linear``).

    Returns:
        The matmuls and operations kept in float32 by ``ranges`` and ``keep``, in the order of computation: the names of
        linear layers (``encoder.layers.3.linear1``), or layer and operation (``encoder.layers.3 Softmax``).
    """
    dtype = HALF_TYPES[precision]
    largest = LARGEST[dtype]
    candidates = _layer_nodes(model.graph)
    parts = _parts(model.graph) if keep else {}
    kept = [node for node in candidates if parts.get(node) in keep or _overflows(node, ranges, largest)]
    half = set(candidates) - set(kept)
    _store_halves(model.graph, half, dtype, largest)
    _convert_values(model.graph, half, dtype)
    return _described(model.graph, kept)


def _layer_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes with float results between two norms, except norms and the residual sums that they read."""
    after = _reach(graph, forward=True)
    before = _reach(reversed(graph), forward=False)
    return [
        node
        for node in graph
        if node in after and node in before and node.op_type != _NORM and not _feeds_norm(node) and _is_float(node)
    ]


def _reach(nodes: Iterable[ir.Node], *, forward: bool) -> set[ir.Node]:
    """Return the nodes after a norm (``forward``) or before one; ``nodes`` come in the order to visit them."""
    reached: set[ir.Node] = set()
    for node in nodes:
        neighbours = node.predecessors() if forward else node.successors()
        if any(other in reached or other.op_type == _NORM for other in neighbours):
            reached.add(node)
    return reached


def _feeds_norm(node: ir.Node) -> bool:
    return any(use.node.op_type == _NORM and use.idx == 0 for use in node.outputs[0].uses())


def _is_float(node: ir.Node) -> bool:
    return any(value.dtype == ir.DataType.FLOAT for value in node.outputs)


def _overflows(node: ir.Node, ranges: Mapping[str, float], largest: float) -> bool:
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != ir.DataType.FLOAT or _is_constant(value):
            continue
        if value.const_value is not None:
            if _magnitude(value.const_value.numpy()) > largest:
                return True
        elif ranges.get(str(value.name), 0.0) * _HEADROOM > largest:
            return True
    return False


def _parts(graph: ir.Graph) -> dict[ir.Node, str]:
    """Return each node's part of the encoder: that of the last parameter read up to the node."""
    parts, part = {}, ""
    for node in graph:
        names = (str(value.name) for value in node.inputs if value is not None and value.is_initializer())
        part = next((match[0] for name in names if (match := _PART.search(name))), part)
        parts[node] = part
    return parts


def _described(graph: ir.Graph, kept: list[ir.Node]) -> tuple[str, ...]:
    """Name nodes by their parameter's module, or by the current layer and their operation if they have none."""
    names: dict[str, None] = {}
    chosen, layer = set(kept), "embeddings"
    for node in graph:
        parameters = [value for value in node.inputs if value is not None and value.is_initializer()]
        found = [match for value in parameters if (match := _PARAMETER.search(str(value.name)))]
        layer = found[0]["layer"] if found else layer
        if node in chosen and node.op_type not in _TRIVIAL:
            names[found[0]["module"] if found else f"{layer} {node.op_type}"] = None
    return tuple(names)


def _is_constant(value: ir.Value) -> bool:
    """Return whether the value is a constant such as a divisor or the mask's value, not a weight."""
    return value.const_value is not None and value.const_value.size == 1


def _store_halves(graph: ir.Graph, half: set[ir.Node], dtype: ir.DataType, largest: float) -> None:
    """Store the initializers that nodes in ``half`` read in ``dtype``, as a copy if other nodes read them too."""
    for value in list(graph.initializers.values()):
        uses = [use for use in value.uses() if use.node in half]
        if not uses or value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        numbers = np.clip(value.const_value.numpy(), -largest, largest).astype(dtype.numpy())
        name = str(value.name)
        if len(uses) == len(value.uses()):
            value.const_value, value.type = ir.tensor(numbers, name=name), ir.TensorType(dtype)
            continue
        copy = ir.Value(
            name=f"{name}.{dtype.name.lower()}",
            type=ir.TensorType(dtype),
            shape=value.shape,
            const_value=ir.tensor(numbers, name=f"{name}.{dtype.name.lower()}"),
        )
        graph.register_initializer(copy)
        for use in uses:
            use.node.replace_input_with(use.idx, copy)


def _convert_values(graph: ir.Graph, half: set[ir.Node], dtype: ir.DataType) -> None:
    """Set the type of the outputs of ``half``, and insert Casts where values cross between the two types."""
    suffix = dtype.name.lower()
    computed = [value for node in graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    for value in [*computed, *(value for value in graph.inputs if value.dtype == ir.DataType.FLOAT)]:
        producer = value.producer()
        if producer is None or producer not in half:
            cast_uses(graph, value, dtype, where=half.__contains__, name=f"{value.name}.{suffix}")
            continue
        value.type = ir.TensorType(dtype)
        if value.is_graph_output():
            _output_in_float32(graph, producer, value, suffix)
        cast_uses(
            graph,
            value,
            ir.DataType.FLOAT,
            where=lambda node: node not in half and node.op_type != "Cast",
            name=f"{value.name}.float32",
        )


def _output_in_float32(graph: ir.Graph, producer: ir.Node, value: ir.Value, suffix: str) -> None:
    """Cast the value to float32 for the graph's output of its name."""
    name = str(value.name)
    value.name = f"{name}.{suffix}"
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")
    output = cast.outputs[0]
    output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.FLOAT), value.shape
    graph.insert_after(producer, cast)
    graph.outputs[list(graph.outputs).index(value)] = output


def _magnitude(array: NDArray[Any]) -> float:
    return float(max(array.max(), -array.min())) if array.size else 0.0
