"""Initializers bear the names of their parameters, also where several parameters have the same values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from erniem_export.modeling import ErnieMConfig, ErnieMForTokenClassification
from erniem_export.onnx_export import trace
from erniem_export.options import GraphOptions
from erniem_export.random_weights import randomize


@pytest.mark.parametrize("fresh", [True, False], ids=["freshly initialised", "random"])
def test_no_weight_bears_the_name_of_another(fresh: bool) -> None:
    torch.manual_seed(0)
    config = ErnieMConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        num_labels=3,
    )
    model = ErnieMForTokenClassification(config)
    if not fresh:
        randomize(model)

    initializers = trace(model, "ner", GraphOptions()).graph.initializers

    found = set()
    for name, parameter in model.state_dict().items():
        for stored, values in ((name, parameter.numpy()), (f"{name}.T", parameter.numpy().T)):
            if stored in initializers:
                found.add(name)
                np.testing.assert_array_equal(initializers[stored].const_value.numpy(), values)
    matrices = {name for name, parameter in model.state_dict().items() if parameter.ndim == 2}
    assert matrices <= found
    # Zero biases and unit norms share an initializer; random ones do not.
    assert (found == set(model.state_dict())) is not fresh
