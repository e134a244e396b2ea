"""What the benchmark's figures rest on: who is wrong and not timed, ratios, workloads, and that it can run at all."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import adapters, artifacts, bars, workloads
from benchmarks.engines import ENGINES, GPU_ENGINES
from benchmarks.measure import compare

ROOT = Path(__file__).resolve().parents[2]
OURS = ("benchmarks", "erniem_export", "erniem_rt")
# Nothing else runs these in `make test`.
FOLDERS = ("benchmarks", "examples", "tests/gpu")
ROWS, LABELS = 8, 64
# Each label has a bias of its own, larger than what tells the rows apart.
BIASES = np.random.default_rng(2).normal(scale=3.0, size=LABELS)
EXPECTED = (BIASES + np.random.default_rng(0).normal(size=(ROWS, LABELS))).tolist()


def test_every_name_of_ours_that_they_import_exists() -> None:
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith(OURS):
                module = importlib.import_module(node.module or "")
                for name in (alias.name for alias in node.names):
                    if not hasattr(module, name):
                        importlib.import_module(f"{node.module}.{name}")


def test_every_engine_has_an_adapter_and_an_artifact_that_can_be_made() -> None:
    for spec in (*ENGINES.values(), *GPU_ENGINES.values()):
        assert spec.artifact in artifacts.SOURCES
        assert hasattr(adapters, spec.adapter)
    assert artifacts.SOURCES.keys() == artifacts.STEPS.keys() | artifacts.EXPORTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_our_adapter_answers_as_pytorch_s(batch_size: int, nano_artifact: Callable[[str], Path]) -> None:
    rows = [[0, 5, 6, 7, 2], [0, 9, 2], [0, 40, 41, 42, 43, 44, 45, 2]]
    checkpoint = ROOT / "examples" / "nano" / "checkpoints"
    for head, ask in (("cls", "run"), ("base", "hidden_states")):
        ours = adapters.ErnieM(nano_artifact(head).parent, 1)
        theirs = adapters.TorchModel(checkpoint / head, 1, "cpu", "fp32", "sdpa")
        for found, expected in zip(*(getattr(one, ask)(rows, batch_size) for one in (ours, theirs)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("noise", "precision", "correct"),
    [
        (1e-4, "fp32", True),
        (1e-2, "fp32", False),
        (1e-2, "fp16", True),
        (1e-1, "fp16", False),
        (1e-1, "bf16", True),
        (1.0, "bf16", False),
        (1.0, "int8", True),
    ],
)
def test_how_far_off_is_wrong(noise: float, precision: Any, correct: bool) -> None:
    found = np.array(EXPECTED) + noise * np.random.default_rng(1).normal(size=(ROWS, LABELS))
    assert compare(found.tolist(), EXPECTED, precision)["correct"] is correct


def test_other_answers_are_not_taken_for_int8() -> None:
    others = [BIASES + np.random.default_rng(10 + seed).normal(size=(ROWS, LABELS)) for seed in range(20)]
    mean = np.tile(np.mean(EXPECTED, axis=0), (ROWS, 1))
    not_a_number = [[*row[:-1], float("nan")] for row in EXPECTED]
    for wrong in (*others, EXPECTED[::-1], mean, EXPECTED[:5], not_a_number):
        assert compare(np.asarray(wrong).tolist(), EXPECTED, "int8")["correct"] is False


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine was ten times slower in the second round; theirs takes twice as long in each.
    assert bars.median_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 2.0


def test_the_fastest_of_ours_meets_the_fastest_set_up_of_the_fastest_rival() -> None:
    seconds = {
        "erniem-rt-int8": {"mixed": 0.5, "8x128": 0.2},
        "erniem-rt-openvino-int8-bf16": {"mixed": 0.2, "8x128": 0.1},
        "ctranslate2-int8": {"mixed": 0.7},
        "openvino-int8-bf16": {"mixed": 0.6, "mixed-sorted": 0.3},
        "torch-eager": {},
    }
    engines = {
        name: {"label": name, "gap": None, "bytes": 1e6, "cold_start": {}}
        | {"results": {workload: {"samples": [median] * 3} for workload, median in found.items()}}
        for name, found in seconds.items()
    }
    gap = {"gap": "not measured"}
    results = {
        "machine": {"class": "avx512-vnni-bf16", "cpu": ""},
        "engines": engines,
        "end_to_end": gap,
        "accuracy": gap,
    }
    results["workloads"] = {"mixed": {"tokens": 100}, "8x128": {"tokens": 1024}}
    found = {bar["bar"]: bar for bar in bars.ratios(results)}
    (mixed,) = [bar for title, bar in found.items() if "(64 texts of mixed length or the same, sorted" in title]
    assert (mixed["value"], mixed["met"]) == (pytest.approx(1.5), True)
    assert found["8×128: int8 against erniem-rt-int8"]["value"] == pytest.approx(2)
    missing = found["8×128: bf16 against erniem-rt"]
    assert (missing["value"], missing["met"]) == (None, None)
    assert "not in this run" in missing["gap"]


def test_mixed_workloads_are_the_same_texts_and_padding_is_what_the_name_says() -> None:
    mixed, single, by_length = workloads.build_workloads(workloads.MIXED, 250002)
    assert mixed.rows == single.rows
    assert sorted(mixed.rows) == sorted(by_length.rows)
    assert abs(mixed.tokens / 64 - workloads.MIXED_MEAN) < 6
    for workload in workloads.build_workloads(workloads.PADDED, 1000):
        share = int(workload.name.split("-")[1])
        assert 100 * workload.description()["padding_share"] == pytest.approx(share, abs=0.1)


def test_operations_are_those_of_the_encoder() -> None:
    """12 layers of 24 H² S and 4 S² H at the base size: 22.4 GFLOP for a row of 128 tokens."""
    (workload,) = workloads.build_gpu_workloads(("8x128",), 1000)
    model = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072}
    assert workloads.flops(workload, model) / 8 == pytest.approx(22.35e9, rel=1e-3)
