#!/usr/bin/env bash
# A row whose keys are all masked gets one of three answers, depending on which attention operator a graph uses.
#
# Such rows are ordinary: padding to a fixed batch size makes them. In ONNX Runtime 1.31.1 and OpenVINO 2026.4.1 alike
# * ONNX's Attention (opset 23) with a Boolean mask gives zeros,
# * the contrib operator MultiHeadAttention with a key mask gives almost what it gives without any mask, since its
#   default mask_filter_value of -10000 moves all scores alike,
# * MultiHeadAttention with mask_filter_value=-3.4e38 gives the mean of all values, as a float32 PyTorch model that adds
#   the lowest float32 to its scores does.
# An exporter that swaps one operator for another changes these rows without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 openvino==2026.4.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper

batch, heads, length, size = 2, 2, 4, 8
rng = np.random.default_rng(0)
q, k, v = (rng.normal(size=(batch, heads, length, size)).astype(np.float32) for _ in range(3))
masked = np.array([1, 0])  # the second row attends to nothing


def side_by_side(x):
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def model(node, shape, mask, contrib):
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "qkv"]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "attention", [*inputs, mask], [output])
    opsets = [helper.make_opsetid("", 17 if contrib else 23)]
    opsets += [helper.make_opsetid("com.microsoft", 1)] if contrib else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()


def standard(keep):
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"])
    mask = helper.make_tensor_value_info("mask", TensorProto.BOOL, [batch, 1, length, length])
    given = np.broadcast_to(keep.astype(bool)[:, None, None, None], (batch, 1, length, length))
    return model(node, list(q.shape), mask, False), {"q": q, "k": k, "v": v, "mask": np.ascontiguousarray(given)}


def contrib(keep, **attributes):
    node = helper.make_node(
        "MultiHeadAttention", ["q", "k", "v", "", "mask"], ["y"], domain="com.microsoft", num_heads=heads, **attributes
    )
    mask = helper.make_tensor_value_info("mask", TensorProto.INT32, [batch, length])
    given = np.repeat(keep.astype(np.int32)[:, None], length, axis=1)
    feeds = {name: side_by_side(x) for name, x in zip("qkv", (q, k, v))}
    return model(node, [batch, length, heads * size], mask, True), {**feeds, "mask": given}


def in_onnxruntime(content, feeds):
    return onnxruntime.InferenceSession(content).run(None, feeds)[0]


def in_openvino(content, feeds):
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(feeds)[0].copy()


mean = side_by_side(np.broadcast_to(v.mean(axis=2, keepdims=True), v.shape))[1]
print(f"onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__}, largest differences:")
for name, run in (("onnxruntime", in_onnxruntime), ("openvino", in_openvino)):
    zeros = np.abs(run(*standard(masked))[1]).max()
    default = np.abs(run(*contrib(masked))[1] - run(*contrib(np.ones(2)))[1]).max()
    lowest = np.abs(run(*contrib(masked, mask_filter_value=-3.4e38))[1] - mean).max()
    print(f"  {name}: Attention to zeros {zeros:.1e}, MultiHeadAttention to no mask {default:.1e},")
    print(f"    with mask_filter_value=-3.4e38 to the mean {lowest:.1e}; the mean to zeros {np.abs(mean).max():.1e}")
    assert zeros == 0
    assert default < 1e-3
    assert lowest < 1e-6
assert np.abs(mean).max() > 0.1
PY
