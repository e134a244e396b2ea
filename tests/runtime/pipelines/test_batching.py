"""Rows are sorted, padded and trimmed so that each comes out as if it had run alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt.batching import run_rows

COLUMNS = np.arange(3, dtype=np.float32)


def per_token(ids):
    """Each token's answer depends on its row's other tokens too, so that nothing can be mixed up."""
    return {"logits": np.outer(ids, COLUMNS + 1) + sum(ids)}


@given(
    rows=st.lists(st.lists(st.integers(2, 99), min_size=1, max_size=30), max_size=40),
    batch_size=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_each_row_comes_out_as_if_it_had_run_alone(scripted_session, rows, batch_size):
    session = scripted_session("ner", per_token, labels=("a", "b", "c"))
    results = list(run_rows(session, rows, batch_size=batch_size))
    assert sorted(row for row, _ in results) == list(range(len(rows)))
    for row, outputs in results:
        np.testing.assert_array_equal(outputs["logits"], per_token(rows[row])["logits"])


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=40), batch_size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_batches_hold_neighbours_in_length_and_no_more_padding_than_that(scripted_session, lengths, batch_size):
    session = scripted_session("cls", lambda ids: {"logits": [len(ids)]}, labels=("a",))
    list(run_rows(session, [[7] * length for length in lengths], batch_size=batch_size))
    found = [(ids != 1).sum(axis=1).tolist() for ids in session.batches]
    in_order = sorted(lengths, reverse=True)
    assert found == [in_order[i : i + batch_size] for i in range(0, len(in_order), batch_size)]
    assert [ids.shape[1] for ids in session.batches] == [max(group) for group in found]


def test_a_padding_token_within_a_row_is_a_token_like_others(scripted_session):
    session = scripted_session("cls", lambda ids: {"logits": [len(ids)]}, labels=("a",))
    ((_, outputs),) = run_rows(session, [[5, 1, 1]])
    assert outputs["logits"].tolist() == [3]


def test_every_choice_is_a_row_of_its_own(scripted_session):
    session = scripted_session("mc", lambda ids: {"logits": sum(ids)})
    results = dict(run_rows(session, [[5, 6], [7, 8, 9]], batch_size=2))
    assert [results[i]["logits"].tolist() for i in (0, 1)] == [[11], [24]]
    assert session.batches[0].shape == (2, 1, 3)


@pytest.mark.parametrize("head", ["base", "qa", "ie"])
def test_outputs_of_a_row_lose_batch_axis_and_padding(make_text_artifact, scripted_session, head):
    artifact = make_text_artifact(head)
    rows = [[5, 6, 7], [9]]
    for row, outputs in run_rows(scripted_session(head, artifact.function), rows):
        expected = artifact.function(rows[row])
        assert outputs.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(outputs[name], value)


def test_results_come_batch_by_batch(scripted_session):
    session = scripted_session("cls", lambda ids: {"logits": [0]}, labels=("a",))
    results = run_rows(session, [[5], [6], [7]], batch_size=1)
    assert session.batches == []
    next(results)
    assert len(session.batches) == 1
