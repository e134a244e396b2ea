"""Graphs for ONNX Runtime on a CPU and on CUDA: what each pass does, and the same numbers as PyTorch."""

from collections import Counter
from itertools import product
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from erniem_export.cli import main
from erniem_export.errors import FusionError
from erniem_export.heads import CLASSES
from erniem_export.options import GraphOptions
from erniem_export.passes.attention import fuse_attention
from erniem_export.passes.padding import align_rows, keep_first_tokens, order_tokens, pack_tokens
from erniem_export.passes.precision import measure_ranges, to_half
from erniem_export.pipeline import optimize_for
from erniem_rt.batching import LengthBucketing
from erniem_rt.manifest import HEADS, Limits, Manifest, TensorSpec

LAYERS = 2
TOLERANCE = 1e-5
CPU, FIXED, PACKED = "onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-cuda-packed"
ON_CUDA = (FIXED, PACKED)
# Query, the output of attention, and both of the feed-forward network.
FIRST_TOKEN_PRODUCTS = 4

# The inputs that the kernels of the CUDA provider read on the CPU, by operator.
ON_CPU = {
    "Reshape": {1},
    "Range": {0, 1, 2},
    "Squeeze": {1},
    "Unsqueeze": {1},
    "CumSum": {1},
    "ReduceSum": {1},
    "Slice": {1, 2, 3, 4},
}


def fused(graph):
    return [node for node in graph.graph if node.op_type == "MultiHeadAttention"]


@pytest.mark.parametrize("head", CLASSES)
def test_a_batch_that_runs_in_parts_has_the_numbers_of_pytorch(head, traced, session_of):
    model, graph = traced(head)
    optimize_for("onnxruntime-cpu", graph, head, LAYERS, GraphOptions())
    session = session_of(graph)
    outputs = [TensorSpec(spec.name, "float32", HEADS[head].outputs[spec.name]) for spec in session.get_outputs()]
    runs = []

    def run(feeds, names):
        runs.append(feeds["attention_mask"].shape)
        return session.run(names, feeds)

    rng = np.random.default_rng(7)
    shape = (10, 2, 300) if head == "mc" else (10, 300)
    mask = np.zeros(shape, np.int64)
    for number, row in enumerate(mask.reshape(-1, 300)):
        row[: 300 if number < 3 else 4 + number] = 1
        row[number % 4 // 2 : number % 4] = 0
    mask[-1] = 0
    feeds = {"input_ids": rng.integers(2, 1000, shape), "attention_mask": mask}
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})

    inputs = [TensorSpec(name, "int64", HEADS[head].axes) for name in feeds]
    described = SimpleNamespace(head=head, inputs=inputs, outputs=outputs, limits=Limits(300, 1000, 1))
    engine = LengthBucketing(SimpleNamespace(run=run), described)
    found = engine.run(feeds, [spec.name for spec in outputs])

    assert len(runs) > 1
    kept = (mask != 0) | ~mask.any(-1, keepdims=True)
    for spec, array in zip(outputs, found, strict=True):
        reference = expected[spec.name].numpy()
        assert array.shape == reference.shape
        if "sequence" in spec.shape:
            array, reference = array[kept], reference[kept]
        np.testing.assert_allclose(array, reference, atol=TOLERANCE)


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize("target", [CPU, *ON_CUDA])
def test_numbers_are_those_of_pytorch(target, head, traced, session_of, batch):
    model, graph = traced(head)
    optimize_for(target, graph, head, LAYERS, GraphOptions())
    session = session_of(graph)

    for seed, side in product(range(6), ("right", "left", "scattered")):
        feeds = batch(head, seed, side)
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        attend = feeds["attention_mask"].astype(bool)
        for spec, found in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            reference = expected[spec.name].numpy()
            assert found.shape == reference.shape
            if target != FIXED and "sequence" in HEADS[head].outputs[spec.name]:
                kept = attend | ~attend.any(-1, keepdims=True)
                assert not found[~kept & (np.arange(attend.shape[1]) > 0)].any(), "padding is zeros"
                found, reference = found[kept], reference[kept]
            np.testing.assert_allclose(found, reference, atol=TOLERANCE)


