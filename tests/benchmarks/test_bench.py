"""The whole run, with artifacts that are empty and clients that are no processes: what ends up in the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench, trained, workloads
from benchmarks.client import WorkerError
from benchmarks.engines import ENGINES, GPU_EAGER, GPU_OURS, GPU_OURS_GRAPHS, GPU_REFERENCE, REFERENCE, EngineSpec
from benchmarks.measure import Budget, Pace
from benchmarks.related_models import GAP
from benchmarks.trained import JUDGED, judge

from .conftest import World

ON_CPU = ["--rounds", "2", "--workloads", "1x32,1x128", "--threads", "3"]
ON_GPU = ["--device", "cuda:1", "--workloads", "1x128,2x16", "--models", "random:base,random:tiny"]
LENGTHS = (3, 7, 5, 4)
STATES = [np.random.default_rng(i).normal(size=(length, 8)).astype(np.float32) for i, length in enumerate(LENGTHS)]


@pytest.fixture
def stage(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """A world in which the benchmark can run."""
    for module in (bench, trained):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "prepare", world.prepare)
    monkeypatch.setattr(bench, "Client", world.client)
    monkeypatch.setattr(bench, "missing", lambda _: None)
    monkeypatch.setattr(
        bench, "measure_peak", lambda *_: {"device": {"name": "a GPU"}, "flops_per_second": {"fp16": 1}}
    )
    monkeypatch.setattr(trained, "find_weights", lambda: None)
    monkeypatch.setattr(trained, "_export_nano", lambda _: None)
    monkeypatch.setattr(trained, "_pairs", lambda: ({"text": "a"}, {"text": "b"}))
    return world


def measured(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    output = tmp_path / "results.json"
    assert bench.main([*arguments, "--output", str(output)]) == 0
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def test_a_run_holds_every_figure(stage: World, tmp_path: Path, capsys: Any) -> None:
    results = measured(tmp_path, *ON_CPU, "--engines", "ort-plain,erniem-rt-int8")
    for name in (REFERENCE, "ort-plain", "erniem-rt-int8"):
        engine = results["engines"][name]
        assert (engine["gap"], engine["versions"]) == (None, {name: "1"})
        assert engine["bytes"] > 0
        assert engine["results"].keys() == {"1x32", "1x128"}
        for verdict in engine["results"].values():
            assert verdict["seconds"]["median"] == 0.5
            assert "first_logits" not in verdict
        assert len(engine["cold_start"]["samples"]) == 5
        assert engine["shared"]["gap"] is None
    assert results["engines"]["openvino"]["gap"] == "left out of this run"
    assert results["accuracy"] == {"gap": GAP}
    (speed,) = [bar for bar in results["ratios"] if bar["bar"].startswith("text to answer")]
    assert speed["value"] == 1
    assert not +stage.open
    assert "### Bars" in capsys.readouterr().out


def test_engines_that_cannot_be_had_or_die_are_gaps_and_the_rest_is_measured(stage: World, tmp_path: Path) -> None:
    stage.lost_steps["openvino"] = "preparing openvino failed: no room"
    stage.dies = {"ort-plain": ("check", "1x32"), "erniem-rt": ("memory", None)}
    engines = measured(tmp_path, *ON_CPU, "--engines", "ort-plain,openvino,erniem-rt,erniem-rt-int8")["engines"]
    assert engines["openvino"]["gap"] == "preparing openvino failed: no room"
    assert {engines["ort-plain"]["results"][name]["gap"] for name in ("1x32", "1x128")} == {"Killed"}
    assert engines["erniem-rt"]["cold_start"] == {"gap": "a fresh process gives no first answer: Killed"}
    assert engines["erniem-rt"]["shared"] == {"gap": "Killed"}
    for name in (REFERENCE, "erniem-rt-int8"):
        assert all("seconds" in verdict for verdict in engines[name]["results"].values())
        assert engines[name]["shared"]["gap"] is None
    assert not +stage.open


@pytest.mark.parametrize("lost", ["step", "first", "check"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_the_reference_there_is_one_sentence_and_no_result(
    stage: World, tmp_path: Path, capsys: Any, lost: str, device: str
) -> None:
    arguments, reference, first = {"cpu": (ON_CPU, REFERENCE, "1x32"), "cuda": (ON_GPU, GPU_REFERENCE, "1x128")}[device]
    if lost == "step":
        stage.lost_steps["checkpoint"] = "preparing checkpoint failed: Killed"
    else:
        stage.dies[reference] = (lost, first)
    output = tmp_path / "results.json"
    assert bench.main([*arguments, "--output", str(output)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the reference cannot be measured")
    assert last.endswith("Killed")
    assert not output.exists()
    assert not +stage.open


def test_a_quick_run_leaves_out_what_takes_long(stage: World, tmp_path: Path) -> None:
    results = measured(tmp_path, *ON_CPU, "--engines", "erniem-rt-int8", "--quick")
    assert results["quick"] is True
    assert results["end_to_end"] == results["accuracy"] == {"gap": "left out of this run"}
    assert results["engines"]["erniem-rt-int8"]["shared"]["gap"] == "not measured"
    assert len(results["engines"]["erniem-rt-int8"]["cold_start"]["samples"]) == 1


def test_a_run_on_a_gpu_has_every_model_and_its_engines_know_the_device(stage: World, tmp_path: Path) -> None:
    results = measured(tmp_path, *ON_GPU)
    assert list(results["models"]) == ["random:base", "random:tiny"]
    found = results["models"]["random:base"]["engines"][GPU_OURS]["results"]
    assert found["1x128"]["latency"]["calls"] == 300
    assert found["2x16"]["share_of_peak"] > 0
    assert results["left_out"] == []
    assert all(options["device"] == "cuda:1" and options["precision"] for options in stage.options)
    assert not +stage.open


def test_a_budget_leaves_out_the_later_engines_workloads_and_models(
    stage: World, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench, "Budget", lambda seconds: Budget(seconds, lambda: clock[0]))

    def prepare(*arguments: Any) -> str | None:
        clock[0] += 20
        return stage.prepare(*arguments)

    def rest(_: float) -> None:
        clock[0] += 1

    monkeypatch.setattr(bench, "prepare", prepare)
    monkeypatch.setattr("benchmarks.measure.time.sleep", rest)
    results = measured(tmp_path, *ON_GPU, "--budget", "100")
    engines = results["models"]["random:base"]["engines"]
    assert [engines[name]["gap"] for name in (GPU_OURS, GPU_OURS_GRAPHS, GPU_EAGER)] == [None] * 3
    assert engines["ort-plain-fp32"]["gap"] == "left out, for the time budget for preparing was spent"
    assert results["left_out"] == ["random:base: 2×16", "random:tiny"]
    assert "left out, for the time budget of 100 s was spent: random:base: 2×16, " in capsys.readouterr().err


def test_a_run_without_its_device_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(bench, "missing", lambda _: "there is none.")
    assert bench.main(["--device", "cuda"]) == 1
    assert capsys.readouterr().err == "error: the benchmark cannot run on cuda: there is none.\n"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_that_nobody_knows_are_refused(capsys: Any, device: str) -> None:
    for arguments in (["--engines", "torch-eager,nothing"], ["--workloads", "1x32,nothing"], ["--device", "tpu"]):
        with pytest.raises(SystemExit, match="2"):
            bench.main(["--device", device, *arguments])
    assert "nothing not known; expected some of 1x" in capsys.readouterr().err


def test_mixed_workloads_are_the_same_texts_and_padding_is_what_the_name_says() -> None:
    mixed, single, by_length = workloads.build_workloads(workloads.MIXED, 250002)
    assert mixed.rows == single.rows
    assert sorted(mixed.rows) == sorted(by_length.rows)
    assert abs(mixed.tokens / 64 - workloads.MIXED_MEAN) < 6
    for workload in workloads.build_workloads(workloads.PADDED, 1000):
        share = int(workload.name.split("-")[1])
        assert 100 * workload.description()["padding_share"] == pytest.approx(share, abs=0.1)
    assert workloads.build_workloads(("1x32",), 1000, seed=1) != workloads.build_workloads(("1x32",), 1000)


def test_operations_are_those_of_the_encoder() -> None:
    """12 layers of 24 H² S and 4 S² H at the base size: 22.4 GFLOP for a row of 128 tokens."""
    (workload,) = workloads.build_gpu_workloads(("8x128",), 1000)
    model = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072}
    assert workloads.flops(workload, model) / 8 == pytest.approx(22.35e9, rel=1e-3)


def test_what_int8_costs_is_told_by_states_neighbours_and_texts_alone() -> None:
    same = judge(STATES, STATES, STATES)
    assert (same["relative_l2"], same["same_neighbour"], same["worst_alone"]) == (0, 1, pytest.approx(1))
    assert judge(STATES, [1.1 * states for states in STATES], STATES)["relative_l2"] == pytest.approx(0.1)
    assert judge(STATES, STATES, [*STATES[:3], -STATES[3]])["worst_alone"] == pytest.approx(-1)
    # On a circle: each text's neighbour is the one 10 degrees away, until the last moves to the other side.
    before = [np.array([[np.cos(angle), np.sin(angle)]]) for angle in np.deg2rad([0, 10, 90, 100])]
    after = [*before[:3], np.array([[np.cos(-0.1), np.sin(-0.1)]])]
    assert judge(before, after, after)["same_neighbour"] == 0.25


class Worker:
    """Stands in for an engine's process: ``error`` is how far its hidden states are off, ``dies_in`` what ends it."""

    def __init__(self, spec: EngineSpec, error: float, dies_in: str = "") -> None:
        self.spec, self._error, self._dies_in = spec, error, dies_in

    def ask(self, question: str, **request: Any) -> dict[str, Any]:
        if question == self._dies_in:
            raise WorkerError("out of memory")
        if question == "time":
            return {"seconds": [1 + self._error]}
        np.savez(request["to"], *[(1 + self._error) * states for states in STATES])
        return {}

    def close(self) -> None: ...


