"""Options of every task when a pipeline is made and in a call, and how long rows are."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

import erniem_rt
from erniem_rt import InvalidInputError, pipeline
from erniem_rt.pipelines import (
    base,
    feature_extraction,
    information_extraction,
    question_answering,
    text_classification,
    token_classification,
    zero_shot_classification,
)
from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline
from erniem_rt.pipelines.information_extraction import InformationExtractionPipeline
from erniem_rt.pipelines.multiple_choice import MultipleChoicePipeline
from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline
from erniem_rt.pipelines.text_classification import TextClassificationPipeline
from erniem_rt.pipelines.token_classification import TokenClassificationPipeline
from erniem_rt.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

TEXT = "Guten Morgen, Maria aus Berlin. Heute ist Montag"
QUESTION = {"question": "Wer?", "context": TEXT}
NLI = ("entailment", "neutral", "contradiction")

# Task, head, what to ask, and each option of the task with a value that changes the answer.
CASES = [
    ("question-answering", "qa", QUESTION, {"top_k": 3}),
    ("question-answering", "qa", QUESTION, {"max_answer_len": 1, "top_k": 20}),
    ("question-answering", "qa", QUESTION, {"align_to_words": True, "top_k": 20}),
    ("question-answering", "qa", QUESTION, {"handle_impossible_answer": True, "top_k": 500}),
    ("question-answering", "qa", QUESTION, {"doc_stride": 1, "max_seq_len": 16, "top_k": 20}),
    ("text-classification", "cls", TEXT, {"top_k": 2}),
    ("text-classification", "cls", TEXT, {"top_k": None}),
    ("text-classification", "cls", TEXT, {"function_to_apply": "none"}),
    ("zero-shot-classification", "cls", TEXT, {"candidate_labels": ["Tag", "Nacht"]}),
    ("zero-shot-classification", "cls", TEXT, {"hypothesis_template": "{}!", "candidate_labels": "Tag,Nacht"}),
    ("zero-shot-classification", "cls", TEXT, {"multi_label": True, "candidate_labels": ["Tag", "Nacht"]}),
    ("token-classification", "ner", TEXT, {"aggregation_strategy": "simple"}),
    ("token-classification", "ner", TEXT, {"ignore_labels": ["B-X"]}),
    ("token-classification", "ner", TEXT, {"stride": 0, "max_seq_len": 8}),
    ("information-extraction", "ie", TEXT, {"schema": ["Person"], "threshold": 0.0}),
    ("information-extraction", "ie", TEXT, {"schema": {"I": "I"}, "schema_lang": "zh", "threshold": 0.0}),
    ("feature-extraction", "base", TEXT, {"pooling": "cls"}),
    ("feature-extraction", "base", TEXT, {"normalize": True}),
    ("multiple-choice", "mc", {"prompt": TEXT, "choices": ["ja", "nein"]}, {"max_seq_len": 8}),
]
# What a task needs before it answers at all.
NEEDED = {
    "information-extraction": {"schema": "Ort"},
    "zero-shot-classification": {"candidate_labels": ["Tag", "Nacht"]},
}
LABELS = {"cls": NLI, "ner": ("O", "B-X")}

OPTIONS = {
    "QuestionAnsweringPipeline": question_answering.QuestionAnsweringOptions,
    "TextClassificationPipeline": text_classification.TextClassificationOptions,
    "ZeroShotClassificationPipeline": zero_shot_classification.ZeroShotClassificationOptions,
    "TokenClassificationPipeline": token_classification.TokenClassificationOptions,
    "InformationExtractionPipeline": information_extraction.InformationExtractionOptions,
    "FeatureExtractionPipeline": feature_extraction.FeatureExtractionOptions,
    "MultipleChoicePipeline": base.RunOptions,
}


def artifact(make_text_artifact, head):
    return make_text_artifact(head, **({"labels": LABELS[head]} if head in LABELS else {})).path


def same(left, right):
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right


@pytest.mark.parametrize(("task", "head", "asked", "options"), CASES)
def test_an_option_does_the_same_in_both_places(make_text_artifact, task, head, asked, options):
    path, needed = artifact(make_text_artifact, head), NEEDED.get(task, {})
    with pipeline(task, path, **options) as made, pipeline(task, path, **needed) as plain:
        answer = made(asked)
        assert same(answer, plain(asked, **options))
        assert same(made([asked, asked]), plain([asked, asked], **options))
        # A call changes its own answer only, and goes over what the pipeline was made with.
        default = plain(asked)
        if next(iter(options)) not in ("candidate_labels", "stride", "max_seq_len"):
            assert not same(default, answer)
        assert same(plain(asked), default)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_that_type_checkers_see_are_those_that_are_taken(name):
    """One place says which there are, the other what becomes of them."""
    taken = {field.name for field in fields(getattr(erniem_rt, name).options_type)}
    assert set(OPTIONS[name].__annotations__) == taken


def test_the_call_goes_over_the_pipeline(make_text_artifact):
    with pipeline("question-answering", artifact(make_text_artifact, "qa"), top_k=2) as ask:
        assert len(ask(QUESTION)) == 2
        assert isinstance(ask(QUESTION, top_k=1), dict)
        assert len(ask(QUESTION, top_k=None)) == 2
    with pipeline("text-classification", artifact(make_text_artifact, "cls"), top_k=2) as classify:
        assert len(classify({"text": TEXT})) == 2
        assert len(classify({"text": TEXT}, top_k=None)) == len(NLI)


CLASSES = {
    "base": FeatureExtractionPipeline,
    "cls": TextClassificationPipeline,
    "zero-shot": ZeroShotClassificationPipeline,
    "ner": TokenClassificationPipeline,
    "qa": QuestionAnsweringPipeline,
    "ie": InformationExtractionPipeline,
}
BAD_COUNTS = [0, -1, 1.5, True, "3", np.int64(0), np.float32(2), np.True_, np.array([1, 2])]
NO_FRACTIONS = [1, float("nan"), True, np.True_, np.float32(1), 10**400]
# Of a row of 64 tokens.
BAD = [
    *(
        ("qa", {name: value}, f"{name} must be an integer of at least 1, got ")
        for name in ("top_k", "max_answer_len", "doc_stride", "max_seq_len", "batch_size", "read_ahead")
        for value in BAD_COUNTS
    ),
    ("qa", {"handle_impossible_answer": np.int64(1)}, "handle_impossible_answer must be True or False, got "),
    ("qa", {"align_to_words": "yes"}, "align_to_words must be True or False, got 'yes'"),
    ("qa", {"max_seq_len": 65}, "max_seq_len is 65; the model takes at most 64 tokens"),
    ("qa", {"max_seq_len": 40, "doc_stride": 41}, "doc_stride is 41, more than the 40 tokens of a row"),
    ("qa", {"errors": "ignore"}, "errors must be one of raise, return, got 'ignore'"),
    ("qa", {"max_characters": 0}, "max_characters must be an integer of at least 1, got 0"),
    *(
        ("cls", {"top_k": value}, "top_k must be a positive integer, None or 'best', got ")
        for value in (0, True, np.True_, np.int64(0), np.array([1, 2]), "all")
    ),
    ("cls", {"function_to_apply": "relu"}, "function_to_apply must be one of sigmoid, softmax, none, got 'relu'"),
    ("cls", {"function_to_apply": np.array(["none", "none"])}, "function_to_apply must be one of sigmoid"),
    ("zero-shot", {"candidate_labels": []}, "candidate_labels is empty"),
    *(
        (
            "zero-shot",
            {"hypothesis_template": value},
            r"hypothesis_template must be text with \{\} where the label goes",
        )
        for value in ("This example is.", "{0}", "", 3)
    ),
    ("zero-shot", {"multi_label": "no"}, "multi_label must be True or False, got 'no'"),
    ("ner", {"aggregation_strategy": "fist"}, "one of none, simple, first, average, max, got 'fist'"),
    ("ner", {"aggregation_strategy": ["max"]}, r"one of none, simple, first, average, max, got \['max'\]"),
    ("ner", {"ignore_labels": "O"}, "ignore_labels must be a list of labels, got str"),
    ("ner", {"ignore_labels": [0]}, r"ignore_labels must be a list of labels, got \[0\]"),
    *(("ner", {"stride": value}, "stride must be an integer of at least 0, got ") for value in (-1, np.int64(-1), 2.5)),
    ("ner", {"stride": 62}, "stride is 62; it must be less than the 62 tokens of a window"),
    *(("ie", {"threshold": value}, "threshold must be a number from 0 to below 1, got ") for value in NO_FRACTIONS),
    ("ie", {"schema_lang": "ch"}, "schema_lang must be one of auto, zh, en, got 'ch'"),
    ("ie", {"schema": []}, "schema is empty"),
    ("ie", {"schema": 3}, "schema must be a name, a list or a dict, got int"),
    ("ie", {"schema": "5" * 70}, r"the prompt '555\d*…' takes \d+ tokens; the limit is 64"),
    ("base", {"pooling": "max"}, "pooling must be one of mean, cls, pooler, none, got 'max'"),
    ("base", {"normalize": "yes"}, "normalize must be True or False, got 'yes'"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD)
def test_a_wrong_value_is_refused_in_both_places(scripted_session, tokenizer, kind, options, message):
    cls = CLASSES[kind]
    session = scripted_session(cls.head, dict, labels=LABELS.get(cls.head))
    with pytest.raises(InvalidInputError, match=message):
        cls(session, tokenizer, **options)
    needed = {"schema": "Ort"} if kind == "ie" else {}
    if kind == "zero-shot" and "candidate_labels" not in options:
        needed = {"candidate_labels": ["Tag"]}
    with pytest.raises(InvalidInputError, match=message):
        cls(session, tokenizer, **needed)(iter(["text"]), **options)
    assert session.batches == []


def test_zero_shot_classification_without_labels_says_where_to_give_them(make_text_artifact):
    with (
        pipeline("zero-shot-classification", artifact(make_text_artifact, "cls")) as classify,
        pytest.raises(InvalidInputError, match=r"needs candidate_labels, .*: give them to the pipeline or to its call"),
    ):
        classify(TEXT)


TASKS = {
    "feature-extraction": (FeatureExtractionPipeline, {}, lambda text: text, {}),
    "text-classification": (TextClassificationPipeline, {}, lambda text: {"text": text, "text_pair": text}, {}),
    "zero-shot": (ZeroShotClassificationPipeline, {}, lambda text: text, {"candidate_labels": ["x"]}),
    "token-classification": (TokenClassificationPipeline, {}, lambda text: text, {}),
    "multiple-choice": (MultipleChoicePipeline, {}, lambda text: {"prompt": text, "choices": ["x"]}, {}),
    "question-answering": (QuestionAnsweringPipeline, {}, lambda text: {"question": "x", "context": text}, {}),
    "information-extraction": (InformationExtractionPipeline, {"schema": ["x"]}, lambda text: text, {}),
}
LONGEST = 600


@pytest.fixture(params=TASKS)
def make(request, scripted_session, tokenizer):
    """A pipeline by its artifact's defaults and its options, and a call that returns the longest row it made."""
    cls, needed, given, call = TASKS[request.param]
    text = "Gestern haben wir Nachbarn getroffen " * 100  # no sentence ends, where information extraction cuts

    def build(defaults, **options):
        outputs = {
            "base": lambda ids: {"last_hidden_state": np.zeros((len(ids), 4)), "pooler_output": np.zeros(4)},
            "cls": lambda ids: {"logits": np.zeros(3)},
            "ner": lambda ids: {"logits": np.zeros((len(ids), 3))},
            "mc": lambda ids: {"logits": np.zeros(())},
        }
        spans = lambda ids: {"start_logits": np.zeros(len(ids)), "end_logits": np.zeros(len(ids))}  # noqa: E731
        labels = {"labels": NLI} if cls.head in ("cls", "ner") else {}
        session = scripted_session(
            cls.head, outputs.get(cls.head, spans), max_length=LONGEST, defaults=defaults, **labels
        )
        pipe = cls(session, tokenizer, **needed, **options)

        def longest_row(**later):
            session.batches.clear()
            pipe(given(text), **call, **later)
            return max(ids.shape[-1] for ids in session.batches)

        return longest_row

    build.is_qa = cls is QuestionAnsweringPipeline
    return build


