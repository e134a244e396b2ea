"""Many inputs, one of them at fault, or their source: what is answered, in which order, and what is raised when."""

from __future__ import annotations

import gc
import weakref
from itertools import count, islice

import numpy as np
import pytest

from erniem_rt import EngineError, ErnieMError, InvalidInputError
from erniem_rt.pipelines import pipeline
from erniem_rt.pipelines.base import Job, Pipeline

BATCH, CHUNK = 2, 16


class Doubles(Pipeline):
    """Twice a number. An empty text cannot be asked; "late" cannot be answered; "next" asks once more."""

    task = "doubles"
    head = "cls"

    def __call__(self, inputs, **options):
        def finish(outputs):
            total = int(outputs[0]["logits"][0])
            if total == 13:
                raise InvalidInputError("the answer is bad luck.")
            return Job([[total]], finish) if total < 0 else 2 * total

        def prepare(item):
            if not item:
                raise InvalidInputError("text is empty.")
            return Job([[int(item)]], finish)

        return self._answer(inputs, prepare, self.options_for(options))


@pytest.fixture
def make(scripted_session):
    def run(ids):
        if 666 in ids:
            raise EngineError("no memory left.")
        return {"logits": [sum(ids)]}

    return lambda **options: Doubles(
        scripted_session("cls", run, labels=("a",)), None, **{"batch_size": BATCH, **options}
    )


@pytest.fixture
def doubles(make):
    return make()


def answered(stream) -> tuple[list[int], str]:
    """The answers of a stream that ends in an error, and the error."""
    answers = []
    try:
        for answer in stream:
            answers.append(answer)
    except (OSError, ErnieMError) as error:
        return answers, str(error)
    raise AssertionError("no error")


@pytest.mark.parametrize("bad", ["", "13"])
@pytest.mark.parametrize("place", [0, 1, 10, CHUNK - 1, CHUNK, CHUNK + 3])
def test_what_stands_before_a_bad_input_is_answered_first(doubles, bad, place):
    answers, error = answered(doubles(iter([*["4"] * place, bad, *["5"] * 10])))
    assert answers == [8] * place
    assert error.startswith(f"input {place}: ")


@pytest.mark.parametrize("good", [0, 1, 5, CHUNK, 3 * CHUNK - 1])
def test_what_was_taken_before_the_source_failed_is_answered_first(doubles, good):
    def source():
        yield from ["4"] * good
        raise OSError("the disk is gone")

    assert answered(doubles(source())) == ([8] * good, "the disk is gone")


def test_of_a_bad_input_and_a_failing_source_the_first_is_raised(doubles):
    def source():
        yield from ["4", "", "4"]
        raise OSError("the disk is gone")

    assert answered(doubles(source())) == ([8], "input 1: text is empty.")
    answers, error = answered(doubles(source(), errors="return"))
    assert ([answers[0], str(answers[1]), answers[2]], error) == ([8, "text is empty.", 8], "the disk is gone")


@pytest.mark.parametrize("errors", ["raise", "return"])
def test_a_failure_of_the_engine_is_raised_after_the_answers_that_are_there(doubles, errors):
    assert answered(doubles(iter(["1"] * CHUNK + ["2", "2", "666", "2"]), errors=errors)) == (
        [2] * CHUNK + [4, 4],
        "no memory left.",
    )
    with pytest.raises(EngineError, match="no memory left"):
        doubles("666", errors=errors)


@pytest.mark.parametrize("make_source", [list, iter])
def test_with_errors_returned_a_bad_input_loses_no_other(doubles, make_source):
    texts = ["1", "", "2", "13", *["3"] * CHUNK, "", "4"]
    answers = list(doubles(make_source(texts), errors="return"))
    assert len(answers) == len(texts)
    for text, answer in zip(texts, answers, strict=True):
        if text in ("", "13"):
            assert type(answer) is InvalidInputError
            assert str(answer) == ("the answer is bad luck." if text else "text is empty.")
        else:
            assert answer == 2 * int(text)


def test_errors_of_one_input_and_of_the_pipeline(make):
    pipe = make(errors="return")
    assert str(pipe("")) == "text is empty."
    assert str(pipe(["13"])[0]) == "the answer is bad luck."
    for bad in ("", [""], ["13"]):
        with pytest.raises(InvalidInputError):
            pipe(bad, errors="raise")


def test_with_errors_returned_all_inputs_at_fault_are_errors(doubles):
    assert {str(error) for error in doubles([""] * 100, errors="return")} == {"text is empty."}


