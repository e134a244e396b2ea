"""The whole run, with artifacts that are empty and clients that are no processes: what ends up in the results."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy, bench, end_to_end, measure, processes
from benchmarks.client import WorkerError
from benchmarks.engines import ENGINES, REFERENCE, EngineSpec

CONFIG = {"num_hidden_layers": 1, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 99}
ARGUMENTS = ["--rounds", "2", "--workloads", "1x32,1x128", "--engines"]
LOGITS = [[1.0, 2.0, 4.0], [3.0, 1.0, 2.0]]


class World:
    """What the run finds: steps that fail, and engines that die when they are asked ``do`` on a workload."""

    def __init__(self) -> None:
        self.lost_steps: dict[str, str] = {}
        self.dies: dict[str, tuple[str, str | None]] = {}
        self.open: Counter[str] = Counter()

    def prepare(self, step: str, folder: Path, model: str) -> str | None:
        (folder / step).mkdir(parents=True, exist_ok=True)
        (folder / step / "config.json").write_text(json.dumps({**CONFIG, "id2label": {"0": "a", "1": "b", "2": "c"}}))
        return self.lost_steps.get(step)

    def client(self, spec: EngineSpec, folder: Path, rows: Path, threads: int) -> Any:
        assert json.loads(rows.read_text())
        assert threads == 3
        return Client(self, spec)


class Client:
    def __init__(self, world: World, spec: EngineSpec) -> None:
        self.spec, self.started, self._world, self._dead = spec, 0.0, world, False
        world.open[spec.name] += 1

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        name = self.spec.name
        self._dead = self._dead or self._world.dies.get(name) == (do, request.get("workload"))
        if self._dead:
            raise WorkerError("Killed")
        return {
            "first": {"logits": LOGITS[0], "versions": {name: "1"}},
            "check": {"logits": LOGITS},
            "time": {"seconds": [0.5] * request.get("calls", 0)},
            "memory": dict.fromkeys(("resident", "private", "peak", "proportional"), 1000),
        }[do]

    def close(self) -> None:
        self._world.open[self.spec.name] -= 1

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    world = World()
    for module in (measure, processes):
        monkeypatch.setattr(module, "PAUSE", 0)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "prepare", world.prepare)
    monkeypatch.setattr(bench, "Client", world.client)
    monkeypatch.setattr(accuracy, "find_weights", lambda: None)
    monkeypatch.setattr(end_to_end, "_prepare", lambda *_: None)
    monkeypatch.setattr(end_to_end, "_texts", lambda: ({"text": "a"}, {"text": "b"}))
    return world


def measured(tmp_path: Path, engines: str, *more: str) -> dict[str, Any]:
    output = tmp_path / "results.json"
    assert bench.main([*ARGUMENTS, engines, "--threads", "3", "--output", str(output), *more]) == 0
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def test_a_run_holds_every_figure(world: World, tmp_path: Path, capsys: Any) -> None:
    results = measured(tmp_path, "ort-plain,erniem-rt-int8")
    for name in (REFERENCE, "ort-plain", "erniem-rt-int8"):
        engine = results["engines"][name]
        assert (engine["gap"], engine["versions"]) == (None, {name: "1"})
        assert engine["bytes"] > 0
        assert engine["results"].keys() == {"1x32", "1x128"}
        for verdict in engine["results"].values():
            assert verdict["seconds"]["median"] == 0.5
            assert "first_logits" not in verdict
        assert len(engine["cold_start"]["samples"]) == 5
        assert engine["shared"] == {
            "gap": None,
            "processes": 4,
            "proportional": 4000,
            "private": 4000,
            "resident_of_one": 1000,
        }
    assert results["engines"]["openvino"]["gap"] == "left out of this run"
    assert results["accuracy"] == {"gap": accuracy.GAP}
    assert {name: engine["gap"] for name, engine in results["end_to_end"]["engines"].items()} == {
        "pipeline-transformers": None,
        "pipeline-erniem-rt": None,
    }
    (speed,) = [bar for bar in results["ratios"] if bar["bar"].startswith("text to answer")]
    assert speed["value"] == 1
    assert set(world.open.values()) == {0}
    assert "### Bars" in capsys.readouterr().out


def test_engines_that_cannot_be_had_or_die_are_gaps_and_the_rest_is_measured(world: World, tmp_path: Path) -> None:
    world.lost_steps["openvino"] = "preparing openvino failed: no room"
    world.dies = {
        "torch-compile": ("first", "1x32"),
        "ort-plain": ("check", "1x32"),
        "ctranslate2": ("time", "1x128"),
        "erniem-rt": ("memory", None),
    }
    results = measured(tmp_path, "torch-compile,ort-plain,openvino,ctranslate2,erniem-rt,erniem-rt-int8")
    engines = results["engines"]
    assert engines["openvino"]["gap"] == "preparing openvino failed: no room"
    assert engines["torch-compile"]["gap"] == "gives no first answer: Killed"
    assert {engines["ort-plain"]["results"][name]["gap"] for name in ("1x32", "1x128")} == {"Killed"}
    assert engines["ctranslate2"]["results"]["1x128"]["gap"] == "failed while it was timed: Killed"
    assert "seconds" in engines["ctranslate2"]["results"]["1x32"]
    assert engines["erniem-rt"]["cold_start"] == {"gap": "a fresh process gives no first answer: Killed"}
    assert engines["erniem-rt"]["shared"] == {"gap": "Killed"}
    for name in (REFERENCE, "erniem-rt-int8"):
        assert all("seconds" in verdict for verdict in engines[name]["results"].values())
        assert "seconds" in engines[name]["cold_start"]
        assert engines[name]["shared"]["gap"] is None
    assert set(world.open.values()) == {0}


@pytest.mark.parametrize("lost", ["step", "first", "check"])
def test_without_the_reference_there_is_one_sentence_and_no_result(
    world: World, tmp_path: Path, capsys: Any, lost: str
) -> None:
    if lost == "step":
        world.lost_steps["checkpoint"] = "preparing checkpoint failed: Killed"
    else:
        world.dies[REFERENCE] = (lost, "1x32")
    output = tmp_path / "results.json"
    assert bench.main([*ARGUMENTS, "ort-plain", "--threads", "3", "--output", str(output)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the reference cannot be measured")
    assert last.endswith("Killed")
    assert not output.exists()
    assert set(world.open.values()) <= {0}


def test_a_quick_run_leaves_out_what_takes_long(world: World, tmp_path: Path) -> None:
    results = measured(tmp_path, "erniem-rt-int8", "--quick")
    assert results["quick"] is True
    assert results["end_to_end"] == results["accuracy"] == bench.LEFT_OUT
    assert results["engines"]["erniem-rt-int8"]["shared"]["gap"] == "not measured"
    assert len(results["engines"]["erniem-rt-int8"]["cold_start"]["samples"]) == 1


def test_both_pipelines_are_timed_or_their_gap_named(world: World, tmp_path: Path) -> None:
    def open_client(spec: EngineSpec, _: Path) -> Any:
        return Client(world, spec)

    world.dies["pipeline-erniem-rt"] = ("time", "texts")
    found = end_to_end.end_to_end(tmp_path, open_client, 2, print)
    assert found["engines"]["pipeline-transformers"]["samples"] == [0.5, 0.5]
    assert found["engines"]["pipeline-erniem-rt"]["gap"] == "failed while it was timed: Killed"
    world.dies["pipeline-transformers"] = ("check", "texts")
    found = end_to_end.end_to_end(tmp_path, open_client, 2, print)
    assert found == {"gap": "the reference cannot be measured on texts: Killed"}
    assert set(world.open.values()) == {0}


def test_names_that_nobody_knows_are_refused(capsys: Any) -> None:
    for option in ("--engines", "--workloads"):
        with pytest.raises(SystemExit, match="2"):
            bench.main([option, "ort-plain,1x32,nothing"])
    assert f"expected some of {', '.join(ENGINES)}" in capsys.readouterr().err