def test_the_model_s_own_limit_where_the_checkpoint_says_nothing(make):
    assert make({})() == (384 if make.is_qa else LONGEST)


@pytest.mark.parametrize("length", [40, 100, 380])
def test_the_checkpoint_s_limit(make, length):
    assert make({"max_seq_len": length})() == length


def test_a_long_checkpoint_and_question_answering(make):
    assert make({"max_seq_len": 500})() == (384 if make.is_qa else 500)


def test_options_come_before_the_checkpoint(make):
    longest_row = make({"max_seq_len": 40}, max_seq_len=80)
    assert (longest_row(), longest_row(max_seq_len=30), longest_row(max_seq_len=500)) == (80, 30, 500)
    assert make({"max_seq_len": 40})(max_seq_len=np.int64(LONGEST)) == LONGEST


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (LONGEST + 1, "max_seq_len is 601; the model takes at most 600 tokens"),
        (2, "max_seq_len is 2, and a row has 2 special tokens: expected at least 3"),
        (0, "max_seq_len must be an integer of at least 1, got 0"),
        ("64", "max_seq_len must be an integer of at least 1, got '64'"),
        (True, "max_seq_len must be an integer of at least 1, got True"),
    ],
)
def test_lengths_that_are_none(make, length, said):
    with pytest.raises(InvalidInputError, match=said):
        make({}, max_seq_len=length)
    with pytest.raises(InvalidInputError, match=said):
        make({})(max_seq_len=length)


