"""Weights that processes share: the mapped file itself, instead of a copy in each process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from erniem_rt import Session
from erniem_rt.errors import InvalidInputError

SIZE = 2048  # of a square matrix: 16 MiB of weights
MEMORY = Path("/proc/self/smaps_rollup")
# Run in a process of its own: memory that is nobody else's, in MiB, once a graph is open and has run.
MEASURE = """
import sys
from pathlib import Path
import numpy as np
from erniem_rt.engines import GraphOptions
from erniem_rt.engines.onnxruntime import OrtEngine
engine = OrtEngine(Path(sys.argv[1]), GraphOptions(share_weights=sys.argv[2] == "shared"))
engine.run({"x": np.ones((4, int(sys.argv[3])), np.float32)}, ["y"])
lines = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
print(int(lines["Anonymous"].split()[0]) // 1024)
"""


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A graph of one matrix product, its matrix in a file of its own."""
    matrix = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", SIZE]) for name in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], [numpy_helper.from_array(matrix, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "x.onnx", save_as_external_data=True, location="x.onnx.data")
    return tmp_path / "x.onnx"


@pytest.mark.skipif(not MEMORY.exists(), reason="only Linux says what memory is a process's own")
def test_no_copy_of_the_weights_is_made(product):
    def own_memory(how: str) -> int:
        command = [sys.executable, "-c", MEASURE, str(product), how, str(SIZE)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert own_memory("copied") - own_memory("shared") >= 12


def test_the_answers_are_the_same(heads):
    ids = np.array([[0, 5, 9, 7, 2], [0, 6, 2, 1, 1]])
    with Session(heads["qa"].path) as copied, Session(heads["qa"].path, share_weights=True) as shared:
        expected = copied.run(input_ids=ids)
        for found in (shared.run(input_ids=ids), *shared.run_all([{"input_ids": ids}, {"input_ids": ids}])):
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)


def test_on_a_gpu_there_is_nothing_to_share(heads):
    with pytest.raises(InvalidInputError, match="share_weights=True needs device='cpu', got device='cuda:1'"):
        Session(heads["qa"].path, device="cuda:1", share_weights=True)
