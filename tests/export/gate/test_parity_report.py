"""The findings: what counts as a failure, and the table and JSON made of them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from erniem_export.gate.cases import Case
from erniem_export.gate.diagnosis import diagnose
from erniem_export.gate.measures import THRESHOLDS, Agreement, Report, Weights, format_report, measure

ONES = np.ones((2, 4), dtype=np.float32)


def report(**changes):
    """A report that passes, but for the changes."""
    fields = {
        "differences": {("logits", "a"): measure(ONES, ONES), ("logits", "b"): measure(ONES + 1e-6, ONES)},
        "agreement": Agreement(5, 5),
        "invariance": {"logits": measure(ONES, ONES)},
        "decides": True,
        "weights": Weights(40),
    }
    return Report("fp32", THRESHOLDS["fp32"], **fields | changes)


def test_passes():
    assert report().failures() == []
    assert report().failing_cases() == set()
    assert report().worst()[:2] == ("logits", "b")
    assert report(decides=False, agreement=Agreement()).failures() == []
    assert report(agreement=Agreement()).failures() == []


FAILURES = {
    "nothing": ({"differences": {}}, "nothing was compared"),
    "nothing alone": ({"invariance": {}}, "nothing was compared"),
    "no weight": ({"weights": Weights()}, "no weight was compared"),
    "weights": (
        {"weights": Weights(40, tuple("abcde"))},
        "these weights are not the checkpoint's: a, b, c and 2 more (5 of 40, limit 0)",
    ),
    "weights that are not there": (
        {"weights": Weights(40, missing=tuple("abcd"))},
        "these weights of the checkpoint are not in the graph: a, b, c and 1 more (4 of 44, limit 0)",
    ),
    "numbers": (
        {"differences": {("logits", "a"): measure(ONES + 0.01, ONES)}},
        r"logits on the case 'a' differs by up to 1\.00e-02 \(limit 1\.0e-04\), relative L2 1\.0e-02 "
        r"\(limit 2\.0e-05\), cosine \S+ \(limit 0\.999999\)",
    ),
    "NaN": (
        {"differences": {("logits", "a"): measure(ONES * np.nan, ONES)}},
        "logits on the case 'a' has 8 values that are NaN or infinite (limit 0)",
    ),
    "empty": ({"differences": {("logits", "a"): measure(ONES[:0], ONES[:0])}}, "logits on the case 'a' was empty"),
    "alone": (
        {"invariance": {"logits": measure(ONES + 0.01, ONES)}},
        "logits of a row changes with the padding and the rows beside it: it differs by up to 1",
    ),
    "decisions": ({"agreement": Agreement(1000, 999)}, "only 999 of 1000 decisions are the same (99.90%, limit 100%)"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_alone(name):
    changes, message = FAILURES[name]
    findings = report(**changes)
    (problem,) = findings.failures()
    assert problem.startswith(message) or re.match(message, problem)
    assert findings.to_json()["passed"] is False
    assert format_report(findings.to_json()).endswith("FAILED")


def test_several_failures_are_all_named():
    changes = {
        key: value for name in ("numbers", "alone", "decisions", "weights") for key, value in FAILURES[name][0].items()
    }
    assert len(report(**changes).failures()) == 4


def test_json_keeps_the_worst_of_every_output():
    two = np.full((3, 1), 2.0, dtype=np.float32)
    findings = report(
        differences={
            ("logits", "a"): measure(ONES + 3e-5, ONES),
            ("logits", "b"): measure(ONES * np.nan, ONES),
            ("other", "a"): measure(two, two),
        }
    )
    content = findings.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == json.loads(json.dumps(content))
    assert content["cases"] == ["a", "b"]
    row = content["outputs"]["logits"]
    assert row["worst_case"] == "b"
    assert (row["nonfinite"], row["values"]) == (8, 16)
    assert row["max_abs"] == pytest.approx(3e-5, rel=1e-2)
    assert row["padding_invariance"] == 0
    assert content["outputs"]["other"]["padding_invariance"] is None
    assert content["weights"] == {"compared": 40, "changed": (), "missing": ()}


def test_table():
    lines = format_report(report().to_json()).splitlines()
    assert lines[0].startswith("fp32 against PyTorch ")
    assert lines[0].endswith(", float32, 2 cases")
    assert " ".join(lines[1].split()) == "output max mean p99 rel. L2 cosine NaN/inf padding worst case"
    assert lines[3].split()[0] == "logits"
    assert lines[-1] == "40 of 40 weights the same; 5 of 5 decisions the same; passed"
    assert "40 of 42 weights the same" in format_report(report(weights=Weights(40, missing=("a", "b"))).to_json())
    assert "decisions" not in format_report(report(decides=False).to_json())
    assert "no decisions compared" in format_report(report(agreement=Agreement()).to_json())


def test_failure_of_rows_alone_is_explained():
    """The reference's rows do not touch each other, so this can only come from the engine."""
    case = Case("a", {}, np.ones((2, 4), dtype=bool))
    results = [(case, {"logits": ONES}, {"logits": ONES})]
    findings = report(invariance={"logits": measure(ONES + 0.01, ONES)})
    model = SimpleNamespace()
    assert diagnose(Path("x.onnx"), model, findings, results) == [
        "A row alone differs from the same row in a batch: something is computed across rows or from padding."
    ]
