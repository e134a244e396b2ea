"""Our pipelines beside transformers 4.57.6's own on nano's checkpoints and held-out texts in six languages.

Text classification, zero-shot classification and feature extraction have a counterpart there. Multiple choice has
none and is compared with the reference model, asked one input at a time. Where the two differ on purpose, see
``test_pipeline_differences_classification.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from erniem_rt import Tokenizer
from erniem_rt import pipeline as our_pipeline

NANO = Path(__file__).parents[2] / "examples" / "nano"
LIMIT = 512
EACH = 34  # per language
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def heldout(nano_heldout: Callable[..., list[Any]]) -> Callable[[str], list[Any]]:
    """``heldout(task)``: held-out examples, as many in each language."""
    return lambda task: nano_heldout(task, 3, EACH)


@pytest.fixture(scope="module")
def artifact(nano_artifact: Callable[[str], Path]) -> Callable[[str], Path]:
    return nano_artifact


@pytest.fixture(scope="module")
def reference_parts(reference: ModuleType) -> Callable[[str, str], tuple[Any, Any]]:
    """``reference_parts(head, class_name)``: the reference's model and tokenizer of nano's checkpoint."""
    from transformers.models.deprecated.ernie_m.tokenization_ernie_m import ErnieMTokenizer

    def load(head: str, class_name: str) -> tuple[Any, Any]:
        folder = NANO / "checkpoints" / head
        model = getattr(reference, class_name).from_pretrained(folder, dtype=torch.float32).eval()
        return model, ErnieMTokenizer.from_pretrained(folder)

    return load


@pytest.fixture(scope="module")
def theirs(reference_parts: Callable[[str, str], tuple[Any, Any]]) -> Callable[[str, str, str], Any]:
    """``theirs(pipeline_class, head, model_class)``: a pipeline of transformers with the reference's parts."""
    import transformers

    def make(pipeline_class: str, head: str, model_class: str) -> Any:
        model, tokenizer = reference_parts(head, model_class)
        return getattr(transformers, pipeline_class)(model=model, tokenizer=tokenizer, device="cpu")

    return make


def assert_same_scores(ours: list[Any], reference: list[Any]) -> None:
    """Lists of ``{"label", "score"}`` agree: the same labels and scores, in an order that is right by the reference."""
    assert len(ours) == len(reference) >= 200
    for one, other in zip(ours, reference, strict=True):
        assert len(one) == len(other)
        scores = {answer["label"]: answer["score"] for answer in other}
        theirs = [scores[answer["label"]] for answer in one]
        np.testing.assert_allclose([answer["score"] for answer in one], theirs, rtol=0, atol=TOLERANCE)
        assert (np.diff(theirs) <= TOLERANCE).all()


@pytest.fixture(scope="module")
def texts(heldout: Callable[[str], list[Any]]) -> list[Any]:
    """Single texts, pairs, and some of both that are over the limit."""
    examples = heldout("cls")
    long = [" ".join(example.premise for example in examples[i : i + 34]) for i in range(0, len(examples), 34)]
    made: list[Any] = [e.premise if i % 3 == 0 else as_pair(e.premise, e.hypothesis) for i, e in enumerate(examples)]
    return made + long + [as_pair(text, examples[0].hypothesis) for text in long]


def as_pair(text: str, pair: str) -> dict[str, str]:
    return {"text": text, "text_pair": pair}


def test_the_texts_reach_over_the_limit(texts: list[Any], artifact: Callable[[str], Path]) -> None:
    tokenizer = Tokenizer.from_dir(artifact("cls").parent)
    lengths = [len(tokenizer(text)) for text in texts if isinstance(text, str)]
    assert min(lengths) < 20
    assert sum(length > LIMIT for length in lengths) >= 3


def test_text_classification_agrees(
    texts: list[Any], artifact: Callable[[str], Path], theirs: Callable[..., Any]
) -> None:
    reference = theirs("TextClassificationPipeline", "cls", "ErnieMForSequenceClassification")
    expected = reference(texts, top_k=None, truncation=True, max_length=LIMIT)
    with our_pipeline(artifact("cls")) as ours:
        assert_same_scores(ours(texts, top_k=None), expected)


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}], ids=str)
def test_answers_of_text_classification_have_the_same_shape(
    artifact: Callable[[str], Path], theirs: Callable[..., Any], options: dict[str, Any]
) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, list):
            return [shape(item) for item in value]
        return {key: type(item) for key, item in value.items()}

    reference = theirs("TextClassificationPipeline", "cls", "ErnieMForSequenceClassification")
    pair = as_pair("a", "b")
    with our_pipeline(artifact("cls")) as ours:
        for inputs in ("a", ["a"], ["a", "b"], pair, [pair, pair]):
            assert shape(ours(inputs, **options)) == shape(reference(inputs, **options))


