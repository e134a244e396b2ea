#!/usr/bin/env bash
# ONNX Runtime's quantize_dynamic refuses a valid model if value_info tells the shape of a Gemm's weights.
#
# It replaces Gemm(transB=1) by MatMul and transposes the weights in place. An entry of value_info for them stays as it
# was, and shape inference then stops: "Inferred shape and existing shape differ". Weights that are square pass. Exporters
# that write value_info for every initializer (torch.onnx.export with dynamo, through onnx-ir) make such models; without
# the entry, which says nothing that the tensor does not say, the same model passes. Measured with onnxruntime 1.31.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import logging
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

logging.disable(logging.WARNING)


def outcome(rows, columns, with_value_info):
    weights = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    told = [helper.make_tensor_value_info("w", TensorProto.FLOAT, weights.shape)] if with_value_info else []
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", rows])],
        [numpy_helper.from_array(weights, "w")],
        value_info=told,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    source, target = f"{sys.argv[1]}/model.onnx", f"{sys.argv[1]}/quantized.onnx"
    onnx.save(model, source)
    try:
        quantize_dynamic(source, target)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    onnxruntime.InferenceSession(target)
    return "passes"


print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
found = {}
for rows, columns in ((3, 8), (8, 8)):
    for told in (True, False):
        found[rows, told] = outcome(rows, columns, told)
        print(f"  weights ({rows}, {columns}), value_info {told}: {found[rows, told]}")
assert "Inferred shape and existing shape differ" in found[3, True]
assert found[3, False] == found[8, True] == found[8, False] == "passes"
PY
