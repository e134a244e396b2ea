"""The graph with int8 matmuls, against the float32 simulation of the same matmuls."""

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from erniem_export.errors import FusionError
from erniem_export.onnx_export import open_session, write
from erniem_export.options import GraphOptions
from erniem_export.passes.int8 import to_int8, to_int8_openvino
from erniem_export.pipeline import optimize_for
from erniem_export.quantization.products import Int8Linear
from erniem_export.quantization.quantize import calibration_for, quantize_encoder
from erniem_rt.manifest import Limits

LAYERS, PRODUCTS = 2, 12


@pytest.fixture(scope="module")
def model(outlying_model):
    return outlying_model


@pytest.fixture(scope="module")
def quantization(model, tmp_path_factory):
    # Sums of pairs that cannot overflow 16 bits are exact on every CPU.
    calibration = calibration_for(None, tmp_path_factory.mktemp("none"), Limits(64, 1000, 1))
    found = quantize_encoder(model, calibration, form="pairs")
    assert any(len(product.entering.exact) for product in found.products.values()), "else float32 is not tested"
    return found


@pytest.fixture
def graph_for(model, quantization, trace_once):
    def make(target):
        graph = trace_once(model, "cls", GraphOptions())
        optimize_for(target, graph, "cls", LAYERS, GraphOptions())
        rewrite = to_int8_openvino if target == "openvino" else to_int8
        assert rewrite(graph, quantization.products) == PRODUCTS
        return graph

    return make


def run(graph, folder, ids, mask):
    write(graph, folder / "graph.onnx")
    return open_session(folder / "graph.onnx").run(None, {"input_ids": ids, "attention_mask": mask})[0]


def batch():
    ids = np.random.default_rng(0).integers(4, 1000, (5, 21))
    mask = (np.arange(21) < np.array([[21], [4], [1], [0], [13]])).astype(np.int64)
    return ids, mask


def simulate(model, products, ids, mask):
    simulated = copy.deepcopy(model)
    for name, product in products.items():
        parent, _, attribute = name.rpartition(".")
        setattr(simulated.get_submodule(parent), attribute, Int8Linear(product))
    with torch.no_grad():
        result = simulated(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    return result.logits.numpy()


@pytest.mark.parametrize("target", ["portable", "onnxruntime-cpu", "openvino"])
def test_it_computes_what_the_simulation_does(model, quantization, graph_for, tmp_path, target):
    ids, mask = batch()
    expected = simulate(model, quantization.products, ids, mask)
    with torch.no_grad():
        exact = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    found = run(graph_for(target), tmp_path, ids, mask)
    # A value at the border of two steps may round either way.
    assert np.abs(found - expected).max() < 0.02
    assert 0 < np.abs(found - exact).max() < 0.2


def test_no_product_of_a_layer_is_left_and_readers_share_what_is_quantized(graph_for):
    graph = graph_for("portable")
    counted = Counter(node.op_type for node in graph.graph)
    assert counted["MatMulIntegerToFloat"] == PRODUCTS
    assert counted["QuantizeLinear"] == 4 * LAYERS
    assert not [name for name in graph.graph.initializers if "encoder" in name and name.endswith("weight.T")]


def test_openvino_s_form_quantizes_behind_elementwise_operations_on_three_axes(graph_for):
    graph = graph_for("openvino")
    counted = Counter(node.op_type for node in graph.graph)
    assert counted["MatMulIntegerToFloat"] == 0
    quantized = [node for node in graph.graph if node.op_type == "QuantizeLinear"]
    assert len(quantized) == 4 * LAYERS + 1, "the last query is of first tokens alone"
    by_norm = [node for node in quantized if node.inputs[0].producer().op_type == "LayerNormalization"]
    assert len(by_norm) == 2 * LAYERS, "norms are where else a pass over memory would be needed"
    assert all(len(list(node.inputs[0].uses())) == 1 for node in by_norm)
    zeros = [node.inputs[2].const_value.numpy() for node in quantized]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}
    assert any(zero > 0 for zero in zeros)
    weights = {name: value for name, value in graph.graph.initializers.items() if name.endswith("weight.int8")}
    assert len(weights) == PRODUCTS
    assert {value.dtype for value in weights.values()} == {ir.DataType.INT8}
    assert {node.domain for node in graph.graph} == {""}
    leading = [node for node in graph.graph if str(node.name).endswith(".led")]
    assert len(leading) == LAYERS, "the embeddings and what comes out of each attention of all tokens"


def test_openvino_s_form_quantizes_a_context_without_outliers_by_head(model, quantization, trace_once, tmp_path):
    products = dict(quantization.products)
    for name in [name for name in products if name.endswith("out_proj")]:
        none = torch.empty(0, dtype=torch.int64)
        entering = replace(products[name].entering, exact=none)
        products[name] = replace(products[name], entering=entering, exact_weight=products[name].exact_weight[:0])
    graph = trace_once(model, "cls", GraphOptions())
    optimize_for("openvino", graph, "cls", LAYERS, GraphOptions())
    to_int8_openvino(graph, products)
    quantized = [node for node in graph.graph if node.op_type == "QuantizeLinear"]
    assert sum(node.inputs[0].producer().op_type == "MatMul" for node in quantized) == LAYERS
    ids, mask = batch()
    found = run(graph, tmp_path, ids, mask)
    gaps = np.abs(found - simulate(model, products, ids, mask))
    # Steps are coarse where outliers are rounded too: one that rounds the other way shows.
    assert np.median(gaps) < 0.02
    assert gaps.max() < 0.1


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino"])
def test_a_text_alone_is_the_text_in_a_batch(graph_for, tmp_path, target):
    graph, (ids, mask) = graph_for(target), batch()
    together = run(graph, tmp_path, ids, mask)
    for row, length in enumerate(mask.sum(1)):
        length = length or mask.shape[1]
        alone = run(graph, tmp_path, ids[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


def test_a_product_that_is_not_there_is_named(model, quantization, trace_once):
    graph = trace_once(model, "cls", GraphOptions())
    name, product = next(iter(quantization.products.items()))
    with pytest.raises(FusionError, match=r"layers\.9\.linear1: expected one matmul"):
        to_int8(graph, {name.replace("layers.0.self_attn.self_attn.q_proj", "layers.9.linear1"): product})