@pytest.mark.parametrize("head", CLASSES)
def test_every_attention_is_fused_and_the_rest_is_packed(head, traced):
    _, graph = traced(head)

    done = optimize_for("onnxruntime-cpu", graph, head, LAYERS, GraphOptions())

    counts = Counter(node.op_type for node in graph.graph)
    assert counts["MultiHeadAttention"] == LAYERS
    assert not counts["Softmax"] + counts["Where"] + counts["Transpose"]
    assert done == {
        "name": "onnxruntime-cpu",
        "fused_attention": LAYERS,
        "packed": True,
        "first_token_layer": head in ("cls", "mc"),
    }


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize("target", ON_CUDA)
def test_every_attention_is_masked_by_one_length_per_row(target, head, traced):
    _, graph = traced(head)

    done = optimize_for(target, graph, head, LAYERS, GraphOptions())

    attentions = fused(graph)
    assert len(attentions) == LAYERS
    assert {node.inputs[4].name for node in attentions} == {"key_lengths"}
    lengths = attentions[0].inputs[4]
    assert lengths.dtype == ir.DataType.INT32
    assert [node.op_type for node in graph.graph].count("Softmax") == 0
    assert done == {
        "name": target,
        "fused_attention": LAYERS,
        "packed": target == PACKED,
        "first_token_layer": head in ("cls", "mc"),
        "mask": "key lengths",
    }


@pytest.mark.parametrize("head", CLASSES)
def test_each_pass_says_how_often_it_fired(head, traced):
    pooled = head in ("cls", "mc")
    for by_length in (False, True):
        _, graph = traced(head)
        assert fuse_attention(graph, LAYERS) == LAYERS
        assert pack_tokens(graph, by_length=by_length) == LAYERS
        if pooled:
            assert keep_first_tokens(graph) == FIRST_TOKEN_PRODUCTS
    for first in {False, pooled}:
        _, graph = traced(head)
        fuse_attention(graph, LAYERS)
        assert align_rows(graph, pooled=first) == LAYERS


@pytest.mark.parametrize("target", ON_CUDA)
def test_lengths_count_what_is_attended_to_and_all_of_an_empty_row(target, traced, session_of):
    _, graph = traced("qa")
    optimize_for(target, graph, "qa", LAYERS, GraphOptions())
    lengths = fused(graph)[0].inputs[4]
    lengths.shape = ir.Shape(["batch"])
    graph.graph.outputs.append(lengths)
    mask = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])

    found = session_of(graph).run([str(lengths.name)], {"input_ids": np.full((4, 5), 7), "attention_mask": mask})

    np.testing.assert_array_equal(found[0], [3, 5, 1, 5])


def order_by_hand(mask):
    """The slots' targets and sources: each row sorted, what is attended to first."""
    rows, width = mask.shape
    source = np.concatenate([row * width + np.argsort(1 - mask[row], kind="stable") for row in range(rows)])
    return np.argsort(source), source


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_that_of_a_stable_sort(seed, traced, session_of, batch):
    _, graph = traced("qa")
    fuse_attention(graph, LAYERS)
    order = order_tokens(graph.graph)
    for value in (order.target, order.source):
        value.shape = ir.Shape(["slots"])
        graph.graph.outputs.append(value)
    feeds = batch("qa", seed, "scattered")

    found = session_of(graph).run(["order.target", "order.source"], feeds)

    for ours, expected in zip(found, order_by_hand(feeds["attention_mask"]), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("head", CLASSES)
def test_nothing_has_to_be_copied_from_the_cpu_to_the_device(head, traced):
    """Or ONNX Runtime refuses to capture a CUDA graph: it places on the CPU what follows from shapes alone."""
    _, graph = traced(head)
    optimize_for(FIXED, graph, head, LAYERS, GraphOptions())

    on_cpu = set()
    for node in graph.graph:
        inputs = list(enumerate(node.inputs))
        fed = [i for i, value in inputs if value in on_cpu]
        constant = [i for i, value in inputs if value is None or value.is_initializer()]
        wanted = ON_CPU.get(node.op_type, set())
        if node.op_type == "Shape" or (fed and len(fed) + len(constant) == len(inputs) and not set(fed) & wanted):
            on_cpu.update(node.outputs)
        else:
            assert set(fed) <= wanted, f"{node.op_type} {node.name} reads {[node.inputs[i].name for i in fed]}"
    assert on_cpu
    assert not {"NonZero", "Compress"} & {node.op_type for node in graph.graph}, "their sizes depend on the numbers"


def test_padding_is_computed_for_cuda_graphs_alone(traced, session_of):
    mask = np.zeros((4, 50), np.int64)
    mask[0, :7], mask[1, :50], mask[2, -3:] = 1, 1, 1
    tokens = {}
    for target in (CPU, *ON_CUDA):
        _, graph = traced("base")
        optimize_for(target, graph, "base", LAYERS, GraphOptions())
        inner = next(node.outputs[0] for node in graph.graph if node.op_type == "Gelu")
        inner.shape, inner.type = None, ir.TensorType(ir.DataType.FLOAT)
        graph.graph.outputs.append(inner)
        feeds = {"input_ids": np.full((4, 50), 5), "attention_mask": mask}
        tokens[target] = session_of(graph).run([str(inner.name)], feeds)[0][..., 0].size

    # 7 and 50; 3 and the first, which the pooler reads; all of the row that attends to nothing.
    assert tokens == {FIXED: 4 * 50, CPU: 7 + 50 + 4 + 50, PACKED: 7 + 50 + 4 + 50}


@pytest.mark.parametrize("target", [CPU, *ON_CUDA])
def test_only_first_tokens_pass_through_the_last_layer(target, traced, session_of):
    _, graph = traced("cls")
    optimize_for(target, graph, "cls", LAYERS, GraphOptions())
    last = [node.outputs[0] for node in graph.graph if node.op_type == "Gelu"]
    graph.graph.outputs.extend(last)
    for value in last:
        value.shape, value.type = None, ir.TensorType(ir.DataType.FLOAT)
    ids = np.arange(2, 26).reshape(3, 8)

    _, first, second = session_of(graph).run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    assert (first[..., 0].size, second[..., 0].size) == (24, 3)


@pytest.mark.parametrize("head", ["cls", "qa"])
@pytest.mark.parametrize("target", ON_CUDA)
def test_one_layer_is_first_and_last(target, head, micro_model, trace_once, session_of, batch):
    model = micro_model(head, num_hidden_layers=1)
    graph = trace_once(model, head, GraphOptions())
    assert optimize_for(target, graph, head, 1, GraphOptions())["fused_attention"] == 1
    session = session_of(graph)
    for side in ("left", "scattered"):
        feeds = batch(head, 6, side)
        attend = feeds["attention_mask"].astype(bool)
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        for spec, found in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            kept = attend if head == "qa" else slice(None)
            np.testing.assert_allclose(found[kept], expected[spec.name].numpy()[kept], atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{"position_ids": True}, {"inputs_embeds": True}, {"hidden_states": True}])
