"""What the tests of plans share: a machine with fake GPUs, and the oracle."""

from __future__ import annotations

import functools
import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniem_rt import Session

from .fake_cuda import FakeGpu, FakeRuntime
from .fake_tensorrt import FakeTensorRT

VERSION = "10.13.0.35"


@dataclass
class Machine:
    """A machine with fake GPUs, and TensorRT of one flavour."""

    gpu: FakeGpu
    trt: FakeTensorRT

    def check(self) -> None:
        """Nothing was done wrongly, and nothing is left."""
        gc.collect()
        assert self.gpu.violations == []
        assert self.gpu.leaks() == []
        assert self.trt.alive == {"Runtime": 0, "ICudaEngine": 0, "IExecutionContext": 0}


def install(monkeypatch: pytest.MonkeyPatch, *, rtx: bool = False, version: str = VERSION, **gpu: Any) -> Machine:
    """Put the fakes in the place of the real modules; the other flavour is not installed."""
    fake = FakeGpu(**gpu)
    machine = Machine(fake, FakeTensorRT(fake, version, rtx=rtx))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeRuntime(fake))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx" if rtx else "tensorrt", machine.trt)
    monkeypatch.setitem(sys.modules, "tensorrt" if rtx else "tensorrt_rtx", None)
    return machine


PLAN: dict[str, Any] = {
    "version": VERSION,
    "precision": {"weights": "fp32", "embedding": "fp32"},
    "compute_capabilities": ["8.9", "12.0"],
    "hardware_compatible": False,
    "version_compatible": False,
    "attention": {},
    "proof": {},
    "build": {},
    "parity": {},
}


@functools.cache
def _opened(onnx: Path) -> Session:
    return Session(onnx, threads=2)


def expected(onnx: Path, ids: Any, mask: Any) -> dict[str, np.ndarray]:
    """What the graph beside the plan answers, with the plan's promise for padding: zero but in a row's first place."""
    session = _opened(onnx)
    outputs = session.run(input_ids=ids, attention_mask=mask)
    attend = np.asarray(mask) != 0
    kept = attend | (np.arange(attend.shape[-1]) == 0) | ~attend.any(-1, keepdims=True)
    for spec in session.manifest.outputs:
        if "sequence" in spec.shape:
            array = outputs[spec.name]
            outputs[spec.name] = np.where(kept.reshape(kept.shape + (1,) * (array.ndim - kept.ndim)), array, 0)
    return outputs


def assert_same(found: Any, wanted: dict[str, np.ndarray], tolerance: float = 2e-5) -> None:
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        scale = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance * scale, err_msg=name)
