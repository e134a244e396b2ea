"""Each line of ``docs/pipeline-differences.md`` on feature extraction, shown on both sides, over one random model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.manifest import HEADS, Defaults, Limits, TensorSpec
from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline

HIDDEN, LIMIT = 8, 30
TEXT = "The lighthouse keeper wrote 3 letters."


class ReferenceSession:
    """What pipelines use of a Session, answered by a model of the reference."""

    threads = 1

    def __init__(self, model: Any) -> None:
        outputs = [TensorSpec(name, "float32", axes) for name, axes in HEADS["base"].outputs.items()]
        self.limits = limits = Limits(LIMIT, model.config.vocab_size, 1)
        self.manifest = SimpleNamespace(head="base", labels=None, limits=limits, outputs=outputs, defaults=Defaults())
        self._model = model

    def run_all(self, batches: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        return (self.run(**batch) for batch in batches)

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            output = self._model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {spec.name: output[spec.name].numpy() for spec in self.manifest.outputs}


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
    session: Any = ReferenceSession(model)
    theirs = TheirPipeline(model=model, tokenizer=tokenizer, device="cpu")
    return theirs, FeatureExtractionPipeline(session, Tokenizer.from_dir(tokenizer_dir))


def test_a_text_has_one_vector(both: tuple[Any, FeatureExtractionPipeline]) -> None:
    """There it has a list of one list, which has a vector for each token as a list."""
    theirs, ours = both
    [tokens] = theirs(TEXT)
    found = ours(TEXT)
    assert (found.shape, found.dtype) == ((HIDDEN,), np.float32)
    assert type(tokens[0][0]) is float
    np.testing.assert_allclose(found, np.mean(tokens, axis=0), atol=1e-6)
    assert [len(tokens), HIDDEN] == [len(ours.tokenizer(TEXT)), len(tokens[0])]


def test_a_long_text_is_cut_without_asking(both: tuple[Any, FeatureExtractionPipeline]) -> None:
    theirs, ours = both
    text = "keeper " * LIMIT
    with pytest.raises(IndexError, match="index out of range"):
        theirs(text)
    np.testing.assert_allclose(ours(text), np.mean(theirs(text, truncation=True)[0], axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"), [("", "text is empty"), ("\u200b", "text has no tokens left after normalization")]
)
def test_a_text_without_text_is_refused(both: tuple[Any, FeatureExtractionPipeline], text: str, message: str) -> None:
    theirs, ours = both
    assert np.shape(theirs(text)) == (1, 2, HIDDEN)
    with pytest.raises(InvalidInputError, match=message):
        ours(text)
