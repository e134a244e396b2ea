"""From checkpoint to answers by a plan: TensorRT for RTX builds it, Session and pipeline run it.

Without a GPU, what lies in the plan cannot be run: in its stead the fake runs the graph that went into the builder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx

from erniem_export.cli import main
from erniem_export.tensorrt import plan as builder
from erniem_rt import Session, pipeline

from .fake_tensorrt import settings_of_plan
from .support import assert_same, expected, install

NANO = Path(__file__).parents[3] / "examples" / "nano" / "checkpoints" / "qa"
PROFILE = ((1, 1), (1, 16), (2, 128))
QUESTION = {
    "question": "Where does Anna live?",
    "context": "Anna lives in Berlin. Her brother Paul moved to Madrid when he was a student, and stayed there.",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The exported graph, and a copy of what the builder parsed."""
    folder = tmp_path_factory.mktemp("exported")
    parse = builder.parse

    def keep(library, made, path):
        shutil.rmtree(folder / "parsed", ignore_errors=True)  # of a trial; the plan's comes last
        shutil.copytree(path.parent, folder / "parsed")
        return parse(library, made, path)

    profile = ",".join("x".join(map(str, shape)) for shape in PROFILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "parse", keep)
        shutil.copytree(NANO, folder / "qa", ignore=shutil.ignore_patterns("task_set.jsonl"))
        arguments = ["--model", str(folder / "qa"), "--output", str(folder / "out"), "--engine", "tensorrt-rtx"]
        assert main([*arguments, "--profile", profile]) == 0
    return folder / "out" / "qa.onnx", folder / "parsed" / "qa.onnx"


@pytest.fixture
def plan(exported, monkeypatch):
    """The plan, on a machine that could run it."""
    graph, parsed = exported
    path = graph.with_suffix(".plan")
    machine = install(monkeypatch, rtx=True, version=tensorrt_rtx.__version__)
    machine.trt.built[path.read_bytes()] = settings_of_plan(parsed, [PROFILE])
    yield path
    machine.check()
    assert machine.trt.deserialized == [path.read_bytes()]
    assert machine.trt.executions


def test_the_plan_answers_as_the_graph_beside_it(exported, plan):
    rng = np.random.default_rng(0)
    with Session(plan) as session:
        limits = session.limits
        assert limits.max_length == 128
        for shape in ((1, 7), (2, 128), (5, 33)):
            ids = rng.integers(4, limits.vocab_size, shape)
            mask = (rng.random(shape) < 0.8).astype(np.int64)
            found = session.run(input_ids=ids, attention_mask=mask)
            assert_same(found, expected(exported[0], ids, mask))


def test_the_pipeline_answers_as_that_of_the_graph(exported, plan):
    with pipeline(exported[0]) as by_graph, pipeline(plan) as by_plan:
        wanted, found = by_graph(QUESTION), by_plan(QUESTION)
    assert found["answer"] == wanted["answer"] == "Berlin"
    assert (found["start"], found["end"]) == (wanted["start"], wanted["end"])
    assert found["score"] == pytest.approx(wanted["score"], abs=1e-4)
