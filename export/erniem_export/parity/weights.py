"""Are the weights in the graph the checkpoint's, all of them and to the bit, or to the last bit that is stored?

Running the graph cannot tell: a batch looks up a few thousand of 250002 embeddings, and some parameters, such as the
keys' biases, cancel out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from erniem_export.modeling import ErnieMPreTrainedModel

__all__ = ["Weights", "compare_weights"]

_NAMED = 3
_ROWS_AT_ONCE = 8192
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
_HALF_STEP = 0.5001  # with room for the rounding of the product itself


@dataclass(frozen=True)
class Weights:
    """How many parameters were found in the graph, and the names of those with other values."""

    compared: int = 0
    changed: tuple[str, ...] = ()

    def named(self) -> str:
        """The first few changed weights, for a message."""
        more = len(self.changed) - _NAMED
        return ", ".join(self.changed[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def compare_weights(artifact: Path, model: ErnieMPreTrainedModel, precision: Mapping[str, str]) -> Weights:
    """Compare the weights of a graph with the parameters that they are named after (``.T``: transposed).

    A weight is stored in float32 or as ``precision`` (the manifest's) says; a rounded one must be the parameter
    rounded, and an int8 one must be within half of its scale (``NAME.scale``).
    """
    initializers = ir.load(artifact).graph.initializers
    stored = {name: value.const_value.numpy() for name, value in initializers.items() if value.const_value is not None}
    compared, changed = 0, []
    for name, parameter in model.state_dict().items():
        kind = precision["embedding" if name.endswith("word_embeddings.weight") else "weights"]
        expected = parameter.contiguous().numpy()
        for stored_name, values in ((name, expected), (f"{name}.T", expected.T)):
            if stored_name in stored:
                compared += 1
                if not _is_same(stored[stored_name], values, kind, stored.get(f"{stored_name}.scale")):
                    changed.append(name)
    return Weights(compared, tuple(changed))


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
