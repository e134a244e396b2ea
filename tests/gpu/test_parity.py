"""The parity gate on the device: every head, precision and engine against the PyTorch model in fp32 on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import erniem_export
from erniem_export.errors import ParityError
from erniem_export.gate.parity import check_parity
from erniem_rt import Session
from erniem_rt.manifest import FLAVOURS, HEADS

NANO = Path(__file__).resolve().parents[2] / "examples" / "nano" / "checkpoints"
PRECISIONS = ("fp32", "fp16", "bf16")
# The targets of the graphs for ONNX Runtime, and whether they run as CUDA graphs.
GRAPHS = {
    "plain": ("portable", False),
    "key-lengths": ("onnxruntime-cuda", False),
    "cuda-graphs": ("onnxruntime-cuda", True),
    "packed": ("onnxruntime-cuda-packed", False),
}


class Repeated:
    """A session that gives its third answer: the first is not captured, the second is, the third is replayed."""

    def __init__(self, session: Session) -> None:
        self._session, self.manifest = session, session.manifest
        self.limits, self.packed = session.limits, session.packed
        self.engine, self.precision = session.engine, session.precision

    def run(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """As ``Session.run``."""
        for _ in range(2):
            self._session.run(*arguments, **named)
        return self._session.run(*arguments, **named)


def opener(
    device: str, *, cuda_graphs: bool = False, suffix: str = ".onnx", trust_plan: bool = False
) -> Callable[[Path], Any]:
    """What the gate opens artifacts with."""

    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[Any]:
        options = {"cuda_graphs": cuda_graphs, "trust_plan": trust_plan}
        with Session(path.with_suffix(suffix), device=device, **options) as session:
            yield Repeated(session) if cuda_graphs else session

    return opened


@pytest.mark.parametrize("engine", GRAPHS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", HEADS)
def test_onnxruntime(
    head: str, precision: str, engine: str, device: str, on_gpu: bool, artifact: Any, checkpoint: Any
) -> None:
    target, cuda_graphs = GRAPHS[engine]
    if not on_gpu and (cuda_graphs or precision == "bf16"):
        pytest.skip("a CPU has no CUDA graphs, and ONNX Runtime no bfloat16 there")
    path, loaded = artifact(head, target, precision), checkpoint(head)

    report = check_parity(
        path,
        loaded.model,
        tokenizer_dir=loaded.tokenizer_dir,
        open_session=opener(device, cuda_graphs=cuda_graphs),
    )

    assert report.to_json()["passed"]


def require_builder(flavour: str, on_gpu: bool) -> None:
    """Skip the test unless plans of this flavour can be built and tried here."""
    if find_spec(FLAVOURS[flavour]) is None:
        pytest.skip(f"{flavour} is not installed")
    if not on_gpu:
        pytest.skip("a plan runs on a GPU only")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_whether_this_gpu_runs_plans(flavour: str, on_gpu: bool, trial: Any, capsys: Any, record_property: Any) -> None:
    """A finding, printed, where the manifest does not list the GPU (Hopper and TensorRT for RTX); else it must run."""
    require_builder(flavour, on_gpu)
    outcome = trial(flavour)
    record_property(flavour, str(outcome))
    with capsys.disabled():
        print(f"\n{flavour}: {outcome}")
    assert outcome.listed or flavour == "tensorrt-rtx", "full TensorRT builds for the GPU that it builds on"


@pytest.mark.parametrize("precision", [*PRECISIONS, "int8"])
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("head", HEADS)
def test_tensorrt(
    head: str, flavour: str, precision: str, device: str, on_gpu: bool, checkpoint: Any, trial: Any, tmp_path: Path
) -> None:
    require_builder(flavour, on_gpu)
    outcome = trial(flavour)
    if outcome.refusal is not None:
        pytest.skip(str(outcome))
    _, manifest = erniem_export.export(NANO / head, tmp_path, head=head, engine=flavour, precision=precision)
    assert manifest.plan is not None, "the export left no plan"
    loaded = checkpoint(head)

    for cuda_graphs in (False, True):
        report = check_parity(
            tmp_path / f"{head}.onnx",
            loaded.model,
            tokenizer_dir=loaded.tokenizer_dir,
            open_session=opener(device, cuda_graphs=cuda_graphs, suffix=".plan", trust_plan=not outcome.listed),
        )

        assert report.to_json()["passed"]


def test_the_gate_on_the_device_can_fail(device: str, artifact: Any, checkpoint: Any) -> None:
    """With another checkpoint's weights: a session that the gate were not to look at would pass."""
    loaded = checkpoint("cls")
    weight = loaded.model.classifier.bias.data
    before = weight.clone()
    weight += 1.0
    try:
        with pytest.raises(ParityError, match="does not compute what the PyTorch model computes"):
            check_parity(artifact("cls", "onnxruntime-cuda", "fp32"), loaded.model, open_session=opener(device))
    finally:
        weight.copy_(before)
