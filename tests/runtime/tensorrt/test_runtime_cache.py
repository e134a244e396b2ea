"""The kernels that TensorRT for RTX compiles: shared by a session's contexts, and kept in a file if one is named."""

from __future__ import annotations

import json
import re

import pytest

from erniem_rt import InvalidInputError, Session

from .fake_tensorrt import CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy, RtxEngine


@pytest.fixture
def plan(heads, plan_of):
    return plan_of(heads["qa"].path, flavour="tensorrt-rtx")


def test_kernels_are_written_and_read_again(rtx, plan, tmp_path):
    kernels = tmp_path / "kernels"
    with Session(plan, runtime_cache=kernels) as session:
        session.run(input_ids=[[5, 6]])
        assert not kernels.exists()
    first = json.loads(kernels.read_bytes())
    assert len(first) == 1
    with Session(plan, runtime_cache=str(kernels)) as session:
        session.run(input_ids=[[5, 6], [7, 8]])
    assert len(json.loads(kernels.read_bytes())) == 2
    assert first[0] in json.loads(kernels.read_bytes())
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_a_cache_that_brings_nothing_new_is_not_written(rtx, plan, tmp_path):
    kernels = tmp_path / "kernels"
    for _ in range(2):
        with Session(plan, runtime_cache=kernels) as session:
            session.run(input_ids=[[5, 6]])
        kernels.chmod(0o400)
        before = kernels.stat()
    assert kernels.stat().st_ino == before.st_ino


def test_what_the_library_refuses_is_replaced(rtx, plan, tmp_path):
    kernels = tmp_path / "kernels"
    kernels.write_bytes(b"of another GPU")
    message = (
        f"the runtime cache {kernels} is damaged, or of another GPU, driver or version of TensorRT for RTX: the kernels"
        " are compiled anew, and it is replaced when the session is closed."
    )
    with pytest.warns(UserWarning, match=re.escape(message)):
        session = Session(plan, runtime_cache=kernels)
    with session:
        session.run(input_ids=[[5, 6]])
    assert len(json.loads(kernels.read_bytes())) == 1


def test_without_a_name_nothing_is_written(rtx, plan, tmp_path):
    before = sorted(path.name for path in plan.parent.iterdir())
    with Session(plan) as session:
        session.run(input_ids=[[5, 6]])
    assert sorted(path.name for path in plan.parent.iterdir()) == before


def test_a_cache_that_cannot_be_written_is_a_warning(rtx, plan, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    session = Session(plan, runtime_cache=folder / "kernels")
    session.run(input_ids=[[5, 6]])
    folder.rmdir()
    with pytest.warns(UserWarning, match=r"the runtime cache .*kernels was not written: No such file or directory"):
        session.close()


def test_a_path_that_is_none(rtx, plan):
    with pytest.raises(InvalidInputError, match=r"^runtime_cache must be a str or a path, got int"):
        Session(plan, runtime_cache=3)


@pytest.mark.parametrize("name", ["", "missing/kernels"])
def test_a_place_that_is_none(rtx, plan, tmp_path, name):
    with pytest.raises(InvalidInputError, match="runtime_cache must be a file in a folder that exists, got "):
        Session(plan, runtime_cache=tmp_path / name)


def test_full_tensorrt_has_none(machine, heads, plan_of, tmp_path):
    plan = plan_of(heads["qa"].path)
    with pytest.raises(InvalidInputError) as caught:
        Session(plan, runtime_cache=tmp_path / "kernels")
    assert str(caught.value) == (
        f"runtime_cache applies to plans of TensorRT for RTX only; {plan} is a plan of tensorrt. Remove it."
    )
    assert machine.trt.deserialized == []


@pytest.fixture
def configs(monkeypatch):
    """The configurations that engines were asked for."""
    made = []
    real = RtxEngine.create_runtime_config
    monkeypatch.setattr(RtxEngine, "create_runtime_config", lambda engine: made.append(real(engine)) or made[-1])
    return made


@pytest.mark.parametrize(
    ("graphs", "strategy"), [(None, "WHOLE_GRAPH_CAPTURE"), (True, "WHOLE_GRAPH_CAPTURE"), (False, "DISABLED")]
)
def test_graphs_are_the_librarys_own(rtx, plan, graphs, strategy, configs):
    Session(plan, cuda_graphs=graphs).close()
    (config,) = configs
    assert config.cuda_graph_strategy is CudaGraphStrategy[strategy]


def test_kernels_for_a_shape_are_there_when_it_first_runs(rtx, plan, configs):
    """Its default compiles them beside the runs, which take a slower kernel until then."""
    Session(plan).close()
    (config,) = configs
    assert config.dynamic_shapes_kernel_specialization_strategy is DynamicShapesKernelSpecializationStrategy.EAGER


def test_a_release_that_lets_nobody_choose_is_left_alone(rtx, plan, configs):
    del rtx.trt.DynamicShapesKernelSpecializationStrategy
    Session(plan).close()
    (config,) = configs
    assert config.dynamic_shapes_kernel_specialization_strategy is DynamicShapesKernelSpecializationStrategy.LAZY
