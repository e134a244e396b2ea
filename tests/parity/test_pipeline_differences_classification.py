"""What transformers 4.57.6's pipelines and ours make of the same logits: the same, or a difference shown here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.pipelines.text_classification import TextClassificationPipeline
from erniem_rt.pipelines.zero_shot_classification import ZeroShotClassificationPipeline
from tests.runtime.pipelines.conftest import ScriptedSession, make_manifest

pytest.importorskip(
    "transformers.models.deprecated.ernie_m", reason="needs transformers 4.57, the last line that has ErnieM"
)

NLI = ("entailment", "neutral", "contradiction")
LIMIT = 30
CANDIDATES = ["sehr", "hoch"]


def answering(labels: tuple[str, ...], logits: Any, problem_type: str | None = None) -> Any:
    """Return a session that gives these logits to rows of one length, in their order."""
    rows = iter(np.asarray(logits, np.float32))
    manifest = make_manifest("cls", labels=labels, problem_type=problem_type, max_length=LIMIT)
    return ScriptedSession(manifest, lambda ids: {"logits": next(rows)})


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(tokenizer_dir)


@pytest.mark.parametrize(
    ("problem_type", "count"),
    [
        (None, 1),
        (None, 2),
        (None, 5),
        ("regression", 1),
        ("regression", 3),
        ("single_label_classification", 1),
        ("single_label_classification", 3),
        ("multi_label_classification", 4),
    ],
)
def test_every_problem_type_makes_the_same_scores(tokenizer, problem_type, count):
    from transformers import TextClassificationPipeline as Reference

    labels = tuple(f"label {i}" for i in range(count))
    config = SimpleNamespace(problem_type=problem_type, num_labels=count, id2label=dict(enumerate(labels)))
    reference: Any = SimpleNamespace(model=SimpleNamespace(config=config), framework="pt")
    for logits in np.random.default_rng(count).normal(scale=4, size=(200, 1, count)).astype(np.float32):
        expected = Reference.postprocess(reference, {"logits": torch.tensor(logits)}, top_k=None, _legacy=False)
        session = answering(labels, logits, problem_type)
        answer = TextClassificationPipeline(session, tokenizer)("text", top_k=None)
        assert [a["label"] for a in answer] == [a["label"] for a in expected]
        np.testing.assert_allclose([a["score"] for a in answer], [a["score"] for a in expected], rtol=1e-5, atol=1e-7)


def their_zero_shot(labels: tuple[str, ...], logits: list[list[float]], multi_label: bool = False) -> Any:
    from transformers import ZeroShotClassificationPipeline as Reference

    config = SimpleNamespace(label2id={label: i for i, label in enumerate(labels)})
    reference: Any = SimpleNamespace(model=SimpleNamespace(config=config), framework="pt")
    reference.entailment_id = Reference.entailment_id.fget(reference)
    outputs = [
        {"candidate_label": candidate, "sequence": "text", "logits": torch.tensor([row])}
        for candidate, row in zip(CANDIDATES, logits, strict=False)
    ]
    return Reference.postprocess(reference, outputs, multi_label=multi_label)


def our_zero_shot(
    tokenizer: Tokenizer, labels: tuple[str, ...], logits: list[list[float]], multi_label: bool = False
) -> Any:
    session = answering(labels, logits)
    return ZeroShotClassificationPipeline(session, tokenizer)(
        "text", CANDIDATES[: len(logits)], hypothesis_template="{}", multi_label=multi_label
    )


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("labels", [NLI, ("contradiction", "neutral", "entailment"), ("not_entailment", "entailment")])
@pytest.mark.parametrize("candidates", [1, 2])
def test_zero_shot_makes_the_same_scores(tokenizer, labels, multi_label, candidates):
    for logits in np.random.default_rng(1).normal(scale=3, size=(50, candidates, len(labels))).tolist():
        ours = our_zero_shot(tokenizer, labels, logits, multi_label)
        theirs = their_zero_shot(labels, logits, multi_label)
        assert ours.pop("scores") == pytest.approx(theirs.pop("scores"), rel=1e-5)
        assert ours == theirs


def test_contradiction_is_found_by_its_name(tokenizer):
    """The reference takes the first label, or the last where the first is entailment, whatever it is called."""
    labels, logits = ("entailment", "contradiction", "neutral"), [[2.0, -1.0, 5.0]]
    assert our_zero_shot(tokenizer, labels, logits)["scores"] == [pytest.approx(1 / (1 + np.exp(-3)))]
    assert their_zero_shot(labels, logits)["scores"] == [pytest.approx(1 / (1 + np.exp(3)))]


def test_labels_without_entailment_are_refused(tokenizer):
    """The reference warns and takes the last label."""
    labels, logits = ("bad", "good"), [[2.0, -1.0], [5.0, 0.0]]
    with pytest.raises(InvalidInputError, match="starts with 'entail'"):
        our_zero_shot(tokenizer, labels, logits)
    assert their_zero_shot(labels, logits)["labels"] == ["hoch", "sehr"]


def test_labels_with_two_entailments_are_refused(tokenizer):
    """The reference takes the first."""
    labels, logits = ("entailment", "entailed", "contradiction"), [[2.0, -1.0, 0.0], [5.0, 9.0, 0.0]]
    with pytest.raises(InvalidInputError, match="starts with 'entail'"):
        our_zero_shot(tokenizer, labels, logits)
    assert their_zero_shot(labels, logits)["scores"] == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(3))])


def test_a_candidate_that_is_given_twice_is_refused(tokenizer, reference_parts):
    """The reference gives it twice, each with its share."""
    from transformers import ZeroShotClassificationPipeline as Reference

    session = answering(NLI, [[1.0, 0.0, 0.0]] * 2)
    with pytest.raises(InvalidInputError, match="candidate_labels has 'sehr' twice"):
        ZeroShotClassificationPipeline(session, tokenizer)("text", ["sehr", "sehr"])
    found = Reference(**reference_parts)("text", candidate_labels=["sehr", "sehr"])
    assert (found["labels"], found["scores"]) == (["sehr", "sehr"], pytest.approx([0.5, 0.5]))


@pytest.mark.parametrize("comma", "，、،")
def test_labels_in_one_text_are_divided_by_commas_of_any_script(tokenizer, reference_parts, comma):
    """The reference knows one comma."""
    from transformers import ZeroShotClassificationPipeline as Reference

    session = answering(NLI, [[1.0, 0.0, 0.0]] * 2)
    one = f"sehr{comma}hoch"
    assert ZeroShotClassificationPipeline(session, tokenizer)("text", one)["labels"] == ["sehr", "hoch"]
    assert Reference(**reference_parts)("text", candidate_labels=one)["labels"] == [one]


@pytest.mark.parametrize(
    ("text", "message"), [("", "text is empty"), ("\u200b", "text has no tokens left after normalization")]
)
def test_a_text_without_text_is_refused(tokenizer, reference_parts, text, message):
    """The reference classifies special tokens."""
    from transformers import TextClassificationPipeline as Reference

    session = answering(NLI, [[1.0, 0.0, 0.0]])
    with pytest.raises(InvalidInputError, match=message):
        TextClassificationPipeline(session, tokenizer)(text)
    assert Reference(**reference_parts)(text)[0]["label"] in NLI


@pytest.mark.parametrize(
    ("text", "label", "name"), [("\u200b", "sehr", "text"), ("text", "\u200b", r"candidate_labels\[0\]")]
)
def test_zero_shot_needs_text_and_labels_with_tokens(tokenizer, reference_parts, text, label, name):
    """The reference scores the special tokens, or the template alone."""
    from transformers import ZeroShotClassificationPipeline as Reference

    session = answering(NLI, [[1.0, 0.0, 0.0]])
    with pytest.raises(InvalidInputError, match=f"^{name} has no tokens left after normalization"):
        ZeroShotClassificationPipeline(session, tokenizer)(text, [label])
    [score] = Reference(**reference_parts)(text, candidate_labels=[label])["scores"]
    assert 0 < score < 1


def test_ties_keep_the_order_of_the_candidates(tokenizer):
    """The reference turns it round."""
    logits = [[1.0, 0.0, 0.0]] * 2
    assert our_zero_shot(tokenizer, NLI, logits)["labels"] == CANDIDATES
    assert their_zero_shot(NLI, logits)["labels"] == CANDIDATES[::-1]


def test_large_logits_make_scores(tokenizer):
    """The reference's exponential overflows."""
    logits = [[100.0, 0.0, 0.0], [90.0, 0.0, 0.0]]
    second = 1 / (1 + np.exp(10))
    assert our_zero_shot(tokenizer, NLI, logits)["scores"] == pytest.approx([1 - second, second])
    with pytest.warns(RuntimeWarning, match="overflow|invalid"):
        assert np.isnan(their_zero_shot(NLI, logits)["scores"]).all()


