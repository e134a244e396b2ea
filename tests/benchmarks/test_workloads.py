from __future__ import annotations

import pytest

from benchmarks.adapters.base import pad
from benchmarks.workloads import ALL, FIXED, MIXED, MIXED_MEAN, SHORTEST, build_workloads, padded_lengths


def test_the_same_names_and_seed_give_the_same_work() -> None:
    assert build_workloads(ALL, 1000) == build_workloads(ALL, 1000)
    assert build_workloads(("1x32",), 1000, seed=1) != build_workloads(("1x32",), 1000)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_shapes_are_what_their_names_say(name: str) -> None:
    (workload,) = build_workloads((name,), 1000)
    batch, length = map(int, name.split("x"))
    assert [len(row) for row in workload.rows] == [length] * batch
    assert workload.checked[:batch] == workload.rows
    assert len(set(workload.checked)) == len(workload.checked) >= 8


def test_rows_are_what_a_tokenizer_could_have_written() -> None:
    for workload in build_workloads(ALL, 1000):
        for row in workload.checked:
            assert row[0] == 0
            assert row[-1] == 2
            assert SHORTEST <= len(row) <= 512
            assert all(4 <= token < 999 for token in row[1:-1])


def test_mixed_workloads_are_the_same_texts_with_the_stated_mean() -> None:
    mixed, single, by_length = build_workloads(MIXED, 250002)
    assert mixed.rows == single.rows
    assert sorted(mixed.rows) == sorted(by_length.rows)
    assert [len(row) for row in by_length.rows] == sorted((len(row) for row in mixed.rows), reverse=True)
    assert abs(mixed.tokens / 64 - MIXED_MEAN) < 6
    assert single.description()["padding_share"] == 0
    assert by_length.padded_tokens < mixed.padded_tokens


@pytest.mark.parametrize("share", [0, 25, 50, 75])
def test_padded_batches_have_the_share_of_padding_that_they_name(share: int) -> None:
    lengths = padded_lengths(8, 128, share / 100)
    assert max(lengths) == 128
    assert sum(lengths) == 8 * 128 * (100 - share) // 100


def test_a_batch_is_padded_on_the_right_with_the_mask_beside_it() -> None:
    ids, mask = pad([[0, 7, 2], [0, 2]])
    assert ids.tolist() == [[0, 7, 2], [0, 2, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
