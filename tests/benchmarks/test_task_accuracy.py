from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from benchmarks import task_accuracy
from benchmarks.tables import block


@pytest.fixture
def result() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(task_accuracy.RESULTS.read_text(encoding="utf-8"))
    return content


def test_the_document_says_what_the_committed_results_say(result: dict[str, Any]) -> None:
    content = task_accuracy.document().read_text(encoding="utf-8")
    span = block(content, "task-accuracy")
    assert span is not None
    assert content[span] == task_accuracy.markdown(result), "run: python -m benchmarks.task_accuracy --table-only"


def test_every_head_is_measured_in_every_precision(result: dict[str, Any]) -> None:
    measured = {(row["head"], row["precision"]) for row in result["rows"]}
    assert {(head, precision) for head in task_accuracy.HEADS for precision in task_accuracy.PRECISIONS} == measured
    assert len({row["accuracy"]["examples"] for row in result["rows"]}) == 1


def test_every_precision_holds_the_line(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        if row["precision"] == task_accuracy.BUILT_IN_TEXT:
            continue
        limit = 0 if row["precision"] == "fp32" else 0.5
        for pair in row["accuracy"]["metrics"].values():
            assert pair["found"] >= pair["reference"] - limit - 1e-4, row
        assert row["passed"], row


def test_the_table_is_made_of_the_results(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    changed["rows"][-1]["accuracy"]["metrics"]["f1"]["found"] = 12.3456
    before, after = (task_accuracy.markdown(content).splitlines() for content in (result, changed))
    assert [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]] == [len(after) - 1]
    assert "| 12.35 (" in after[-1]
    assert len({line.count("|") for line in after}) == 1
