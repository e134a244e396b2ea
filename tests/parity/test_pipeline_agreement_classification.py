"""Classification beside transformers 4.57.6's: shapes of answers, and that the compared texts are of all lengths."""

from __future__ import annotations

from typing import Any

import pytest

from erniem_rt import Tokenizer, pipeline
from tests.parity.agreement import texts_and_pairs
from tests.parity.pipeline_reference import LIMIT, reference_pipeline


def test_the_texts_reach_over_the_limit(nano_heldout, nano_artifact):
    tokenizer = Tokenizer.from_dir(nano_artifact("cls").parent)
    lengths = [len(tokenizer(text)) for _, text in texts_and_pairs(nano_heldout) if isinstance(text, str)]
    assert min(lengths) < 20
    assert sum(length > LIMIT for length in lengths) >= 3


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}], ids=str)
def test_answers_of_text_classification_have_the_same_shape(reference, nano_artifact, options):
    theirs = reference_pipeline("TextClassificationPipeline", "cls")
    pair = {"text": "a", "text_pair": "b"}
    with pipeline(nano_artifact("cls")) as ours:
        for inputs in ("a", ["a"], ["a", "b"], pair, [pair, pair]):
            assert shape(ours(inputs, **options)) == shape(theirs(inputs, **options))


def shape(value: Any) -> Any:
    if isinstance(value, list):
        return [shape(item) for item in value]
    return {key: type(item) for key, item in value.items()}
