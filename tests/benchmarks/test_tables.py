from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots, tables


def test_a_wrong_engine_is_listed_without_a_time(results: dict[str, Any]) -> None:
    (row,) = [line for line in tables.times(results).splitlines() if line.startswith("| ONNX Runtime, stock dynamic")]
    assert set(row.split(" | ")[1:]) == {"wrong", "wrong |"}
    assert "* ONNX Runtime, stock dynamic int8 on 1×32: wrong answers, so no time (cosine 0.5000" in tables.gaps(
        results
    )


def test_gaps_are_named_with_their_reason(results: dict[str, Any]) -> None:
    gaps = tables.gaps(results)
    assert "* optimum ORTModel: could not be loaded: No module named 'optimum'" in gaps
    assert "* PyTorch, torch.compile on 1×512: failed while it was timed: out of memory" in gaps
    assert "* PyTorch, torch.compile, cold start: compiles at the first answer" in gaps
    assert "optimum ORTModel" not in tables.times(results)


def test_every_cell_without_memory_of_the_workers_has_its_reason(results: dict[str, Any]) -> None:
    results["engines"]["erniem-rt"]["shared"] = {"gap": "MemoryError: no room"}
    empty = [line.split(" | ")[0][2:] for line in tables.costs(results).splitlines() if line.endswith("| – |")]
    assert "erniem-rt" in empty
    gaps = tables.gaps(results)
    assert "* erniem-rt, 4 processes together: MemoryError: no room" in gaps
    for label in empty:
        assert f"* {label}, 4 processes together: " in gaps


def test_times_are_medians_with_their_range_in_milliseconds(results: dict[str, Any]) -> None:
    (row,) = [line for line in tables.times(results).splitlines() if line.startswith("| erniem-rt |")]
    assert row.startswith("| erniem-rt | 16 (14–18) | 40 (36–44) |")


def test_the_load_before_the_run_is_told(results: dict[str, Any]) -> None:
    results["machine"]["load_before"] = 1.34
    for text in (tables.headline(results), tables.markdown(results)):
        assert "interleaved rounds; load 1.3 before the run." in text
    del results["machine"]["load_before"]
    assert "load" not in tables.markdown(results).split("###")[0]


def test_every_row_has_as_many_cells_as_the_header(results: dict[str, Any]) -> None:
    for table in (tables.times, tables.costs, tables.bars, tables.text_to_answer, tables.accuracy):
        rows = [line for line in table(results).splitlines() if line.startswith("|")]
        counts = {line.count("|") for line in rows}
        assert len(counts) == 1, table


def test_bars_say_met_missed_or_why_not(results: dict[str, Any]) -> None:
    lines = tables.bars(results).splitlines()
    assert "| 64 texts of mixed length: erniem-rt against CTranslate2 | ≥ 1.2 | 1.25 | met |" in lines
    assert any(line.endswith("| ≥ 0.95 | 0.3705 | missed |") for line in lines)
    assert any("| – | optimum ORTModel: could not be loaded" in line for line in lines)


def test_a_bar_is_not_rounded_into_being_met(results: dict[str, Any]) -> None:
    lines = tables.bars(results).splitlines()
    alone = "| trained weights, a text alone and in a batch, worst cosine: erniem-rt, int8 | ≥ 0.9995 | 0.9996 | met |"
    assert alone in lines
    assert "| trained weights, nearest neighbour unchanged: erniem-rt, int8 | ≥ 0.95 | 0.9495 | missed |" in lines


def test_accuracy_names_what_is_missing(results: dict[str, Any]) -> None:
    lines = tables.accuracy(results).splitlines()
    assert "| PyTorch, eager | – | – | – | 64.0 |" in lines
    assert "| CTranslate2, int8 | 0.0970 | 93.9 % | 1.00000 | 85.3 |" in lines
    assert "| OpenVINO, int8 | preparing openvino-int8 failed: No module named 'nncf' | – | – | – |" in lines
    results["accuracy"] = {"gap": "the trained weights are not installed"}
    assert tables.accuracy(results) == "Not measured: the trained weights are not installed."


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nbelow\n")
    (tmp_path / "docs" / "benchmarks.md").write_text("no markers\n")
    assert tables.write_documents(results, tmp_path) == [readme]
    written = readme.read_text()
    assert written == f"above\n<!-- bench:begin -->\n{tables.headline(results)}<!-- bench:end -->\nbelow\n"
    assert (tmp_path / "docs" / "benchmarks.md").read_text() == "no markers\n"
    tables.write_documents(results, tmp_path)
    assert readme.read_text() == written


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_documents_say_what_the_committed_results_say(name: str) -> None:
    document = tables.ROOT / name
    if not tables.RESULTS.exists():
        pytest.skip("no results are committed")
    results = json.loads(tables.RESULTS.read_text(encoding="utf-8"))
    block, expected = tables.documents(results)[document]
    content = document.read_text(encoding="utf-8")
    span = tables.block(content, block)
    if span is None:
        pytest.skip(f"{name} shows no figures: it has no markers for {block}")
    assert content[span] == expected, "run: python benchmarks/tables.py --write-readme"


def test_committed_pictures_were_drawn_from_the_committed_results() -> None:
    if not plots.RESULTS.exists():
        pytest.skip("no results are committed")
    content = plots.RESULTS.read_bytes()
    expected = plots.digest(content)
    for name in plots.drawn(json.loads(content)):
        assert expected in (plots.OUTPUT / name).read_text(encoding="utf-8"), "run: python benchmarks/plots.py"
