"""What texts come in: arrays, Series, columns, frames and tables, here as small classes that offer what those do.

pandas, polars, pyarrow and datasets are known by their attributes alone; the classes below have just these.
"""

from __future__ import annotations

import inspect
import json
from collections import deque

import numpy as np
import pytest

from erniem_rt import InvalidInputError
from erniem_rt.pipelines import pipeline

TEXTS = ["Ada lives in Rome.", "three people met", "Gestern"]
LABELS = {"cls": ("entailment", "neutral", "contradiction"), "ner": ("O", "B-X")}


class Scalar:
    """As pyarrow's: no str, and neither length nor index."""

    def __init__(self, value):
        self._value = value

    def as_py(self):
        return self._value


class Series:
    """As those of pandas and polars: a length, an index, an iterator; no Sequence."""

    def __init__(self, values):
        self._values = list(values)

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        return self._values[index]

    def __iter__(self):
        return iter(self._values)


class ArrowArray(Series):
    def __iter__(self):
        return map(Scalar, self._values)


class MapStyle:
    """As a dataset of torch: it has items by number, no iterator, and need not raise IndexError at its end."""

    def __init__(self, values):
        self._values = values

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        return self._values[index % len(self._values)]


class Frame:
    """As those of pandas: iterating it gives the names of its columns."""

    column = Series

    def __init__(self, columns):
        self._columns = columns
        self.columns = np.array(list(columns), dtype=object)

    @property
    def shape(self):
        return len(self), len(self._columns)

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name):
        return self.column(self._columns[name])

    def __iter__(self):
        return iter(self._columns)


class PolarsFrame(Frame):
    """Iterating it gives its columns."""

    def __iter__(self):
        return map(self.column, self._columns.values())


class Table:
    """As pyarrow's: ``columns`` are the columns themselves, and there is no iterator."""

    def __init__(self, columns):
        self._columns = columns
        self.column_names = list(columns)
        self.columns = [ArrowArray(values) for values in columns.values()]
        self.shape = (len(self.columns[0]), len(columns))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, name):
        return ArrowArray(self._columns[name])


class Dataset(Frame):
    """As one of datasets: rows are mappings."""

    def __init__(self, columns):
        super().__init__(columns)
        self.column_names = list(columns)
        del self.columns

    def __iter__(self):
        return (dict(zip(self._columns, row, strict=True)) for row in zip(*self._columns.values(), strict=True))


def records(columns):
    """A structured array of numpy."""
    rows = list(zip(*columns.values(), strict=True))
    return np.array(rows, dtype=[(name, object) for name in columns])


LISTS = [
    list,
    tuple,
    deque,
    np.array,
    lambda texts: np.array(texts, dtype=object),
    Series,
    ArrowArray,
    MapStyle,
    lambda texts: [Scalar(text) for text in texts],
    lambda texts: [{"text": text} for text in texts],
    lambda texts: np.array([{"text": text} for text in texts]),
]
COLUMNS = [dict, Frame, PolarsFrame, Table, Dataset, records]


@pytest.fixture(params=["base", "cls", "zero-shot", "ner", "ie"])
def call(request, make_text_artifact):
    """``call(inputs, **options)`` of each task about single texts."""
    head, task, options, arguments = request.param, None, {}, ()
    if head == "zero-shot":
        head, task, arguments = "cls", "zero-shot-classification", (["art", "sport"],)
    if head == "ie":
        options["schema"] = "Person"
    kinds = {"labels": LABELS[head]} if head in LABELS else {}
    with pipeline(task, make_text_artifact(head, **kinds).path, **options) as pipe:
        yield lambda inputs, **named: pipe(inputs, *arguments, **named)


def same(left, right):
    return len(left) == len(right) and all(map(np.array_equal, left, right))


@pytest.mark.parametrize("make_list", LISTS)
def test_a_sequence_of_texts_is_a_list(call, make_list):
    answers = call(make_list(TEXTS))
    assert isinstance(answers, (list, np.ndarray))
    assert same(answers, call(TEXTS))


