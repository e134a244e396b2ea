from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots

from_results = Path(__file__).with_name("results.json")


def test_bars_are_texts_per_second_of_engines_that_have_a_time(results: dict[str, Any]) -> None:
    panels = plots.bar_panels(results)
    assert list(panels) == ["1×32", "1×128", "8×128", "1×512", "64 texts of mixed length"]
    mixed = dict(panels["64 texts of mixed length"])
    assert mixed["erniem-rt"] == pytest.approx(64 / 1.6)
    assert {"optimum", "openvino-int8", "ort-int8"}.isdisjoint(mixed)
    assert "torch-compile" not in dict(panels["1×512"])


def test_padding_lines_count_real_tokens(results: dict[str, Any]) -> None:
    line = plots.padding_lines(results)["erniem-rt"]
    assert line == [(0.0, pytest.approx(1024 / 0.32)), (50.0, pytest.approx(512 / 0.32))]


def test_accuracy_is_of_the_trained_weights_and_size_of_the_base_model(results: dict[str, Any]) -> None:
    points = plots.accuracy_points(results)
    assert points["ort-int8"] == (280.0, 0.17)
    assert points["erniem-rt"] == (1112.0, 1e-6)
    assert "openvino-int8" not in points
    results["accuracy"] = {"gap": "not installed"}
    assert plots.accuracy_points(results) == {}


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib, which the tests' environment does without")
    for folder in ("a", "b"):
        assert plots.main(["--results", str(from_results), "--output", str(tmp_path / folder)]) == 0
    for name in plots.DRAWINGS:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert plots.digest(from_results.read_bytes()).encode() in content


def test_a_picture_of_what_was_not_measured_is_not_drawn(results: dict[str, Any]) -> None:
    assert plots.drawn(results).keys() == plots.DRAWINGS.keys()
    results["workloads"] = {name: w for name, w in results["workloads"].items() if not name.startswith("padding-")}
    assert plots.drawn(results).keys() == plots.DRAWINGS.keys() - {"bench-padding.svg"}
