"""fp16 and bf16 graphs: what runs in half, what is protected, and what large numbers do."""

import warnings
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from erniem_export.gate.measures import THRESHOLDS, measure
from erniem_export.heads import CLASSES
from erniem_export.onnx_export import write
from erniem_export.passes.precision import HALF_TYPES, LARGEST, measure_ranges, to_half

PRECISIONS = sorted(HALF_TYPES)
LAYERS = 2


def large_feed_forward(parameters):
    """The products of the feed-forward network leave fp16's range; the norm behind them brings them back."""
    parameters["encoder.layers.1.linear1.weight"] *= 400
    parameters["encoder.layers.1.linear2.weight"] *= 400


def large_scores(parameters):
    parameters["encoder.layers.0.self_attn.self_attn.q_proj.weight"] *= 500
    parameters["encoder.layers.0.self_attn.self_attn.k_proj.weight"] *= 500


def large_weight(parameters):
    """One weight is beyond fp16's range, on a feature that the norm before it keeps near 0."""
    parameters["encoder.layers.0.norm1.weight"][3] = 1e-6
    parameters["encoder.layers.0.norm1.bias"][3] = 0
    parameters["encoder.layers.0.linear1.weight"][5, 3] = 1e5


EDITS = {
    large_feed_forward: {"encoder.layers.1.linear2"},
    large_scores: {"encoder.layers.0 MatMul", "encoder.layers.0 Softmax"},
    large_weight: {"encoder.layers.0.linear1"},
}


@pytest.fixture(scope="module")
def model(small_model):
    return small_model()


def converted(graph, precision, feeds, scratch):
    kept = to_half(graph, precision, measure_ranges(graph, [feeds], scratch))
    return graph, kept


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_compute_in_half_and_the_rest_in_float32(precision, model, graph_of):
    graph = graph_of(model)
    assert to_half(graph, precision, {}) == ()
    half = HALF_TYPES[precision]
    types = Counter((node.op_type, node.outputs[0].dtype) for node in graph.graph)
    for op_type, count in {"MatMul": 8, "Softmax": 1, "Where": 1, "Gelu": 1, "Div": 1}.items():
        assert {dtype for op, dtype in types if op == op_type} == {half}
        assert types[op_type, half] == count * LAYERS
    assert types["LayerNormalization", ir.DataType.FLOAT] == 1 + 2 * LAYERS
    assert types["Gemm", ir.DataType.FLOAT] == 1
    sums = [node for node in graph.graph if node.op_type == "Add" and node.outputs[0].dtype == ir.DataType.FLOAT]
    assert len(sums) == 1 + 2 * LAYERS, "the embeddings' sum and the residual ones"
    assert {value.dtype for value in graph.graph.outputs} == {ir.DataType.FLOAT}
    stored = {name: value.dtype for name, value in graph.graph.initializers.items() if "encoder.layers" in name}
    assert {name for name, dtype in stored.items() if dtype != half} == {name for name in stored if ".norm" in name}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_mask_is_the_lowest_finite_value_and_overwrites(precision, model, graph_of):
    graph = graph_of(model)
    to_half(graph, precision, {})
    for node in graph.graph:
        if node.op_type == "Where":
            lowest = node.inputs[1].const_value.numpy()
            assert float(lowest) == -LARGEST[HALF_TYPES[precision]]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", CLASSES)
def test_numbers_are_near(head, precision, small_model, graph_of, run, feeds, reference):
    model = small_model(head)
    graph = graph_of(model, head)
    to_half(graph, precision, {})
    given = {name: array.reshape(2, 2, -1) for name, array in feeds.items()} if head == "mc" else feeds
    for name, found in run(graph, given, rounded=True).items():
        difference = measure(found, reference(model, given)[name])
        assert difference.excess(THRESHOLDS[precision]) <= 1.0, difference
        assert difference.excess(THRESHOLDS["fp32"]) > 1.0, "nothing was rounded"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_from_inside_a_layer_are_float32_under_their_names(precision, model, graph_of, run, feeds, reference):
    flags = {"hidden_states": True, "attentions": True, "head_mask": True}
    graph = graph_of(model, **flags)
    names = [value.name for value in graph.graph.outputs]
    to_half(graph, precision, {})
    assert [value.name for value in graph.graph.outputs] == names
    given = {**feeds, "head_mask": np.ones((LAYERS, 4), dtype=np.float32)}
    found = run(graph, given, rounded=True)
    expected = reference(model, given, output_hidden_states=True, output_attentions=True)
    for name in names:
        assert found[name].dtype == np.float32
        assert measure(found[name], expected[name]).excess(THRESHOLDS[precision]) <= 1.0, name
    padding = found["attentions.0"][3]
    assert np.ptp(padding) < 1e-3, "a row that is all padding attends uniformly"
    assert (found["attentions.1"][1, :, :, 7:] == 0).all()