def zero_shot_cases(heldout: Callable[[str], list[Any]]) -> dict[tuple[tuple[str, ...], str], list[str]]:
    """Texts by their language's candidate labels and hypothesis; one in seven is over the limit."""
    from languages import load

    examples, cases = heldout("cls"), {}
    for code in dict.fromkeys(example.language for example in examples):
        data = load(code).data
        labels = tuple(topic["name"] for topic in data["topics"].values())[:3]
        texts = [example.premise for example in examples if example.language == code]
        cases[labels, data["topic_hypotheses"][0].replace("{topic}", "{}")] = [*texts, " ".join(texts)]
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_classification_agrees(
    heldout: Callable[[str], list[Any]], artifact: Callable[[str], Path], theirs: Callable[..., Any], multi_label: bool
) -> None:
    reference = theirs("ZeroShotClassificationPipeline", "cls", "ErnieMForSequenceClassification")
    found, expected = [], []
    with our_pipeline(artifact("cls"), "zero-shot-classification") as ours:
        for (labels, template), texts in zero_shot_cases(heldout).items():
            # One candidate is a case of its own; a few texts are enough for it.
            for candidates, some in ((labels, texts), (labels[:1], texts[:3])):
                options = {"hypothesis_template": template, "multi_label": multi_label}
                found += ours(some, list(candidates), **options)
                expected += reference(some, candidate_labels=list(candidates), **options)
    assert [answer["sequence"] for answer in found] == [answer["sequence"] for answer in expected]
    assert_same_scores(*([labelled(answer) for answer in answers] for answers in (found, expected)))


def labelled(answer: dict[str, Any]) -> list[dict[str, Any]]:
    scores = zip(answer["labels"], answer["scores"], strict=True)
    return [{"label": label, "score": score} for label, score in scores]


@pytest.mark.slow
def test_multiple_choice_agrees_with_the_model(
    heldout: Callable[[str], list[Any]],
    artifact: Callable[[str], Path],
    reference_parts: Callable[[str, str], tuple[Any, Any]],
) -> None:
    model, tokenizer = reference_parts("mc", "ErnieMForMultipleChoice")
    examples = heldout("mc")
    inputs = [{"prompt": example.prompt, "choices": list(example.choices)} for example in examples]
    inputs += [{"prompt": " ".join(e.prompt for e in examples[i : i + 20]), "choices": ["a", "b"]} for i in (0, 100)]
    with our_pipeline(artifact("mc")) as ours:
        answers = ours(inputs)
    assert len(answers) >= 200
    for item, answer in zip(inputs, answers, strict=True):
        prompts = [item["prompt"]] * len(item["choices"])
        rows = tokenizer(prompts, item["choices"], truncation="only_first", padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(input_ids=rows["input_ids"][None]).logits[0]
        scores = logits.softmax(-1)
        np.testing.assert_allclose(answer["scores"], scores, rtol=0, atol=TOLERANCE)
        assert answer["answer"] == item["choices"][answer["index"]]
        assert scores.max() - scores[answer["index"]] < TOLERANCE


@pytest.mark.slow
def test_feature_extraction_agrees(
    texts: list[Any], artifact: Callable[[str], Path], theirs: Callable[..., Any]
) -> None:
    reference = theirs("FeatureExtractionPipeline", "base", "ErnieMModel")
    inputs = [text["text"] if isinstance(text, dict) else text for text in texts]
    with our_pipeline(artifact("base"), pooling="none") as ours:
        answers = ours(inputs)
    assert len(answers) >= 200
    for text, answer in zip(inputs, answers, strict=True):
        expected = reference(text, truncation=True, return_tensors=True)[0]
        assert answer.shape == tuple(expected.shape)
        np.testing.assert_allclose(answer, expected, rtol=0, atol=TOLERANCE)