@pytest.mark.parametrize("make_columns", COLUMNS)
def test_a_column_of_texts_is_a_list(call, make_columns):
    columns = make_columns({"text": TEXTS})
    assert same(call(columns), call(TEXTS))


@pytest.mark.parametrize("make_list", [np.array, Series, ArrowArray])
def test_a_mapping_of_arrays_is_columns(call, make_list):
    assert same(call({"text": make_list(TEXTS)}), call(TEXTS))
    assert len(call({"text": make_list([])})) == 0


def test_one_mapping_is_one_input(call):
    assert same([call({"text": TEXTS[0]})], call(TEXTS[:1]))


def test_streams_stay_streams(call):
    for stream in (iter(TEXTS), (text for text in TEXTS), map(Scalar, TEXTS), ({"text": text} for text in TEXTS)):
        answers = call(stream)
        assert inspect.isgenerator(answers)
        assert same(list(answers), call(TEXTS))


@pytest.mark.parametrize("make_columns", COLUMNS)
def test_of_several_columns_the_one_to_pass_is_named(call, make_columns):
    for columns, listed, named in [
        ({"id": [1, 2], "text": ["a", "b"], "label": [0, 1]}, "'id', 'text', 'label'", "text"),
        ({"id": [1, 2], "body": ["a", "b"], "title": ["a", "b"]}, "'id', 'body', 'title'", "body"),
        ({"body": ["a", "b"]}, "'body'", "body"),
    ]:
        if make_columns is dict and "text" not in columns:
            continue  # a mapping of other keys, which is one input
        with pytest.raises(InvalidInputError) as caught:
            call(made := make_columns(columns))
        assert str(caught.value).endswith(
            f" takes one column of texts; this {type(made).__name__} has {listed}. Pass the column: inputs[{named!r}]."
        )


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), type("NAType", (), {})(), Scalar(None)])
def test_a_missing_value_is_an_error_of_its_item(call, missing):
    first, bad, second = call(Series([TEXTS[0], missing, TEXTS[1]]), errors="return")
    assert same([first, second], call(TEXTS[:2]))
    assert "text must be str, got " in str(bad)
    assert str(bad).endswith(", a missing value: leave it out, or put a text in its place.")
    with pytest.raises(InvalidInputError, match=r"^input 1: text must be str, got .*, a missing value"):
        call(Series([TEXTS[0], missing, TEXTS[1]]))


@pytest.mark.parametrize("inputs", [np.array([TEXTS]), np.array([[text] for text in TEXTS])])
def test_an_array_of_several_axes_is_refused(call, inputs):
    with pytest.raises(InvalidInputError, match=rf"has 2 axes, shape \({inputs.shape[0]}, .*Pass one column"):
        call(inputs)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        *((blank, "text is empty: expected text") for blank in ("", " \t\n\u3000", {"text": " "})),
        *(
            (text, "text has no tokens left after normalization: expected text")
            for text in ("\u200b", "\ufeff", "\x01\x02\x7f", "▁", "\ud83d", " \u200b▁\n", {"text": "\u200b"})
        ),
        *((value, "text must be str, got ") for value in (b"text", bytearray(b"text"), memoryview(b"text"), 3, str)),
        ({"text": 3}, "text must be str, got int"),
        ({"texts": "Ada"}, "'text' is missing; .* takes a mapping with 'text'"),
        ({"text": "x", "id": 1}, "key 'id' is not known; .* takes a mapping with 'text'"),
    ],
)
def test_an_input_that_is_no_text_is_named(call, bad, message):
    with pytest.raises(InvalidInputError, match=f"^{message}"):
        call(bad)
    with pytest.raises(InvalidInputError, match=f"^input 17: {message}"):
        call([*["fine"] * 17, bad, "fine"])


