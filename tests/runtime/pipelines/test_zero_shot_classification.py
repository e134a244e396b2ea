"""Zero-shot classification: rows, scores by name of label, order, what is cut, bad input."""

import math
from dataclasses import replace

import pytest

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

NLI = ("entailment", "neutral", "contradiction")
TEXT = "Gestern haben wir viele Nachbarn getroffen."
TEMPLATE = "Das ist {}."
# Hypothesis' logits by candidate: entailment, neutral, contradiction.
LOGITS = {"Nachbarn": (2.0, 0.5, -1.0), "März": (-0.5, 3.0, 0.25), "book": (1.0, -2.0, 1.5)}


@pytest.fixture
def make_pipe(scripted_session, tokenizer):
    """A pipeline whose model knows the candidates of LOGITS, with its labels in any order."""

    def make(labels=NLI, max_length=64, template=TEMPLATE, **options):
        by_hypothesis = {
            tuple(tokenizer(template.replace("{}", name), add_special_tokens=False).input_ids): dict(
                zip(NLI, logits, strict=True)
            )
            for name, logits in LOGITS.items()
        }

        def function(ids):
            separators = [i for i, token in enumerate(ids) if token == tokenizer.sep_token_id]
            named = by_hypothesis[tuple(ids[separators[-2] + 1 : separators[-1]])]
            kinds = {"e": "entailment", "n": "neutral", "c": "contradiction"}
            return {"logits": [named[kinds[label[0].lower()]] for label in labels]}

        session = scripted_session("cls", function, labels=labels, max_length=max_length)
        return ZeroShotClassificationPipeline(session, tokenizer, **options)

    return make


def ask(pipe, inputs=TEXT, labels=tuple(LOGITS), **options):
    return pipe(inputs, labels, hypothesis_template=TEMPLATE, **options)


ORDERS = [
    NLI,
    ("contradiction", "neutral", "entailment"),
    ("Neutral", "CONTRADICTION", "Entailment"),
    ("neutral", "entails", "contradicts"),
]


@pytest.mark.parametrize("labels", ORDERS)
def test_one_label_is_true(make_pipe, labels):
    exponentials = {name: math.exp(logits[0]) for name, logits in LOGITS.items()}
    answer = ask(make_pipe(labels))
    assert answer["sequence"] == TEXT
    assert answer["labels"] == ["Nachbarn", "book", "März"]
    assert answer["scores"] == pytest.approx(
        [exponentials[name] / sum(exponentials.values()) for name in answer["labels"]], rel=1e-6
    )


def alone(name):
    entailment, _, contradiction = LOGITS[name]
    return math.exp(entailment) / (math.exp(entailment) + math.exp(contradiction))


@pytest.mark.parametrize("labels", ORDERS)
def test_several_labels_may_be_true(make_pipe, labels):
    answer = ask(make_pipe(labels), multi_label=True)
    assert answer["labels"] == ["Nachbarn", "book", "März"]
    assert answer["scores"] == pytest.approx([alone(name) for name in answer["labels"]], rel=1e-6)


@pytest.mark.parametrize("labels", ORDERS)
@pytest.mark.parametrize("multi_label", [False, True])
def test_a_single_candidate_is_scored_by_itself(make_pipe, labels, multi_label):
    answer = ask(make_pipe(labels), labels=["book"], multi_label=multi_label)
    assert (answer["labels"], answer["scores"]) == (["book"], [pytest.approx(alone("book"), rel=1e-6)])


def test_the_other_one_of_two_labels_is_contradiction(scripted_session, tokenizer):
    session = scripted_session("cls", lambda ids: {"logits": [1.0, 3.0]}, labels=("not_entailment", "entailment"))
    answer = ZeroShotClassificationPipeline(session, tokenizer)(TEXT, "book")
    assert answer["scores"] == [pytest.approx(1 / (1 + math.exp(-2)), rel=1e-6)]


def test_rows_are_the_text_with_each_hypothesis(make_pipe, tokenizer, sentences):
    pipe = make_pipe(batch_size=1, max_length=200)
    inputs = [sentences[2], sentences[17]]
    ask(pipe, inputs)
    expected = [tokenizer(text, f"Das ist {name}.").input_ids for text in inputs for name in LOGITS]
    assert sorted(batch[0].tolist() for batch in pipe.session.batches) == sorted(expected)


def test_the_default_template_is_english(scripted_session, tokenizer):
    session = scripted_session("cls", lambda ids: {"logits": [1, 2, 3]}, labels=NLI)
    ZeroShotClassificationPipeline(session, tokenizer)(TEXT, ["office"])
    assert session.batches[0][0].tolist() == tokenizer(TEXT, "This example is office.").input_ids


def test_labels_may_be_one_text_with_commas(make_pipe):
    assert ask(make_pipe(), labels="März , book,,Nachbarn,") == ask(make_pipe(), labels=["März", "book", "Nachbarn"])


@pytest.mark.parametrize(
    "labels", ["März，book，Nachbarn", "März、book、Nachbarn", " März، book ، Nachbarn،", "März，book, Nachbarn"]
)
def test_commas_may_be_of_any_script(make_pipe, labels):
    assert ask(make_pipe(), labels=labels) == ask(make_pipe(), labels=["März", "book", "Nachbarn"])


