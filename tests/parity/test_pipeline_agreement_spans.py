"""Question answering and token classification on nano: several answers, lengths that are compared, right answers."""

from __future__ import annotations

import numpy as np
import pytest

from erniem_rt import Tokenizer, pipeline
from tests.parity.agreement import TOLERANCE, both_answers, questions, with_long_contexts
from tests.parity.pipeline_reference import LIMIT, NANO, repaired_question_answering

EACH = 36  # per language

# transformers hands tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_question_answering_top_k(reference, nano_heldout, nano_artifact):
    inputs = [item for _, item in questions(nano_heldout)][::4]
    with (
        pipeline(nano_artifact("qa"), threads=1, align_to_words=True, top_k=3) as ours,
        repaired_question_answering() as theirs,
    ):
        for item, answers in zip(inputs, ours(inputs), strict=True):
            distinct = {(a["start"], a["answer"]): a for a in reversed(theirs(**item, top_k=40))}
            best = sorted(distinct.values(), key=lambda answer: -answer["score"])
            scores = [answer["score"] for answer in answers]
            assert scores == pytest.approx([answer["score"] for answer in best[:3]], abs=TOLERANCE)
            one, other = both_answers(answers[0], best[0], item["context"])
            assert one.what == other.what


def test_contexts_of_each_language_are_over_the_limit(nano_heldout):
    tokenizer = Tokenizer.from_dir(NANO / "checkpoints" / "qa")
    inputs = with_long_contexts(questions(nano_heldout))
    long = [language for language, item in inputs if len(tokenizer(item["context"])) > LIMIT]
    assert len(long) == len(set(long)) == 6


def test_answers_are_right(nano_heldout, nano_artifact):
    """Agreement alone would not show that both are wrong."""
    examples = nano_heldout("qa", 5, EACH)
    with pipeline(nano_artifact("qa"), threads=1, max_answer_len=30) as ours:
        answers = ours([{"question": example.question, "context": example.context} for example in examples])
    right = [(a["start"], a["end"]) == (e.start, e.end) for a, e in zip(answers, examples, strict=True)]
    assert np.mean(right) > 0.7


def test_entities_are_right(nano_heldout, nano_artifact):
    examples = nano_heldout("ner", 5, EACH)
    with pipeline(nano_artifact("ner"), threads=1, aggregation_strategy="simple") as ours:
        results = ours([example.text for example in examples])
    found = [{(e["start"], e["end"], e["entity_group"]) for e in result} for result in results]
    wanted = [set(example.entities) for example in examples]
    common = sum(len(a & b) for a, b in zip(found, wanted, strict=True))
    assert 2 * common / (sum(map(len, found)) + sum(map(len, wanted))) > 0.85
