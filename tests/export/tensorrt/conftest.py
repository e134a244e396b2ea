"""Nano with its plans, built for real; needs TensorRT for RTX, which .venv has."""

import dataclasses
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from erniem_export.bundle import files_of
from erniem_export.checkpoint import load_checkpoint
from erniem_export.gate.cases import build_cases
from erniem_export.onnx_export import write
from erniem_export.options import PORTABLE, EngineOptions, GraphOptions, Int8, Precision
from erniem_export.passes.precision import apply_precision
from erniem_export.progress import Terminal
from erniem_export.quantization.quantize import quantize_for_engine
from erniem_export.tensorrt.builder import load_library
from erniem_export.tensorrt.plan import add_plan
from erniem_rt.manifest import Manifest, Profile

ROOT = Path(__file__).parents[3]
NANO = ROOT / "examples" / "nano" / "checkpoints"


@pytest.fixture(scope="session")
def rtx():
    """The module."""
    import tensorrt_rtx

    return tensorrt_rtx


@pytest.fixture(scope="session")
def fake():
    """The module beside this file: full TensorRT's stand-in."""
    spec = spec_from_file_location("fake_tensorrt", Path(__file__).with_name("fake.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_profile():
    """A profile for a head: up to two rows of 512, best at 16."""
    return lambda head: (
        Profile((1, 1, 1), (1, 3, 16), (1, 3, 512)) if head == "mc" else Profile((1, 1), (1, 16), (2, 512))
    )


@pytest.fixture(scope="session")
def stage(nano_artifact, trace_once, tmp_path_factory):
    """``stage(head, precision)``: nano's graph in standard operators, as plans are built from it, its manifest and its
    checkpoint.
    """
    folder = tmp_path_factory.mktemp("staged")

    def make(head, precision):
        target = folder / precision / head
        shutil.copytree(nano_artifact(head).parent, target)
        manifest, checkpoint = Manifest.load(target / f"{head}.json"), load_checkpoint(str(NANO / head), head)
        graph = trace_once(checkpoint.model, head, GraphOptions())
        cases = build_cases(manifest, checkpoint.tokenizer_dir, seed=1)
        facts = apply_precision(graph, Precision("fp16" if precision == "int8" else precision), cases, target)
        if precision == "int8":
            limits = manifest.limits
            quantize_for_engine(graph, checkpoint, NANO / head, Int8(), limits, "tensorrt-rtx", Terminal())
            facts |= {"weights": "int8", "products": "fp16"}
        write(graph, target / f"{head}.onnx")
        (target / f"{head}.json").unlink()
        manifest = dataclasses.replace(
            manifest, precision=facts, files=files_of(target), target=PORTABLE, engine=None, packed=False
        )
        manifest.save(target / f"{head}.json")
        return target, manifest, checkpoint

    return make


@pytest.fixture(scope="session")
def planned(rtx, stage, small_profile):
    """``planned(head, precision)``: nano's artifact of this head, with a plan, built once; and its manifest."""
    done = {}

    def make(head, precision):
        if (head, precision) not in done:
            folder, manifest, checkpoint = stage(head, precision)
            library = load_library("tensorrt-rtx")
            assert library is not None
            options = EngineOptions("tensorrt-rtx", profiles=(small_profile(head),))
            file = folder / f"{head}.json"
            plan, record = add_plan(folder, folder, manifest, checkpoint, library, options, Terminal())
            files = {**manifest.files, plan.file: record}
            dataclasses.replace(manifest, plan=plan, files=files).save(file)
            done[head, precision] = folder / f"{head}.onnx", Manifest.load(file)
        return done[head, precision]

    return make