@pytest.mark.parametrize("make_columns", COLUMNS)
def test_questions_and_contexts_in_columns(make_text_artifact, make_columns):
    questions, contexts = ["Who?", "Where?"], ["Ada lives in Rome.", "three people met"]
    rows = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
    with pipeline(make_text_artifact("qa").path) as qa:
        assert qa(make_columns({"question": questions, "context": contexts})) == qa(rows)
        assert qa(question=Series(questions), context=np.array(contexts)) == qa(rows)
        with pytest.raises(InvalidInputError) as caught:
            qa(
                make_columns({"id": [1, 2], "question": questions, "context": contexts})
                if make_columns is not dict
                else {"question": questions, "context": contexts, "id": [1, 2]}
            )
        assert "question-answering reads the columns 'question', 'context'; this " in str(caught.value)
        assert str(caught.value).endswith("Pass those columns alone, under these names.")
        _, bad = qa(make_columns({"question": questions, "context": [contexts[0], None]}), errors="return")
        assert "context must be str" in str(bad)


def test_columns_of_different_lengths_are_refused(make_text_artifact):
    with pipeline(make_text_artifact("qa").path) as qa, pytest.raises(InvalidInputError) as caught:
        qa({"question": ["Who?", "Where?"], "context": ["Rome"]})
    assert str(caught.value) == (
        "question-answering needs columns of the same length, a row per input; "
        "their lengths: 'question' 2, 'context' 1."
    )


@pytest.mark.parametrize("make_columns", COLUMNS)
def test_pairs_in_columns(make_text_artifact, make_columns):
    with pipeline(make_text_artifact("cls", labels=LABELS["cls"]).path) as classify:
        pairs = [{"text": text, "text_pair": TEXTS[0]} for text in TEXTS]
        assert classify(make_columns({"text_pair": TEXTS[:1] * 3, "text": TEXTS})) == classify(pairs)
        good, bad = classify(make_columns({"text": TEXTS[:2], "text_pair": [TEXTS[0], None]}), errors="return")
        assert good == classify(pairs[:1])[0]
        assert "text_pair must be str, got float, a missing value" in str(bad)
        with pytest.raises(InvalidInputError, match=r"reads the columns 'text', 'text_pair'; .*Pass those"):
            classify(make_columns({"text": TEXTS, "text_pair": TEXTS, "id": [1, 2, 3]}))


@pytest.mark.parametrize("make_list", [np.array, lambda c: np.array(c, dtype=object), Series, ArrowArray, MapStyle])
def test_choices_and_labels_may_be_arrays(make_text_artifact, make_list):
    choices = ["Rome", "three people", "Gestern"]
    with pipeline(make_text_artifact("mc").path) as choose:
        expected = choose({"prompt": "Who?", "choices": choices})
        for found in (
            choose({"prompt": "Who?", "choices": make_list(choices)}),
            *choose({"prompt": ["Who?"] * 2, "choices": [make_list(choices), choices]}),
            *choose({"prompt": np.array(["Who?"]), "choices": Series([Scalar(choices)])}),
        ):
            assert found == expected
            assert type(found["answer"]) is str
    with pipeline("zero-shot-classification", make_text_artifact("cls", labels=LABELS["cls"]).path) as classify:
        found = classify(np.array(["Who?"]), make_list(choices))
        assert found == classify(["Who?"], choices)
        assert {type(value) for value in (found[0]["sequence"], *found[0]["labels"])} == {str}
        json.dumps(found)
    with pipeline(make_text_artifact("ner", labels=LABELS["ner"]).path) as name:
        assert name(TEXTS, ignore_labels=make_list(["O", "B-X"])) == [[], [], []]


def test_numpy_strings_are_answered_with_plain_ones(make_text_artifact):
    with pipeline("zero-shot-classification", make_text_artifact("cls", labels=LABELS["cls"]).path) as classify:
        found = classify(np.str_("Who?"), [np.str_("art"), np.str_("sport")])
        assert {type(value) for value in (found["sequence"], *found["labels"])} == {str}
