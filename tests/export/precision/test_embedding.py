"""The word-embedding table in fp16 and int8."""

import copy

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from erniem_export.errors import ExportError
from erniem_export.gate.measures import EMBEDDING_THRESHOLDS, THRESHOLDS, measure, thresholds_of
from erniem_export.onnx_export import write
from erniem_export.passes.precision import quantize_rows, store_embedding, to_half

TABLE = "embeddings.word_embeddings.weight"
ROWS, COLUMNS = 211, 32


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 9)),
        elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    )
)
def test_the_error_is_at_most_half_a_scale(table):
    integers, scales = quantize_rows(table)
    assert integers.dtype == np.int8
    assert scales.shape == (len(table), 1)
    assert (scales > 0).all()
    assert (np.abs(integers * scales.astype(np.float64) - table) <= scales * 0.5001).all()
    largest = np.abs(integers.astype(int)).max(axis=1)
    assert set(largest[np.abs(table).max(axis=1) > 1e-30]) <= {127}


def test_rows_are_quantized_one_by_one_in_a_table_of_any_size(monkeypatch):
    table = np.random.default_rng(2).standard_normal((10, 4)).astype(np.float32)
    expected = quantize_rows(table)
    monkeypatch.setattr("erniem_export.passes.precision._ROWS_AT_ONCE", 3)
    for found, whole in zip(quantize_rows(table), expected, strict=True):
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_graph_is_the_model_with_the_table_as_stored(precision, small_model, graph_of, run, feeds, reference):
    graph = graph_of(small_model())
    assert store_embedding(graph, precision) == 1
    model = copy.deepcopy(small_model())
    table = model.embeddings.word_embeddings.weight.detach()
    if precision == "fp16":
        stored = table.half().float()
    else:
        integers, scales = quantize_rows(table.numpy())
        stored = torch.from_numpy(integers * scales)
    model.embeddings.word_embeddings.weight = torch.nn.Parameter(stored)
    for name, found in run(graph, feeds).items():
        assert measure(found, reference(model, feeds)[name]).excess(THRESHOLDS["fp32"]) <= 1.0
        own = measure(found, reference(small_model(), feeds)[name])
        assert own.excess(EMBEDDING_THRESHOLDS[precision]) <= 1.0
        assert own.excess(THRESHOLDS["fp32"]) > 1.0


@pytest.mark.parametrize(("precision", "size"), [("fp16", 2 * COLUMNS), ("int8", COLUMNS + 4)])
def test_bytes_per_row(precision, size, small_model, graph_of, tmp_path):
    graph = graph_of(small_model())
    store_embedding(graph, precision)
    write(graph, tmp_path / "graph.onnx")
    onnx.checker.check_model(str(tmp_path / "graph.onnx"), full_check=True)
    assert {node.domain for node in graph.graph} == {""}
    parts = [value.const_value.nbytes for name, value in graph.graph.initializers.items() if name.startswith(TABLE)]
    assert sum(parts) == ROWS * size
    looked_up = [node.inputs[0].name for node in graph.graph if node.op_type == "Gather"]
    assert TABLE in looked_up, "rows are looked up as they are stored"


def test_fp32_changes_nothing(small_model, graph_of):
    graph = graph_of(small_model())
    before = ir.to_proto(graph)
    assert store_embedding(graph, "fp32") == 0
    assert ir.to_proto(graph) == before


def test_a_graph_of_embeddings_has_no_table(small_model, graph_of):
    with pytest.raises(ExportError, match="takes inputs_embeds and has no word embeddings"):
        store_embedding(graph_of(small_model(), inputs_embeds=True), "int8")


def test_a_table_beyond_fp16_is_refused(small_model, graph_of):
    graph = graph_of(small_model())
    table = graph.graph.initializers[TABLE]
    numbers = table.const_value.numpy().copy()
    numbers[5, 7] = 1e5
    table.const_value = ir.tensor(numbers, name=TABLE)
    with pytest.raises(ExportError, match="above 65504, too large for FLOAT16: try --embedding int8"):
        store_embedding(graph, "fp16")


@pytest.mark.parametrize("embedding", ["fp16", "int8"])
def test_together_with_half_layers(embedding, small_model, graph_of, run, feeds, reference):
    graph = graph_of(small_model())
    to_half(graph, "fp16", {})
    store_embedding(graph, embedding)
    limits = thresholds_of({"weights": "fp16", "embedding": embedding})
    for name, found in run(graph, feeds, rounded=True).items():
        assert measure(found, reference(small_model(), feeds)[name]).excess(limits) <= 1.0
