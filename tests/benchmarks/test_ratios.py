from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ratios import ratios


def bar(results: dict[str, Any], title: str) -> dict[str, Any]:
    (found,) = [item for item in ratios(results) if item["bar"] == title]
    return found


def test_every_bar_is_met_missed_or_a_named_gap(results: dict[str, Any]) -> None:
    for item in ratios(results):
        assert len({"at_least", "at_most"} & item.keys()) == 1
        assert (item["value"] is None) == (item["met"] is None)
        assert item["value"] is not None or item["gap"]


def test_the_stored_bars_are_those_of_the_stored_figures(results: dict[str, Any]) -> None:
    assert results["ratios"] == ratios(results)


def test_a_speed_is_how_many_times_the_rival_s(results: dict[str, Any]) -> None:
    found = bar(results, "64 texts of mixed length: erniem-rt, int8 against PyTorch, eager")
    assert found["value"] == pytest.approx(5)
    assert found["met"] is True


def test_the_faster_rival_counts(results: dict[str, Any]) -> None:
    rival = results["engines"]["openvino-int8"]
    rival["gap"] = None
    rival["results"] = {"1x32": {"samples": [0.001, 0.001, 0.001]}}
    found = bar(results, "1×32: erniem-rt, int8 against CTranslate2, int8 or OpenVINO, int8")
    assert found["value"] == pytest.approx(0.125)
    assert found["met"] is False
    assert found["gap"] is None


def test_one_rival_that_is_missing_is_named_and_the_other_counts(results: dict[str, Any]) -> None:
    found = bar(results, "1×32: erniem-rt, int8 against CTranslate2, int8 or OpenVINO, int8")
    assert found["value"] == pytest.approx(1.25)
    assert found["gap"] == "OpenVINO, int8: preparing openvino-int8 failed: No module named 'nncf'"


def test_a_rival_that_is_missing_is_a_gap_with_its_reason(results: dict[str, Any]) -> None:
    found = bar(results, "64 texts of mixed length: erniem-rt against optimum ORTModel")
    assert found["value"] is found["met"] is None
    assert found["gap"] == "optimum ORTModel: could not be loaded: No module named 'optimum'"


def test_an_engine_that_is_wrong_is_no_rival(results: dict[str, Any]) -> None:
    results["engines"]["ctranslate2"]["results"]["mixed"] = {"correct": False, "gap": None}
    found = bar(results, "64 texts of mixed length: erniem-rt against CTranslate2")
    assert found["value"] is None
    assert found["gap"] == "CTranslate2 on mixed: wrong answers"


def test_tokens_per_second_are_real_tokens(results: dict[str, Any]) -> None:
    tokens = results["workloads"]["mixed"]["tokens"]
    found = bar(results, "tokens/s on mixed lengths against 8×128: erniem-rt")
    assert found["value"] == pytest.approx((tokens / 1.6) / (1024 / 0.32))


def test_limits_from_above(results: dict[str, Any]) -> None:
    assert bar(results, "cold start, s: erniem-rt, int8")["met"] is True
    results["engines"]["erniem-rt-int8"]["cold_start"]["seconds"]["median"] = 0.7
    assert bar(results, "cold start, s: erniem-rt, int8")["met"] is False


def test_an_artifact_that_grew_is_noticed(results: dict[str, Any]) -> None:
    found = bar(results, "on disk, MB: erniem-rt, int8")
    assert (found["value"], found["met"]) == (280.0, True)
    results["engines"]["erniem-rt-int8"]["bytes"] = 290_000_001
    assert bar(results, "on disk, MB: erniem-rt, int8")["met"] is False


def test_text_to_answer_without_the_checkpoint(results: dict[str, Any]) -> None:
    title = "text to answer on nano: erniem-rt's pipeline against transformers'"
    assert bar(results, title)["value"] == pytest.approx(6)
    results["end_to_end"] = {"gap": "not there"}
    assert bar(results, title)["gap"] == "not there"
