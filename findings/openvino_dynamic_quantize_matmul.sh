#!/usr/bin/env bash
# OpenVINO 2026.4.1 computes ONNX Runtime's operator DynamicQuantizeMatMul by rules of its own.
#
# The operator's definition has one scale and one zero point for the whole activation tensor. ONNX Runtime follows it.
# OpenVINO's CPU plugin takes symmetric int8 scales for groups of 32 neighbours in a row instead, which is its default
# for dynamic quantization. Its result is the more accurate one, and a row no longer depends on the rest of its batch.
# Two engines on one graph therefore differ by about one percent, and neither reports anything.
#
# Seen on a CPU with AVX-512 VNNI; on other CPUs the script says so and checks nothing.
set -euo pipefail
if ! grep -q avx512_vnni /proc/cpuinfo; then
  echo "not checked: this CPU has no AVX-512 VNNI"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnx==1.23.2 onnxruntime==1.31.1 openvino==2026.4.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
rows, width, columns = 16, 64, 48
weights = rng.normal(size=(width, columns)).astype(np.float32)
scale = np.float32(np.abs(weights).max() / 127)
quantized = np.round(weights / scale).astype(np.int8)
model = helper.make_model(
    helper.make_graph(
        [helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain="com.microsoft")],
        "one_matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", columns])],
        [numpy_helper.from_array(quantized, "w"), numpy_helper.from_array(scale, "s")],
    ),
    opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
    ir_version=8,
).SerializeToString()

session = onnxruntime.InferenceSession(model)
core = openvino.Core()
compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


x = rng.normal(size=(rows, width)).astype(np.float32)
dense = quantized.astype(np.float32) * scale
low, high = min(x.min(), 0), max(x.max(), 0)
step = (high - low) / 255
zero = np.round(-low / step)
whole_tensor = ((np.clip(np.round(x / step) + zero, 0, 255) - zero) * step) @ dense
groups = x.reshape(rows, -1, 32)
steps = np.abs(groups).max(axis=2, keepdims=True) / 127
groups_of_32 = (np.round(groups / steps) * steps).reshape(x.shape) @ dense

ort, ov = session.run(None, {"x": x})[0], compiled(x)[0].copy()
loud = x.copy()
loud[0] *= 100  # one row of the batch with large values
figures = {
    "onnxruntime to the definition": relative(ort, whole_tensor),
    "openvino to the definition": relative(ov, whole_tensor),
    "openvino to groups of 32": relative(ov, groups_of_32),
    "onnxruntime to float weights": relative(ort, x @ dense),
    "openvino to float weights": relative(ov, x @ dense),
    "onnxruntime, rows beside a loud one": relative(session.run(None, {"x": loud})[0][1:], ort[1:]),
    "openvino, rows beside a loud one": relative(compiled(loud)[0][1:], ov[1:]),
}
print(f"onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__}, relative L2 differences:")
for name, figure in figures.items():
    print(f"  {name:38}{figure:.1e}")
assert figures["onnxruntime to the definition"] < 1e-5
assert figures["openvino to groups of 32"] < 1e-5
assert 0.005 < figures["openvino to the definition"] < 0.02
assert figures["openvino to float weights"] < figures["onnxruntime to float weights"]
assert figures["onnxruntime, rows beside a loud one"] > 0.1
assert figures["openvino, rows beside a loud one"] == 0
PY
