"""What a pipeline holds is freed when it is dropped, or closed, without waiting for the cycle collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import erniem_rt
from erniem_rt import InvalidInputError, Tokenizer

LABELS = ("entailment", "neutral", "contradiction")
# What each task is asked, and what it refuses.
ASKED: dict[str, tuple[str, Any, Any]] = {
    "feature-extraction": ("base", ["The office hired 14 people.", "ＡＢ\u200b  c [MASK]"], ["office", ""]),
    "text-classification": ("cls", {"text": "The office", "text_pair": "people"}, ["office", ""]),
    "zero-shot-classification": ("cls", ["The office hired 14 people.", "the lake"], ["office", ""]),
    "token-classification": ("ner", ["The office hired 14 people.", "the lake"], ["office", 3]),
    "question-answering": ("qa", {"question": "Who?", "context": "ＡＢ\u200b  The office"}, [{"question": "Who?"}]),
    "multiple-choice": ("mc", {"prompt": "The office", "choices": ["14", "3"]}, [{"prompt": "office"}]),
    "information-extraction": ("ie", ["The office hired 14 people.", "the lake"], ["office", ""]),
}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def opened(make_text_artifact: Callable[..., Any]) -> Callable[[str], tuple[Any, dict[str, Any]]]:
    """``opened(task)``: the task's pipeline on a small artifact, and the options of its calls."""

    def make(task: str) -> tuple[Any, dict[str, Any]]:
        head = ASKED[task][0]
        labels = {"cls": LABELS, "ner": ("O", "B-PER", "I-PER")}.get(head)
        path: Path = make_text_artifact(head, labels=labels).path
        options = {"schema": [{"people": ["office"]}], "threshold": 0.1} if head == "ie" else {}
        return erniem_rt.pipeline(task, path, **options), {"candidate_labels": ["lake"]} if "zero" in task else {}

    return make


def held(pipe: Any) -> dict[str, weakref.ref[Any]]:
    parts = {"pipeline": pipe, "session": pipe.session, "engine": pipe.session._engine, "tokenizer": pipe.tokenizer}
    return {name: weakref.ref(part) for name, part in {**parts, "model": pipe.tokenizer._model}.items()}


def alive(parts: dict[str, weakref.ref[Any]]) -> list[str]:
    return [name for name, part in parts.items() if part() is not None]


@pytest.mark.parametrize("task", ASKED)
def test_a_pipeline_that_is_dropped_is_freed_at_once(opened, task):
    _, good, bad = ASKED[task]
    pipe, options = opened(task)
    pipe(good, **options)
    with pytest.raises(InvalidInputError):
        pipe(bad, **options)
    parts = held(pipe)
    assert len(alive(parts)) == 5
    del pipe
    assert alive(parts) == []


@pytest.mark.parametrize("task", ASKED)
def test_closing_lets_go_of_the_tokenizer_too(opened, task):
    _, good, _ = ASKED[task]
    pipe, options = opened(task)
    pipe(good, **options)
    parts = held(pipe)
    pipe.close()
    pipe.close()
    assert alive(parts) == ["pipeline", "session", "engine"]
    with pytest.raises(InvalidInputError, match="is closed; open it again"):
        pipe(good, **options)


def test_a_tokenizer_that_is_dropped_is_freed_at_once(tokenizer_dir):
    tokenizer = Tokenizer.from_dir(tokenizer_dir)
    found = tokenizer.batch(["The ﬁrst ofﬁce\u200b", "[MASK]"])
    assert found.offsets is not None
    assert tokenizer("The ﬁrst ofﬁce\u200b").offsets
    model = weakref.ref(tokenizer._model)
    del tokenizer, found
    assert model() is None


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_source_that_fails_keeps_no_session_alive(make_text_artifact, good):
    session = erniem_rt.Session(make_text_artifact("qa").path, threads=2)

    def source() -> Iterator[dict[str, Any]]:
        yield from [{"input_ids": [[0, 5, 2]]}] * good
        raise OSError

    with pytest.raises(OSError):
        list(session.run_all(source()))
    parts = {"session": weakref.ref(session), "engine": weakref.ref(session._engine)}
    del session
    assert alive(parts) == []


def test_the_pipelines_of_a_session_share_a_tokenizer_and_let_go_of_it(make_text_artifact):
    with erniem_rt.Session(make_text_artifact("cls", labels=LABELS).path) as session:
        classify = erniem_rt.pipeline("text-classification", session)
        zero_shot = erniem_rt.pipeline("zero-shot-classification", session)
        assert classify.tokenizer is zero_shot.tokenizer
        tokenizer = weakref.ref(classify.tokenizer)
        classify.close()
        assert len(zero_shot("The office", "lake,office")["labels"]) == 2
        zero_shot.close()
        assert tokenizer() is None
        assert erniem_rt.pipeline("text-classification", session)("The office")
    owner = erniem_rt.pipeline("text-classification", session.path)
    assert erniem_rt.pipeline("zero-shot-classification", owner.session).tokenizer is owner.tokenizer
