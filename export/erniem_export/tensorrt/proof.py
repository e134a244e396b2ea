"""Proves the types that a plan computes in, from its network and from the engine inspector."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from erniem_export.errors import EngineBuildError
from erniem_export.options import arithmetic_of
from erniem_export.tensorrt.builder import layers_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from erniem_export.tensorrt.library import Library

__all__ = ["inspect", "prove"]

# TensorRT's names of the matmuls' types.
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
# The inspector's names, within a tensor's format.
_INSPECTED = {
    "FLOAT": re.compile(r"\b(FP32|Float)\b"),
    "HALF": re.compile(r"\b(FP16|Half)\b"),
    "BF16": re.compile("BF16|BFloat16"),
    "INT8": re.compile(r"\b(INT8|Int8)\b"),
}
# Keys of names, which may contain a type's name and must be ignored.
_NAMED = ("Name", "Metadata")
_LAYER = re.compile(r"encoder\.layers\.\d+\.")


def prove(
    network: Any, precision: Mapping[str, str], products: Collection[str], layers: int, *, whole: bool = False
) -> dict[str, Any]:
    """Check the type of every matmul of the encoder's layers, and of inputs and outputs; return the findings.

    Args:
        network: The network to build; it is strongly typed, so that the builder cannot change its types.
        precision: The manifest's.
        products: The names of the graph's matmuls, which are also the names of the network's layers.
        layers: The encoder's number of layers.
        whole: In int8, the matmuls must be in int8 too, not the weights only.

    Raises:
        EngineBuildError: A matmul computes in another type, or is missing.
    """
    wanted = _TYPES[arithmetic_of(precision)]
    kept = set(precision.get("kept_in_fp32", "").split(", "))
    expected = {name for name in products if _LAYER.match(name)}
    found = {layer.name: layer for layer in layers_of(network) if layer.type.name == "MATRIX_MULTIPLY"}
    if len(expected) != 6 * layers or expected - found.keys():
        missing = ", ".join(sorted(expected - found.keys())[:3]) or f"{6 * layers - len(expected)} of them"
        raise EngineBuildError(f"the precision cannot be proven: the network lacks matmuls of the layers, {missing}")
    counted: Counter[str] = Counter()
    for name in sorted(expected):
        types, right = _types(found[name]), "FLOAT" if name in kept else wanted
        if types != {right}:
            raise EngineBuildError(
                f"asked for {precision['weights']}, but the matmul {name} computes in {' and '.join(sorted(types))}"
            )
        counted[right] += 1
    int8 = _prove_int8(network, [found[name] for name in expected], whole) if precision["weights"] == "int8" else {}
    return {
        "source": "the strongly typed network that the plan was built from",
        "products": dict(counted),
        "int8": int8,
        "inputs": {tensor.name: tensor.dtype.name for tensor in _tensors(network.num_inputs, network.get_input)},
        "outputs": {tensor.name: tensor.dtype.name for tensor in _tensors(network.num_outputs, network.get_output)},
        "weight_bytes": _weight_bytes(network),
    }


def _types(layer: Any) -> set[str]:
    inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
    return {tensor.dtype.name for tensor in (*inputs, layer.get_output(0)) if tensor is not None}


def _prove_int8(network: Any, products: Sequence[Any], whole: bool) -> dict[str, int]:
    makers = {layer.get_output(i).name: layer for layer in layers_of(network) for i in range(layer.num_outputs)}
    inputs, weights = (sum(_comes_from_int8(product.get_input(i), makers) for product in products) for i in (0, 1))
    if (weights, inputs) != (len(products), whole * len(products)):
        raise EngineBuildError(
            f"asked for int8 {'matmuls' if whole else 'weights'}, but of {len(products)} matmuls {weights} have int8 "
            f"weights and {inputs} int8 inputs"
        )
    return {"weights": weights, "inputs": inputs}


def _comes_from_int8(tensor: Any, makers: Mapping[str, Any]) -> bool:
    """Return whether the tensor comes from int8 through layers that only move or convert values."""
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in ("SHUFFLE", "CAST", "UNSQUEEZE", "IDENTITY"):
        layer = makers.get(layer.get_input(0).name)
    return layer is not None and layer.type.name == "DEQUANTIZE" and layer.get_input(0).dtype.name == "INT8"


def _tensors(count: int, get: Any) -> list[Any]:
    return [get(i) for i in range(count)]


def _weight_bytes(network: Any) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for layer in layers_of(network):
        if layer.type.name == "CONSTANT":
            tensor = layer.get_output(0)
            count = 1
            for size in tensor.shape:
                count *= size
            sizes[tensor.dtype.name] += int(count * tensor.dtype.itemsize)
    return dict(sizes)


def inspect(library: Library, plan: memoryview, precision: Mapping[str, str], *, whole: bool = False) -> dict[str, Any]:
    """Return the engine inspector's findings, or the reason if no GPU here can load the plan.

    ``whole``: in int8, the matmuls must be in int8 too, not the weights only.

    Raises:
        EngineBuildError: No layer of the engine computes in a type of ``precision``.
    """
    with library.listening() as messages:
        try:
            runtime = library.module.Runtime(library.logger)
            if hasattr(runtime, "engine_host_code_allowed"):  # host code of a version-compatible plan
                runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(plan)
        except TypeError:  # the bindings raise it for a null pointer; the reason is in the log
            engine = None
    if engine is None:
        return {"run": False, "reason": messages[0] if messages else "the engine could not be loaded here"}
    information = engine.create_engine_inspector().get_engine_information(library.module.LayerInformationFormat.JSON)
    layers = json.loads(information).get("Layers", [])
    text = [layer if isinstance(layer, str) else json.dumps(layer) for layer in layers]
    types = [layer if isinstance(layer, str) else json.dumps(_without_names(layer)) for layer in layers]
    wanted = [_TYPES[arithmetic_of(precision)]]
    wanted += ["INT8"] * (whole and precision["weights"] == "int8")
    computing = {name: sum(bool(_INSPECTED[name].search(layer)) for layer in types) for name in wanted}
    for name, count in computing.items():
        if not count:
            raise EngineBuildError(
                f"asked for {precision['weights']}, but no layer of the engine ({len(text)}) has a tensor in {name}"
            )
    return {
        "run": True,
        "layers": len(text),
        **{f"in_{name}": count for name, count in computing.items()},
        "fused_attention": sum("_mha" in layer for layer in text),
    }


def _without_names(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _without_names(value) for key, value in found.items() if key not in _NAMED}
    return [_without_names(value) for value in found] if isinstance(found, list) else found