@pytest.mark.parametrize("head", ["base", "cls"])
def test_rows_are_reordered_with_other_inputs_and_outputs_too(head, flags, traced, session_of, batch):
    model, graph = traced(head, **flags)
    optimize_for(FIXED, graph, head, LAYERS, GraphOptions(**flags))
    session, rng = session_of(graph), np.random.default_rng(3)

    for side in ("left", "scattered"):
        feeds = batch(head, 2, side)
        shape = feeds["input_ids"].shape
        if "position_ids" in flags:
            feeds["position_ids"] = rng.integers(0, 500, shape)
        if "inputs_embeds" in flags:
            del feeds["input_ids"]
            feeds["inputs_embeds"] = rng.standard_normal((*shape, 64), dtype=np.float32)
        with torch.no_grad():
            expected = model(
                **{name: torch.from_numpy(array) for name, array in feeds.items()}, output_hidden_states=True
            )
        for spec, found in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            name, _, index = spec.name.partition(".")
            reference = expected[name][int(index)] if index else expected[name]
            np.testing.assert_allclose(found, reference.numpy(), atol=TOLERANCE, err_msg=spec.name)


def test_a_graph_that_is_not_as_expected_is_refused_with_layer_and_reason(traced):
    _, graph = traced("qa")
    with pytest.raises(FusionError, match="found 2 attentions in a model of 3 layers"):
        fuse_attention(graph, 3)

    _, graph = traced("qa")
    second = [node for node in graph.graph if node.op_type == "Softmax"][1]
    masked = second.inputs[0].producer()
    second.replace_input_with(0, masked.inputs[2])  # the scores without the mask
    with pytest.raises(FusionError, match="attention of layer 1, mask: expected Where, found MatMul"):
        fuse_attention(graph, LAYERS)


def test_passes_need_those_before_them(traced):
    _, graph = traced("cls")
    with pytest.raises(FusionError, match="packing needs fused attention"):
        pack_tokens(graph)
    fuse_attention(graph, LAYERS)
    with pytest.raises(FusionError, match="the graph is not packed"):
        keep_first_tokens(graph)

    _, base = traced("base")
    fuse_attention(base, LAYERS)
    pack_tokens(base)
    with pytest.raises(FusionError, match="more than the pooler reads the last layer"):
        keep_first_tokens(base)


