from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest

from benchmarks import pipeline_agreement
from benchmarks.agreement.tally import Answer, Tally, listed, ranked
from benchmarks.tables import block


@pytest.fixture
def result() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(pipeline_agreement.RESULTS.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", ["README.md", "docs/pipeline-differences.md"])
def test_documents_say_what_the_committed_results_say(name: str, result: dict[str, Any]) -> None:
    document = pipeline_agreement.ROOT / name
    content = document.read_text(encoding="utf-8")
    span = block(content, "agreement")
    assert span is not None
    expected = pipeline_agreement.documents(result)[document]
    assert content[span] == expected, "run: python -m benchmarks.pipeline_agreement --tables-only"


def test_every_task_meets_the_bar(result: dict[str, Any]) -> None:
    assert len({row["task"] for row in result["rows"]}) == 7
    for row in result["rows"]:
        assert row["same"] == row["inputs"] >= 200
        assert len(row["languages"]) == 6
        assert row["largest_difference"] <= 1e-4


def test_tables_are_made_of_the_results(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    changed["rows"][0].update(same=7, largest_difference=0.5)
    for table in (pipeline_agreement.full_table, pipeline_agreement.short_table):
        before, after = table(result).splitlines(), table(changed).splitlines()
        assert [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]] == [2]
        assert "| 5.0e-01 |" in after[2]
        assert len({line.count("|") for line in after}) == 1


def test_only_what_is_the_same_counts_as_the_same() -> None:
    tally = Tally()
    tally.add("en", Answer("a", [0.5, 0.25]), Answer("a", [0.5, 0.75]))
    tally.add("de", Answer("a", [1.0]), Answer("b", [0.0]))
    assert (tally.inputs, tally.same, tally.scores, tally.largest) == (2, 1, 2, 0.5)
    assert tally.languages == {"en", "de"}
    assert tally.differing == [("a", "b")]


def test_scores_that_are_not_numbers_show() -> None:
    tally = Tally()
    tally.add(None, Answer("a", [math.nan]), Answer("a", [0.0]))
    tally.add(None, Answer("a", [0.5]), Answer("a", [0.0]))
    assert math.isnan(tally.largest)


def test_an_order_counts_unless_scores_leave_it_open() -> None:
    ours = [("a", 0.5), ("b", 0.49999)]
    assert ranked(ours, [("b", 0.50001), ("a", 0.5)])[1].what == ["a", "b"]
    assert ranked(ours, [("b", 0.6), ("a", 0.4)])[1].what == ["b", "a"]
    assert ranked(ours, [("c", 0.6)])[1].what == ["c"]
    assert listed([]).what == []
