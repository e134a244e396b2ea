"""What a type checker knows of pipelines, and that their answers are what it was told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import get_type_hints

import pytest

import erniem_rt
from erniem_rt import InvalidInputError, pipeline

SNIPPET = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import erniem_rt as e
from erniem_rt.pipelines.base import Pipeline

Vectors = NDArray[np.float32]
texts = ["a", "b"]


def question_answering(qa: e.QuestionAnsweringPipeline) -> None:
    assert_type(qa(question="Who?", context="Ada."), e.QuestionAnswer)
    assert_type(qa({"question": "Who?", "context": "Ada."}, max_answer_len=3), e.QuestionAnswer)
    pairs = [{"question": "Who?", "context": "Ada."}]
    assert_type(qa(pairs), list[e.QuestionAnswer])
    assert_type(qa(iter(pairs)), Iterator[e.QuestionAnswer])
    assert_type(qa(question=texts, context=texts), list[e.QuestionAnswer])
    one = e.QuestionAnswer | list[e.QuestionAnswer] | e.InvalidInputError
    assert_type(qa(pairs, top_k=3), list[one])
    assert_type(qa(pairs, errors="return"), list[one])
    assert_type(qa(question="Who?", context="Ada.")["start"], int)


def other_tasks(
    classify: e.TextClassificationPipeline,
    zero_shot: e.ZeroShotClassificationPipeline,
    name: e.TokenClassificationPipeline,
    choose: e.MultipleChoicePipeline,
    extract: e.InformationExtractionPipeline,
    embed: e.FeatureExtractionPipeline,
) -> None:
    assert_type(classify("a"), list[e.LabelScore])
    assert_type(classify({"text": "a", "text_pair": "b"}), e.LabelScore)
    assert_type(classify(texts), list[e.LabelScore])
    assert_type(zero_shot("a", ["x", "y"]), e.ZeroShotAnswer)
    assert_type(zero_shot(texts, "x,y", multi_label=True), list[e.ZeroShotAnswer])
    assert_type(name("a", aggregation_strategy="simple"), list[e.Entity])
    assert_type(name(texts, errors="return"), list[list[e.Entity] | e.InvalidInputError])
    assert_type(choose({"prompt": "a", "choices": texts}), e.ChoiceAnswer)
    assert_type(choose([{"prompt": "a", "choices": texts}]), list[e.ChoiceAnswer])
    assert_type(extract("a", schema="P"), dict[str, list[e.Extraction]])
    assert_type(extract("a", schema="P")["P"][0]["relations"], dict[str, list[e.Extraction]])
    assert_type(embed("a"), Vectors)
    assert_type(embed(texts), Vectors)
    assert_type(embed(iter(texts)), Iterator[Vectors])
    assert_type(embed(texts, errors="return"), Vectors | list[Vectors | e.InvalidInputError])


def made(session: e.Session) -> None:
    assert_type(e.pipeline("question-answering", "out", threads=2, batch_size=4), e.QuestionAnsweringPipeline)
    assert_type(e.pipeline(task="text-classification", model=Path("out")), e.TextClassificationPipeline)
    zero_shot = e.pipeline("zero-shot-classification", session, candidate_labels="a,b")
    assert_type(zero_shot, e.ZeroShotClassificationPipeline)
    assert_type(e.pipeline("token-classification", session), e.TokenClassificationPipeline)
    assert_type(e.pipeline("multiple-choice", session), e.MultipleChoicePipeline)
    assert_type(e.pipeline("information-extraction", session, schema="P"), e.InformationExtractionPipeline)
    assert_type(e.pipeline("feature-extraction", session, normalize=True), e.FeatureExtractionPipeline)
    assert_type(e.pipeline("out"), Pipeline[Any])
    # These answers have another form: the class is known, and nothing untrue of its answers.
    assert_type(e.pipeline("question-answering", "out", top_k=3), e.QuestionAnsweringPipeline[Any])
    assert_type(e.pipeline("feature-extraction", "out", errors="return"), e.FeatureExtractionPipeline[Any, Any])


def built(session: e.Session, tokenizer: e.Tokenizer) -> None:
    assert_type(e.QuestionAnsweringPipeline(session, tokenizer, max_answer_len=3), e.QuestionAnsweringPipeline)
    assert_type(e.QuestionAnsweringPipeline(session, tokenizer, top_k=3), e.QuestionAnsweringPipeline[Any])
    assert_type(e.TextClassificationPipeline(session, tokenizer, top_k=None), e.TextClassificationPipeline[Any, Any])
    assert_type(e.FeatureExtractionPipeline(session, tokenizer, pooling="none"), e.FeatureExtractionPipeline[Any, Any])
    assert_type(e.MultipleChoicePipeline(session, tokenizer, errors="return"), e.MultipleChoicePipeline[Any])
    assert_type(e.MultipleChoicePipeline(session, tokenizer, batch_size=2), e.MultipleChoicePipeline)


def wrong(qa: e.QuestionAnsweringPipeline) -> None:
    qa(question="Who?", context="Ada.")["text"]  # expected: no such key
    qa(question="Who?", context="Ada.", topk=3)  # expected: no such option
"""


