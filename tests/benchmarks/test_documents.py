"""What documents and pictures show is what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import (
    interop,
    languages,
    pipeline_agreement,
    plan_sizes,
    plots,
    tables,
    task_accuracy,
    tokenizer_speed,
    xlm_roberta,
)
from benchmarks.documents import RESULTS_DIR, ROOT, read_block, table, write_blocks
from benchmarks.machine import cpu_name

# What writes each file's blocks into the documents again.
WRITERS = {
    "languages": (languages, "python -m benchmarks.languages"),
    "pipeline_agreement": (pipeline_agreement, "python -m benchmarks.pipeline_agreement --tables-only"),
    "plan_sizes": (plan_sizes, "python -m benchmarks.plan_sizes"),
    "task_accuracy": (task_accuracy, "python -m benchmarks.task_accuracy --table-only"),
    "tokenizer_speed": (tokenizer_speed, "python -m benchmarks.tokenizer_speed --tables-only"),
    "xlm_roberta": (xlm_roberta, "python -m benchmarks.xlm_roberta --tables-only"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_documents_say_what_the_committed_results_say(name: str) -> None:
    module, command = WRITERS[name]
    results = json.loads((RESULTS_DIR / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(module, ModuleType)
    for (document, block), text in module.blocks(results).items():
        assert read_block(document, block) == text, f"run: {command}"
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert rows


def test_documents_say_what_was_measured_on_each_class_of_cpu() -> None:
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in tables.committed()]
    assert runs
    for (document, block), text in tables.blocks(*runs).items():
        assert read_block(document, block) == text, "run: python -m benchmarks.tables --write-docs"
        assert all(tables.class_name(run) in text for run in runs)


@pytest.mark.parametrize("path", tables.committed(), ids=lambda path: path.stem)
def test_committed_pictures_were_drawn_from_the_committed_results(path: Path) -> None:
    content = path.read_bytes()
    assert path.stem == f"bench-{cpu_name(json.loads(content)['machine'])}"
    for name in plots.drawn(json.loads(content)):
        picture = (plots.OUTPUT / name).read_text(encoding="utf-8")
        assert plots.digest(content) in picture, "run: python -m benchmarks.plots"


def test_the_table_of_other_tools_is_of_the_pinned_versions() -> None:
    """What it says of them is what `make test-interop` checks."""
    block = (read_block(interop.DOCUMENT, interop.BLOCK) or "").splitlines()
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in block[2:]]
    told = {tool: cells for tool, *cells in rows}
    assert list(told) == [row.tool for row in interop.ROWS]
    pins = "".join(path.read_text() for path in (ROOT / "requirements").glob("*.txt"))
    for row in interop.ROWS:
        versions, *_, note = told[row.tool]
        assert note == row.note, "run: make test-interop ARGS=--write-docs"
        for package, version in (entry.split() for entry in versions.split(", ")):
            assert interop.NPM.get(package) == version or f"{package}=={version}\n" in pins


def test_a_row_that_changed_is_an_error() -> None:
    text = read_block(interop.DOCUMENT, interop.BLOCK) or ""
    assert interop.changes(text) == ""
    changed = interop.changes(text.replace("≤ 1e-5", "ValueError", 1))
    assert changed.count("\n") == 1
    assert "ValueError" in changed


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    with_markers, without = tmp_path / "a.md", tmp_path / "b.md"
    with_markers.write_text("above\n<!-- x:begin -->\nold\n<!-- x:end -->\nbelow\n")
    without.write_text("no markers\n")
    assert write_blocks({(with_markers, "x"): "new\n", (without, "x"): "new\n"}) == [with_markers]
    assert with_markers.read_text() == "above\n<!-- x:begin -->\nnew\n<!-- x:end -->\nbelow\n"
    assert without.read_text() == "no markers\n"
    assert (read_block(with_markers, "x"), read_block(without, "x")) == ("new\n", None)


def test_every_row_has_as_many_cells_as_the_header() -> None:
    assert table(["", "a", ""], [["", "", "b"]]) == "| | a | |\n| --- | --- | --- |\n| | | b |"


def test_the_comparison_with_sentence_transformers_tells_what_is_met_missed_and_not_measured() -> None:
    first, second, third, *_ = xlm_roberta.rows("avx512-vnni")
    assert not [row for row in xlm_roberta.rows("avx512-vnni") if row.floating_point == "bf16"]
    measured = {"gap": None, "seconds": [[1.0], [1.6]], "smallest_cosine": 0.99, "ratio": 1.6}
    found = [
        {**first._asdict(), **measured, "met": True},
        {**second._asdict(), **measured, "met": False},
        {**third._asdict(), "gap": "OpenVINO is not installed"},
    ]
    machine = {"date": "2000-01-01", "cpu": "one", "class": "avx512-vnni", "cores": 2, "load_before": 0.1}
    machine |= {"python": "3.11"}
    result = {"machine": machine, "versions": {}, "size": "base", "texts": 64, "threads": 2, "rounds": 1, "rows": found}
    result["quality"] = {"vectors": {}, "texts": 1, "source": "nano", "cpu": "avx512-vnni"}
    text = xlm_roberta.blocks(result)[xlm_roberta.DOCUMENT, "speed"]
    assert "| fp32 | ONNX Runtime | 64.0 | 40.0 | **1.60** | 0.9900 | ≥ 1.5: met |" in text
    assert "≥ 2.0: missed |" in text
    assert "| – | ≥ 1.3: OpenVINO is not installed |" in text
