"""The tokenizer's figures: the document says what the committed results say, and those meet the bar."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tokenizer_tables
from benchmarks.tables import block


@pytest.fixture
def result() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tokenizer_tables.RESULTS.read_text(encoding="utf-8"))
    return content


def test_the_document_says_what_the_committed_results_say(result: dict[str, Any]) -> None:
    content = tokenizer_tables.DOCUMENT.read_text(encoding="utf-8")
    span = block(content, "tokenizer")
    assert span is not None
    assert content[span] == tokenizer_tables.tables(result), "run: python -m benchmarks.tokenizer_speed --tables-only"


def test_the_committed_results_meet_the_bar(result: dict[str, Any]) -> None:
    ways = result["ways"]
    assert all(way["correct"] for way in ways.values())
    assert ways["batch, 1 thread"]["times_reference"] >= 10
    assert ways["batch, 2 threads"]["times_one_thread"] >= 1.5
    assert ways["batch with .offsets"]["times_one_thread"] >= 0.5
    assert result["loading"]["exported"]["seconds"] <= 0.5
    assert all(row["added_mb"] <= 120 for row in result["loading"].values())
    each = [row["seconds"] / row["characters"] for row in result["long_texts"]]
    assert result["long_texts"][-1]["characters"] == 1_000_000
    assert max(each) < 2 * min(each)


def test_the_load_before_the_run_is_told(result: dict[str, Any]) -> None:
    result["machine"]["load_average"] = 0.25
    assert "interleaved rounds; load 0.25 before the run; vocabulary:" in tokenizer_tables.tables(result)


def test_wrong_ids_have_no_time(result: dict[str, Any], tmp_path: Path) -> None:
    wrong = copy.deepcopy(result)
    wrong["ways"]["batch, 1 thread"] = {"correct": False}
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- tokenizer:begin -->\npast\n<!-- tokenizer:end -->\nafter\n", encoding="utf-8")
    tokenizer_tables.write_document(wrong, document)
    content = document.read_text(encoding="utf-8")
    assert "| batch, 1 thread | wrong ids | | | |" in content
    assert content.startswith("before\n")
    assert content.endswith("after\n")
    assert "past" not in content
