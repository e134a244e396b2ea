"""Are the weights in the graph the checkpoint's, all of them and to the bit, or as nearly as their type can hold them?

Running the graph cannot tell: a batch looks up a few thousand of 250002 embeddings, and some parameters, such as the
keys' biases, cancel out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from erniem_export.modeling import ErnieMForInformationExtraction
from erniem_export.onnx_export import read
from erniem_export.options import arithmetic_of
from erniem_export.parity.int8_weights import compare_products

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_export.modeling import ErnieMPreTrainedModel

__all__ = ["Weights", "compare_weights", "first_few"]

_NAMED = 3
_WORDS = "word_embeddings.weight"
# What both half and full precision read is stored in both.
_COPIES = ("", ".float16", ".bfloat16")
_ROWS_AT_ONCE = 8192
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
_HALF_STEP = 0.5001  # with room for the rounding of the product itself


@dataclass(frozen=True)
class Weights:
    """How many parameters were found in the graph, and the names of those with other values or not found."""

    compared: int = 0
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def are_right(self) -> bool:
        """Whether all are there, with the values that they should have."""
        return bool(self.compared) and not self.changed and not self.missing


def first_few(names: Sequence[str]) -> str:
    """Name weights in a message."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def compare_weights(artifact: Path, model: ErnieMPreTrainedModel, precision: Mapping[str, str]) -> Weights:
    """Compare the weights that a graph reads with the parameters that they are named after (``.T``: transposed).

    A weight is stored in float32 or as ``precision`` (the manifest's) says; a rounded one must be the parameter
    rounded, an int8 row of the table must be within half of its scale (``NAME.scale``), and products in int8 are judged
    by :func:`compare_products`. All parameters must be there, but for those that the graph has no use for, biases of
    zeros, and those that share the initializer of a parameter with the same values.
    """
    graph = read(artifact).graph
    stored = _weights_read(graph)
    takes_embeddings = any(value.name == "inputs_embeds" for value in graph.inputs)
    parameters = model.state_dict()
    found = compare_products(graph, {name: parameter.numpy() for name, parameter in parameters.items()})
    for name, parameter in parameters.items():
        kind = precision["embedding"] if name.endswith(_WORDS) else arithmetic_of(precision)
        results = _compare(name, parameter.contiguous().numpy(), stored, kind)
        if results:
            found[name] = all(results) and found.get(name, True)
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in found
        and not _is_unused(name, model, takes_embeddings)
        # Adding zeros is left out by the tracer.
        and not (name.endswith(".bias") and not parameter.any())
        and not any(torch.equal(parameter, parameters[other]) for other in found)
    ]
    return Weights(len(found), tuple(name for name, same in found.items() if not same), tuple(missing))


def _weights_read(graph: ir.Graph) -> dict[str, NDArray[Any]]:
    return {
        name: value.const_value.numpy()
        for name, value in graph.initializers.items()
        if value.const_value is not None and (value.uses() or value.is_graph_output())
    }


def _compare(name: str, expected: NDArray[Any], stored: Mapping[str, NDArray[Any]], kind: str) -> list[bool]:
    """Whether each form in which a parameter is stored has its values."""
    return [
        _is_same(stored[f"{base}{copy}"], values, kind, stored.get(f"{base}.scale"))
        for base, values in ((name, expected), (f"{name}.T", expected.T))
        for copy in _COPIES
        if f"{base}{copy}" in stored
    ]


def _is_unused(name: str, model: ErnieMPreTrainedModel, takes_embeddings: bool) -> bool:
    if name.endswith(_WORDS):
        return takes_embeddings
    # UIE's class has a pooler, as the checkpoints do, and reads every token's state instead.
    return isinstance(model, ErnieMForInformationExtraction) and name.startswith("ernie_m.pooler.")


def _is_same(stored: NDArray[Any], expected: NDArray[np.float32], kind: str, scale: NDArray[np.float32] | None) -> bool:
    if stored.shape != expected.shape or str(stored.dtype) not in ("float32", _DTYPES[kind]):
        return False
    if stored.dtype == np.int8:
        return scale is not None and all(_is_within(stored, scale, expected, rows) for rows in _slices(len(stored)))
    # As bits, a weight equals itself even where it is NaN.
    bits = f"u{stored.dtype.itemsize}"
    return np.array_equal(stored.view(bits), expected.astype(stored.dtype).view(bits))


def _is_within(stored: NDArray[Any], scale: NDArray[Any], expected: NDArray[Any], rows: slice) -> bool:
    error = np.abs(stored[rows] * scale[rows] - expected[rows])
    return bool((error <= scale[rows] * _HALF_STEP).all())


def _slices(length: int) -> list[slice]:
    """A table of 250002 rows is not copied whole."""
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, length, _ROWS_AT_ONCE)]
