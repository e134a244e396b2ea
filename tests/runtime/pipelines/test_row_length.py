"""How long rows are: as the checkpoint says, as the pipeline is made, as a call says, for every task."""

import numpy as np
import pytest

from erniem_rt import InvalidInputError
from erniem_rt.pipelines.feature_extraction import FeatureExtractionPipeline
from erniem_rt.pipelines.information_extraction import InformationExtractionPipeline
from erniem_rt.pipelines.multiple_choice import MultipleChoicePipeline
from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline
from erniem_rt.pipelines.text_classification import TextClassificationPipeline
from erniem_rt.pipelines.token_classification import TokenClassificationPipeline
from erniem_rt.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

LABELS = ("entailment", "neutral", "contradiction")
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
        labels = {"labels": LABELS} if cls.head in ("cls", "ner") else {}
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
        "cls", lambda ids: {"logits": np.zeros(3)}, labels=LABELS, max_length=50, defaults={"max_seq_len": 128}
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
