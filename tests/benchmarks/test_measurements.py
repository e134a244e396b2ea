"""The committed figures of the other measurements meet their bars, and what they are counted with counts right."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import languages, plan_sizes, task_accuracy, tokenizer_speed
from benchmarks.documents import RESULTS_DIR
from erniem_rt.tokenizer import Tokenizer
from tests.parity.pipeline_reference import Answer, Tally, listed, ranked


def committed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS_DIR / f"{name}.json").read_text(encoding="utf-8"))
    return content


def test_one_european_language_and_english_are_under_half() -> None:
    result = committed("languages")
    by_words = [row for row in result["rows"] if set(row["rules"].values()) == {"words"}]
    assert [row["languages"] for row in by_words] == list(languages.PAIRS)
    for row in by_words:
        for precision, size in row["bytes"].items():
            assert size < result["bytes"][precision] / 2
        for code, found in row["texts"].items():
            given = result["texts"][code]
            assert found["same"] >= 0.98 * given["texts"]
            assert 0.998 * given["tokens"] <= found["tokens_kept"] <= given["tokens"]
            assert found["texts_with_new_unknowns"] == 0


def test_what_is_compared_of_languages(tokenizer_dir: Path, tmp_path: Path) -> None:
    whole, texts = Tokenizer.from_dir(tokenizer_dir), ["Straßenfest in Zürich", "in 1897"]
    before = list(map(whole.tokenize, texts))
    lost = {token for token in before[0] if len(token) > 3}
    assert lost
    ids = [index for token, index in sorted(whole.get_vocab().items(), key=lambda pair: pair[1]) if token not in lost]
    languages.write_part(tokenizer_dir, ids, tmp_path)
    part = Tokenizer.from_dir(tmp_path)
    found = languages._compared(before, list(map(part.tokenize, texts)), whole, part)
    assert found["same"] == 1
    assert found["tokens_kept"] == languages._known(before, whole) - sum(token in lost for token in before[0])
    assert found["tokens_after"] > sum(map(len, before))
    assert found["texts_with_new_unknowns"] == 0


def test_every_task_agrees_with_transformers() -> None:
    rows = committed("pipeline_agreement")["rows"]
    assert len({row["task"] for row in rows}) == 7
    for row in rows:
        assert row["same"] == row["inputs"] >= 200
        assert len(row["languages"]) == 6
        assert row["largest_difference"] <= 1e-4


def test_only_what_is_the_same_counts_as_the_same() -> None:
    tally = Tally()
    tally.add("en", Answer("a", [0.5, 0.25]), Answer("a", [0.5, 0.75]))
    tally.add("de", Answer("a", [1.0]), Answer("b", [0.0]))
    assert (tally.inputs, tally.same, tally.scores, tally.largest) == (2, 1, 2, 0.5)
    assert (tally.languages, tally.differing) == ({"en", "de"}, [("a", "b")])
    tally.add(None, Answer("a", [math.nan]), Answer("a", [0.0]))
    tally.add(None, Answer("a", [0.5]), Answer("a", [0.0]))
    assert math.isnan(tally.largest)


def test_an_order_counts_unless_scores_leave_it_open() -> None:
    ours = [("a", 0.5), ("b", 0.49999)]
    assert ranked(ours, [("b", 0.50001), ("a", 0.5)])[1].what == ["a", "b"]
    assert ranked(ours, [("b", 0.6), ("a", 0.4)])[1].what == ["b", "a"]
    assert ranked(ours, [("c", 0.6)])[1].what == ["c"]
    assert listed([]).what == []


def test_every_precision_holds_the_line() -> None:
    rows = committed("task_accuracy")["rows"]
    measured = {(row["head"], row["precision"]) for row in rows}
    assert {(head, precision) for head in task_accuracy.HEADS for precision in task_accuracy.PRECISIONS} == measured
    for row in rows:
        if row["precision"] == task_accuracy.BUILT_IN_TEXT:
            continue
        limit = 0 if row["precision"] == "fp32" else 0.5
        for pair in row["accuracy"]["metrics"].values():
            assert pair["found"] >= pair["reference"] - limit - 1e-4, row
        assert row["passed"], row


def test_the_tokenizer_meets_its_bars() -> None:
    result = committed("tokenizer_speed")
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


def test_wrong_ids_have_no_time() -> None:
    result = committed("tokenizer_speed")
    result["ways"]["batch, 1 thread"] = {"correct": False}
    assert "| batch, 1 thread | wrong ids | | | |" in tokenizer_speed.tables(result)


def test_a_plan_in_fp16_takes_about_half_of_fp32() -> None:
    results = committed("plan_sizes")
    plans = results["plans"]
    assert results["model"]["name"] == "random:base"
    assert plans["fp32"]["bytes"] > 4 * 278e6
    assert results["fp16_of_fp32"] == plans["fp16"]["bytes"] / plans["fp32"]["bytes"] <= 0.55


@pytest.mark.slow
def test_a_plan_is_built_and_measured(tmp_path: Path) -> None:
    plan_sizes.write_graph("random:tiny", "fp16", tmp_path)
    found = plan_sizes.build_plan(tmp_path)
    assert found["seconds"] > 0
    assert found["peak_memory"] > 5e7
    assert found["bytes"] > 1000 * 64 * 2
