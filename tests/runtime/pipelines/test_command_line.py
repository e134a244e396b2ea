"""``python -m erniem_rt``: lines in, lines out, and what happens to bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from erniem_rt import _cli
from erniem_rt._cli import main
from erniem_rt.pipelines import pipeline

NLI = ("entailment", "neutral", "contradiction")


def test_answers_are_those_of_the_pipeline_in_input_order(make_text_artifact, answer, sentences) -> None:
    artifact = make_text_artifact("cls", labels=("good", "bad")).path
    texts = [*sentences, *reversed(sentences)] * 3

    code, answers, errors = answer(artifact, texts, "--batch-size", "4")

    with pipeline(artifact) as expected:
        # Other batches round the last digits of a score differently.
        assert answers == [{**line, "score": pytest.approx(line["score"], abs=1e-6)} for line in expected(texts)]
    assert (code, errors) == (0, "")


def test_a_bad_line_is_named_and_loses_no_other(make_text_artifact, answer) -> None:
    artifact = make_text_artifact("cls", labels=("good", "bad")).path
    deep = b"[" * 100_000
    lines = ["one", b"{not json", "", b"", {"text": "two"}, 17, b"\xff\xfe", {"text": "x", "a": "y"}, "three", deep]

    code, answers, errors = answer(artifact, lines)

    assert code == 1
    assert [line.get("line") for line in answers] == [None, 2, 3, None, 6, 7, 8, None, 10]
    assert answers[0] == answer(artifact, ["one"])[1][0]
    assert answers[3] == answer(artifact, ["two"])[1][0]
    assert answers[7] == pytest.approx(answer(artifact, ["three"])[1][0])
    assert "line 2: expected a JSON string or object in UTF-8" in errors
    assert "line 3: text is empty" in errors
    assert "error: 6 of 9 lines could not be answered" in errors


def test_many_lines_are_answered_in_several_chunks(make_text_artifact, answer) -> None:
    artifact = make_text_artifact("cls", labels=("good", "bad")).path
    texts: list[Any] = [f"number {i}" for i in range(50)]
    texts[30] = 5

    code, answers, _ = answer(artifact, texts, "--batch-size", "2")

    assert code == 1
    assert [i for i, line in enumerate(answers) if "error" in line] == [30]
    assert len(answers) == 50


def test_a_line_over_the_limit_is_an_error_of_its_own(make_text_artifact, answer) -> None:
    artifact = make_text_artifact("base").path

    code, answers, errors = answer(artifact, ["four", "longer", {"text": "four"}], "--max-characters", "4")

    assert code == 1
    assert answers[0] == answers[2]
    message = "the input has 6 characters, more than max_characters=4: shorten it, or split it into several."
    assert answers[1] == {"error": message, "line": 2}
    assert f"line 2: {message}" in errors


def test_progress_on_a_terminal_gives_way_to_what_is_said(make_text_artifact, answer, monkeypatch) -> None:
    artifact = make_text_artifact("cls", labels=("good", "bad")).path
    texts = ["x"] * 20
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    code, _, errors = answer(artifact, texts, "--batch-size", "2")
    assert (code, errors) == (0, "\r8 lines\r16 lines\r20 lines\n")

    texts[9] = ""
    code, _, errors = answer(artifact, texts, "--batch-size", "2")
    assert code == 1
    clear = "\r\x1b[K"
    assert errors == (
        f"\r8 lines{clear}line 10: text is empty: expected text.\n\r16 lines\r20 lines\n"
        f"{clear}error: 1 of 20 lines could not be answered\n"
    )

    monkeypatch.setattr(_cli, "_answer_chunk", Mock(side_effect=[[(1, "fine")], KeyboardInterrupt]))
    code, _, errors = answer(artifact, texts, "--batch-size", "2")
    assert (code, errors) == (1, f"\r8 lines{clear}error: interrupted\n")


def test_half_a_surrogate_pair_comes_back_as_the_escape_that_it_was(make_text_artifact, tmp_path: Path) -> None:
    artifact = make_text_artifact("cls", labels=NLI).path
    command = [sys.executable, "-m", "erniem_rt", str(artifact), "--candidate-labels", "a,b"]

    result = subprocess.run(command, input=b'"x \\ud800 y"\n', capture_output=True, check=False, timeout=60)

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["sequence"] == "x \ud800 y"


def test_missing_files_end_in_one_line(make_text_artifact, tmp_path: Path, capsys) -> None:
    artifact = make_text_artifact("cls", labels=NLI).path

    assert main([str(tmp_path / "none" / "qa.onnx")]) == 1
    assert main([str(artifact), "--input", str(tmp_path / "none.jsonl")]) == 1
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.splitlines())


def test_usage_errors_exit_with_2(capsys) -> None:
    for arguments in (
        [],
        ["x.onnx", "--schema", "{not json"],
        ["x.onnx", "--schema", "[" * 100_000],
        ["x.onnx", "--unknown"],
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
    assert "expected JSON" in capsys.readouterr().err
