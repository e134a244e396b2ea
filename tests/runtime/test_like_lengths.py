"""Batches divided by length: each row once, nothing lost, and the outputs of the whole batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from erniem_rt.engines.like_lengths import LikeLengths, can_be_divided
from erniem_rt.manifest import HEADS, TensorSpec

LABELS, HIDDEN, LONGEST = 3, 4, 300
SIZES = {"batch": 12, "choices": 2, "sequence": LONGEST}


def manifest_of(head: str, *extras: TensorSpec, packed: bool = True) -> SimpleNamespace:
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
    return SimpleNamespace(head=head, inputs=(*inputs, *extras), outputs=specs, packed=packed)


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
def test_outputs_are_those_of_the_whole_batch(head: str, side: str) -> None:
    manifest = manifest_of(head)
    names = [spec.name for spec in manifest.outputs][::-1]
    model = Model(manifest)
    for seed in range(5):
        feeds = batch(head, side, seed)
        expected = model.run(feeds, names)
        model.shapes.clear()

        found = LikeLengths(model, manifest).run(feeds, names)

        assert len(model.shapes) > 1
        assert sum(shape[0] for shape in model.shapes) == SIZES["batch"]
        assert sum(shape[0] * shape[-1] ** 2 for shape in model.shapes) < 0.7 * SIZES["batch"] * LONGEST**2
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_what_is_not_by_row_goes_to_every_part() -> None:
    manifest = manifest_of("cls", TensorSpec("head_mask", "float32", (2, 2)))
    feeds = batch("cls", "right") | {"head_mask": np.full((2, 2), 0.5, dtype=np.float32)}
    model = Model(manifest)
    expected = model.run(feeds, ["logits"])[0]
    np.testing.assert_array_equal(LikeLengths(model, manifest).run(feeds, ["logits"])[0], expected)
    assert can_be_divided(manifest)


@pytest.mark.parametrize("lengths", [[300] * 12, [20] * 6 + [12] * 6, [300]])
def test_a_batch_runs_whole_where_that_is_less_work(lengths: list[int]) -> None:
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    manifest = manifest_of("cls")
    model = Model(manifest)
    LikeLengths(model, manifest).run({"input_ids": mask, "attention_mask": mask}, ["logits"])
    assert model.shapes == [mask.shape]


def test_only_packed_graphs_whose_outputs_are_by_row_are_divided() -> None:
    assert can_be_divided(manifest_of("mc"))
    assert not can_be_divided(manifest_of("cls", packed=False))
    attentions = manifest_of("qa")
    attentions.outputs.append(TensorSpec("attentions.0", "float32", ("batch", 2, "sequence", "sequence")))
    assert not can_be_divided(attentions)


def test_closing_closes_the_engine() -> None:
    manifest = manifest_of("cls")
    model = Model(manifest)
    LikeLengths(model, manifest).close()
    assert model.closed
