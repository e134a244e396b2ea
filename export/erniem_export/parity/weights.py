"""Are the weights in the graph the checkpoint's, all of them and to the bit?

Running the graph cannot tell: a batch looks up a few thousand of 250002 embeddings, and some parameters, such as the
keys' biases, cancel out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_export.modeling import ErnieMPreTrainedModel

__all__ = ["Weights", "compare_weights"]

_NAMED = 3


@dataclass(frozen=True)
class Weights:
    """How many parameters were found in the graph, and the names of those with other values."""

    compared: int = 0
    changed: tuple[str, ...] = ()

    def named(self) -> str:
        """The first few changed weights, for a message."""
        more = len(self.changed) - _NAMED
        return ", ".join(self.changed[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def compare_weights(artifact: Path, model: ErnieMPreTrainedModel) -> Weights:
    """Compare the float32 weights of a graph with the parameters that they are named after (``.T``: transposed)."""
    initializers = ir.load(artifact).graph.initializers
    compared, changed = 0, []
    for name, parameter in model.state_dict().items():
        bits = parameter.contiguous().numpy().view(np.int32)  # equal to themselves even where they are NaN
        for stored_name, expected in ((name, bits), (f"{name}.T", bits.T)):
            value = initializers.get(stored_name)
            if value is None or value.const_value is None:
                continue
            compared += 1
            stored = value.const_value.numpy()
            if stored.dtype != np.float32 or not np.array_equal(stored.view(np.int32), expected):
                changed.append(name)
    return Weights(compared, tuple(changed))
