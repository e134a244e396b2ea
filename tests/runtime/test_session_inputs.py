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


@pytest.mark.parametrize("rows", [[[0, 5], [0, 5, 2]], [[0, 5], None]])
def test_object_arrays_of_other_rows_are_refused(qa, rows):
    refuses(qa, "input_ids cannot be read as one array", "padded to the same length", input_ids=_column(rows))


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


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-1, "-1"),
        (50, "50"),
        (2**40, "1099511627776"),
        (np.iinfo(np.int64).min, "-9223372036854775808"),
    ],
)
def test_ids_outside_the_vocabulary(qa, value, shown):
    ids = IDS.copy()
    ids[1, 2] = value
    refuses(qa, f"input_ids[1, 2] is {shown}; it must be from 0 to 49.", "Use the tokenizer", input_ids=ids)


def test_an_unsigned_id_that_would_wrap_to_a_good_one(qa):
    ids = IDS.astype(np.uint64)
    ids[0, 1] = 2**64 - 1
    refuses(qa, "input_ids[0, 1] is 18446744073709551615;", input_ids=ids)


def test_the_bounds_of_the_vocabulary_are_good(qa):
    assert qa.run(input_ids=[[0, 49]])["start_logits"].shape == (1, 2)


def test_choices_are_indexed_in_full(mc):
    ids = np.zeros((2, 3, 4), int)
    ids[1, 2, 0] = 99
    refuses(mc, "input_ids[1, 2, 0] is 99;", input_ids=ids)


@pytest.mark.parametrize(
    "ids",
    [
        IDS.astype(float),
        IDS == 0,
        IDS.astype(complex),
        IDS.astype(str),
        IDS.astype(str).astype(object),
        [[0, 2.0]],
        "text",
    ],
)
def test_ids_that_are_not_integers(qa, ids):
    expected = "must have shape (batch, sequence)" if isinstance(ids, str) else "input_ids must be integers, got dtype"
    refuses(qa, expected, input_ids=ids)


def test_rows_over_the_limit(qa):
    refuses(
        qa,
        "input_ids has rows of 17 positions, and this model takes at most 16: truncate",
        input_ids=np.zeros((1, 17), int),
    )


@pytest.mark.parametrize("ids", [[], [[]], [[], []], np.zeros((0, 4), int), np.zeros((3, 0), int)])
def test_empty_batches_and_rows(qa, ids):
    refuses(qa, "input_ids is empty (shape (", "at least one row of at least one token", input_ids=ids)


@pytest.mark.parametrize("shape", [(0, 2, 4), (2, 0, 4), (2, 2, 0)])
def test_no_choices(mc, shape):
    refuses(mc, f"input_ids is empty (shape {shape})", input_ids=np.zeros(shape, int))


@pytest.mark.parametrize("shape", [(4,), (1, 2, 4)])
def test_wrong_rank(qa, shape):
    refuses(qa, f"input_ids must have shape (batch, sequence), got {shape}.", input_ids=np.zeros(shape, int))


def test_wrong_rank_for_choices(mc):
    refuses(mc, "input_ids must have shape (batch, choices, sequence), got (2, 4).", input_ids=IDS)


def test_rows_of_different_lengths(qa):
    refuses(qa, "input_ids cannot be read as one array", "padded", input_ids=[[0, 2], [0, 5, 2]])


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
def test_a_tensor_that_numpy_cannot_reach(qa, error):
    class OnAnotherDevice:
        def __array__(self, dtype=None, copy=None):
            raise error("can't convert to numpy")

    refuses(qa, "input_ids cannot be read as one array: can't convert to numpy.", input_ids=OnAnotherDevice())


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (4,), (2, 4, 1), (2, 0)])
def test_a_mask_of_another_shape(qa, shape):
    refuses(
        qa,
        f"attention_mask must have shape (2, 4), got {shape}.",
        input_ids=IDS,
        attention_mask=np.ones(shape, int),
    )


@pytest.mark.parametrize(("value", "shown"), [(2, "2"), (-1, "-1"), (0.5, "0.5"), (np.nan, "nan"), (-np.inf, "-inf")])
def test_masks_are_zeros_and_ones(qa, value, shown):
    mask = np.ones(IDS.shape, type(value))
    mask[0, 3] = value
    refuses(qa, f"attention_mask[0, 3] is {shown}; it must be 1 to attend", input_ids=IDS, attention_mask=mask)


def test_a_mask_of_text(qa):
    refuses(qa, "attention_mask must be 0 and 1", "<U1", input_ids=IDS, attention_mask=IDS.astype("U1"))


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