@pytest.mark.slow
def test_a_type_checker_knows_classes_and_answers(tmp_path):
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", snippet.name]

    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    places = {int(line.split(":")[1]) for line in errors}
    expected = {number for number, line in enumerate(SNIPPET.splitlines(), 1) if "# expected" in line}
    assert places == expected, done.stdout + done.stderr


def fits(value: object, hints: type) -> bool:
    """Whether a dict has the keys of a TypedDict, all that are required, and values of their types."""
    types = get_type_hints(hints)
    keys = set(value)
    return hints.__required_keys__ <= keys <= set(types) and all(
        isinstance(value[key], getattr(types[key], "__origin__", types[key])) for key in keys
    )


@pytest.mark.parametrize(
    ("task", "head", "inputs", "options", "kind"),
    [
        ("question-answering", "qa", {"question": "Wer?", "context": "Maria lacht"}, {}, "QuestionAnswer"),
        ("text-classification", "cls", {"text": "Tag"}, {}, "LabelScore"),
        ("zero-shot-classification", "cls", "Tag", {"candidate_labels": "a,b"}, "ZeroShotAnswer"),
        ("token-classification", "ner", "Maria lacht", {}, "Entity"),
        ("token-classification", "ner", "Maria lacht", {"aggregation_strategy": "simple"}, "Entity"),
        ("multiple-choice", "mc", {"prompt": "Tag", "choices": ["a", "b"]}, {}, "ChoiceAnswer"),
        ("information-extraction", "ie", "Maria lacht", {"schema": {"P": "Q"}, "threshold": 0.0}, "Extraction"),
        ("information-extraction", "ie", "Maria lacht", {"schema": "P[a,b]", "threshold": 0.0}, "Extraction"),
    ],
)
def test_answers_are_what_type_checkers_are_told(make_text_artifact, task, head, inputs, options, kind):
    labels = {"cls": ("entailment", "neutral", "contradiction"), "ner": ("B-X", "I-X")}.get(head)
    with pipeline(task, make_text_artifact(head, labels=labels).path, **options) as pipe:
        answer = pipe(inputs)
        many, stream = pipe([inputs, inputs]), pipe(iter([inputs]))
        assert many == [answer, answer]
        assert isinstance(stream, Iterator)
        assert list(stream) == [answer]
        mixed = pipe([inputs, ""], errors="return")
        assert mixed[0] == answer
        assert isinstance(mixed[1], InvalidInputError)
    if kind == "Extraction":
        answer = [found for answers in answer.values() for found in answers]
    found = answer if isinstance(answer, list) else [answer]
    assert found
    assert all(fits(one, getattr(erniem_rt, kind)) for one in found)
