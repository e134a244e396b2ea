"""What the GPU's adapters ask of the engines."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import erniem_rt
from benchmarks.adapters.gpu_erniem_session import load


@pytest.mark.parametrize(("suffix", "threads", "trusted"), [(".plan", None, True), (".onnx", 3, False)])
def test_whether_a_plan_runs_is_left_to_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str, threads: int | None, trusted: bool
) -> None:
    """Or a GPU that the manifest does not list would be a gap before it was tried."""
    plan = SimpleNamespace(flavour="tensorrt-rtx", version="1.7.1.116")
    manifest = SimpleNamespace(precision={"weights": "fp16"}, plan=plan)
    opened: list[tuple[Path, dict[str, Any]]] = []

    def session(path: Path, **options: Any) -> Any:
        opened.append((path, options))
        return SimpleNamespace(manifest=manifest)

    monkeypatch.setattr(erniem_rt, "Session", session)
    (tmp_path / f"cls{suffix}").touch()
    load(tmp_path, 3, "cuda:1", "fp16", suffix=suffix, cuda_graphs=True)
    options = {"device": "cuda:1", "threads": threads, "cuda_graphs": True, "trust_plan": trusted}
    assert opened == [(tmp_path / f"cls{suffix}", options)]
