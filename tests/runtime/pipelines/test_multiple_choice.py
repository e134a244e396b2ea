"""Multiple choice: rows, scores, what is cut, bad input."""

import math

import pytest

from erniem_rt import InvalidInputError
from erniem_rt.pipelines.multiple_choice import MultipleChoicePipeline

PROMPT = "Gestern haben wir auf dem Straßenfest viele Nachbarn getroffen."
CHOICES = ["Nachbarn", "In March 2021", "book"]


@pytest.fixture
def make_pipe(scripted_session, tokenizer):
    def make(function=lambda ids: {"logits": len(ids) / 4}, max_length=64, **options):
        return MultipleChoicePipeline(scripted_session("mc", function, max_length=max_length), tokenizer, **options)

    return make


def ask(pipe, choices=CHOICES, prompt=PROMPT):
    return pipe({"prompt": prompt, "choices": choices})


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_scores_are_a_softmax_over_the_choices(make_pipe, tokenizer, batch_size, count):
    choices = CHOICES[:count]
    exponentials = [math.exp(len(tokenizer(PROMPT, choice)) / 4) for choice in choices]
    answer = ask(make_pipe(batch_size=batch_size), choices)
    assert answer["scores"] == pytest.approx([e / sum(exponentials) for e in exponentials], rel=1e-6)
    assert answer["index"] == exponentials.index(max(exponentials))
    assert answer["answer"] == choices[answer["index"]]
    assert set(answer) == {"answer", "index", "scores"}
    assert type(answer["index"]) is int


def test_the_first_of_equal_choices_is_the_answer(make_pipe):
    answer = ask(make_pipe(lambda ids: {"logits": 1e30}))
    assert answer == {"answer": CHOICES[0], "index": 0, "scores": pytest.approx([1 / 3] * 3)}


def test_rows_are_the_prompt_with_each_choice(make_pipe, tokenizer):
    pipe = make_pipe(batch_size=1)
    ask(pipe)
    rows = [batch[0, 0].tolist() for batch in pipe.session.batches]
    assert sorted(rows) == sorted(tokenizer(PROMPT, choice).input_ids for choice in CHOICES)


def test_inputs_may_have_any_numbers_of_choices(make_pipe):
    inputs = [{"prompt": PROMPT, "choices": CHOICES[:count]} for count in (3, 1, 2, 1)]
    pipe = make_pipe(batch_size=3)
    answers = pipe(inputs)
    assert [len(answer["scores"]) for answer in answers] == [3, 1, 2, 1]
    assert answers == [pipe(item) for item in inputs]
    assert list(pipe(iter(inputs))) == answers


def test_only_the_prompt_is_cut(make_pipe, tokenizer, sentences):
    limit, prompt = 20, " ".join(sentences)
    pipe = make_pipe(max_length=limit)
    ask(pipe, [CHOICES[1]], prompt)
    expected = tokenizer(prompt, CHOICES[1], truncation="only_first", max_length=limit).input_ids
    assert pipe.session.batches[0][0, 0].tolist() == expected


def test_a_choice_that_leaves_no_room_is_named(make_pipe, tokenizer, sentences):
    long = sentences[0]
    count = len(tokenizer(long, add_special_tokens=False))
    inputs = [{"prompt": PROMPT, "choices": ["book"]}, {"prompt": PROMPT, "choices": ["book", long]}]
    with pytest.raises(InvalidInputError) as caught:
        make_pipe(max_length=count + 4)(inputs)
    assert str(caught.value) == (
        f"input 1: choices[1] alone takes {count} tokens; the limit is {count + 4}, of which 4 are special tokens and "
        "at least one is the other text's. Shorten it."
    )
    assert len(make_pipe(max_length=count + 5)(inputs)) == 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("a", "multiple-choice takes a mapping with 'prompt', 'choices', got str"),
        ({"prompt": "a"}, "'choices' is missing"),
        ({"choices": ["a"]}, "'prompt' is missing"),
        ({"prompt": "a", "choices": ["a"], "label": 0}, "key 'label' is not known"),
        ({"prompt": " ", "choices": ["a"]}, "prompt is empty"),
        ({"prompt": None, "choices": ["a"]}, "prompt must be str, got NoneType"),
        ({"prompt": "a", "choices": []}, "choices is empty: expected at least one"),
        ({"prompt": "a", "choices": "abc"}, "choices must be a list of str, got str"),
        ({"prompt": "a", "choices": ["a", ""]}, r"choices\[1\] is empty"),
        ({"prompt": "\u200b", "choices": ["a"]}, "prompt has no tokens left after normalization: expected text"),
        (
            {"prompt": "a", "choices": ["a", "\ufeff"]},
            r"choices\[1\] has no tokens left after normalization: expected text",
        ),
        ({"prompt": "a", "choices": [1]}, r"choices\[0\] must be str, got int"),
    ],
)
def test_bad_inputs_are_named(make_pipe, item, message):
    with pytest.raises(InvalidInputError, match=f"^{message}"):
        make_pipe()(item)
    with pytest.raises(InvalidInputError, match=f"^input 0: {message}"):
        make_pipe()([item])
