"""Attention stays on the fast kernels, which ONNX Runtime says itself, and the engine keeps to the device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniem_rt import ArtifactError, Session
from erniem_rt.engines.onnxruntime import MOST_GRAPHS

RUN = """
import sys, numpy as np
from erniem_rt import Session
ids = np.arange(4, 4 + 3 * 24).reshape(3, 24)
mask = np.ones_like(ids); mask[1, :9] = mask[2, 5:] = 0
with Session(sys.argv[1], device=sys.argv[2]) as session:
    session.run(input_ids=ids, attention_mask=mask)
"""


def kernels(path: Path, device: str) -> list[str]:
    """The attention kernel of every fused node of one run, as onnxruntime names them."""
    environment = {**os.environ, "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path), device], env=environment, capture_output=True, text=True, check=True
    )
    return re.findall(r"Operator=MultiHeadAttention.*?SdpaKernel=(\w+)", done.stdout)


@pytest.mark.parametrize("target", ["onnxruntime-cuda", "onnxruntime-cuda-packed"])
def test_masked_attention_in_fp16_is_on_a_fast_kernel(target: str, device: str, on_gpu: bool, artifact: Any) -> None:
    if not on_gpu:
        pytest.skip("a CPU has no such kernels")
    found = kernels(artifact("qa", target, "fp16"), device)
    assert found, "onnxruntime names no kernel: look at what it prints"
    assert "MATH" not in found


def test_a_mask_in_two_dimensions_is_not(device: str, on_gpu: bool, artifact: Any) -> None:
    """Why the tokens are moved: were this to fail, the graph for the CPU would do."""
    if not on_gpu:
        pytest.skip("a CPU has no such kernels")
    assert "MATH" in kernels(artifact("qa", "onnxruntime-cpu", "fp32"), device)


def test_many_shapes_in_turn_as_cuda_graphs(device: str, on_gpu: bool, artifact: Any) -> None:
    if not on_gpu:
        pytest.skip("a CPU has no CUDA graphs")
    path, rng = artifact("qa", "onnxruntime-cuda", "fp16"), np.random.default_rng(0)
    with Session(path, device=device) as plain, Session(path, device=device, cuda_graphs=True) as graphs:
        for _ in range(3):
            for length in range(8, 8 + MOST_GRAPHS + 4):
                ids = rng.integers(4, 200, (2, length))
                mask = rng.integers(0, 2, ids.shape)
                expected, found = (each.run(input_ids=ids, attention_mask=mask) for each in (plain, graphs))
                for name, array in expected.items():
                    np.testing.assert_allclose(found[name], array, atol=1e-2)


def test_packed_graphs_are_refused_as_cuda_graphs(artifact: Any) -> None:
    with pytest.raises(ArtifactError, match="the work of a packed graph depends on the mask"):
        Session(artifact("qa", "onnxruntime-cuda-packed", "fp16"), device="cuda", cuda_graphs=True)
