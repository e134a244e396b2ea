"""Vectors compared with the obvious numpy, on every sentence."""

import numpy as np
import pytest

from erniem_rt import InvalidInputError
from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline

LIMIT = 24


@pytest.fixture
def artifact(make_text_artifact):
    return make_text_artifact("base", max_length=LIMIT)


@pytest.fixture
def make_pipe(artifact, scripted_session, tokenizer):
    session = scripted_session("base", artifact.function, max_length=LIMIT)
    return lambda **options: FeatureExtractionPipeline(session, tokenizer, **options)


EXPECTED = {
    "mean": lambda states, pooled: sum(states) / len(states),
    "cls": lambda states, pooled: states[0],
    "pooler": lambda states, pooled: pooled,
    "none": lambda states, pooled: states,
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", EXPECTED)
def test_vectors_are_the_obvious_ones(artifact, make_pipe, tokenizer, sentences, pooling, normalize):
    vectors = make_pipe(pooling=pooling, normalize=normalize, batch_size=4)(list(sentences))
    assert len(vectors) == len(sentences)
    for vector, text in zip(vectors, sentences, strict=True):
        ids = tokenizer(text, truncation="longest_first", max_length=LIMIT).input_ids
        outputs = artifact.function(ids)
        expected = EXPECTED[pooling](outputs["last_hidden_state"], outputs["pooler_output"])
        if normalize:
            expected = expected / np.sqrt((expected**2).sum(-1, keepdims=True))
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-6)


def test_texts_at_the_limit_and_over_it_are_among_the_sentences(tokenizer, sentences):
    lengths = [len(tokenizer(text)) for text in sentences]
    assert max(lengths) > LIMIT > min(lengths)


@pytest.mark.parametrize("pooling", EXPECTED)
def test_vectors_hold_no_batch_in_memory(make_pipe, pooling):
    pipe = make_pipe(pooling=pooling)
    assert pipe("Gestern").base is None
    many = pipe(["Gestern", "heute"])
    assert all(array.base is None for array in (many if pooling == "none" else [many]))


def test_a_vector_of_zeros_stays_one(scripted_session, tokenizer):
    session = scripted_session(
        "base", lambda ids: {"last_hidden_state": np.zeros((len(ids), 4)), "pooler_output": np.zeros(4)}
    )
    assert FeatureExtractionPipeline(session, tokenizer, normalize=True)("Gestern").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("defaults", "options", "expected"),
    [
        ({}, {}, ("mean", False)),
        ({"pooling": "cls", "normalize": True}, {}, ("cls", True)),
        ({"pooling": "cls", "normalize": True}, {"pooling": "mean", "normalize": False}, ("mean", False)),
    ],
)
def test_the_checkpoint_says_how_unless_the_caller_does(
    artifact, scripted_session, tokenizer, defaults, options, expected
):
    session = scripted_session("base", artifact.function, defaults=defaults)
    pipe = FeatureExtractionPipeline(session, tokenizer, **options)
    assert (pipe.pooling, pipe.normalize) == expected
    states = artifact.function(tokenizer("Gestern").input_ids)["last_hidden_state"]
    vector = states[0] if expected[0] == "cls" else states.mean(0)
    np.testing.assert_allclose(pipe("Gestern"), vector / np.linalg.norm(vector) if expected[1] else vector, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "none"])
def test_a_model_without_pooler(artifact, scripted_session, tokenizer, pooling):
    session = scripted_session("base", artifact.function, lacks=["pooler_output"])
    states = artifact.function(tokenizer("Gestern").input_ids)["last_hidden_state"]
    vector = FeatureExtractionPipeline(session, tokenizer, pooling=pooling)("Gestern")
    np.testing.assert_allclose(vector, EXPECTED[pooling](states, None), rtol=1e-5)
    with pytest.raises(InvalidInputError) as caught:
        FeatureExtractionPipeline(session, tokenizer, pooling="pooler")
    assert str(caught.value) == (
        "pooling='pooler' needs pooler_output, which base.onnx lacks, because its checkpoint had no pooler: use "
        "pooling='mean' or 'cls'."
    )
