"""Graphs for ONNX Runtime: fused, packed, and the same numbers as PyTorch wherever somebody looks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
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
from erniem_export.passes.packing import keep_first_tokens, pack_tokens
from erniem_export.passes.targets import optimize_for
from erniem_rt.engines.like_lengths import LikeLengths
from erniem_rt.manifest import HEADS, Manifest, TensorSpec

LAYERS = 2
TOLERANCE = 1e-5
# Query, the output of attention, and both of the feed-forward network.
FIRST_TOKEN_PRODUCTS = 4


@pytest.mark.parametrize("head", CLASSES)
def test_a_batch_that_runs_in_parts_has_the_numbers_of_pytorch(head: str, traced, session_of) -> None:
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

    engine = LikeLengths(SimpleNamespace(run=run), SimpleNamespace(head=head, outputs=outputs))
    found = engine.run(feeds, [spec.name for spec in outputs])

    assert len(runs) > 1
    kept = (mask != 0) | ~mask.any(-1, keepdims=True)
    for spec, array in zip(outputs, found, strict=True):
        reference = expected[spec.name].numpy()
        assert array.shape == reference.shape
        if "sequence" in spec.shape:
            array, reference = array[kept], reference[kept]
        np.testing.assert_allclose(array, reference, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["right", "left", "scattered"])
@pytest.mark.parametrize("head", CLASSES)
def test_numbers_are_those_of_pytorch(head: str, side: str, traced, session_of, batch) -> None:
    model, graph = traced(head)
    optimize_for("onnxruntime-cpu", graph, head, LAYERS, GraphOptions())
    session = session_of(graph)

    for seed in range(5):
        feeds = batch(head, seed, side)
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        attend = feeds["attention_mask"].astype(bool)
        for spec, found in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            reference = expected[spec.name].numpy()
            assert found.shape == reference.shape
            if "sequence" in HEADS[head].outputs[spec.name]:
                empty = ~attend.any(-1)
                np.testing.assert_allclose(found[empty], reference[empty], atol=TOLERANCE)
                left_out = ~attend & ~empty[:, None] & (np.arange(attend.shape[1]) > 0)
                assert not found[left_out].any()
                found, reference = found[attend], reference[attend]
            np.testing.assert_allclose(found, reference, atol=TOLERANCE)


@pytest.mark.parametrize("head", CLASSES)
def test_every_attention_is_fused_and_the_rest_is_packed(head: str, traced) -> None:
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
def test_each_pass_says_how_often_it_fired(head: str, traced) -> None:
    _, graph = traced(head)
    assert fuse_attention(graph, LAYERS) == LAYERS
    assert pack_tokens(graph) == LAYERS
    if head in ("cls", "mc"):
        assert keep_first_tokens(graph) == FIRST_TOKEN_PRODUCTS


def test_only_first_tokens_pass_through_the_last_layer(traced, session_of) -> None:
    _, graph = traced("cls")
    optimize_for("onnxruntime-cpu", graph, "cls", LAYERS, GraphOptions())
    last = [node.outputs[0] for node in graph.graph if node.op_type == "Gelu"]
    graph.graph.outputs.extend(last)
    for value in last:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    session = session_of(graph)

    ids = np.arange(2, 26).reshape(3, 8)
    _, first, second = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    assert (len(first), len(second)) == (24, 3)


def test_padding_is_not_computed(traced, session_of) -> None:
    _, graph = traced("base")
    optimize_for("onnxruntime-cpu", graph, "base", LAYERS, GraphOptions())
    inner = next(node.outputs[0] for node in graph.graph if node.op_type == "Gelu")
    inner.type = ir.TensorType(ir.DataType.FLOAT)
    graph.graph.outputs.append(inner)
    mask = np.zeros((4, 50), np.int64)
    mask[0, :7], mask[1, :50], mask[2, -3:] = 1, 1, 1

    tokens = session_of(graph).run([str(inner.name)], {"input_ids": np.full((4, 50), 5), "attention_mask": mask})[0]

    # 7 and 50; 3 and the first, which the pooler reads; all of the row that attends to nothing.
    assert len(tokens) == 7 + 50 + 4 + 50


def test_a_graph_that_is_not_as_expected_is_refused_with_layer_and_reason(traced) -> None:
    _, graph = traced("qa")
    with pytest.raises(FusionError, match="found 2 attentions in a model of 3 layers"):
        fuse_attention(graph, 3)

    _, graph = traced("qa")
    second = [node for node in graph.graph if node.op_type == "Softmax"][1]
    masked = second.inputs[0].producer()
    second.replace_input_with(0, masked.inputs[2])  # the scores without the mask
    with pytest.raises(FusionError, match="attention of layer 1, mask: expected Where, found MatMul"):
        fuse_attention(graph, LAYERS)


def test_passes_need_those_before_them(traced) -> None:
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


def test_attention_weights_cannot_be_fused(traced) -> None:
    for options in (GraphOptions(attentions=True), GraphOptions(head_mask=True)):
        with pytest.raises(FusionError, match="use --target portable"):
            optimize_for("onnxruntime-cpu", traced("qa")[1], "qa", LAYERS, options)


@pytest.mark.parametrize("options", [[], ["--with-position-ids", "--with-hidden-states"], ["--embedding", "int8"]])
def test_exports_pass_the_gate_and_say_what_was_done(options: list[str], tmp_path: Path) -> None:
    arguments = ["--model", "random:tiny", "--head", "base", "--output", str(tmp_path)]

    assert main([*arguments, *options]) == 0

    manifest = Manifest.load(tmp_path / "base.json")
    assert manifest.target == "onnxruntime-cpu"
    assert manifest.engine is not None
    assert manifest.engine["fused_attention"] == LAYERS
    assert manifest.engine["packed"] is ("--with-position-ids" not in options)