def naive(graph, path):
    """Everything in fp16, as onnxruntime's converter makes it."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    write(graph, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        everything = convert_float_to_float16(onnx.load(path), keep_io_types=True, op_block_list=[])
    return ir.serde.deserialize_model(everything)


@pytest.mark.parametrize("edit", [large_feed_forward, large_scores])
def test_large_activations_break_the_naive_conversion_and_not_ours(
    edit, small_model, graph_of, run, feeds, reference, tmp_path
):
    model = small_model(edit=edit)
    expected = reference(model, feeds)["last_hidden_state"]
    broken = run(naive(graph_of(model), tmp_path / "naive.onnx"), feeds, rounded=True)["last_hidden_state"]
    assert measure(np.nan_to_num(broken), expected).excess(THRESHOLDS["fp16"]) > 1.0
    graph, kept = converted(graph_of(model), "fp16", feeds, tmp_path)
    assert set(kept) >= EDITS[edit]
    found = run(graph, feeds, rounded=True)["last_hidden_state"]
    assert np.isfinite(found).all()
    if edit is large_feed_forward:  # with scores this large, the softmax is a choice, which rounding may change
        assert measure(found, expected).excess(THRESHOLDS["fp16"]) <= 1.0


@pytest.mark.parametrize("edit", EDITS)
def test_only_what_does_not_fit_stays_in_float32(edit, small_model, graph_of, feeds, tmp_path):
    model = small_model(edit=edit)
    _, kept = converted(graph_of(model), "fp16", feeds, tmp_path)
    assert set(kept) >= EDITS[edit]
    layer = next(iter(EDITS[edit])).split(" ")[0].split(".")[2]
    assert all(f"layers.{layer}" in name for name in kept)
    assert converted(graph_of(model), "bf16", feeds, tmp_path)[1] == (), "bf16 has the range of float32"


def test_a_weight_that_does_not_fit_keeps_its_value(small_model, graph_of, run, feeds, reference, tmp_path):
    model = small_model(edit=large_weight)
    graph, _ = converted(graph_of(model), "fp16", feeds, tmp_path)
    found = run(graph, feeds, rounded=True)
    expected = reference(model, feeds)
    assert measure(found["last_hidden_state"], expected["last_hidden_state"]).excess(THRESHOLDS["fp16"]) <= 1.0


OPERATIONS = {
    "MatMul": (lambda a, b: a @ b, 2),
    "Add": (torch.add, 2),
    "Div": (torch.div, 2),
    "Gelu": (torch.nn.functional.gelu, 1),
    "Softmax": (lambda a: a.softmax(-1), 1),
}


@pytest.mark.parametrize("op_type", OPERATIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_emulation_computes_in_float32_and_rounds_the_result(op_type, precision, run):
    """As torch says that rounding is; what is too large becomes infinite, as on a GPU."""
    compute, count = OPERATIONS[op_type]
    half, torch_type = HALF_TYPES[precision], {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    generator = torch.Generator().manual_seed(1)
    arrays = [torch.randn(32, 32, generator=generator) for _ in range(count)]
    arrays[0][0] *= 1.5e4 if op_type == "MatMul" else 1.0
    inputs = [
        ir.Value(name=f"x{i}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([32, 32])) for i in range(count)
    ]
    casts = [ir.node("Cast", [value], {"to": half}) for value in inputs]
    node = ir.node(op_type, [cast.outputs[0] for cast in casts])
    back = ir.node("Cast", [node.outputs[0]], {"to": ir.DataType.FLOAT})
    for made in (*casts, node):
        made.outputs[0].type = ir.TensorType(half)
    back.outputs[0].name, back.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, back.outputs, nodes=[*casts, node, back], opset_imports={"": 20}, name="one")
    found = run(
        ir.Model(graph, ir_version=10), {f"x{i}": array.numpy() for i, array in enumerate(arrays)}, rounded=True
    )
    expected = compute(*(array.to(torch_type).float() for array in arrays)).to(torch_type).float()
    if op_type == "MatMul":
        assert expected.isfinite().all() == (precision == "bf16")
    np.testing.assert_allclose(found["y"], expected, rtol=torch.finfo(torch_type).eps, atol=1e-6)
    assert (found["y"] == expected.numpy()).mean() > 0.98, "only sums in another order may round to a neighbour"


def test_onnxruntime_on_cpu_rounds_less(small_model, graph_of, run, feeds):
    """Why the gate emulates: were this to fail, running fp16 on a CPU would be proof enough."""
    plain = run(graph_of(small_model()), feeds)
    graph = graph_of(small_model())
    to_half(graph, "fp16", {})
    rounded, cast = run(graph, feeds, rounded=True), run(graph, feeds)
    errors = [measure(found["last_hidden_state"], plain["last_hidden_state"]).relative_l2 for found in (cast, rounded)]
    assert errors[0] < 0.8 * errors[1]
