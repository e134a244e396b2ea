"""The GPU benchmark up to the device: what is measured, what follows from it, and what is said without one."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import conversions, prepare
from benchmarks.client import WorkerError
from benchmarks.gpu import bench, device, plots, steps, tables
from benchmarks.gpu.engines import EAGER, ENGINES, OURS, OURS_GRAPHS, REFERENCE, on_device
from benchmarks.gpu.figures import add_latency, bars, percentile, shares
from benchmarks.gpu.workloads import ALL, BATCHES, FIXED, LENGTHS, MIXED, QUICK, build, flops
from erniem_export.engine_arguments import add_engine_arguments, engine_options
from erniem_export.tensorrt.profiles import resolve_profiles
from erniem_rt.engines.trt_shapes import plan_runs

ROOT = Path(__file__).resolve().parents[2]
BASE = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 250002}


def timed(seconds: float, **more: Any) -> dict[str, Any]:
    spread = {"median": seconds, "lowest": seconds, "highest": seconds}
    return {"correct": True, "gap": None, "samples": [seconds] * 3, "seconds": spread, **more}


@pytest.fixture
def results() -> dict[str, Any]:
    """One engine of each fate: the reference, a slow one, ours, one that was wrong, one that could not be had."""
    workloads = build(("1x128", "128x128"), 1000)
    wrong = {"correct": False, "gap": None, "max_relative_difference": 0.5, "cosine": 0.1}
    measured = {
        REFERENCE: {"1x128": timed(0.01), "128x128": timed(0.2)},
        EAGER: {"1x128": timed(0.004, latency={"p50": 0.004, "p99": 0.005, "calls": 9}), "128x128": timed(0.02)},
        OURS: {"1x128": timed(0.002, latency={"p50": 0.002, "p99": 0.003, "calls": 9}), "128x128": timed(0.005)},
        OURS_GRAPHS: {"1x128": timed(0.001, latency={"p50": 0.0009, "p99": 0.001, "calls": 9}), "128x128": wrong},
    }
    engines = {
        name: {
            "label": spec.label,
            "precision": spec.precision,
            "gap": None if name in measured else "No module named 'tensorrt'",
            "versions": {"torch": "2.13.0"} if name in measured else {},
            "bytes": 1,
            "results": measured.get(name, {}),
        }
        for name, spec in ENGINES.items()
    }
    described = {w.name: {**w.description(), "flops": flops(w, BASE)} for w in workloads}
    return {
        "quick": False,
        "rounds": 3,
        "machine": {"cpu": "a CPU", "cores": 2, "python": "3.12.1"},
        "peak": {"device": {"name": "a GPU", "driver": None}, "flops_per_second": {"fp16": 1e15, "fp32": 1e14}},
        "models": {"random:base": {"workloads": described, "engines": engines}},
    }


def test_every_shape_is_measured() -> None:
    assert set(ALL) == {*(f"{batch}x{length}" for batch in BATCHES for length in LENGTHS), "mixed"}
    assert (LENGTHS, BATCHES) == ((128, 384, 512), (1, 8, 32, 128))
    workloads = {workload.name: workload for workload in build(ALL, 1000)}
    assert [len(row) for row in workloads["8x384"].rows] == [384] * 8
    assert len(workloads["mixed"].rows) == 512
    assert len({len(row) for row in workloads["mixed"].rows}) > 20
    assert all(len(workload.checked) >= 8 for workload in workloads.values())


def test_operations_are_those_of_the_encoder() -> None:
    """12 layers of 24 H² S and 4 S² H at the base size: 22.4 GFLOP for a row of 128 tokens."""
    (workload,) = build(("8x128",), 1000)
    assert flops(workload, BASE) == 8 * 12 * (24 * 768**2 * 128 + 4 * 128**2 * 768)
    assert flops(workload, BASE) / 8 == pytest.approx(22.35e9, rel=1e-3)


def test_every_artifact_can_be_made() -> None:
    for spec in ENGINES.values():
        assert spec.artifact in prepare.SOURCES
        assert spec.artifact in conversions.STEPS
        assert (ROOT / "benchmarks" / "adapters" / f"{spec.adapter}.py").exists()
        assert on_device(spec, "cuda:1").options["device"] == "cuda:1"


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_every_batch_of_equal_rows_is_one_run_of_a_plan(flavour: str) -> None:
    flags = steps.EXPORTS[f"gpu-erniem-rt-{flavour}-fp16"]
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    arguments, rest = parser.parse_known_args(flags)
    options = engine_options(arguments)
    assert (options.engine, rest) == (flavour, ["--fp16"])
    profiles = resolve_profiles(options.profiles, "cls", 512)
    for workload in build((*FIXED, *QUICK), 1000):
        if workload.name != MIXED:
            lengths = np.array([len(row) for row in workload.rows])
            assert len(plan_runs(lengths, lengths.max(), profiles)) == 1, workload.name


def test_the_issue_s_rivals_are_all_there() -> None:
    labels = " ".join(spec.label for spec in ENGINES.values())
    for rival in ("PyTorch, eager, fp16", "torch.compile", "SDPA", "ONNX Runtime, plain", "TensorRT,", "RTX", "packed"):
        assert rival in labels


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_are_samples(share: float, expected: int) -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1, 101)).tolist()
    assert percentile(samples, share) == expected


def test_latency_is_taken_of_single_rows_and_correct_engines_only() -> None:
    asked: list[tuple[str, str]] = []

    def client(name: str, failure: bool = False) -> Any:
        def ask(do: str, **arguments: Any) -> dict[str, Any]:
            asked.append((name, arguments["workload"]))
            if failure:
                raise WorkerError("out of memory")
            return {"seconds": [1.0] * (arguments["calls"] - 1) + [9.0]}

        return SimpleNamespace(ask=ask)

    clients = {"good": client("good"), "wrong": client("wrong"), "dies": client("dies", failure=True)}
    verdicts: dict[str, Any] = {
        name: {w: timed(1.0) if name != "wrong" else {"correct": False} for w in ("1x128", "8x128")} for name in clients
    }
    add_latency(clients, build(("1x128", "8x128"), 1000), verdicts, 10)
    assert asked == [("good", "1x128"), ("dies", "1x128")]
    assert verdicts["good"]["1x128"]["latency"] == {"p50": 1.0, "p99": 9.0, "calls": 10}
    assert verdicts["dies"]["1x128"]["gap"] == "failed while its latency was taken: out of memory"
    assert "seconds" not in verdicts["dies"]["1x128"]


def test_shares_are_of_the_peak_in_the_engine_s_precision(results: dict[str, Any]) -> None:
    (found,) = results["models"].values()
    shares(found, results["peak"]["flops_per_second"])
    work = 128 * 12 * (24 * 768**2 * 128 + 4 * 128**2 * 768)
    engines = found["engines"]
    assert engines[OURS]["results"]["128x128"]["share_of_peak"] == pytest.approx(work / 0.005 / 1e15)
    assert engines[REFERENCE]["results"]["128x128"]["share_of_peak"] == pytest.approx(work / 0.2 / 1e14)
    assert "share_of_peak" not in engines[OURS_GRAPHS]["results"]["128x128"]


def test_bars_are_met_by_the_best_of_ours_or_missed(results: dict[str, Any]) -> None:
    shares(results["models"]["random:base"], results["peak"]["flops_per_second"])
    share, speed, latency = bars(results)
    assert (share["met"], share["engine"], share["at_least"]) == (True, OURS, 0.55)
    assert (speed["met"], speed["value"]) == (True, pytest.approx(4.0))
    assert (latency["met"], latency["engine"], latency["value"]) == (True, OURS_GRAPHS, 0.0009)
    del results["models"]["random:base"]["engines"][EAGER]["results"]["128x128"]["samples"]
    results["models"]["random:base"]["engines"][OURS_GRAPHS]["results"]["1x128"]["latency"]["p50"] = 0.0011
    _, speed, latency = bars(results)
    assert (speed["met"], speed["value"]) == (None, None)
    assert latency["met"] is False
    assert bars({**results, "models": {}})[0]["gap"] == "random:base was not measured"


def test_tables_say_what_the_results_say(results: dict[str, Any]) -> None:
    shares(results["models"]["random:base"], results["peak"]["flops_per_second"])
    text = tables.markdown({**results, "bars": bars(results)})
    assert "| erniem-rt, ONNX Runtime, fp16 | 2 | 5 |" in text
    assert "| erniem-rt, ONNX Runtime, fp16, CUDA graphs | 1 | wrong |" in text
    assert "| erniem-rt, ONNX Runtime, fp16 | 2 / 3 |" in text
    assert "* random:base, erniem-rt, TensorRT, fp16: No module named 'tensorrt'" in text
    assert "wrong answers, so no time (largest relative difference 0.5)" in text
    assert "| erniem-rt, TensorRT, fp16 |" not in text
    assert "PyTorch, eager, fp16" in text.split("### Gaps")[0]


def test_tables_go_between_the_markers(tmp_path: Path, results: dict[str, Any]) -> None:
    results["bars"] = bars(results)
    document = tmp_path / "benchmarks.md"
    document.write_text("above\n<!-- bench-gpu:begin -->\nold\n<!-- bench-gpu:end -->\nbelow\n")
    assert tables.write_document(results, document)
    written = document.read_text()
    assert written.startswith("above\n<!-- bench-gpu:begin -->\na GPU; a CPU")
    assert written.endswith("<!-- bench-gpu:end -->\nbelow\n")
    document.write_text("none")
    assert not tables.write_document(results, document)
    assert tables.block(tables.DOCUMENT.read_text(encoding="utf-8"), tables.MARKER) is not None


def test_pictures_show_what_has_a_time_and_nothing_else(results: dict[str, Any]) -> None:
    throughput, latency = plots.throughput_panels(results), plots.latency_panels(results)
    assert throughput == {"random:base, 128×128": [(REFERENCE, 640.0), (EAGER, 6400.0), (OURS, pytest.approx(25600.0))]}
    assert latency == {"random:base, 1×128": [(EAGER, 4.0), (OURS, 2.0), (OURS_GRAPHS, 0.9)]}


def test_without_the_reference_there_is_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(bench, "missing", lambda _: None)
    monkeypatch.setattr(bench, "measure_peak", lambda *_: {"flops_per_second": {}})
    monkeypatch.setattr(bench, "prepare", lambda *_: "no room on the disk")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    output = tmp_path / "results.json"
    assert bench.main(["--device", "cpu", "--quick", "--output", str(output)]) == 1
    assert capsys.readouterr().err.endswith("error: the reference cannot be measured: no room on the disk\n")
    assert not output.exists()


def test_a_missing_package_is_named_with_the_remedy() -> None:
    lack = device.missing("cpu", ("numpy", "a_package_nobody_has"))
    assert lack == (
        f"{sys.executable} has no a_package_nobody_has; name a Python that has them: make GPU_PYTHON=/path/to/python."
    )
    assert device.missing("cpu", ("numpy",)) is None


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("2.13.0+cpu None False", "PyTorch 2.13.0+cpu (built without CUDA) finds no NVIDIA GPU; "),
        ("2.13.0 12.8 False", "PyTorch 2.13.0 (CUDA 12.8) finds no NVIDIA GPU; "),
        ("2.13.0 12.8 True", None),
    ],
)
def test_a_missing_gpu_is_one_sentence(says: str, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=0, stdout=says, stderr="")
    monkeypatch.setattr(device.subprocess, "run", lambda *_, **__: done)
    lack = device.missing("cuda", ())
    assert (lack or "").startswith(expected or "")
    assert (lack is None) == (expected is None)


def test_the_targets_end_with_that_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(device, "missing", lambda *_: "there is none.")
    for name in ("test-gpu", "bench-gpu"):
        assert device.main([name, "cuda", "pytest"]) == 1
        assert capsys.readouterr().err == f"error: {name} cannot run: there is none.\n"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "benchmarks/gpu/device.py test-gpu cuda" in makefile
    assert "benchmarks/gpu/device.py bench-gpu cuda" in makefile


@pytest.mark.parametrize("chosen", ["test_tensorrt", "nothing_has_this_name"])
def test_gpu_tests_of_which_none_ran_fail(chosen: str) -> None:
    command = [sys.executable, "tests/gpu/run.py", "--device", "cpu", "-q", "-k", chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: no test ran on cpu, so nothing is proven\n" in done.stderr


def test_the_peak_waits_for_the_device_that_computes() -> None:
    from benchmarks.gpu.peak import _flops_per_second

    waited: list[str] = []
    tensor = SimpleNamespace(to=lambda _: np.ones((2, 2)))
    cuda = SimpleNamespace(synchronize=waited.append)
    torch = SimpleNamespace(randn=lambda *_, **__: tensor, cuda=cuda)
    assert _flops_per_second(torch, "cuda:1", None, 2) > 0
    assert set(waited) == {"cuda:1"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cuda", ("CUDAExecutionProvider", {"device_id": "0"})),
        ("cuda:1", ("CUDAExecutionProvider", {"device_id": "1"})),
        ("cpu", ("CPUExecutionProvider", {})),
    ],
)
def test_onnxruntime_runs_on_the_device_that_was_named(
    given: str, expected: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmarks.adapters import gpu_onnxruntime_session

    asked: list[Any] = []

    def session(graph: str, options: Any, providers: list[Any]) -> Any:
        asked.extend(providers)
        return SimpleNamespace(get_providers=lambda: [expected[0]])

    monkeypatch.setattr(gpu_onnxruntime_session.onnxruntime, "InferenceSession", session)
    gpu_onnxruntime_session.load(tmp_path, 1, given, "fp32")
    assert asked == [expected]


def test_kinds_of_torch_give_the_same_answers(tmp_path: Path) -> None:
    from benchmarks.adapters.gpu_torch_model import load
    from erniem_export.configuration import ErnieMConfig
    from erniem_export.modeling import ErnieMForSequenceClassification
    from erniem_export.random_weights import randomize

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    network = ErnieMForSequenceClassification(ErnieMConfig(vocab_size=200, num_labels=3, **sizes))
    randomize(network)
    network.save_pretrained(tmp_path)
    rows = [[0, 5, 6, 7, 2], [0, 9, 2]]
    answers = {
        (kind, precision): load(tmp_path, 1, "cpu", precision, kind).run(rows, 2)
        for kind in ("eager", "sdpa")
        for precision in ("fp32", "fp16")
    }
    for (_, precision), found in answers.items():
        assert found.dtype == np.float32
        tolerance = 1e-5 if precision == "fp32" else 2e-2
        np.testing.assert_allclose(found, answers["eager", "fp32"], atol=tolerance)
    assert np.abs(answers["sdpa", "fp16"] - answers["sdpa", "fp32"]).max() > 0
