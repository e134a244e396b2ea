#!/usr/bin/env bash
# OpenVINO 2026.4.1 takes a compiled model from CACHE_DIR although the weights have changed.
#
# The name of a cached model depends on the path and the time of the .onnx file. Weights that lie in a file beside it
# (external data) do not count. A model that was trained further and exported again has the same graph, byte for byte.
# Where its file also keeps its time, as with rsync or tar, the cache goes on answering with the old weights, and
# LOADED_FROM_CACHE is the only trace.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 openvino==2026.4.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

folder = Path(tempfile.mkdtemp())
size = 64


def write(factor):
    """A graph of one matmul whose weights lie in a file of their own; only that file depends on the factor."""
    weights = numpy_helper.from_array(np.eye(size, dtype=np.float32) * np.float32(factor), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one_matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", size])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.data").unlink(missing_ok=True)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)


def answer(cached):
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    if cached:
        settings["CACHE_DIR"] = str(folder / "cache")
    compiled = core.compile_model(folder / "model.onnx", "CPU", settings)
    found = float(compiled(np.ones((1, size), np.float32))[0][0, 0])
    return found, cached and compiled.get_property("LOADED_FROM_CACHE")


write(2)
graph, first = (folder / "model.onnx").read_bytes(), os.stat(folder / "model.onnx")
seen = {"weights of 2, cache empty": answer(True)}
write(3)
assert (folder / "model.onnx").read_bytes() == graph  # nothing but the weights has changed
os.utime(folder / "model.onnx", ns=(first.st_atime_ns, first.st_mtime_ns))
seen["weights of 3, cache of before"] = answer(True)
seen["weights of 3, no cache"] = answer(False)
print(f"openvino {openvino.__version__}; (answer, loaded from the cache):")
for name, found in seen.items():
    print(f"  {name:32}{found}")
assert seen["weights of 2, cache empty"] == (2.0, False)
assert seen["weights of 3, cache of before"] == (2.0, True)
assert seen["weights of 3, no cache"] == (3.0, False)
PY
