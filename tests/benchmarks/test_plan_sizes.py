"""Plans of TensorRT for RTX: the document says what the committed figures say, and those meet the bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plan_sizes
from benchmarks.tables import block


@pytest.fixture
def results() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(plan_sizes.RESULTS.read_text(encoding="utf-8"))
    return content


def test_the_document_says_what_the_committed_results_say(results: dict[str, Any]) -> None:
    content = plan_sizes.DOCUMENT.read_text(encoding="utf-8")
    span = block(content, plan_sizes.MARKER)
    assert span is not None
    assert content[span] == plan_sizes.markdown(results), "run: python -m benchmarks.plan_sizes"


def test_fp16_takes_about_half_of_fp32(results: dict[str, Any]) -> None:
    plans = results["plans"]
    assert results["model"]["name"] == "random:base"
    assert plans["fp32"]["bytes"] > 4 * 278e6
    assert results["fp16_of_fp32"] == plans["fp16"]["bytes"] / plans["fp32"]["bytes"] <= 0.55


@pytest.mark.slow
def test_it_builds_and_measures(tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "sizes.json"
    document = plan_sizes.DOCUMENT.read_bytes()
    assert plan_sizes.main(["--model", "random:tiny", "--output", str(output)]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert list(found["plans"]) == ["fp32", "fp16"]
    for plan in found["plans"].values():
        assert plan["seconds"] > 0
        assert 5e7 < plan["peak_memory"] < 4e9
        assert plan["bytes"] > 1000 * 64 * 2
    assert found["fp16_of_fp32"] == found["plans"]["fp16"]["bytes"] / found["plans"]["fp32"]["bytes"]
    assert "| fp16 | " in capsys.readouterr().out
    assert plan_sizes.DOCUMENT.read_bytes() == document
