"""Each line of ``docs/pipeline-differences.md`` on feature extraction, shown on both sides, over one random model."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline
from tests.runtime.pipelines.conftest import ScriptedSession, make_manifest

HIDDEN, LIMIT = 8, 30
TEXT = "The lighthouse keeper wrote 3 letters."


@pytest.fixture
def both(reference: ModuleType, tokenizer_dir: Path) -> tuple[Any, FeatureExtractionPipeline]:
    """Their pipeline and ours."""
    from transformers import FeatureExtractionPipeline as TheirPipeline
    from transformers.models.deprecated.ernie_m.tokenization_ernie_m import ErnieMTokenizer

    tokenizer = ErnieMTokenizer.from_pretrained(tokenizer_dir, model_max_length=LIMIT)
    config = reference.ErnieMConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=LIMIT + 2,
    )
    model = reference.ErnieMModel(config).eval()

    def function(ids: list[int]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            output = model(torch.tensor([ids]))
        return {name: output[name][0].numpy() for name in ("last_hidden_state", "pooler_output")}

    session: Any = ScriptedSession(make_manifest("base", max_length=LIMIT), function)
    theirs = TheirPipeline(model=model, tokenizer=tokenizer, device="cpu")
    return theirs, FeatureExtractionPipeline(session, Tokenizer.from_dir(tokenizer_dir))


def test_a_text_has_one_vector(both):
    """There it has a list of one list, which has a vector for each token as a list."""
    theirs, ours = both
    [tokens] = theirs(TEXT)
    found = ours(TEXT)
    assert (found.shape, found.dtype) == ((HIDDEN,), np.float32)
    assert type(tokens[0][0]) is float
    np.testing.assert_allclose(found, np.mean(tokens, axis=0), atol=1e-6)
    assert [len(tokens), HIDDEN] == [len(ours.tokenizer(TEXT)), len(tokens[0])]


def test_a_long_text_is_cut_without_asking(both):
    theirs, ours = both
    text = "keeper " * LIMIT
    with pytest.raises(IndexError, match="index out of range"):
        theirs(text)
    np.testing.assert_allclose(ours(text), np.mean(theirs(text, truncation=True)[0], axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"), [("", "text is empty"), ("\u200b", "text has no tokens left after normalization")]
)
def test_a_text_without_text_is_refused(both, text, message):
    theirs, ours = both
    assert np.shape(theirs(text)) == (1, 2, HIDDEN)
    with pytest.raises(InvalidInputError, match=message):
        ours(text)