def test_a_plan_takes_less_than_the_checkpoint_says(scripted_session, tokenizer, sentences):
    session = scripted_session(
        "cls", lambda ids: {"logits": np.zeros(3)}, labels=NLI, max_length=50, defaults={"max_seq_len": 128}
    )
    pipe = TextClassificationPipeline(session, tokenizer)
    pipe(" ".join(sentences))
    assert pipe.max_length == max(ids.shape[-1] for ids in session.batches) == 50


def test_windows_of_another_length_step_as_far(scripted_session, tokenizer, sentences):
    session = scripted_session("qa", lambda ids: {name: np.zeros(len(ids)) for name in ("start_logits", "end_logits")})
    pipe = QuestionAnsweringPipeline(session, tokenizer, max_seq_len=60)
    context = " ".join(sentences)
    tokens, question = len(tokenizer(context, add_special_tokens=False)), len(tokenizer("x", add_special_tokens=False))

    def rows(**options):
        session.batches.clear()
        pipe(question="x", context=context, **options)
        return sum(len(ids) for ids in session.batches)

    def expected(size, stride):
        return 1 + -(-max(tokens - (size - 4 - question), 0) // stride)

    assert rows() == expected(60, 30)
    assert rows(max_seq_len=20) == expected(20, 10)
    assert rows(doc_stride=5) == expected(60, 5)
    with pytest.raises(InvalidInputError, match="doc_stride is 21, more than the 20 tokens of a row"):
        rows(max_seq_len=20, doc_stride=21)
