"""Answers cut from contexts of any length, and the decoder of spans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt import InvalidInputError
from erniem_rt.pipelines.question_answering import QuestionAnsweringPipeline, Reading, Tokens, best_spans, read

QUESTION = "Who wrote?"
CONTEXT = "The keeper wrote 3 letters in 2021."


@pytest.fixture
def make(scripted_session, tokenizer):
    """``make({token: logit}, ...)``: start and end logits by token, 0 for all others; ``null`` for [CLS]."""

    def build(starts, ends=None, *, null=0.0, max_length=64, **options):
        def logits(table, ids):
            wanted = {tokenizer.convert_tokens_to_ids(token): logit for token, logit in table.items()}
            return np.array([null, *(wanted.get(i, 0.0) for i in ids[1:])], np.float32)

        def function(ids):
            return {
                "start_logits": logits(starts, ids),
                "end_logits": logits(starts if ends is None else ends, ids),
            }

        return QuestionAnsweringPipeline(scripted_session("qa", function, max_length=max_length), tokenizer, **options)

    return build


def token_of(tokenizer, context, word):
    """Return the first token of ``word`` in ``context``."""
    encoding = tokenizer(context, add_special_tokens=False)
    index = [start for start, _ in encoding.offsets].index(context.index(word))
    return tokenizer.convert_ids_to_tokens(encoding.input_ids[index])


def test_the_answer_is_cut_from_the_context(make, tokenizer):
    first, last = (token_of(tokenizer, CONTEXT, word) for word in ("3", "2021"))
    answer = make({first: 9}, {last: 9})(question=QUESTION, context=CONTEXT)
    assert list(answer) == ["answer", "score", "start", "end"]
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]] == "3 letters in 2021"
    assert type(answer["score"]) is float
    assert type(answer["start"]) is int
    assert answer["score"] == pytest.approx(1, abs=0.05)


def test_whitespace_inside_stays_as_it_is_and_around_is_left_out(make, tokenizer):
    context = "in  March\t\n 2021 图书馆 开放"
    answer = make({"2021": 9}, {"馆": 9})(question=QUESTION, context="\n " + context)
    assert answer["answer"] == "2021 图书馆"
    words = make({token_of(tokenizer, "in March", "March"): 9}, {"2021": 9})
    assert words(question=QUESTION, context="\n " + context)["answer"] == "March\t\n 2021"


@pytest.mark.parametrize(("first", "last"), [("▁", "馆"), ("图", "▁"), ("图", "馆")])
def test_a_token_of_whitespace_adds_nothing_to_the_answer(make, tokenizer, first, last):
    context = "in 图书馆 开放"
    assert tokenizer.tokenize(context).count("▁") == 2
    answer = make({first: 9}, {last: 9})(question=QUESTION, context=context)
    assert (answer["answer"], answer["start"], answer["end"]) == ("图书馆", 3, 6)


def test_words_around_the_answer_on_request(make, tokenizer):
    pipe = make({"2021": 9})
    assert pipe(question=QUESTION, context=CONTEXT)["answer"] == "2021"
    assert pipe(question=QUESTION, context=CONTEXT, align_to_words=True)["answer"] == "2021."
    aligned = make({"2021": 9}, align_to_words=True)
    assert aligned(question=QUESTION, context=CONTEXT)["answer"] == "2021."
    assert aligned(question=QUESTION, context=CONTEXT, align_to_words=False)["answer"] == "2021"
    assert make({"馆": 9})(question=QUESTION, context="图书馆今天开放")["answer"] == "馆"
    words = make({"2021": 9}, align_to_words=True)(question=QUESTION, context="In 2021? Yes.")
    assert (words["answer"], words["start"], words["end"]) == ("2021?", 3, 8)


def test_rows_are_question_then_context(make, tokenizer):
    pipe = make({})
    pipe(question=QUESTION, context=CONTEXT)
    assert pipe.session.batches[0].tolist() == [tokenizer(QUESTION, CONTEXT).input_ids]


def test_a_long_context_is_read_in_windows(make, tokenizer):
    filler = "The lighthouse keeper wrote letters. " * 12
    context = filler + "2021" + filler
    pipe = make({"2021": 9}, max_seq_len=40, doc_stride=10)
    answer = pipe(question=QUESTION, context=context)
    assert (answer["answer"], answer["start"]) == ("2021", len(filler))
    question = tokenizer(QUESTION, add_special_tokens=False).input_ids
    ids = tokenizer(context, add_special_tokens=False).input_ids
    room = 40 - 4 - len(question)
    expected = [tokenizer.build_inputs_with_special_tokens(question, ids[s : s + room]) for s in range(0, len(ids), 10)]
    rows = [[int(i) for i in row if i != 1] for batch in pipe.session.batches for row in batch]
    assert len(rows) == 1 + -(-(len(ids) - room) // 10)
    assert rows == sorted(expected[: len(rows)], key=lambda row: -len(row))


def test_the_best_window_wins(make, tokenizer):
    filler = "The keeper wrote. " * 30
    pipe = make({"12": 6, "2021": 9}, max_seq_len=40)
    answers = pipe(question=QUESTION, context=f"12 {filler} 2021 {filler}", top_k=2)
    assert [answer["answer"] for answer in answers] == ["2021", "12"]


def test_windows_grow_for_a_long_question_up_to_the_models_limit(make, tokenizer):
    question = "Who wrote letters? " * 60
    pipe = make({"2021": 9}, max_length=1024, doc_stride=100)
    assert pipe(question=question, context="It was 2021. " * 100)["answer"] == "2021"
    length = len(tokenizer(question, add_special_tokens=False))
    assert length > 384
    assert max(batch.shape[1] for batch in pipe.session.batches) == length + 4 + 100


@pytest.mark.parametrize("stride", [1, 7, 40])
def test_no_part_of_the_context_is_left_out(make, stride, tokenizer):
    pipe = make({}, max_seq_len=40, doc_stride=stride)
    context = " ".join(str(number) for number in range(100, 160))
    pipe(question=QUESTION, context=context)
    seen = {int(i) for batch in pipe.session.batches for i in batch.flat}
    assert set(tokenizer(context).input_ids) <= seen


def test_several_answers_best_first_each_once(make, tokenizer):
    answers = make({"2021": 9, "3": 7})(question=QUESTION, context=CONTEXT, top_k=3, max_answer_len=1)
    assert [answer["answer"] for answer in answers][:2] == ["2021", "3"]
    assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)
    everything = make({"2021": 9}, top_k=10_000, align_to_words=True)(question=QUESTION, context=CONTEXT)
    spans = {(answer["start"], answer["end"]) for answer in everything}
    words = len(CONTEXT.split())
    assert len(spans) == len(everything) == words * (words + 1) // 2


def test_answers_are_no_longer_than_asked(make, tokenizer):
    pipe = make({"3": 9}, {"2021": 9})
    assert pipe(question=QUESTION, context=CONTEXT)["answer"] == "3 letters in 2021"
    assert pipe(question=QUESTION, context=CONTEXT, max_answer_len=1)["answer"] in ("3", "2021")


def test_no_answer_competes_on_request(make, tokenizer):
    pipe = make({"2021": 5}, null=9)
    assert pipe(question=QUESTION, context=CONTEXT)["answer"] == "2021"
    none = pipe(question=QUESTION, context=CONTEXT, handle_impossible_answer=True)
    assert (none["answer"], none["start"], none["end"]) == ("", 0, 0)
    assert none["score"] > 0.9
    both = pipe(question=QUESTION, context=CONTEXT, handle_impossible_answer=True, top_k=2)
    assert [answer["answer"] for answer in both] == ["", "2021"]


def test_no_answer_must_be_likely_in_every_window(make, tokenizer):
    filler = "The keeper wrote. " * 30
    pipe = make({"2021": 12}, null=9, max_seq_len=40, handle_impossible_answer=True)
    assert pipe(question=QUESTION, context=filler)["answer"] == ""
    assert pipe(question=QUESTION, context=filler + "2021")["answer"] == "2021"


def test_lists_and_streams_in_order_with_progress(make, tokenizer):
    pipe = make({"12": 9, "2021": 9}, batch_size=2)
    inputs = [{"question": QUESTION, "context": f"{'letters ' * n}{year}"} for n, year in [(9, 12), (1, 2021)] * 9]
    calls = []
    answers = pipe(inputs, progress=lambda done, total: calls.append((done, total)))
    assert [answer["answer"] for answer in answers] == ["12", "2021"] * 9
    assert calls[-1] == (18, 18)
    stream = pipe(iter(inputs))
    assert next(stream) == answers[0]
    assert [*stream] == answers[1:]
    assert pipe([]) == []
    assert pipe(inputs[:1]) == answers[:1]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "question is missing; expected question and context."),
        ({"question": "Who?"}, "context is missing"),
        ({"question": None, "context": "x"}, "question is missing"),
        ({"question": "", "context": "x"}, "question is empty"),
        ({"question": "Who?", "context": " \n\u3000"}, "context is empty"),
        ({"question": 3, "context": "x"}, "question must be str, got int"),
        ({"question": ["Who?"], "context": "x"}, "columns of the same length, .*'context' a single str"),
        ({"question": "Who?", "context": "\u200b"}, "context has no tokens left after normalization"),
        ({"question": "\u200b", "context": "x"}, "question has no tokens left after normalization"),
        ({"question": "Who?", "contxt": "x"}, "'contxt' is not known; expected question and context."),
        ("Who?", "expected a mapping with question and context, got str"),
        (3, "expected a mapping with question and context, got int"),
    ],
)
def test_an_input_that_cannot_be_answered(make, inputs, message):
    with pytest.raises(InvalidInputError, match=message):
        make({})(inputs)


def test_a_question_given_twice_or_by_half(make):
    with pytest.raises(InvalidInputError, match="not both"):
        make({})({"question": "Who?", "context": "x"}, question="Who?")
    with pytest.raises(InvalidInputError, match="context is missing"):
        make({})(question="Who?")


@pytest.mark.parametrize("options", [{}, {"max_seq_len": 60}])
def test_a_question_longer_than_the_window(make, tokenizer, options):
    limit = options.get("max_seq_len", 64)
    question = "12 " * limit
    length = len(tokenizer(question, add_special_tokens=False))
    message = f"the question alone takes {length} tokens; the limit is {limit}, with 4 special tokens"
    with pytest.raises(InvalidInputError, match=message):
        make({}, **options)(question=question, context="x")


def test_the_longest_question_still_leaves_a_token_of_context(make, tokenizer):
    pipe = make({"2021": 9})
    question = "2021 " * 59
    assert len(tokenizer(question, add_special_tokens=False)) == 59
    assert pipe(question=question, context="It was 2021.")["answer"] == "2021"
    with pytest.raises(InvalidInputError, match="takes 60 tokens; the limit is 64"):
        pipe(question=question + "2021", context="It was 2021.")


def test_numpy_scalars_are_what_they_stand_for(make):
    plain = {"top_k": 2, "max_answer_len": 3, "handle_impossible_answer": True, "align_to_words": True}
    scalars = {"top_k": np.int64(2), "max_answer_len": np.uint8(3)}
    scalars |= {"handle_impossible_answer": np.True_, "align_to_words": np.True_}
    sizes = {"max_seq_len": np.int32(20), "doc_stride": np.int16(5), "batch_size": np.int64(2)}
    pipe, asked = make({"2021": 9}), {"question": QUESTION, "context": CONTEXT}
    expected = pipe(**asked, **plain)
    assert len(expected) == 2
    assert pipe(**asked, **scalars) == make({"2021": 9}, **scalars)(**asked) == expected
    windowed = make({"2021": 9}, **sizes)
    assert type(windowed.batch_size) is int
    assert windowed(**asked) == make({"2021": 9}, **{name: int(size) for name, size in sizes.items()})(**asked)


# Few different values make ties; many make an order.
PROBABILITIES = st.sampled_from([0.0, 0.25, 0.5]) | st.floats(0, 1)


def oracle(readings, count, max_tokens):
    found = []
    for reading in readings:
        length = len(reading.tokens)
        for first in range(length):
            for last in range(first, length):
                start, end = reading.tokens.starts[first], reading.tokens.ends[last]
                if last - first < max_tokens and start < end:
                    found.append((start, end, reading.start[first] * reading.end[last]))
    distinct = {}
    for start, end, score in sorted(found, key=lambda span: -span[2]):
        distinct.setdefault((start, end), (start, end, score))
    return list(distinct.values())[:count]


@st.composite
def texts(draw):
    """Tokens in the order of a text, some sharing characters, some (whitespace) with nothing between start and end."""
    steps = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20))
    starts = np.cumsum([0, *(start + end for start, end in steps)])[:-1].astype(np.int64)
    ends = starts + np.array([end for _, end in steps], np.int64)
    return Tokens(list(range(len(steps))), starts, ends)


@st.composite
def readings(draw):
    text = draw(texts())
    cuts = [
        sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        for _ in range(draw(st.integers(1, 3)))
    ]
    result = []
    for start, stop in cuts:
        values = st.lists(PROBABILITIES, min_size=stop - start, max_size=stop - start).map(np.array)
        result.append(Reading(draw(values), draw(values), 0.0, text[range(start, stop)]))
    return result


@settings(max_examples=300)
@given(readings(), st.integers(1, 8), st.integers(1, 25))
def test_the_fast_decoder_is_the_obvious_one(windows, count, max_tokens):
    assert best_spans(windows, count, max_tokens) == oracle(windows, count, max_tokens)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 20), st.sampled_from([1, 5]))
def test_on_random_logits_of_a_whole_row(seed, length, max_tokens, question):
    rng = np.random.default_rng(seed)
    first = question + 3
    start, end = rng.normal(0, 4, (2, first + length + 1)).astype(np.float32)
    places = np.arange(length)
    reading = read(start, end, first, Tokens(list(places), places // 2, places // 2 + 1))
    spans = best_spans([reading], 5, max_tokens)
    np.testing.assert_allclose(spans, oracle([reading], 5, max_tokens), rtol=1e-12)
    assert len({span[:2] for span in spans}) == len(spans)


def test_the_question_and_separators_have_no_part_in_the_probabilities():
    logits = np.array([1, 50, 60, 70, 2, 3, 80], np.float32)  # CLS, question, SEP, SEP, two tokens, SEP
    reading = read(logits, logits, 4, Tokens([7, 8], np.array([0, 1]), np.array([1, 2])))
    powers = np.exp([1, 2, 3])
    np.testing.assert_allclose(reading.start, powers[1:] / powers.sum())
    np.testing.assert_allclose(reading.null, (powers[0] / powers.sum()) ** 2)
