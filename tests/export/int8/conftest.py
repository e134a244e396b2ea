"""A model whose norms have what trained ones have: a few channels that reach far beyond the rest."""

import pytest
import torch

FAR, TIMES = 3, 10.0


@pytest.fixture(scope="module")
def outlying_model(micro_model):
    model = micro_model("cls", hidden_size=48, intermediate_size=64)
    with torch.no_grad():
        for layer in model.ernie_m.encoder.layers:
            layer.norm1.weight[FAR] *= TIMES
    return model