@pytest.mark.parametrize("reference_dies_in", ["", "hidden_states", "time"])
def test_each_engine_is_judged_and_timed_or_its_gap_named(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference_dies_in: str
) -> None:
    world.lost_steps["openvino-int8"] = "no room"
    for name, value in {
        "find_weights": lambda: Path("weights"),
        "prepare": world.prepare,
        "real_texts": lambda: ("somewhere", ["text"] * len(STATES)),
        "tokenize": lambda _, texts: [[0, 2]] * len(texts),
    }.items():
        monkeypatch.setattr(trained, name, value)

    def open_client(spec: EngineSpec, *_: Path) -> Any:
        if spec.name == "ort-int8":
            raise WorkerError("no such file")
        if spec.name == REFERENCE:
            return Worker(spec, 0.0, reference_dies_in)
        return Worker(spec, 0.1, "time" if spec.name == "ctranslate2-int8" else "")

    names = ["ort-int8", "openvino-int8", "ctranslate2-int8", "erniem-rt-int8"]
    found = trained.accuracy(tmp_path, names, open_client, Pace(3), print)
    if reference_dies_in:
        assert found == {"gap": "PyTorch, eager: out of memory"}
        return
    assert found["reference"]["seconds"]["median"] == 1
    gaps = {name: engine["gap"] for name, engine in found["engines"].items()}
    assert gaps == dict.fromkeys(JUDGED, "left out of this run") | {
        "ort-int8": "could not be loaded: no such file",
        "openvino-int8": "no room",
        "ctranslate2-int8": "failed while it was timed: out of memory",
        "erniem-rt-int8": None,
    }
    assert found["engines"]["erniem-rt-int8"]["relative_l2"] == pytest.approx(0.1)
    assert found["engines"]["erniem-rt-int8"]["seconds"]["median"] == pytest.approx(1.1)


def test_both_pipelines_are_timed_or_their_gap_named(stage: World, tmp_path: Path) -> None:
    stage.dies["pipeline-erniem-rt"] = ("time", "texts")
    found = trained.end_to_end(tmp_path, stage.client, Pace(2), print)
    assert found["engines"]["pipeline-transformers"]["samples"] == [0.5, 0.5]
    assert found["engines"]["pipeline-erniem-rt"]["gap"] == "failed while it was timed: Killed"
    stage.dies["pipeline-transformers"] = ("check", "texts")
    found = trained.end_to_end(tmp_path, stage.client, Pace(2), print)
    assert found == {"gap": "the reference cannot be measured on texts: Killed"}
    assert not +stage.open
    assert set(JUDGED) <= set(ENGINES)
