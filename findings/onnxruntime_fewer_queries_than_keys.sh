#!/usr/bin/env bash
# ONNX Runtime before 1.21 computes MultiHeadAttention wrongly where there are fewer queries than keys, and a key mask.
#
# The usual case is a classifier that reads the first token only: its last layer has one query per row and a padded batch.
# 1.20.1 gives other numbers there and reports nothing; with as many queries as keys the same mask holds. 1.21.0 is right.
# Servers that bundle an older ONNX Runtime (Triton images before 25.03, for example) return such answers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

batch, heads, keys, size = 2, 2, 6, 8
hidden = heads * size
rng = np.random.default_rng(0)
mask = np.ones((batch, keys), np.int32)
mask[0, 3:] = 0  # the first row is padded


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def split(x):
    return x.reshape(batch, -1, heads, size).transpose(0, 2, 1, 3)


def difference(queries):
    q = rng.normal(size=(batch, queries, hidden)).astype(np.float32)
    k, v = (rng.normal(size=(batch, keys, hidden)).astype(np.float32) for _ in range(2))
    node = helper.make_node(
        "MultiHeadAttention", ["q", "k", "v", "", "mask"], ["y"], domain="com.microsoft", num_heads=heads
    )
    shapes = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden)}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, *s]) for n, s in shapes.items()]
    inputs.append(helper.make_tensor_value_info("mask", TensorProto.INT32, [batch, keys]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, queries, hidden])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "one", inputs, [output]), opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {"q": q, "k": k, "v": v, "mask": mask})[0]
    scores = split(q) @ split(k).transpose(0, 1, 3, 2) / np.sqrt(size)
    scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
    expected = (softmax(scores) @ split(v)).transpose(0, 2, 1, 3).reshape(found.shape)
    return float(np.abs(found - expected).max())


print(onnxruntime.__version__, *("wrong" if difference(queries) > 0.01 else "right" for queries in (1, 2, keys)))
PY
for version in 1.20.1 1.21.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version" onnx==1.17.0 "numpy<2.3"
done
old=$("$folder/1.20.1/bin/python" "$folder/look.py")
new=$("$folder/1.21.0/bin/python" "$folder/look.py")
printf 'version, one query, two queries, as many as keys\n%s\n%s\n' "$old" "$new"
[ "$old" = "1.20.1 wrong wrong right" ]
[ "$new" = "1.21.0 right right right" ]
