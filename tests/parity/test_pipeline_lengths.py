"""Checkpoints whose tokenizer names a shorter row than the model takes, beside transformers on the same files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erniem_rt import Tokenizer, pipeline
from erniem_rt.manifest import Defaults, Manifest
from tests.parity.pipeline_reference import TOLERANCE, Artifact, load, repaired_question_answering

# transformers hands tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SPORT = "The coach of the tennis team wants to win the final. "
POLITICS = "The parliament in Cardiff votes on the new law about elections, says the minister. " * 12

With = Callable[[str, int], Path]


@pytest.fixture
def with_length(nano_artifact: Artifact, tmp_path: Path) -> With:
    """The artifact of a head of nano, as an export writes it whose tokenizer_config.json names this length."""

    def make(head: str, length: int) -> Path:
        path = Path(shutil.copytree(nano_artifact(head).parent, tmp_path / head)) / f"{head}.json"
        replace(Manifest.load(path), defaults=Defaults(max_seq_len=length)).save(path)
        return path

    return make


def theirs(name: str, head: str, length: int) -> Any:
    import transformers

    model, tokenizer = load(head)
    tokenizer.model_max_length = length
    return getattr(transformers, name)(model=model, tokenizer=tokenizer, device="cpu")


@pytest.mark.parametrize("length", [64, 128])
def test_zero_shot(length, reference, with_length):
    labels = ["politics", "sports", "food"]
    expected = theirs("ZeroShotClassificationPipeline", "cls", length)(SPORT + POLITICS, labels)
    with pipeline("zero-shot-classification", with_length("cls", length)) as ours:
        found, whole = ours(SPORT + POLITICS, labels), ours(SPORT + POLITICS, labels, max_seq_len=512)
    assert found["labels"] == expected["labels"]
    assert found["scores"] == pytest.approx(expected["scores"], abs=TOLERANCE)
    assert np.abs(np.subtract(found["scores"], whole["scores"])).max() > 20 * TOLERANCE


def test_text_classification(reference, with_length):
    given = {"text": SPORT + POLITICS, "text_pair": POLITICS}
    expected = theirs("TextClassificationPipeline", "cls", 64)(given, truncation=True, top_k=None)
    with pipeline(with_length("cls", 64)) as ours:
        found = ours(given, top_k=None)
    assert [item["label"] for item in found] == [item["label"] for item in expected]
    assert [item["score"] for item in found] == pytest.approx([item["score"] for item in expected], abs=TOLERANCE)


def test_features(reference, with_length):
    (expected,) = theirs("FeatureExtractionPipeline", "base", 64)(POLITICS, truncation=True)
    with pipeline(with_length("base", 64), pooling="none") as ours:
        np.testing.assert_allclose(ours(POLITICS), expected, atol=TOLERANCE)


@pytest.mark.parametrize("length", [64, 450])
def test_question_answering(length, reference, with_length, nano_heldout):
    examples = nano_heldout("qa", 5, 20)
    context = " ".join(example.context for example in examples[:20])
    with (
        pipeline(with_length("qa", length), align_to_words=True) as ours,
        repaired_question_answering() as reference_pipeline,
    ):
        reference_pipeline.tokenizer.model_max_length = length
        for example in examples[:20:4]:
            asked = {"question": example.question, "context": context}
            found, expected = ours(asked), reference_pipeline(**asked)
            assert (" ".join(found["answer"].split()), found["start"]) == (expected["answer"], expected["start"])
            assert found["score"] == pytest.approx(expected["score"], abs=TOLERANCE)


def test_multiple_choice(reference, with_length):
    """transformers has no such pipeline: its model, on rows of which the prompt is cut."""
    path = with_length("mc", 64)
    tokenizer, model = Tokenizer.from_dir(path.parent), load("mc").model
    choices = ["Sydney", "Galway"]
    rows = [tokenizer(POLITICS, choice, truncation="only_first", max_length=64).input_ids for choice in choices]
    logits = [model(torch.tensor([[row]])).logits.item() for row in rows]
    with pipeline(path) as ours:
        scores = ours({"prompt": POLITICS, "choices": choices})["scores"]
    assert scores == pytest.approx(torch.tensor(logits).softmax(0).tolist(), abs=TOLERANCE)
