"""Plans without a GPU: an artifact, a plan beside it that runs its graph, and the fakes that run the plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from erniem_rt.files import hash_file

from .fake_tensorrt import write_plan
from .support import PLAN, Machine, install


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Two GPUs and full TensorRT; when the test is over, nothing may be left on them."""
    made = install(monkeypatch)
    yield made
    made.check()


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Two GPUs and TensorRT for RTX."""
    made = install(monkeypatch, rtx=True)
    yield made
    made.check()


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Path]:
    """``plan_of(onnx, profiles, ...)``: a copy of the artifact with a plan beside it; returns the plan's path."""

    def make(onnx: Path, profiles: Any = None, *, flavour: str = "tensorrt", **settings: Any) -> Path:
        folder = tmp_path / f"plans{len(list(tmp_path.iterdir()))}"
        shutil.copytree(onnx.parent, folder)
        plan = folder / f"{onnx.stem}.plan"
        describe = {name: settings.pop(name) for name in list(settings) if name in PLAN}
        axes = 3 if onnx.stem == "mc" else 2
        profiles = profiles or [[[1] * axes, [2] * axes, [4] * (axes - 1) + [16]]]
        write_plan(plan, onnx, profiles, **settings)
        content = json.loads(plan.with_suffix(".json").read_text("utf-8"))
        content["plan"] = {
            **PLAN,
            "file": plan.name,
            "flavour": flavour,
            "profiles": [dict(zip(("min", "opt", "max"), shapes, strict=True)) for shapes in profiles],
            **describe,
        }
        content["files"][plan.name] = vars(hash_file(plan))
        plan.with_suffix(".json").write_text(json.dumps(content), "utf-8")
        return plan

    return make