def test_braces_of_a_template_are_text(tokenizer):
    """The reference reads the template as a format string and fails on other braces, and on a second place."""
    from transformers.pipelines.zero_shot_classification import ZeroShotClassificationArgumentHandler

    for template in ("{} {x}", "{} and {}", "{} {"):
        session = answering(NLI, [[1.0, 0.0, 0.0]])
        pipe = ZeroShotClassificationPipeline(session, tokenizer)
        assert pipe("text", ["sehr"], hypothesis_template=template)["labels"] == ["sehr"]
        with pytest.raises((KeyError, IndexError, ValueError)):
            ZeroShotClassificationArgumentHandler()("text", ["sehr"], template)


@pytest.fixture(scope="module")
def reference_parts(reference: ModuleType, tokenizer_dir: Path) -> dict[str, Any]:
    """A small random model of the reference with its tokenizer, for at most LIMIT tokens."""
    from transformers.models.deprecated.ernie_m.tokenization_ernie_m import ErnieMTokenizer

    tokenizer = ErnieMTokenizer.from_pretrained(tokenizer_dir, model_max_length=LIMIT)
    config = reference.ErnieMConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=LIMIT + 2,
        id2label=dict(enumerate(NLI)),
        label2id={label: i for i, label in enumerate(NLI)},
    )
    return {"model": reference.ErnieMForSequenceClassification(config).eval(), "tokenizer": tokenizer, "device": "cpu"}


def test_a_hypothesis_that_leaves_no_room_is_an_error(tokenizer, reference_parts):
    """The reference then cuts nothing, and the model fails on a position."""
    from transformers import ZeroShotClassificationPipeline as Reference

    label = "Straßenfest " * LIMIT
    session = answering(NLI, [[1.0, 0.0, 0.0]])
    pipe = ZeroShotClassificationPipeline(session, tokenizer)
    with pytest.raises(InvalidInputError, match=f"alone takes .* tokens; the limit is {LIMIT}"):
        pipe("text", [label])
    with pytest.raises(IndexError, match="index out of range"):
        Reference(**reference_parts)("text", candidate_labels=[label])


def test_long_texts_are_cut_without_asking(tokenizer, reference_parts):
    """The reference's text classification needs ``truncation=True``; without it the model fails on a position."""
    from transformers import TextClassificationPipeline as Reference

    text = "Straßenfest " * LIMIT
    session = answering(NLI, [[1.0, 0.0, 0.0]])
    assert TextClassificationPipeline(session, tokenizer)(text)[0]["label"] == "entailment"
    reference = Reference(**reference_parts)
    with pytest.raises(IndexError, match="index out of range"):
        reference(text)
    assert reference(text, truncation=True)[0]["label"] in NLI
