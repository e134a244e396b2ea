"""The device that ``run.py`` chose, and artifacts of nano for it. Without a device, all tests here are skipped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import erniem_export
from erniem_export import pipeline
from erniem_export.checkpoint import load_checkpoint

from .trial import Outcome, try_plan

NANO = Path(__file__).resolve().parents[2] / "examples" / "nano" / "checkpoints"
HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what lies in this folder unless a device was chosen."""
    if "ERNIEM_GPU_TEST_DEVICE" in os.environ:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: make test-gpu"))


@pytest.fixture(scope="session")
def device() -> str:
    """As ``Session`` takes it."""
    return os.environ["ERNIEM_GPU_TEST_DEVICE"]


@pytest.fixture(scope="session")
def on_gpu(device: str) -> bool:
    """Whether this is no trial of the tests on a CPU."""
    return device != "cpu"


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[str], Any]:
    """``checkpoint(head)``: nano's, loaded once."""
    loaded: dict[str, Any] = {}

    def load(head: str) -> Any:
        if head not in loaded:
            loaded[head] = load_checkpoint(str(NANO / head), head)
        return loaded[head]

    return load


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """``artifact(head, target, precision)``: exported once, and not judged on the CPU: that is done on the device."""
    folder = tmp_path_factory.mktemp("gpu")
    done: dict[tuple[str, str, str], Path] = {}

    def export(head: str, target: str, precision: str) -> Path:
        key = head, target, precision
        if key not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pipeline, "judge", lambda *_, **__: {})
                done[key], _ = erniem_export.export(
                    NANO / head, folder / "-".join(key), head=head, target=target, precision=precision, engine="none"
                )
        return done[key]

    return export


@pytest.fixture(scope="session")
def trial(tmp_path_factory: pytest.TempPathFactory, device: str) -> Callable[[str], Outcome]:
    """``trial(flavour)``: whether the device runs plans of that flavour, tried once on nano's in fp16."""
    done: dict[str, Outcome] = {}

    def settled(flavour: str) -> Outcome:
        if flavour not in done:
            folder = tmp_path_factory.mktemp(flavour)
            erniem_export.export(NANO / "qa", folder, engine=flavour, precision="fp16")
            done[flavour] = try_plan(folder / "qa.plan", device)
        return done[flavour]

    return settled
