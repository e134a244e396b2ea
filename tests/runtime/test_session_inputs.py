"""What may be given to Session.run, and what every mistake is answered with."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt import InvalidInputError, Session

IDS = np.array([[0, 7, 8, 2], [0, 9, 2, 1]])


@pytest.fixture(scope="module")
def qa(heads):
    with Session(heads["qa"].path) as session:
        yield session


@pytest.fixture(scope="module")
def mc(heads):
    with Session(heads["mc"].path) as session:
        yield session


def refuses(session, *fragments, inputs=None, **named):
    with pytest.raises(InvalidInputError) as caught:
        session.run(inputs, **named)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def _column(rows):
    """An object array of rows, as a column of a table gives them."""
    column = np.empty(len(rows), object)
    column[:] = rows
    return column


@pytest.mark.parametrize(
    "ids", [IDS.astype(object), _column(IDS.tolist()), _column(list(IDS)), _column([tuple(row) for row in IDS])]
)
def test_object_arrays_of_equal_rows(qa, ids):
    mask = _column([[True, True, True, True], [True, True, True, False]])
    for feeds in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        np.testing.assert_array_equal(qa.run(feeds)["end_logits"], qa.run(input_ids=IDS)["end_logits"])


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i8", ">u2"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_ids_of_any_integer_dtype(qa, heads, dtype):
    found = qa.run(input_ids=IDS.astype(dtype), attention_mask=(IDS != 1).astype(dtype))
    np.testing.assert_allclose(found["end_logits"], heads["qa"].answer(IDS)["end_logits"], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bool", "float16", "float32", "float64"])
def test_masks_of_other_dtypes(qa, heads, dtype):
    found = qa.run(input_ids=IDS, attention_mask=np.array([[1, 0, 1, 1], [0, 1, 1, 1]], dtype))
    expected = heads["qa"].answer(IDS, np.array([[1, 0, 1, 1], [0, 1, 1, 1]]))
    np.testing.assert_allclose(found["end_logits"], expected["end_logits"], rtol=1e-5)


def test_lists_and_strided_arrays(qa):
    expected = qa.run(input_ids=IDS)["start_logits"]
    wide = np.repeat(IDS, 2, axis=1)[:, ::2]
    assert not wide.flags.c_contiguous
    for ids in (IDS.tolist(), tuple(map(tuple, IDS.tolist())), wide, np.asfortranarray(IDS)):
        np.testing.assert_array_equal(qa.run(input_ids=ids)["start_logits"], expected)


@given(data=st.data(), dtype=st.sampled_from(INTEGERS))
@settings(max_examples=40)
def test_what_is_given_stays_as_it_was(qa, data, dtype):
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 16))
    ids = np.random.default_rng(rows * columns).integers(0, 50, (rows, columns)).astype(dtype)
    mask = (ids % 2).astype(dtype)
    before = ids.copy(), mask.copy()
    ids.flags.writeable = mask.flags.writeable = data.draw(st.booleans())
    qa.run(input_ids=ids, attention_mask=mask)
    for now, then in zip((ids, mask), before, strict=True):
        assert now.dtype == then.dtype
        np.testing.assert_array_equal(now, then)


def test_the_bounds_of_the_vocabulary_are_good(qa):
    assert qa.run(input_ids=[[0, 49]])["start_logits"].shape == (1, 2)


def changed(array, index, value):
    """A copy with another value at this index."""
    array = array.copy()
    array[index] = value
    return array


OUTSIDE = "it must be from 0 to 49. Use the tokenizer"
NO_INTEGERS = "input_ids must be integers, got dtype"
RAGGED = "input_ids cannot be read as one array", "padded to the same length"
EMPTY = "at least one row of at least one token"


@pytest.mark.parametrize(
    ("ids", "fragments"),
    [
        (changed(IDS, (1, 2), -1), (f"input_ids[1, 2] is -1; {OUTSIDE}",)),
        (changed(IDS, (1, 2), 50), (f"input_ids[1, 2] is 50; {OUTSIDE}",)),
        (changed(IDS, (1, 2), 2**40), (f"input_ids[1, 2] is 1099511627776; {OUTSIDE}",)),
        (changed(IDS, (1, 2), -(2**63)), (f"input_ids[1, 2] is -9223372036854775808; {OUTSIDE}",)),
        # In int64 this one would be -1.
        (changed(IDS.astype(np.uint64), (0, 1), 2**64 - 1), ("input_ids[0, 1] is 18446744073709551615;",)),
        *(
            (ids, (NO_INTEGERS,))
            for ids in (IDS.astype(float), IDS == 0, IDS.astype(complex), IDS.astype(str), [[0, 2.0]])
        ),
        (IDS.astype(str).astype(object), (NO_INTEGERS,)),
        ("text", ("must have shape (batch, sequence)",)),
        (np.zeros(4, int), ("input_ids must have shape (batch, sequence), got (4,).",)),
        (np.zeros((1, 2, 4), int), ("input_ids must have shape (batch, sequence), got (1, 2, 4).",)),
        (np.zeros((1, 17), int), ("input_ids has rows of 17 positions, and this model takes at most 16: truncate",)),
        *(
            (ids, ("input_ids is empty (shape (", EMPTY))
            for ids in ([], [[]], [[], []], np.zeros((0, 4), int), np.zeros((3, 0), int))
        ),
        *((rows, RAGGED) for rows in ([[0, 2], [0, 5, 2]], _column([[0, 5], [0, 5, 2]]), _column([[0, 5], None]))),
    ],
)
def test_bad_ids(qa, ids, fragments):
    refuses(qa, *fragments, input_ids=ids)


@pytest.mark.parametrize(
    ("ids", "fragment"),
    [
        (changed(np.zeros((2, 3, 4), int), (1, 2, 0), 99), "input_ids[1, 2, 0] is 99;"),
        (IDS, "input_ids must have shape (batch, choices, sequence), got (2, 4)."),
        *((np.zeros(shape, int), f"input_ids is empty (shape {shape})") for shape in ((0, 2, 4), (2, 0, 4), (2, 2, 0))),
    ],
)
def test_bad_choices(mc, ids, fragment):
    refuses(mc, fragment, input_ids=ids)


@pytest.mark.parametrize(
    ("mask", "fragment"),
    [
        *(
            (np.ones(shape, int), f"attention_mask must have shape (2, 4), got {shape}.")
            for shape in ((2, 3), (1, 4), (4,), (2, 4, 1), (2, 0))
        ),
        *(
            (changed(np.ones(IDS.shape, type(value)), (0, 3), value), f"attention_mask[0, 3] is {value}; it must be 1")
            for value in (2, -1, 0.5, np.nan, -np.inf)
        ),
        (IDS.astype("U1"), "attention_mask must be 0 and 1 as integers, floats or booleans, got dtype <U1"),
    ],
)
def test_bad_masks(qa, mask, fragment):
    refuses(qa, fragment, input_ids=IDS, attention_mask=mask)


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
def test_a_tensor_that_numpy_cannot_reach(qa, error):
    class OnAnotherDevice:
        def __array__(self, dtype=None, copy=None):
            raise error("can't convert to numpy")

    refuses(qa, "input_ids cannot be read as one array: can't convert to numpy.", input_ids=OnAnotherDevice())


def test_unknown_names(qa):
    refuses(qa, "unknown input 'ids'; this artifact takes input_ids, attention_mask.", ids=IDS)
    refuses(qa, "unknown input 'position_ids'", input_ids=IDS, position_ids=IDS)
    refuses(qa, "'token_type_ids'", "ErnieM has no token types", input_ids=IDS, token_type_ids=IDS)
    refuses(qa, "unknown input 3;", inputs={"input_ids": IDS, 3: IDS})


def test_missing_names(qa):
    refuses(qa, "input 'input_ids' is missing; this artifact takes input_ids, attention_mask.")
    refuses(qa, "input 'input_ids' is missing", attention_mask=np.ones((2, 4)))
    refuses(qa, "input 'input_ids' is missing", input_ids=None)


def test_the_same_name_twice(qa):
    refuses(
        qa,
        "given twice: attention_mask, input_ids",
        inputs={"input_ids": IDS, "attention_mask": IDS},
        input_ids=IDS,
        attention_mask=IDS,
    )


@pytest.mark.parametrize("inputs", [IDS, [IDS], "qa", 7])
def test_something_else_than_a_mapping(qa, inputs):
    refuses(qa, f"got {type(inputs).__name__}; for one array write run(input_ids=...).", inputs=inputs)


@pytest.mark.parametrize(
    ("positions", "fragment"),
    [
        (np.full((2, 4), 16), "position_ids[0, 0] is 16; it must be from 0 to 15."),
        (np.full((2, 4), -1), "position_ids[0, 0] is -1; it must be from 0 to 15."),
        (np.zeros((2, 4)), "position_ids must be integers, got dtype float64."),
        (np.zeros(4, int), "position_ids must have shape (2, 4), got (4,)."),
    ],
)
def test_bad_positions(make_artifact, positions, fragment):
    with Session(make_artifact("qa", "position_ids").path) as session:
        refuses(session, fragment, input_ids=IDS, position_ids=positions)


@pytest.mark.parametrize(
    ("head_mask", "fragment"),
    [
        (np.ones((4, 2)), "head_mask must have shape (2, 4), got (4, 2)."),
        (np.full((2, 4), np.nan), "head_mask[0, 0] is nan, which is not finite in float32."),
        (np.ones((2, 4), complex), "head_mask must be real numbers, got dtype complex128."),
    ],
)
def test_bad_head_masks(make_artifact, head_mask, fragment):
    with Session(make_artifact("qa", "head_mask").path) as session:
        refuses(session, fragment, input_ids=IDS, head_mask=head_mask)


@pytest.mark.parametrize(
    ("embeds", "fragment"),
    [
        (np.zeros((2, 4, 7)), "inputs_embeds must have shape (batch, sequence, 8), got (2, 4, 7)."),
        (np.zeros((4, 8)), "inputs_embeds must have shape (batch, sequence, 8), got (4, 8)."),
        (np.zeros((2, 17, 8)), "inputs_embeds has rows of 17 positions"),
        (np.zeros((2, 0, 8)), "inputs_embeds is empty"),
        (np.full((1, 2, 8), 1e300), "inputs_embeds[0, 0, 0] is 1e+300, which is not finite in float32."),
        (np.full((1, 2, 8), "a"), "inputs_embeds must be real numbers"),
    ],
)
def test_bad_embeddings(make_artifact, embeds, fragment):
    with Session(make_artifact("qa", "inputs_embeds").path) as session:
        refuses(session, fragment, inputs_embeds=embeds)


def test_ids_for_a_graph_of_embeddings(make_artifact):
    with Session(make_artifact("qa", "inputs_embeds").path) as session:
        refuses(session, "unknown input 'input_ids'; this artifact takes attention_mask, inputs_embeds.", input_ids=IDS)


def test_inputs_errors_are_value_errors(qa):
    with pytest.raises(ValueError, match=re.escape("input_ids[0, 0] is 50")):
        qa.run(input_ids=[[50]])
