"""The command line: lines in, lines out, every option of every task, and bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any
from unittest.mock import Mock

import pytest

from erniem_rt import cli, pipelines
from erniem_rt.cli import main
from erniem_rt.pipelines import pipeline

NLI = ("entailment", "neutral", "contradiction")


def test_answers_are_those_of_the_pipeline_in_input_order(make_text_artifact, answer, sentences):
    artifact = make_text_artifact("cls", labels=("good", "bad")).path
    texts = [*sentences, *reversed(sentences)] * 3

    code, answers, errors = answer(artifact, texts, "--batch-size", "4")

    with pipeline(artifact) as expected:
        # Other batches round the last digits of a score differently.
        assert answers == [{**line, "score": pytest.approx(line["score"], abs=1e-6)} for line in expected(texts)]
    assert (code, errors) == (0, "")


def test_a_bad_line_is_named_and_loses_no_other(make_text_artifact, answer):
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


def test_many_lines_are_answered_in_several_chunks(make_text_artifact, answer):
    artifact = make_text_artifact("cls", labels=("good", "bad")).path
    texts: list[Any] = [f"number {i}" for i in range(50)]
    texts[30] = 5

    code, answers, _ = answer(artifact, texts, "--batch-size", "2")

    assert code == 1
    assert [i for i, line in enumerate(answers) if "error" in line] == [30]
    assert len(answers) == 50


def test_a_line_over_the_limit_is_an_error_of_its_own(make_text_artifact, answer):
    artifact = make_text_artifact("base").path

    code, answers, errors = answer(artifact, ["four", "longer", {"text": "four"}], "--max-characters", "4")

    assert code == 1
    assert answers[0] == answers[2]
    message = "the input has 6 characters, more than max_characters=4: shorten it, or split it into several."
    assert answers[1] == {"error": message, "line": 2}
    assert f"line 2: {message}" in errors


def test_progress_on_a_terminal_gives_way_to_what_is_said(make_text_artifact, answer, monkeypatch):
    artifact = make_text_artifact("cls", labels=("good", "bad")).path
    texts = ["x"] * 20
    engine = "engine: onnxruntime, computing in fp32\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    code, _, errors = answer(artifact, texts, "--batch-size", "2")
    assert (code, errors) == (0, f"{engine}\r8 lines\r16 lines\r20 lines\n")

    texts[9] = ""
    code, _, errors = answer(artifact, texts, "--batch-size", "2")
    assert code == 1
    clear = "\r\x1b[K"
    assert errors == (
        f"{engine}\r8 lines{clear}line 10: text is empty: expected text.\n\r16 lines\r20 lines\n"
        f"{clear}error: 1 of 20 lines could not be answered\n"
    )

    monkeypatch.setattr(cli, "_answer_chunk", Mock(side_effect=[[(1, "fine")], KeyboardInterrupt]))
    code, _, errors = answer(artifact, texts, "--batch-size", "2")
    assert (code, errors) == (130, f"{engine}\r8 lines{clear}error: interrupted\n")


def test_half_a_surrogate_pair_comes_back_as_the_escape_that_it_was(make_text_artifact, tmp_path):
    artifact = make_text_artifact("cls", labels=NLI).path
    command = [sys.executable, "-m", "erniem_rt", str(artifact), "--candidate-labels", "a,b"]

    result = subprocess.run(command, input=b'"x \\ud800 y"\n', capture_output=True, check=False, timeout=60)

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["sequence"] == "x \ud800 y"


def test_missing_files_end_in_one_line(make_text_artifact, tmp_path, capsys):
    artifact = make_text_artifact("cls", labels=NLI).path

    assert main([str(tmp_path / "none" / "qa.onnx")]) == 1
    assert main([str(artifact), "--input", str(tmp_path / "none.jsonl")]) == 1
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.splitlines())


def test_usage_errors_exit_with_2(capsys):
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


QUESTION = {"question": "Who?", "context": "Maria wrote it and Jo read it."}
# Head, what to ask, flags, and the options of the call that they are. What an option does: see test_options.py.
OPTIONS: list[tuple[str, Any, list[str], dict[str, Any]]] = [
    ("qa", QUESTION, ["--top-k", "2", "--max-answer-len", "1"], {"top_k": 2, "max_answer_len": 1}),
    ("qa", QUESTION, ["--max-seq-len", "32", "--doc-stride", "3"], {"max_seq_len": 32, "doc_stride": 3}),
    ("qa", QUESTION, ["--align-to-words"], {"align_to_words": True}),
    ("qa", QUESTION, ["--handle-impossible-answer"], {"handle_impossible_answer": True}),
    ("ner", "Maria", ["--aggregation-strategy", "max", "--stride", "0"], {"aggregation_strategy": "max", "stride": 0}),
    ("ner", "Maria", ["--ignore-labels", "O，B-PER, "], {"ignore_labels": ["O", "B-PER"]}),
    ("ner", "Maria", ["--ignore-labels", ""], {"ignore_labels": []}),
    ("mc", {"prompt": "Maria", "choices": ["yes", "no"]}, ["--max-characters", "90"], {"max_characters": 90}),
    ("ie", "Maria", ["--schema", '{"I": ["I"]}', "--threshold", "0.5"], {"schema": {"I": ["I"]}, "threshold": 0.5}),
    ("ie", "Maria", ["--schema", '"I"', "--schema-lang", "zh"], {"schema": "I", "schema_lang": "zh"}),
    ("cls", "Maria", ["--candidate-labels", "art、 sport"], {"candidate_labels": "art、 sport"}),
    (
        "cls",
        "Maria",
        ["--candidate-labels", "a,b", "--hypothesis-template", "{} {}", "--multi-label"],
        {"candidate_labels": "a,b", "hypothesis_template": "{} {}", "multi_label": True},
    ),
    ("cls", "Maria", ["--function-to-apply", "none", "--top-k", "3"], {"function_to_apply": "none", "top_k": 3}),
    ("base", "Maria", ["--pooling", "cls", "--normalize"], {"pooling": "cls", "normalize": True}),
    ("base", "Maria", ["--no-normalize"], {"normalize": False}),
]


@pytest.mark.parametrize(("head", "line", "flags", "options"), OPTIONS)
def test_flags_are_options_of_the_call(make_text_artifact, answer, monkeypatch, head, line, flags, options):
    artifact = make_text_artifact(head, labels={"ner": ("O", "B-PER"), "cls": NLI}.get(head)).path
    task = "zero-shot-classification" if "candidate_labels" in options else None
    spy = Mock(side_effect=cli._answer_chunk)
    monkeypatch.setattr(cli, "_answer_chunk", spy)

    code, [found], errors = answer(artifact, [line], *flags)

    assert (code, errors) == (0, "")
    assert spy.call_args.args[1] == options
    with pipeline(task, artifact) as expected:
        wanted = expected([line], **options)[0]
    assert found == (wanted.tolist() if head == "base" else wanted)


def test_no_flag_is_left_out():
    assert {name for *_, options in OPTIONS for name in options} == set(cli._OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "1"], "zero-shot-classification takes no --top-k"),
        (["--task", "zero-shot"], "task 'zero-shot' is not known"),
        (["--threads", "0"], "threads must be an integer from 1 to 1024"),
        (["--batch-size", "0"], "batch_size must be an integer of at least 1"),
        (["--device", "tpu"], "device"),
        (["--stride", "3"], "zero-shot-classification takes no --stride"),
        (["--align-to-words"], "zero-shot-classification takes no --align-to-words"),
        (["--hypothesis-template", "no place"], "hypothesis_template must be text with {}"),
        (["--candidate-labels", ""], "candidate_labels is empty: expected at least one label"),
    ],
)
def test_wrong_options_end_in_one_line(make_text_artifact, answer, options, message):
    artifact = make_text_artifact("cls", labels=NLI).path

    code, answers, errors = answer(artifact, ["text"], "--candidate-labels", "a,b", *options)

    assert (code, answers) == (1, ["from before"])
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_zero_shot_needs_labels(make_text_artifact, answer):
    artifact = make_text_artifact("cls", labels=NLI).path

    code, answers, errors = answer(artifact, ["text"], "--task", "zero-shot-classification")

    assert (code, answers) == (1, ["from before"])
    assert "needs --candidate-labels" in errors


def test_what_a_session_takes_reaches_it(make_text_artifact, answer, monkeypatch):
    taken = []

    class Watched(pipelines.Session):
        def __init__(self, path, **options):
            taken.append(options)
            super().__init__(path, **options)

    monkeypatch.setattr(pipelines, "Session", Watched)
    artifact = make_text_artifact("base").path
    for options in ([], ["--spinning", "--no-shrink-memory"], ["--no-spinning", "--shrink-memory", "--threads", "1"]):
        assert answer(artifact, ["Maria"], *options)[0] == 0
    names = ("threads", "spinning", "shrink_memory")
    assert [[options[name] for name in names] for options in taken] == [
        [None, None, None],
        [None, True, False],
        [1, False, True],
    ]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([""], "artifact"),
        (["model", "--input", ""], "--input"),
        (["model", "--output", " "], "--output"),
        (["model", "--cache", ""], "--cache"),
        (["serve", "model", ""], "models"),
        (["triton", "model", "--repository", ""], "--repository"),
    ],
)
def test_an_empty_argument(words, name, capsys):
    """As of a shell's variable that is not set; an empty path is the current folder."""
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert f"error: {name} is empty: expected a path or a name" in capsys.readouterr().err
