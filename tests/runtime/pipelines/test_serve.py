"""``erniem-rt serve`` without KServe: names, options, and from tensors to a pipeline's call and back."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal

import numpy as np
import pytest

import erniem_rt
from erniem_rt import InvalidInputError
from erniem_rt.cli import main
from erniem_rt.serve import Served, _signals, read_inputs, read_options

# Of the tensors of each head's requests: names, and rows.
ROWS = {
    "qa": {"question": ["Who?", "Wo?"], "context": ["Clara did.", "In Rostock."]},
    "cls": {"text": ["One.", "Two."]},
    "mc": {"prompt": ["Where?", "Who?"], "choices": [["Denver", "Rostock"], ["Clara", "Ada"]]},
    "base": {"text": ["One.", "Two."]},
}


def tensors(columns, dtype=object):
    return [(name, "BYTES", np.array(rows, dtype)) for name, rows in columns.items()]


@pytest.fixture(scope="module")
def pipelines(nano_artifact):
    opened = {head: erniem_rt.pipeline(nano_artifact(head), threads=1) for head in (*ROWS, "ner", "ie")}
    opened["nli"] = erniem_rt.pipeline("zero-shot-classification", opened["cls"].session)
    yield opened
    for pipeline in opened.values():
        pipeline.close()


@pytest.mark.parametrize("head", ROWS)
def test_a_row_of_the_tensors_is_an_input(pipelines, head):
    columns = ROWS[head]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    expected = [row["text"] for row in rows] if head in ("cls", "base") else rows
    assert read_inputs(pipelines[head], tensors(columns)) == expected
    encoded = {name: np.char.encode(np.array(rows), "utf-8").astype(object) for name, rows in columns.items()}
    assert read_inputs(pipelines[head], tensors(encoded)) == expected
    if head == "cls":
        pair = {"text": ["One."], "text_pair": ["Two."]}
        assert read_inputs(pipelines[head], tensors(pair)) == [{"text": "One.", "text_pair": "Two."}]
    assert read_inputs(pipelines["ner"], tensors({"text": []})) == []


@pytest.mark.parametrize(
    ("head", "given", "told"),
    [
        ("qa", tensors({"question": ["a"]}), "input 'context' is missing; question-answering takes question, context"),
        ("qa", tensors({"question": ["a", "b"], "context": ["c"]}), "number of rows, got 'question' 2, 'context' 1"),
        ("cls", tensors({"texts": ["a"]}), "input 'texts' is not known; text-classification takes text, text_pair"),
        ("cls", tensors({"text": ["a"]}) * 2, "input 'text' is given twice"),
        ("cls", [("text", "INT64", np.array([1]))], "must have the datatype BYTES, got INT64"),
        ("cls", tensors({"text": [b"\xff"]}), "must be text in UTF-8"),
        ("cls", tensors({"text": [["a", "b"]]}), r"shape \(rows,\) or \(rows, 1\), got \(1, 2\)"),
        ("mc", tensors({"prompt": ["a"], "choices": ["b"]}), r"shape \(rows, choices\), got \(1,\)"),
        ("cls", tensors({"text": ["a"] * 9}), "has 9 texts, and a request may have at most 8"),
    ],
)
def test_tensors_that_are_no_inputs(pipelines, head, given, told):
    with pytest.raises(InvalidInputError, match=told):
        read_inputs(pipelines[head], given, 8)


@pytest.mark.parametrize(
    ("head", "parameters", "expected"),
    [
        ("qa", {"top_k": 2, "binary_data_output": True}, {"top_k": 2}),
        ("qa", {"top_k": "all"}, {"top_k": "all"}),
        ("cls", {"top_k": "all", "errors": "return"}, {"top_k": None, "errors": "return"}),
        ("nli", {"candidate_labels": "a, b"}, {"candidate_labels": "a, b"}),
        ("nli", {"candidate_labels": ' ["a, b"]'}, {"candidate_labels": ["a, b"]}),
        ("ner", {"ignore_labels": "O, PER"}, {"ignore_labels": ["O", "PER"]}),
        ("ie", {"schema": "Person", "threshold": "0.25"}, {"schema": "Person", "threshold": 0.25}),
        ("ie", {"schema": '{"A": ["B"]}', "threshold": "x"}, {"schema": {"A": ["B"]}, "threshold": "x"}),
    ],
)
def test_parameters_are_options(pipelines, head, parameters, expected):
    assert read_options(pipelines[head], parameters) == expected


@pytest.mark.parametrize(
    ("head", "parameters", "told"),
    [
        ("qa", {"stride": 1}, "takes no parameter 'stride'; expected one of errors, top_k, max_answer_len"),
        ("qa", {"doc_stride": 1}, "takes no parameter 'doc_stride'"),
        ("ner", {"max_seq_len": 8}, "takes no parameter 'max_seq_len'"),
        ("ie", {"schema": "["}, "parameter 'schema' must be JSON, but Expecting value"),
        ("nli", {"candidate_labels": "[" * 100_000}, "parameter 'candidate_labels' must be JSON"),
    ],
)
def test_parameters_that_are_no_options(pipelines, head, parameters, told):
    with pytest.raises(InvalidInputError, match=told):
        read_options(pipelines[head], parameters)


def answered(pipeline, columns, **parameters):
    with erniem_rt.Batcher(pipeline) as batcher:
        served = Served("it", batcher)
        name, datatype, array = asyncio.run(served.answer(tensors(columns), parameters))
        (described,) = served.outputs
        assert (described["name"], described["datatype"]) == (name, datatype)
        return array


def test_answers_are_json_or_an_array(pipelines):
    texts = ROWS["cls"]["text"]
    found = answered(pipelines["cls"], {"text": [*texts, "", "\ud800 One."]}, errors="return")
    assert found.shape == (4,)
    answers = [json.loads(text) for text in found.tolist()]
    assert answers[:2] == pipelines["cls"]([*texts, "", "\ud800 One."], errors="return")[:2]
    assert answers[2] == {"error": "text is empty: expected text."}
    np.testing.assert_array_equal(answered(pipelines["base"], {"text": texts}), pipelines["base"](texts))
    assert answered(pipelines["base"], {"text": []}).shape == (0, 96)
    assert answered(pipelines["ner"], {"text": []}).shape == (0,)
    one = answered(pipelines["base"], {"text": texts[:1]}, pooling="none")
    np.testing.assert_array_equal(one, pipelines["base"](texts[:1], pooling="none")[0][None])
    with pytest.raises(InvalidInputError, match="as many vectors as it has tokens: send one text, not 2"):
        answered(pipelines["base"], {"text": texts}, pooling="none")
    with pytest.raises(InvalidInputError, match="no room for errors='return'"):
        answered(pipelines["base"], {"text": texts}, errors="return")


def run(capsys, *words):
    code = main(["serve", *map(str, words)])
    printed = capsys.readouterr()
    assert printed.out == ""
    return code, printed.err


@pytest.mark.skipif(importlib.util.find_spec("kserve") is not None, reason="KServe is installed")
def test_without_kserve_the_extra_is_named(capsys):
    told = 'error: erniem-rt serve needs the package kserve: pip install "erniem-rt[serve]".\n'
    assert run(capsys, "out/qa") == (1, told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["out/qa", "other/qa"], "two models are named 'qa': give one of them another name with NAME=DIR."),
        (["=out/qa"], "'=out/qa' names no model: expected DIR or NAME=DIR."),
        (["qa="], "'qa=' names no model: expected DIR or NAME=DIR."),
        (["out/qa", "--options", "{"], "--options must be JSON, but Expecting property name"),
        (["out/qa", "--options", "[]"], '--options must be like {"NAME": {"top_k": 2}}.'),
        (["out/qa", "--options", '{"cls": {}}'], "--options names 'cls'; the models are qa."),
        (["out/qa", "--options", '{"qa": {"threads": 2}}'], "threads is for all models: give it as --threads."),
        (["out/qa", "--options", '{"qa": {"model": "cls"}}'], "--options cannot have 'model'"),
        (["out/qa", "--timeout", "0"], "timeout must be an integer of at least 1, got 0."),
        (["out/qa", "--port", "70000"], "--port must be a port, 0 to 65535, got 70000"),
        (["out/qa", "--host", "300.1.1.1"], "cannot listen at 300.1.1.1: "),
        (["out/nothing"], "there is no"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys, monkeypatch, tmp_path, words, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("erniem_rt.serve._require_kserve", lambda: None)
    port = [] if "--port" in words else ["--port", "0"]
    code, said = run(capsys, *words, *port)
    assert code == 1
    assert said.startswith("error: ")
    assert told in said
    assert said.count("\n") == 1


def test_signals_that_are_ignored_stay_so(monkeypatch):
    came = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with _signals(lambda number, _: came.append(number)):
            for number in (signal.SIGHUP, signal.SIGTERM):
                signal.raise_signal(number)
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_help_loads_no_server(capsys):
    with pytest.raises(SystemExit) as end:
        main(["serve", "--help"])
    assert end.value.code == 0
    assert "[NAME=]DIR" in capsys.readouterr().out
