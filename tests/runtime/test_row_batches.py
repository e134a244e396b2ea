"""Batches divided into runs, for a CPU and for the profiles of a plan: each row runs once, as in the whole batch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_rt.batching import BUCKET, LAUNCH, LengthBucketing, are_by_row, plan_runs
from erniem_rt.manifest import HEADS, Limits, Profile, TensorSpec

LABELS, HIDDEN, LONGEST = 3, 4, 300
SIZES = {"batch": 12, "choices": 2, "sequence": LONGEST}


def manifest_of(head: str, *extras: TensorSpec) -> SimpleNamespace:
    axes = HEADS[head].axes
    outputs = {
        "qa": {"start_logits": ("batch", "sequence"), "end_logits": ("batch", "sequence")},
        "cls": {"logits": ("batch", LABELS)},
        "ner": {"logits": ("batch", "sequence", LABELS)},
        "mc": {"logits": ("batch", "choices")},
        "base": {"last_hidden_state": ("batch", "sequence", HIDDEN), "pooler_output": ("batch", HIDDEN)},
    }[head]
    inputs = [TensorSpec(name, "int64", axes) for name in ("input_ids", "attention_mask")]
    specs = [TensorSpec(name, "float32", shape) for name, shape in outputs.items()]
    return SimpleNamespace(head=head, inputs=(*inputs, *extras), outputs=specs, limits=Limits(LONGEST, 50, 1))


class Model:
    """Every position depends on what its row attends to, and on where; padding is zero as in a packed graph."""

    inputs = outputs = ()

    def __init__(self, manifest: SimpleNamespace) -> None:
        self._specs = {spec.name: spec for spec in manifest.outputs}
        self.shapes: list[tuple[int, ...]] = []
        self.closed = False

    def run(self, feeds, outputs):
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        assert all(array.flags.c_contiguous for name, array in feeds.items() if name != "head_mask")
        self.shapes.append(ids.shape)
        width = ids.shape[-1]
        seen = ids * mask * np.arange(1, width + 1)
        states = seen + seen.sum(-1, keepdims=True) + feeds.get("head_mask", np.zeros(1)).sum()
        kept = (mask != 0) | ~mask.any(-1, keepdims=True)
        kept[..., 0] = True
        states = np.where(kept, states, 0)
        return [self._shaped(self._specs[name], states) for name in outputs]

    def _shaped(self, spec, states):
        if "sequence" not in spec.shape:
            states = states[..., 0]
        if isinstance(spec.shape[-1], int):
            states = states[..., None] * np.arange(1, spec.shape[-1] + 1)
        return states.astype(np.float32)

    def close(self):
        self.closed = True


def batch(head: str, side: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Many short rows, some long ones, and one that is padding alone."""
    rng = np.random.default_rng(seed)
    shape = tuple(SIZES[axis] for axis in HEADS[head].axes)
    ids, mask = rng.integers(2, 50, shape), np.zeros(shape, dtype=np.int64)
    for row in np.ndindex(shape[:-1]):
        length = int(rng.integers(150, LONGEST)) if row[0] % 6 == 0 else int(rng.integers(1, 20))
        mask[row][:length] = rng.random(length) < 0.7 if side == "scattered" else 1
        if side == "left":
            mask[row][: length // 2] = 0
    mask[3] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("side", ["right", "left", "scattered"])
@pytest.mark.parametrize("head", ["qa", "cls", "ner", "mc", "base"])
def test_outputs_are_those_of_the_whole_batch(head, side):
    manifest = manifest_of(head)
    names = [spec.name for spec in manifest.outputs][::-1]
    model = Model(manifest)
    for seed in range(5):
        feeds = batch(head, side, seed)
        expected = model.run(feeds, names)
        model.shapes.clear()

        found = LengthBucketing(model, manifest).run(feeds, names)

        assert len(model.shapes) > 1
        rows = [math.prod(shape[:-1]) for shape in model.shapes]
        assert sum(rows) == math.prod(feeds["input_ids"].shape[:-1])
        positions = sum(count * shape[-1] ** 2 for count, shape in zip(rows, model.shapes, strict=True))
        assert positions < 0.7 * sum(rows) * LONGEST**2
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_what_is_not_by_row_goes_to_every_part():
    manifest = manifest_of("cls", TensorSpec("head_mask", "float32", (2, 2)))
    feeds = batch("cls", "right") | {"head_mask": np.full((2, 2), 0.5, dtype=np.float32)}
    model = Model(manifest)
    expected = model.run(feeds, ["logits"])[0]
    np.testing.assert_array_equal(LengthBucketing(model, manifest).run(feeds, ["logits"])[0], expected)
    assert are_by_row(manifest)


@pytest.mark.parametrize("lengths", [[300] * 12, [20] * 6 + [12] * 6, [300]])
def test_a_batch_runs_whole_where_that_is_less_work(lengths):
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    manifest = manifest_of("cls")
    model = Model(manifest)
    LengthBucketing(model, manifest).run({"input_ids": mask, "attention_mask": mask}, ["logits"])
    assert model.shapes == [mask.shape]


def test_what_is_by_row():
    assert are_by_row(manifest_of("mc"))
    states = manifest_of("mc")
    states.outputs.append(TensorSpec("hidden_states.0", "float32", ("rows", "sequence", HIDDEN)))
    assert not are_by_row(states)


def test_closing_closes_the_engine():
    manifest = manifest_of("cls")
    model = Model(manifest)
    LengthBucketing(model, manifest).close()
    assert model.closed


@st.composite
def profile_lists(draw, axes):
    """One to three profiles, the first of which takes rows of any length up to its maximum."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        high = [draw(st.integers(1, 9)) for _ in range(axes - 1)] + [draw(st.integers(1, 300))]
        low = [draw(st.integers(1, size)) for size in high]
        if number == 0:
            low[-1] = 1
        best = [draw(st.integers(a, b)) for a, b in zip(low, high, strict=True)]
        found.append(Profile(tuple(low), tuple(best), tuple(high)))
    return found


@st.composite
def problems(draw):
    choices = draw(st.none() | st.integers(1, 6))
    profiles = draw(profile_lists(2 if choices is None else 3))
    width = draw(st.integers(1, max(profile.max[-1] for profile in profiles)))
    rows = draw(st.integers(1, 40)) * (choices or 1)
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    return np.array(lengths), width, profiles, choices


@settings(max_examples=200)
@given(problems())
def test_every_row_runs_once_in_a_shape_that_holds_it(problem):
    lengths, width, profiles, choices = problem
    runs = plan_runs(lengths, width, profiles, choices=choices)
    assert sorted(np.concatenate([run.rows for run in runs]).tolist()) == list(range(len(lengths)))
    for run in runs:
        profile = profiles[run.profile]
        assert all(a <= b <= c for a, b, c in zip(profile.min, run.shape, profile.max, strict=True))
        assert 0 < len(run.rows) <= math.prod(run.shape[:-1])
        assert (lengths[run.rows] <= run.length).all()
        if (lengths[run.rows] == 0).any():  # unless no profile takes rows that short
            shorter = [p for p in profiles if p.min[-1] <= width <= p.max[-1]]
            assert run.length == width or not shorter


def lengths_of(runs):
    return [(len(run.rows), run.shape) for run in runs]


WIDE = [Profile((1, 1), (8, 64), (32, 512))]


@pytest.mark.parametrize(
    ("lengths", "width", "expected"),
    [
        ([5], 5, [(1, (1, 16))]),
        ([5, 0], 5, [(2, (2, 5))]),
        ([512, 16], 512, [(2, (2, 512))]),
        ([512, 16, 16, 16], 512, [(1, (1, 512)), (3, (3, 16))]),
        ([17] * 33, 17, [(17, (17, 32)), (16, (17, 32))]),
        ([100] * 4 + [90] * 4, 100, [(8, (8, 112))]),
    ],
)
def test_examples(lengths, width, expected):
    assert lengths_of(plan_runs(np.array(lengths), width, WIDE)) == expected
    assert (BUCKET, LAUNCH) == (16, 1024)


def test_the_cheapest_profile_is_taken_and_the_nearest_of_equals():
    profiles = [
        Profile((1, 1), (32, 512), (32, 512)),
        Profile((1, 1), (1, 32), (4, 64)),
        Profile((1, 1), (4, 64), (4, 64)),
        Profile((8, 128), (8, 128), (8, 128)),
    ]
    chosen = [plan_runs(np.array(lengths), max(lengths), profiles)[0].profile for lengths in ([9], [64] * 4, [65] * 8)]
    assert chosen == [1, 2, 0]


def test_choices_are_laid_out_anew_where_a_profile_wants_it():
    fixed = [Profile((1, 4, 1), (2, 4, 16), (2, 4, 16))]
    runs = plan_runs(np.full(6, 9), 9, fixed, choices=3)
    assert lengths_of(runs) == [(6, (2, 4, 16))]
    assert lengths_of(plan_runs(np.full(10, 9), 9, fixed, choices=5)) == [(8, (2, 4, 16)), (2, (2, 4, 16))]
