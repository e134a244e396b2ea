"""Weights that are stored in fewer bits, held against the parameters they are."""

import numpy as np
import onnx_ir as ir
import pytest

from erniem_export.gate.weights import compare_weights
from erniem_export.onnx_export import write
from erniem_export.passes.precision import store_embedding, to_half

TABLE = "embeddings.word_embeddings.weight"
PRODUCT = "encoder.layers.1.linear1.weight"


@pytest.fixture
def compared(small_model, graph_of, tmp_path):
    """Store a model in a precision, ``edit`` the weight of that name, and compare with the model."""

    def compare(weights, embedding, name="", edit=None, stated=None):
        graph = graph_of(small_model())
        if weights != "fp32":
            to_half(graph, weights, {})
        store_embedding(graph, embedding)
        if name:
            value = graph.graph.initializers[name]
            numbers = value.const_value.numpy().copy()
            edit(numbers)
            value.const_value = ir.tensor(numbers, name=name)
        write(graph, tmp_path / "graph.onnx")
        stated = stated or {"weights": weights, "embedding": embedding}
        return compare_weights(tmp_path / "graph.onnx", small_model(), stated)

    return compare


PRECISIONS = [("fp32", "int8"), ("fp32", "fp16"), ("fp16", "fp16"), ("bf16", "bf16"), ("fp16", "int8")]


@pytest.mark.parametrize(("weights", "embedding"), PRECISIONS)
def test_rounded_weights_are_the_models(weights, embedding, compared, small_model):
    found = compared(weights, embedding)
    assert found.changed == ()
    assert found.compared == len(small_model().state_dict())


def one_step(numbers):
    numbers[7, 3] += 1 if numbers.dtype == np.int8 else np.spacing(numbers[7, 3])


@pytest.mark.parametrize(("weights", "embedding"), PRECISIONS)
def test_one_step_off_is_seen(weights, embedding, compared):
    assert compared(weights, embedding, TABLE, one_step).changed == (TABLE,)
    assert compared(weights, embedding, f"{PRODUCT}.T", one_step).changed == (PRODUCT,)


def test_fewer_bits_than_the_manifest_states_are_seen(compared):
    full = {"weights": "fp32", "embedding": "fp32"}
    assert compared("fp32", "fp16", stated=full).changed == (TABLE,)
    assert PRODUCT in compared("fp16", "fp32", stated=full).changed
    assert compared("fp32", "fp32", stated={"weights": "fp16", "embedding": "int8"}).changed == (), "more bits are fine"
