"""From figures to bars, tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import bars, plots, tables
from benchmarks.engines import GPU_EAGER, GPU_OURS, GPU_OURS_GRAPHS, GPU_REFERENCE


def bar(results: dict[str, Any], title: str) -> dict[str, Any]:
    (found,) = [item for item in bars.ratios(results) if item["bar"] == title]
    return found


def test_every_bar_is_met_missed_or_a_named_gap(results: dict[str, Any]) -> None:
    for item in bars.ratios(results):
        assert len({"at_least", "at_most"} & item.keys()) == 1
        assert (item["value"] is None) == (item["met"] is None)
        assert item["value"] is not None or item["gap"]


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine was ten times slower in the second round; theirs takes twice as long in each.
    assert bars.median_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="longer"):
        bars.median_ratio([1.0], [2.0, 3.0])


def test_the_faster_rival_counts_and_a_missing_one_is_named(results: dict[str, Any]) -> None:
    title = "1×32: int8 against CTranslate2, int8 or OpenVINO, int8"
    found = bar(results, title)
    assert (found["value"], found["met"]) == (pytest.approx(1.25), True)
    assert found["gap"] == "OpenVINO, int8: could not be loaded: no such module"
    results["engines"]["openvino-int8"] |= {"gap": None, "results": {"1x32": {"samples": [0.018, 0.02, 0.022]}}}
    found = bar(results, title)
    assert (found["value"], found["met"], found["gap"]) == (pytest.approx(0.5), False, None)


@pytest.mark.parametrize("missing", ["engine", "workload", "wrong"])
def test_a_rival_that_is_missing_is_a_gap_with_its_reason(results: dict[str, Any], missing: str) -> None:
    rival = results["engines"]["ctranslate2"]
    if missing == "engine":
        rival["gap"], reason = "no room", "CTranslate2: no room"
    elif missing == "workload":
        del rival["results"]["mixed"]
        reason = "CTranslate2 was not measured on mixed"
    else:
        rival["results"]["mixed"], reason = {"correct": False, "gap": None}, "CTranslate2 on mixed: wrong answers"
    found = bar(results, "64 texts of mixed length: fp32 against CTranslate2")
    assert (found["value"], found["met"], found["gap"]) == (None, None, reason)


def test_with_bf16_the_fastest_of_ours_meets_the_fastest_set_up_of_the_fastest_rival(results: dict[str, Any]) -> None:
    def samples(median: float) -> dict[str, Any]:
        return {"samples": [median] * 3}

    results["machine"]["class"] = "avx512-vnni-bf16"
    engines = results["engines"]
    engines["erniem-rt-int8"]["results"] = {"mixed": samples(0.5), "8x128": samples(0.2)}
    engines["erniem-rt-openvino-int8-bf16"] |= {"gap": None, "results": {"mixed": samples(0.2), "8x128": samples(0.1)}}
    engines["openvino-int8-bf16"] |= {"gap": None, "results": {"mixed": samples(0.6), "mixed-sorted": samples(0.3)}}
    (mixed,) = [item for item in bars.ratios(results) if "(64 texts of mixed length or the same, sorted" in item["bar"]]
    assert (mixed["value"], mixed["met"]) == (pytest.approx(1.5), True)
    (today,) = [item for item in bars.ratios(results) if item["bar"] == "8×128: int8 against erniem-rt, int8"]
    assert today["value"] == pytest.approx(2)
    assert bar(results, "8×128: bf16 against erniem-rt")["gap"].startswith("erniem-rt, OpenVINO, bf16: could not be")


def test_bars_that_are_no_ratio_of_two_engines(results: dict[str, Any]) -> None:
    tokens = results["workloads"]["mixed"]["tokens"]
    found = bar(results, "tokens/s on mixed lengths against 8×128: fp32")
    assert found["value"] == pytest.approx((tokens / 1.6) / (1024 / 0.32))
    assert bar(results, "cold start, s: erniem-rt, int8")["met"] is True
    results["engines"]["erniem-rt-int8"]["cold_start"]["seconds"]["median"] = 0.7
    assert bar(results, "cold start, s: erniem-rt, int8")["met"] is False
    title = "text to answer on nano: erniem-rt's pipeline against transformers'"
    assert bar(results, title)["value"] == pytest.approx(6)
    results["end_to_end"] = {"gap": "not there"}
    assert bar(results, title)["gap"] == "not there"


def test_bars_of_a_gpu_are_met_by_the_best_of_ours_or_missed(gpu_results: dict[str, Any]) -> None:
    found = gpu_results["models"]["random:base"]
    bars.shares(found, gpu_results["peak"]["flops_per_second"])
    work = 128 * 12 * (24 * 768**2 * 128 + 4 * 128**2 * 768)
    engines = found["engines"]
    assert engines[GPU_OURS]["results"]["128x128"]["share_of_peak"] == pytest.approx(work / 0.005 / 1e15)
    assert engines[GPU_REFERENCE]["results"]["128x128"]["share_of_peak"] == pytest.approx(work / 0.2 / 1e14)
    assert "share_of_peak" not in engines[GPU_OURS_GRAPHS]["results"]["128x128"]
    share, speed, latency = bars.gpu_bars(gpu_results)
    assert (share["met"], share["engine"]) == (True, GPU_OURS)
    assert (speed["met"], speed["value"]) == (True, pytest.approx(4.0))
    assert (latency["met"], latency["engine"], latency["value"]) == (True, GPU_OURS_GRAPHS, 0.0009)
    del engines[GPU_EAGER]["results"]["128x128"]["samples"]
    engines[GPU_OURS_GRAPHS]["results"]["1x128"]["latency"]["p50"] = 0.0011
    _, speed, latency = bars.gpu_bars(gpu_results)
    assert (speed["met"], speed["value"], latency["met"]) == (None, None, False)
    assert bars.gpu_bars({"models": {}})[0]["gap"] == "random:base was not measured"


def test_tables_of_a_cpu(results: dict[str, Any]) -> None:
    text = tables.markdown(results)
    lines = text.splitlines()
    assert text.startswith(
        "a CPU with AVX2, 2 threads on 2 cores, 2026-01-02; 12 layers × 768, head `cls`, seeded weights; "
    )
    assert "interleaved rounds; load 1.3 before the run. torch 2.13.0." in lines[0]
    assert "| erniem-rt | 16 (14–18) | 320 (288–352) | 1600 (1440–1760) | 320 (288–352) |" in lines
    assert "| ONNX Runtime, stock dynamic int8 | wrong | – | – | – |" in lines
    assert "* ONNX Runtime, stock dynamic int8 on 1×32: wrong answers, so no time (cosine 0.5000, " in text
    assert "* CTranslate2 on 8×128: failed while it was timed: out of memory" in lines
    assert "* optimum ORTModel: could not be loaded: no such module" in lines
    assert "| optimum ORTModel |" not in text
    assert "| erniem-rt, int8 | 0.50 s | 200 MB | 280 MB | 1,000 MB |" in lines
    assert "* ONNX Runtime, stock dynamic int8, 4 processes together: not measured" in lines
    assert "| erniem-rt, int8 | 0.0400 | 95.0 % | 0.99960 | 80.0 |" in lines
    assert "| OpenVINO, int8 | no room | – | – | – |" in lines
    assert "| 64 texts of mixed length: fp32 against CTranslate2 | ≥ 1.2 | 1.25 | met |" in lines
    # Not rounded into being met.
    assert "| trained weights, nearest neighbour unchanged: int8 | ≥ 0.95 | 0.9495 | missed |" in lines
    assert "| erniem-rt | 40.0 | 16 | 320 | 1.00 s | 200 MB | 1,112 MB |" in tables.headline(results).splitlines()


def test_tables_of_a_gpu(gpu_results: dict[str, Any]) -> None:
    bars.shares(gpu_results["models"]["random:base"], gpu_results["peak"]["flops_per_second"])
    text = tables.markdown({**gpu_results, "bars": bars.gpu_bars(gpu_results)})
    lines = text.splitlines()
    assert text.startswith("a GPU; a CPU, 2 cores, Python 3.12.1. Measured peak of matrix products, TFLOP/s: ")
    assert "| erniem-rt, ONNX Runtime, fp16 | 2 (1.8–2.2) | 5 (4.5–5.5) |" in lines
    assert "| erniem-rt, ONNX Runtime, fp16, CUDA graphs | 1 (0.9–1.1) | wrong |" in lines
    assert "| erniem-rt, ONNX Runtime, fp16 | 2 / 3 |" in lines
    assert "* random:base, erniem-rt, TensorRT, fp16: No module named 'tensorrt'" in lines
    assert "* random:large: left out, for the time budget was spent" in lines
    assert "| erniem-rt, TensorRT, fp16 |" not in text


def test_pictures_show_what_has_a_time_and_nothing_else(results: dict[str, Any], gpu_results: dict[str, Any]) -> None:
    panels = plots.bar_panels(results)
    assert list(panels) == ["1×32", "8×128", "64 texts of mixed length"]
    assert dict(panels["64 texts of mixed length"])["erniem-rt"] == pytest.approx(40)
    assert "ort-int8" not in dict(panels["1×32"])
    assert "ctranslate2" not in dict(panels["8×128"])
    assert plots.padding_lines(results)["erniem-rt"] == [(50.0, pytest.approx(512 / 0.32))]
    assert plots.accuracy_points(results) == {"erniem-rt-int8": (280.0, 0.04)}
    assert plots.drawn(results).keys() == tables.pictures(results).keys()
    results["accuracy"] = {"gap": "not installed"}
    assert plots.drawn(results).keys() == tables.pictures(results).keys() - {"bench-avx2-accuracy.svg"}
    throughput, latency = plots.throughput_panels(gpu_results), plots.latency_panels(gpu_results)
    assert throughput == {
        "random:base, 128×128": [(GPU_REFERENCE, 640.0), (GPU_EAGER, 6400.0), (GPU_OURS, pytest.approx(25600.0))]
    }
    assert latency == {"random:base, 1×128": [(GPU_EAGER, 4.0), (GPU_OURS, 2.0), (GPU_OURS_GRAPHS, 0.9)]}


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib, which the tests' environment does without")
    for folder in ("a", "b"):
        assert plots.main(["--output", str(tmp_path / folder)]) == 0
    for picture in (tmp_path / "a").iterdir():
        assert picture.read_bytes() == (tmp_path / "b" / picture.name).read_bytes()