def test_an_enumeration_comma_is_part_of_a_label_where_others_divide(scripted_session, tokenizer):
    session = scripted_session("cls", lambda ids: {"logits": [1, 2, 3]}, labels=NLI)
    pipe = ZeroShotClassificationPipeline(session, tokenizer)
    assert pipe(TEXT, "März、Mai，book")["labels"] == ["März、Mai", "book"]


def test_ties_keep_the_order_of_the_candidates(scripted_session, tokenizer):
    session = scripted_session("cls", lambda ids: {"logits": [ids[-2] % 2, 0, 0]}, labels=NLI)
    pipe = ZeroShotClassificationPipeline(session, tokenizer, batch_size=3)
    candidates = [f"{number}" for number in range(40)]
    last = {name: tokenizer(name, add_special_tokens=False).input_ids[-1] % 2 for name in candidates}
    assert set(last.values()) == {0, 1}
    for multi_label in (False, True):
        answer = pipe(TEXT, candidates, hypothesis_template="{}", multi_label=multi_label)
        assert answer["labels"] == sorted(candidates, key=lambda name: -last[name])


def test_extreme_logits_make_plain_scores(scripted_session, tokenizer):
    session = scripted_session("cls", lambda ids: {"logits": [1e30, 0, 0]}, labels=NLI)
    assert ZeroShotClassificationPipeline(session, tokenizer)(TEXT, ["a", "b"])["scores"] == [0.5, 0.5]


@pytest.mark.parametrize("side", ["right", "left"])
def test_only_the_text_is_cut(make_pipe, tokenizer, tokenizer_dir, sentences, side):
    limit, text = 24, " ".join(sentences)
    cutting = Tokenizer(
        tokenizer_dir / "sentencepiece.bpe.model",
        tokenizer_dir / "vocab.txt",
        settings=replace(tokenizer.settings, truncation_side=side),
    )
    pipe = ZeroShotClassificationPipeline(make_pipe(max_length=limit).session, cutting)
    ask(pipe, text, labels=["Nachbarn"])
    expected = pipe.tokenizer(text, "Das ist Nachbarn.", truncation="only_first", max_length=limit).input_ids
    assert pipe.session.batches[0][0].tolist() == expected
    assert len(expected) == limit


def test_a_hypothesis_that_leaves_no_room_is_named(make_pipe, tokenizer):
    count = len(tokenizer("Das ist Nachbarn.", add_special_tokens=False))
    with pytest.raises(InvalidInputError) as caught:
        ask(make_pipe(max_length=count + 4), labels=["Nachbarn"])
    assert str(caught.value) == (
        f"the hypothesis for candidate label 'Nachbarn' alone takes {count} tokens; the limit is {count + 4}, of which "
        "4 are special tokens and at least one is the other text's. Shorten it."
    )
    assert ask(make_pipe(max_length=count + 5), labels=["Nachbarn"])["labels"] == ["Nachbarn"]


def test_a_long_label_is_cut_short_in_messages(make_pipe):
    with pytest.raises(InvalidInputError) as caught:
        ask(make_pipe(max_length=512), labels=["Nachbarn " * 600])
    assert len(str(caught.value)) < 300
    assert "candidate label 'Nachbarn Nachbarn" in str(caught.value)
    assert "…' alone takes " in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "candidate_labels is empty"),
        ("", "candidate_labels is empty"),
        (" , ,", "candidate_labels is empty"),
        (["a", " "], r"candidate_labels\[1\] is empty"),
        (["a", "\u200b"], r"candidate_labels\[1\] has no tokens left after normalization: expected text"),
        ("a, ▁,b", r"candidate_labels\[1\] has no tokens left after normalization: expected text"),
        (["a", 3], r"candidate_labels\[1\] must be str, got int"),
        (["a", "b", "a"], "candidate_labels has 'a' twice"),
        ("a,b, a", "candidate_labels has 'a' twice"),
        (None, "zero-shot-classification needs candidate_labels"),
        ({"a": 1}, "candidate_labels must be a list of str, or one str with commas, got dict"),
    ],
)
def test_bad_labels_are_named_before_anything_runs(make_pipe, labels, message):
    with pytest.raises(InvalidInputError, match=message):
        make_pipe()(iter([TEXT]), labels)


@pytest.mark.parametrize("name", ["{", "a {} b", "{0.__class__}"])
def test_braces_in_a_label_are_text(scripted_session, tokenizer, name):
    session = scripted_session("cls", lambda ids: {"logits": [1, 2, 3]}, labels=NLI)
    ZeroShotClassificationPipeline(session, tokenizer)(TEXT, [name])
    assert session.batches[0][0].tolist() == tokenizer(TEXT, f"This example is {name}.").input_ids


@pytest.mark.parametrize("labels", [("positive", "negative"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("entail", "entails")])
def test_names_that_do_not_tell_entailment_are_refused(make_pipe, labels):
    with pytest.raises(InvalidInputError, match=f"name one that starts with 'entail'; this one's are {labels[0]}, "):
        make_pipe(labels)


def test_contradiction_is_needed_only_where_labels_are_scored_by_themselves(make_pipe):
    pipe = make_pipe(("entailment", "neutral", "clash"))
    assert ask(pipe)["labels"] == ["Nachbarn", "book", "März"]
    with pytest.raises(InvalidInputError, match="name one that starts with 'contra'"):
        ask(pipe, multi_label=True)
    with pytest.raises(InvalidInputError, match="name one that starts with 'contra'"):
        ask(pipe, labels=["book"])