@pytest.mark.parametrize("bad", [[0], [37], [63], [5, 6], [1, 30, 60]])
def test_a_bad_input_costs_few_further_preparations(scripted_session, bad):
    """The others are prepared together, in halves of halves around it: tokenizing one by one is slow."""
    prepared = []

    class Watched(Pipeline):
        task = "watched"

        def __call__(self, inputs, **options):
            def prepare(items):
                prepared.append(len(items))
                if set(items) & {str(i) for i in bad}:
                    raise InvalidInputError("bad")
                return [Job([], lambda _: "fine") for _ in items]

            return self._answer_together(inputs, prepare, self.options_for(options))

    watched = Watched(scripted_session("cls", None, labels=("a",)), None)
    answers = watched([str(i) for i in range(64)], errors="return")
    assert [i for i, answer in enumerate(answers) if answer != "fine"] == bad
    assert len(prepared) <= 1 + 2 * 6 * len(bad)


@pytest.mark.parametrize("errors", ["raise", "return"])
def test_progress_counts_what_has_an_answer(doubles, errors):
    told = []
    stream = doubles(iter(["1", "", "13", "2"]), errors=errors, progress=lambda *n: told.append(n))
    if errors == "raise":
        assert answered(stream)[0] == [2]
        assert told == [(1, None)]
    else:
        assert len(list(stream)) == 4
        assert told == [(n, None) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("options", "taken"), [({}, CHUNK), ({"batch_size": 1}, 1), ({"batch_size": 4}, 32), ({"read_ahead": 3}, 3)]
)
@pytest.mark.parametrize("where", ["pipeline", "call"])
def test_how_far_a_stream_reads_ahead(make, options, taken, where):
    read = []
    pipe = make(**options) if where == "pipeline" else make()
    stream = pipe((read.append(n) or str(n) for n in count(20)), **(options if where == "call" else {}))
    assert read == []
    for answers in range(1, 3 * taken + 1):
        assert next(stream) == 2 * (19 + answers)
        assert len(read) == -(-answers // taken) * taken


def test_a_source_may_wait_for_each_answer(make):
    """A conversation: the next input is made of the answer before it."""
    heard = ["1"]

    def source():
        while True:
            yield heard.pop()  # fails if the answer is not there

    stream = make(batch_size=1)(source())
    found = []
    for answer in islice(stream, 5):
        found.append(answer)
        heard.append(str(answer))
    assert found == [2, 4, 8, 16, 32]


def test_lists_are_sorted_and_batched_whatever_a_stream_reads_ahead(doubles):
    doubles(["4"] * 6, read_ahead=1)
    assert [len(ids) for ids in doubles.session.batches] == [2, 2, 2]


def test_the_batch_size_of_a_call(doubles):
    assert doubles(["1", "2", "3", "4"], batch_size=4) == [2, 4, 6, 8]
    assert doubles(["1"], batch_size=None) == [2]
    assert [len(ids) for ids in doubles.session.batches] == [4, 1]
    assert doubles.batch_size == BATCH


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_held_back(doubles, interrupt):
    def source():
        yield from ["4"] * (CHUNK + 3)
        raise interrupt

    stream = doubles(source())
    assert list(islice(stream, CHUNK)) == [8] * CHUNK
    with pytest.raises(interrupt):
        next(stream)
    assert list(stream) == []


def test_a_stream_that_is_left_reads_no_further(doubles):
    read = []
    stream = doubles(read.append(n) or "4" for n in count())
    assert next(stream) == 8
    stream.close()
    assert list(stream) == []
    assert len(read) == CHUNK


@pytest.mark.parametrize("errors", ["raise", "return"])
@pytest.mark.parametrize("many", [True, False])
def test_an_error_keeps_no_inputs_in_memory(doubles, errors, many):
    class Text(str):
        __slots__ = ("__weakref__",)

    texts = [Text("4"), Text("")]
    alive = [weakref.ref(text) for text in texts]
    gc.disable()
    try:
        try:
            error = doubles(texts if many else texts[1], errors=errors)
        except InvalidInputError as raised:
            error = raised.with_traceback(None)
        del texts
        assert [ref() for ref in alive] == [None, None]
        assert "text is empty" in str(error)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("head", "options", "item", "size"),
    [
        ("cls", {"labels": ("a", "b")}, {"text": "three", "text_pair": "four"}, 9),
        ("base", {}, "three", 5),
        ("ner", {"labels": ("O", "B-X")}, {"text": "three"}, 5),
        ("qa", {}, {"question": "Who?", "context": "Ada."}, 8),
        ("mc", {}, {"prompt": "one", "choices": np.array(["two", "three"])}, 11),
    ],
)
def test_the_characters_of_an_input_may_be_limited(make_text_artifact, head, options, item, size):
    with pipeline(make_text_artifact(head, **options).path, max_characters=size - 1) as pipe:
        pipe(item, max_characters=size)
        message = rf"the input has {size} characters, more than max_characters={size - 1}: shorten it"
        with pytest.raises(InvalidInputError, match=f"^{message}"):
            pipe(item)
        good, bad = [*pipe([item], max_characters=size), *pipe([item], errors="return")]
        assert not isinstance(good, InvalidInputError)
        assert str(bad).startswith(message)