def test_attention_weights_cannot_be_fused(traced):
    for options in (GraphOptions(attentions=True), GraphOptions(head_mask=True)):
        _, graph = traced("qa", **vars(options))
        with pytest.raises(FusionError, match="weights: expected MatMul alone to read it"):
            optimize_for("onnxruntime-cpu", graph, "qa", LAYERS, options)


def test_graphs_for_cuda_that_are_not_as_expected_are_refused(traced):
    _, graph = traced("qa")
    with pytest.raises(FusionError, match="the graph has no fused attention"):
        align_rows(graph, pooled=False)
    with pytest.raises(FusionError, match="found 2 attentions in a model of 3 layers"):
        optimize_for(FIXED, graph, "qa", 3, GraphOptions())
    with pytest.raises(FusionError, match=r"use --target onnxruntime-cuda$"):
        optimize_for(PACKED, traced("qa")[1], "qa", LAYERS, GraphOptions(position_ids=True))
    _, graph = traced("qa")
    fuse_attention(graph, LAYERS)
    fused(graph)[1].replace_input_with(0, fused(graph)[0].inputs[0])
    with pytest.raises(FusionError, match="layer 1 does not read the norm before it"):
        align_rows(graph, pooled=False)


@pytest.mark.parametrize("target", ON_CUDA)
def test_attention_computes_in_half_unless_scores_could_overflow(target, traced, batch, tmp_path):
    feeds = batch("qa", 1, "right")
    kept = {}
    for factor in (1.0, 100.0):
        _, graph = traced("qa")
        for name, value in graph.graph.initializers.items():
            if name.endswith(("1.self_attn.self_attn.q_proj.weight.T", "1.self_attn.self_attn.k_proj.weight.T")):
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
        optimize_for(target, graph, "qa", LAYERS, GraphOptions())
        kept[factor] = to_half(graph, "fp16", measure_ranges(graph, [feeds], tmp_path))
        types = [node.outputs[0].dtype for node in fused(graph)]
        assert types == [ir.DataType.FLOAT16, ir.DataType.FLOAT if factor > 1 else ir.DataType.FLOAT16]
        assert all(node.inputs[4].dtype == ir.DataType.INT32 for node in fused(graph))
    assert kept[1.0] == ()
    assert "encoder.layers.1 MultiHeadAttention" in kept[100.0]


def test_the_bound_on_scores_is_their_largest_possible_value(traced, session_of, batch, tmp_path):
    """By hand, from the queries and keys of a batch: no product of the two is above it."""
    feeds = batch("qa", 4, "scattered")
    _, graph = traced("qa")
    optimize_for(FIXED, graph, "qa", LAYERS, GraphOptions())
    attention = fused(graph)[0]
    bound = measure_ranges(graph, [feeds], tmp_path)[str(attention.outputs[0].name)]
    names = [str(value.name) for value in attention.inputs[:2]]
    for value in attention.inputs[:2]:
        value.shape = None
        graph.graph.outputs.append(value)
    heads = attention.attributes["num_heads"].as_int()
    query, key = (a.reshape(*a.shape[:2], heads, -1) for a in session_of(graph).run(names, feeds))
    scores = np.abs(np.einsum("bqhd,bkhd->bhqk", query, key)).max()
    assert scores <= bound <= scores * 100
    np.testing.assert_allclose(
        bound, np.linalg.norm(query, axis=-1).max() * np.linalg.norm(key, axis=-1).max(), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (CPU, []),
        (CPU, ["--with-position-ids", "--with-hidden-states"]),
        (CPU, ["--embedding", "int8"]),
        *((target, options) for target in ON_CUDA for options in ([], ["--bf16"], ["--fp16", "--embedding", "int8"])),
    ],
)
def test_exports_pass_the_gate_and_say_what_was_done(target, options, tmp_path):
    arguments = ["--model", "random:tiny", "--head", "base", "--output", str(tmp_path), "--target", target]

    assert main([*arguments, "--engine", "none", *options]) == 0

    manifest = Manifest.load(tmp_path / "base.json")
    assert (manifest.target, manifest.engine is not None) == (target, True)
    done = manifest.engine or {}
    assert (done["fused_attention"], done.get("mask")) == (LAYERS, None if target == CPU else "key lengths")
    assert manifest.packed is (target != FIXED and "--with-position-ids" not in options)
    half = next((option.removeprefix("--") for option in options if option in ("--fp16", "--bf16")), "fp32")
    assert manifest.precision["weights"] == half
    counts = Counter(node.op_type for node in ir.load(tmp_path / "base.onnx").graph)
    assert counts["MultiHeadAttention"] == LAYERS
