"""The gate's inputs: every kind is there, and every batch is one that the runtime and the model take."""

from types import SimpleNamespace

import numpy as np
import pytest

from erniem_export.gate.cases import TEXTS, build_cases
from erniem_export.heads import graph_inputs
from erniem_export.options import GraphOptions
from erniem_rt.manifest import Limits
from erniem_rt.session import prepare
from erniem_rt.tokenizer import Tokenizer

LIMITS = {
    "as released": Limits(512, 250002, 1),
    "small": Limits(8, 10, 1),
    "padding is id 0": Limits(8, 10, 0),
    "padding is the last id": Limits(20, 10, 9),
    "tiniest": Limits(2, 2, 1),
}
FLAGS = [
    {},
    {"position_ids": True, "head_mask": True},
    {"position_ids": True, "head_mask": True, "inputs_embeds": True},
]


def manifest(head, limits, **flags):
    config = SimpleNamespace(hidden_size=6, num_hidden_layers=2, num_attention_heads=3, pruned_heads={})
    return SimpleNamespace(head=head, limits=limits, inputs=graph_inputs(head, config, GraphOptions(**flags)))


@pytest.fixture(params=LIMITS)
def limits(request):
    return LIMITS[request.param]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: ", ".join(flags) or "plain")
def test_every_batch_is_valid(head, limits, flags):
    described = manifest(head, limits, **flags)
    for case in build_cases(described):
        feeds = prepare(described, case.feeds)  # raises on wrong names, shapes, ids, positions, masks
        np.testing.assert_array_equal(feeds["attention_mask"], case.attend)
        assert set(case.feeds) | {"attention_mask"} == {spec.name for spec in described.inputs}
        assert case.attend.dtype == bool


def rows_of(case):
    return list(case.attend.reshape(-1, case.attend.shape[-1]))


def is_left_aligned(row):
    return bool((row == (np.arange(len(row)) < row.sum())).all())


def test_every_kind_is_there(head):
    cases = {case.name: case for case in build_cases(manifest(head, LIMITS["as released"]))}
    assert len(cases) == 10
    widths = [case.attend.shape[-1] for case in cases.values()]
    assert min(widths) == 1
    assert max(widths) == 512
    assert any(width % 2 for width in widths if width > 1)
    batches = {len(case.attend) for case in cases.values()}
    assert 1 in batches
    assert max(batches) == 7
    lengths = {row.sum() for row in rows_of(cases["padding on the right"])}
    assert len(lengths) >= 7
    assert all(map(is_left_aligned, rows_of(cases["padding on the right"])))
    assert all(is_left_aligned(row[::-1]) for row in rows_of(cases["padding on the left"]))
    scattered = rows_of(cases["padding in between"])
    assert any(not is_left_aligned(row) and not is_left_aligned(row[::-1]) for row in scattered)
    assert not cases["a row of padding only"].attend.any(-1).all()
    assert all(case.attend.any(-1).all() for name, case in cases.items() if name != "a row of padding only")
    assert cases["the longest row"].attend.reshape(-1, 512)[0].all()


def test_masked_positions_hold_real_ids(head, limits):
    """Only so does a mask that is ignored show."""
    for case in build_cases(manifest(head, limits)):
        if "attention_mask" in case.feeds:
            assert (case.feeds["input_ids"] != limits.pad_token_id).all()


@pytest.mark.parametrize("name", LIMITS)
def test_without_a_mask_there_is_padding(head, name):
    limits = LIMITS[name]
    case = next(case for case in build_cases(manifest(head, limits)) if case.name == "no mask given")
    assert "attention_mask" not in case.feeds
    padding = case.feeds["input_ids"] == limits.pad_token_id
    np.testing.assert_array_equal(padding, ~case.attend)
    assert padding.any()
    assert case.attend.any(-1).all()


def test_embeddings_without_a_mask_are_all_attended_to():
    cases = build_cases(manifest("qa", LIMITS["small"], inputs_embeds=True))
    case = next(case for case in cases if case.name == "no mask given")
    assert case.attend.all()
    assert case.feeds["inputs_embeds"].dtype == np.float32


def test_longest_is_the_limit(head, limits):
    cases = {case.name: case for case in build_cases(manifest(head, limits))}
    for name in ("the longest row", "the longest and a short row"):
        assert cases[name].attend.shape[-1] == limits.max_length
        assert cases[name].attend.sum(-1).max() == limits.max_length
    assert max(case.attend.shape[-1] for case in cases.values()) == limits.max_length


def test_both_ends_of_the_vocabulary_are_looked_up(limits):
    cases = build_cases(manifest("qa", limits))
    seen = set(np.concatenate([case.feeds["input_ids"][case.attend] for case in cases]).tolist())
    assert {0, limits.vocab_size - 1} - {limits.pad_token_id} <= seen


def test_same_seed_same_batches():
    described = manifest("mc", LIMITS["as released"], position_ids=True)
    first, again, other = (build_cases(described, seed=seed) for seed in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        assert one.name == two.name
        assert all((one.feeds[name] == two.feeds[name]).all() for name in one.feeds)
    assert any((one.feeds["input_ids"] != two.feeds["input_ids"]).any() for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("longest", [512, 9])
def test_real_text(head, longest, tokenizer_dir):
    size = len(Tokenizer.from_dir(tokenizer_dir))
    described = manifest(head, Limits(longest, size, 1))
    cases = build_cases(described, tokenizer_dir)[10:]
    assert [case.name for case in cases] == ["real text", "real text, pairs"]
    for case in cases:
        prepare(described, case.feeds)
        assert len(case.attend) == len(TEXTS)
        assert case.attend.shape[-1] <= longest
        assert not case.attend.all() or longest == 9


def test_no_text_where_there_is_no_room_or_no_ids(tokenizer_dir):
    assert len(build_cases(manifest("qa", Limits(4, 2000, 1)), tokenizer_dir)) == 10
    assert len(build_cases(manifest("qa", LIMITS["as released"], inputs_embeds=True), tokenizer_dir)) == 10
