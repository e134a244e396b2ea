"""Reading task sets: what every head takes, and one clear error, with its line, for what it does not."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from erniem_export.errors import ExportError
from erniem_export.gate.accuracy import FEWEST, Example, Task, read_task_set, task_set_of

NLI = ("entailment", "neutral", "contradiction")
TASKS = {
    "qa": Task("qa"),
    "cls": Task("cls", NLI),
    "multi-label": Task("cls", NLI, "multi_label_classification"),
    "regression": Task("cls", ("LABEL_0",), "regression"),
    "ner": Task("ner", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")),
    "mc": Task("mc"),
    "ie": Task("ie"),
}
GOOD = {
    "qa": (
        {"question": "Who?", "context": "Ann Lee did.", "answers": ["Ann", "Ann Lee"]},
        Example({"question": "Who?", "context": "Ann Lee did."}, ("Ann", "Ann Lee")),
    ),
    "cls": (
        {"text": "a", "text_pair": "b", "label": "neutral"},
        Example({"text": "a", "text_pair": "b"}, "neutral"),
    ),
    "multi-label": (
        {"text": "a", "labels": ["neutral", "entailment"]},
        Example({"text": "a"}, frozenset(["entailment", "neutral"])),
    ),
    "regression": ({"text": "a", "label": 3}, Example({"text": "a"}, 3.0)),
    "ner": (
        {"text": "Ann in Rome", "entities": [{"start": 7, "end": 11, "label": "LOC"}]},
        Example("Ann in Rome", frozenset([(7, 11, "LOC")])),
    ),
    "mc": (
        {"prompt": "a", "choices": ["b", "c"], "label": 1},
        Example({"prompt": "a", "choices": ["b", "c"]}, 1),
    ),
    "ie": (
        {"prompt": "Person", "text": "Ann did", "spans": [{"start": 0, "end": 3}]},
        Example("Ann did", frozenset([(0, 3)]), "Person"),
    ),
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path):
    """Write lines, each an object or text as it is, ``times`` over."""

    def lines(*content, times=1):
        path = tmp_path / "set.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in content]
        path.write_text("".join(f"{text}\n" for text in texts * times), encoding="utf-8")
        return path

    return lines


@pytest.mark.parametrize("kind", GOOD)
def test_every_kind_is_read(kind, write):
    line, example = GOOD[kind]
    found = read_task_set(write(line, "", times=FEWEST), TASKS[kind])
    assert found.name == "set.jsonl"
    assert found.examples == (example,) * FEWEST


def test_a_question_without_an_answer_and_a_line_separator_within_text(write):
    line = {"question": "Who?", "context": "Nobody\u2028did\u0085it.", "answers": []}
    found = read_task_set(write(line, times=FEWEST), TASKS["qa"])
    assert (len(found.examples), found.examples[0].wanted) == (FEWEST, ())


BAD = [
    ("qa", "{", "this is not JSON"),
    ("qa", "[" * 100_000, "this is not JSON"),
    ("qa", ["a"], "has the keys question, context, answers; this is ['a']"),
    ("qa", {"question": "a", "context": "b"}, "'answers' is missing; a line of this task set has the keys question,"),
    ("qa", GOOD["cls"][0], "'question' is missing"),
    ("qa", {**GOOD["qa"][0], "id": 3}, "'id' is not known"),
    ("qa", {**GOOD["qa"][0], "context": " "}, "context must be text, got ' '"),
    ("qa", {**GOOD["qa"][0], "answers": "Ann"}, "answers must be a list of the correct texts"),
    ("qa", {**GOOD["qa"][0], "answers": ["Bob"]}, "the answer 'Bob' is not in the context"),
    (
        "cls",
        GOOD["mc"][0],
        "'text' is missing; a line of this task set has the keys text, label and, if you like, text_",
    ),
    ("cls", {"text": "a", "label": "maybe"}, "label 'maybe' is not known; expected one of entailment, neutral, contr"),
    ("cls", {"text": "a", "label": 1}, "label 1 is not known"),
    ("cls", {"text": "a", "text_pair": None, "label": "neutral"}, "text_pair must be text, got None"),
    ("multi-label", GOOD["cls"][0], "'labels' is missing"),
    ("multi-label", {"text": "a", "labels": "neutral"}, "labels must be a list, got 'neutral'"),
    ("multi-label", {"text": "a", "labels": [[]]}, "label [] is not known"),
    ("regression", {"text": "a", "label": "3"}, "label must be a number, got '3'"),
    ("regression", {"text": "a", "label": True}, "label must be a number, got True"),
    ("regression", '{"text": "a", "label": NaN}', "label must be a number, got nan"),
    ("ner", {"text": "a", "entities": {}}, "entities must be a list, got {}"),
    ("ner", {"text": "a", "entities": [{"start": 0, "end": 1}]}, "'label' is missing; an entity of this task set has"),
    ("ner", {"text": "a", "entities": [{"start": 0, "end": 2, "label": "PER"}]}, "start and end, 0 and 2, are not a"),
    ("ner", {"text": "a", "entities": [{"start": 0, "end": 1, "label": "B-PER"}]}, "one of PER, LOC"),
    ("mc", {"prompt": "a", "choices": ["b"], "label": 1}, "the index of a choice, from 0 to 0, got 1"),
    ("mc", {"prompt": "a", "choices": ["b", ""], "label": 1}, "choices must be a list of texts"),
    ("mc", {"prompt": "a", "choices": ["b", "c"], "label": True}, "the index of a choice"),
    ("ie", {"prompt": "a", "text": "b", "spans": [{"start": 1, "end": 1}]}, "start and end, 1 and 1, are not a part"),
    ("ie", {"prompt": "a", "text": "b", "spans": [{"start": 0.0, "end": 1}]}, "start and end, 0.0 and 1, are not a"),
    ("ie", {"prompt": "Mood [good, bad]", "text": "b", "spans": []}, "ends in options"),
]


@pytest.mark.parametrize(("kind", "line", "message"), BAD)
def test_a_bad_line_is_one_clear_error_with_its_number(kind, line, message, write):
    with pytest.raises(ExportError) as caught:
        read_task_set(write(GOOD[kind][0], "", line, *[GOOD[kind][0]] * FEWEST), TASKS[kind])
    assert str(caught.value).startswith(f"the task set {write()}, line 3: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is too small: half a point cannot be seen in fewer than 200 examples, and it holds 0"),
        (b"\n \n", "it holds 0"),
        (json.dumps(GOOD["mc"][0]).encode(), "it holds 1;"),
        (b"\xff\n", "is not UTF-8: invalid start byte at byte 0"),
    ],
)
def test_a_bad_file_is_one_clear_error(content, message, tmp_path):
    path = tmp_path / "set.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"the task set .*set\.jsonl") as caught:
        read_task_set(path, TASKS["mc"])
    assert message in str(caught.value)


def test_no_metric_is_made_up(write):
    with pytest.raises(ExportError, match="no metric is defined for regression with 3 outputs; leave it out"):
        read_task_set(write(GOOD["regression"][0], times=FEWEST), Task("cls", NLI, "regression"))


def checkpoint(head="mc", **changes):
    config = SimpleNamespace(num_labels=3, id2label=dict(enumerate(NLI)), problem_type=None)
    fields = {"head": head, "source": "model", "config": config, "tokenizer_dir": Path(), "task_set": None}
    return SimpleNamespace(**fields | changes)


def test_which_task_set_is_read(write, tmp_path):
    path = write(GOOD["mc"][0], times=FEWEST)
    assert task_set_of(checkpoint(), None) is None
    for found in (task_set_of(checkpoint(), path), task_set_of(checkpoint(task_set=path), None)):
        assert found is not None
        assert len(found.examples) == FEWEST
    given = task_set_of(checkpoint(task_set=tmp_path / "other"), path)
    assert given is not None
    assert given.name == path.name
    labelled = task_set_of(checkpoint("cls"), write(GOOD["cls"][0], times=FEWEST))
    assert labelled is not None
    assert labelled.task == TASKS["cls"]


def test_what_cannot_be_asked_is_left_alone_unless_it_was_given(tmp_path):
    path = tmp_path / "set.jsonl"
    assert task_set_of(checkpoint("base", task_set=path), None) is None
    assert task_set_of(checkpoint(task_set=path), None, takes_ids=False) is None
    with pytest.raises(ExportError, match="head base has no metric; leave it out"):
        task_set_of(checkpoint("base"), path)
    with pytest.raises(ExportError, match="a graph without input_ids reads no text"):
        task_set_of(checkpoint(), path, takes_ids=False)
    for found, given in ((None, path), (path, None)):
        with pytest.raises(ExportError, match="model has no tokenizer to read text with"):
            task_set_of(checkpoint(tokenizer_dir=None, task_set=found), given)
