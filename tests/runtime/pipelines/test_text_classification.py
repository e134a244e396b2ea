"""Text classification: which function makes scores of logits, the shapes of answers, pairs, limits, bad input."""

import math

import numpy as np
import pytest

from erniem_rt import ArtifactError, InvalidInputError, pipeline
from erniem_rt.pipelines.text_classification import TextClassificationPipeline

LABELS = ("bad", "fair", "good")
LOGITS = [0.5, -1.0, 2.0]


@pytest.fixture
def make_pipe(scripted_session, tokenizer):
    def make(logits=LOGITS, labels=LABELS, problem_type=None, max_length=64, **options):
        function = logits if callable(logits) else lambda ids: {"logits": logits}
        session = scripted_session("cls", function, labels=labels, problem_type=problem_type, max_length=max_length)
        return TextClassificationPipeline(session, tokenizer, **options)

    return make


def softmax(logits):
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def sigmoid(logits):
    return [1 / (1 + math.exp(-x)) for x in logits]


@pytest.mark.parametrize(
    ("problem_type", "logits", "function"),
    [
        (None, LOGITS, softmax),
        (None, [1.5], sigmoid),
        ("single_label_classification", LOGITS, softmax),
        ("multi_label_classification", LOGITS, sigmoid),
        ("regression", LOGITS, list),
        ("regression", [1.5], list),
        ("single_label_classification", [1.5], sigmoid),
    ],
)
def test_the_problem_type_decides_how_scores_are_made(make_pipe, problem_type, logits, function):
    labels = LABELS[: len(logits)]
    answer = make_pipe(logits, labels, problem_type)("Gestern", top_k=None)
    assert {a["label"]: a["score"] for a in answer} == pytest.approx(
        dict(zip(labels, function(logits), strict=True)), rel=1e-6
    )


@pytest.mark.parametrize(("name", "function"), [("softmax", softmax), ("sigmoid", sigmoid), ("none", list)])
@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification", None])
def test_the_caller_may_choose_the_function(make_pipe, name, function, problem_type):
    answer = make_pipe(problem_type=problem_type)("Gestern", top_k=None, function_to_apply=name)
    assert [a["score"] for a in answer] == pytest.approx(sorted(function(LOGITS), reverse=True), rel=1e-6)


@pytest.mark.parametrize(("function", "middle"), [("softmax", 0), ("sigmoid", 0.5)])
def test_extreme_logits_make_plain_scores(make_pipe, function, middle):
    answer = make_pipe([1e30, -1e30, 0.0])("Gestern", top_k=None, function_to_apply=function)
    assert {a["label"]: a["score"] for a in answer} == {"bad": 1, "fair": 0, "good": middle}


def test_answers_have_the_shapes_of_transformers(make_pipe):
    pipe = make_pipe()
    best = {"label": "good", "score": pytest.approx(softmax(LOGITS)[2])}
    assert pipe("a") == [best]
    assert pipe(["a", "b"]) == [best, best]
    assert list(pipe(iter(["a"]))) == [best]
    assert pipe({"text": "a", "text_pair": "b"}) == best
    assert pipe("a", top_k=1) == [best]
    assert pipe(["a"], top_k=1) == [[best]]
    assert [a["label"] for a in pipe("a", top_k=2)] == ["good", "bad"]
    assert [[a["label"] for a in answer] for answer in pipe(["a", "b"], top_k=7)] == [["good", "bad", "fair"]] * 2
    assert type(pipe("a")[0]["score"]) is float


def test_numpy_integers_are_counts(make_pipe):
    pipe = make_pipe(batch_size=np.int64(2))
    assert type(pipe.batch_size) is int
    for top_k in (np.int64(2), np.uint8(2)):
        assert pipe(["a", "b", "c"], top_k=top_k) == pipe(["a", "b", "c"], top_k=2)


def test_ties_keep_the_order_of_the_labels(make_pipe):
    assert [a["label"] for a in make_pipe([1.0, 3.0, 3.0])("a", top_k=None)] == ["fair", "good", "bad"]
    labels = tuple(f"label {i}" for i in range(40))
    pipe = make_pipe([float(i % 2) for i in range(40)], labels)
    assert [a["label"] for a in pipe("a", top_k=None)] == [*labels[1::2], *labels[::2]]
    assert pipe("a")[0]["label"] == "label 1"


def row_of(pipe):
    (batch,) = pipe.session.batches
    return batch[0].tolist()


@pytest.mark.parametrize("item", ["Gestern haben wir", {"text": "Gestern haben wir"}])
def test_a_text_is_one_row(make_pipe, tokenizer, item):
    pipe = make_pipe()
    pipe([item])
    assert row_of(pipe) == tokenizer("Gestern haben wir").input_ids


def test_a_pair_is_one_row(make_pipe, tokenizer, sentences):
    pipe = make_pipe(max_length=200)
    pipe({"text": sentences[2], "text_pair": sentences[8]})
    assert row_of(pipe) == tokenizer(sentences[2], sentences[8]).input_ids
    assert row_of(pipe).count(tokenizer.sep_token_id) == 3


def test_texts_over_the_limit_are_cut_at_the_longer_end(make_pipe, tokenizer, sentences):
    long = " ".join(sentences)
    pipe = make_pipe(max_length=20)
    pipe(long)
    assert row_of(pipe) == [*tokenizer(long).input_ids[:19], tokenizer.sep_token_id]
    pipe = make_pipe(max_length=20)
    pipe({"text": long, "text_pair": "Gestern"})
    assert row_of(pipe) == tokenizer(long, "Gestern", truncation="only_first", max_length=20).input_ids
    pipe = make_pipe(max_length=20)
    pipe({"text": "Gestern", "text_pair": long})
    assert row_of(pipe) == tokenizer("Gestern", long, truncation="only_second", max_length=20).input_ids


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "^text must be str, got NoneType"),
        (["a", ["b", "c"]], "^input 1: text must be str, got list"),
        ({"text": "a", "text_pair": ""}, "^text_pair is empty"),
        ({"text": "a", "text_pair": "\u200b"}, "^text_pair has no tokens left after normalization: expected text"),
        ({"text": "a", "text_pair": 3}, "^text_pair must be str, got int"),
        ({"text_pair": "a"}, "^'text' is missing; text-classification takes a mapping with 'text', 'text_pair'"),
        ([{"text": "a", "pair": "b"}], "^input 0: key 'pair' is not known"),
    ],
)
def test_bad_inputs_are_named(make_pipe, inputs, message):
    with pytest.raises(InvalidInputError, match=message):
        make_pipe()(inputs)


def test_labels_that_do_not_fit_the_logits_are_refused(make_text_artifact):
    artifact = make_text_artifact("cls", labels=LABELS)
    manifest = artifact.path.with_suffix(".json")
    manifest.write_text(manifest.read_text("utf-8").replace('"bad",', ""), "utf-8")
    with pytest.raises(ArtifactError, match=r"the manifest of cls\.onnx names 2 labels and its logits are for 3"):
        pipeline(artifact.path)


def test_a_manifest_without_labels_is_refused(scripted_session, tokenizer):
    with pytest.raises(ArtifactError, match="names 0 labels"):
        TextClassificationPipeline(scripted_session("cls", None), tokenizer)
