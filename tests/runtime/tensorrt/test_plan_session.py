"""A plan answers as the graph beside it does: every head, any lengths and padding, parts, buckets, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from erniem_rt import EngineError, InvalidInputError, Session, pipeline
from erniem_rt.engines import tensorrt
from erniem_rt.manifest import HEADS, Manifest

from .support import assert_same, expected

IDS = np.array([[0, 5, 7, 2, 1], [0, 9, 2, 1, 1]])


def requests(manifest, rng, count, largest=(7, 3, 120)):
    """Batches of random ids whose rows differ in length, padded on either side or in between, or wholly."""
    for _ in range(count):
        shape = [int(rng.integers(1, high + 1)) for high in largest]
        if manifest.head != "mc":
            del shape[1]
        width = shape[-1]
        mask = np.arange(width) < rng.integers(1, width + 1, shape[:-1])[..., None]
        side = rng.integers(0, 4)
        if side == 1:
            mask = mask[..., ::-1]
        elif side == 2:
            mask = rng.permuted(mask, axis=-1)
        elif side == 3:
            mask = mask & (rng.random(shape[:-1]) < 0.7)[..., None]
        ids = rng.integers(2, manifest.limits.vocab_size, shape)
        yield np.where(mask | (rng.random(shape) < 0.5), ids, manifest.limits.pad_token_id), mask.astype(np.int64)


ROWS = {
    "one profile": [[[1, 1], [4, 64], [8, 512]]],
    "small and large": [[[1, 1], [1, 32], [2, 64]], [[2, 16], [4, 128], [4, 512]]],
    "batches of three at least": [[[3, 1], [3, 64], [4, 512]]],
    "long rows": [[[1, 48], [3, 64], [4, 512]]],
    "one row at a time": [[[1, 1], [1, 512], [1, 512]]],
}
CHOICES = {
    "one profile": [[[1, 1, 1], [2, 4, 64], [4, 8, 512]]],
    "choices one by one": [[[1, 1, 1], [4, 1, 64], [5, 1, 512]]],
    "two choices at least": [[[2, 2, 1], [2, 2, 64], [2, 2, 512]]],
}
NARROW = {"input_ids": "INT32", "attention_mask": "BOOL"}
CASES = [(head, name) for head in ("qa", "base") for name in ROWS] + [("mc", name) for name in CHOICES]


@pytest.mark.parametrize("head", HEADS)
def test_every_head(machine, heads, plan_of, head):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (3, 2, 9) if head == "mc" else (3, 9))
    mask = rng.integers(0, 2, ids.shape)
    with Session(plan_of(heads[head].path)) as session:
        assert_same(session.run(input_ids=ids, attention_mask=mask), expected(heads[head].path, ids, mask))
        assert repr(session).endswith(f"{head}.plan'), head={head!r}, device='cuda:0')".replace("'), h", "', h"))
    assert machine.trt.executions


@pytest.mark.parametrize(("head", "profiles"), CASES)
def test_any_batch_in_any_profiles(machine, nano_artifact, plan_of, head, profiles):
    onnx = nano_artifact(head)
    rng = np.random.default_rng()
    shapes = (CHOICES if head == "mc" else ROWS)[profiles]
    plan = plan_of(onnx, shapes, dtypes=NARROW)
    with Session(plan) as session:
        for ids, mask in requests(session.manifest, rng, 6):
            if min(low[-1] for low, _, _ in shapes) > 1:
                mask[..., 0] = 1  # A row of padding alone attends to as many positions as it has.
            given = ids.copy(), mask.copy()
            found = session.run(input_ids=ids, attention_mask=mask)
            assert_same(found, expected(onnx, ids, mask))
            np.testing.assert_array_equal([ids, mask], given)


def test_half_precision_comes_back_as_the_manifest_says(machine, nano_artifact, plan_of):
    onnx = nano_artifact("qa")
    dtypes = {**NARROW, "start_logits": "HALF", "end_logits": "HALF"}
    with Session(plan_of(onnx, ROWS["one profile"], dtypes=dtypes)) as session:
        for ids, mask in requests(session.manifest, np.random.default_rng(1), 4):
            found = session.run(input_ids=ids, attention_mask=mask)
            assert_same(found, expected(onnx, ids, mask), tolerance=1e-3)


def test_mask_positions_and_embeddings_by_default(machine, make_artifact, plan_of, tmp_path):
    for number, extras in enumerate([("position_ids",), ("head_mask",), ("inputs_embeds",)]):
        artifact = make_artifact("qa", *extras, folder=tmp_path / f"made{number}")
        rng = np.random.default_rng(2)
        feeds = {"input_ids": rng.integers(0, 50, (5, 11))}
        if extras == ("inputs_embeds",):
            feeds = {"inputs_embeds": rng.standard_normal((5, 11, 8)).astype(np.float32)}
        elif extras == ("head_mask",):
            feeds["head_mask"] = rng.random((2, 4))
        with Session(plan_of(artifact.path)) as session:
            assert_same(session.run(feeds), {k: v.astype(np.float32) for k, v in artifact.answer(**feeds).items()})


def test_rows_of_like_length_run_together(machine, nano_artifact, plan_of):
    """One long row among short ones: they do not pay for its length."""
    onnx = nano_artifact("qa")
    lengths = np.array([20, 500, 17, 30, 25, 20, 22, 31])
    mask = (np.arange(512) < lengths[:, None]).astype(np.int64)
    ids = np.random.default_rng(3).integers(2, 100, mask.shape)
    with Session(plan_of(onnx, ROWS["one profile"])) as session:
        assert_same(session.run(input_ids=ids, attention_mask=mask), expected(onnx, ids, mask))
    assert [shapes["input_ids"] for _, shapes in machine.trt.executions] == [(1, 512), (7, 32)]


def test_the_profile_is_chosen_by_request(machine, heads, plan_of):
    plan = plan_of(heads["qa"].path, [[[1, 1], [1, 4], [1, 8]], [[1, 1], [4, 16], [6, 16]]])
    with Session(plan, cuda_graphs=False) as session:
        for rows, width in ((1, 4), (6, 16), (1, 16), (1, 8)):
            ids = np.full((rows, width), 7)
            assert_same(session.run(input_ids=ids), expected(heads["qa"].path, ids, np.ones_like(ids)))
    assert [profile for profile, _ in machine.trt.executions] == [0, 1, 1, 0]


def test_precision_and_zeros_at_padding_are_the_plans(machine, heads, plan_of):
    half = {"weights": "fp16", "embedding": "fp16"}
    plan = plan_of(heads["qa"].path, precision=half)
    with Session(plan) as session, Session(plan.with_suffix(".onnx")) as graph:
        assert (session.engine, session.precision) == ("tensorrt", "fp16")
        assert (graph.engine, graph.precision) == ("onnxruntime", "fp32")
        assert (session.packed, graph.packed, session.manifest.packed) == (True, False, False)


def test_padding_gives_zeros_but_in_the_first_place_and_in_rows_of_nothing_else(machine, nano_artifact, plan_of):
    mask = np.array([[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    with Session(plan_of(nano_artifact("qa"))) as session:
        found = session.run(input_ids=np.full((3, 6), 9), attention_mask=mask)["start_logits"]
        assert session.packed
    np.testing.assert_array_equal(found != 0, [[1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0], [1] * 6])


def test_the_longest_row_is_that_of_the_profiles(machine, heads, plan_of):
    with Session(plan_of(heads["qa"].path, [[[1, 1], [1, 8], [4, 12]]])) as session:
        assert session.limits.max_length == 12
        assert session.manifest.limits.max_length == 16
        assert session.run(input_ids=np.full((9, 12), 7))["start_logits"].shape == (9, 12)
        with pytest.raises(InvalidInputError) as caught:
            session.run(input_ids=np.full((1, 13), 7))
    assert str(caught.value) == (
        "input_ids has rows of 13 positions, and this plan takes at most 12: truncate or split the text, or build it "
        "with longer profiles (--profile)."
    )


def test_positions_may_be_larger_than_the_rows_of_a_plan(machine, make_artifact, plan_of):
    artifact = make_artifact("qa", "position_ids")
    with Session(plan_of(artifact.path, [[[1, 1], [1, 4], [2, 4]]])) as session:
        found = session.run(input_ids=[[5, 6]], position_ids=[[15, 3]])
    np.testing.assert_allclose(
        found["start_logits"], artifact.answer([[5, 6]], position_ids=[[15, 3]])["start_logits"], rtol=1e-5
    )


@pytest.mark.parametrize("rtx_too", [False, True])
def test_shapes_seen_again_are_replayed(request, heads, plan_of, rtx_too):
    machine = request.getfixturevalue("rtx" if rtx_too else "machine")
    flavour = {"flavour": "tensorrt-rtx"} if rtx_too else {}
    with Session(plan_of(heads["qa"].path, **flavour)) as session:
        for value in range(2, 8):
            ids = np.full((2, 9), value)
            assert_same(session.run(input_ids=ids), expected(heads["qa"].path, ids, np.ones_like(ids)))
        assert len(machine.trt.executions) == 6
        # RTX makes its own graphs.
        assert machine.gpu.calls.count("cudaGraphLaunch") == (0 if rtx_too else 4)
        assert machine.trt.alive["IExecutionContext"] == (1 if rtx_too else 2)


def test_few_graphs_are_kept(machine, heads, plan_of, monkeypatch):
    monkeypatch.setattr(tensorrt, "GRAPHS", 2)
    with Session(plan_of(heads["qa"].path)) as session:
        for rows in (1, 1, 1, 2, 2, 2, 3, 3, 3, 2, 1):
            ids = np.full((rows, 5), 7)
            assert_same(session.run(input_ids=ids), expected(heads["qa"].path, ids, np.ones_like(ids)))
        assert machine.trt.alive["IExecutionContext"] == 3
        assert machine.gpu.calls.count("cudaGraphLaunch") == 4  # the last batch of one row had to be recorded anew


def test_the_graph_that_was_not_used_for_longest_goes_first(machine, heads, plan_of, monkeypatch):
    monkeypatch.setattr(tensorrt, "GRAPHS", 2)
    with Session(plan_of(heads["qa"].path)) as session:
        for rows in (1, 1, 2, 2, 1, 3, 3):  # Three rows take the place of two, for one came in between.
            session.run(input_ids=np.full((rows, 5), 7))
        before = machine.gpu.calls.count("cudaGraphLaunch")
        session.run(input_ids=np.full((1, 5), 7))
        assert machine.gpu.calls.count("cudaGraphLaunch") == before + 1


def test_without_graphs(machine, heads, plan_of):
    with Session(plan_of(heads["qa"].path), cuda_graphs=False) as session:
        for _ in range(4):
            session.run(input_ids=IDS)
    assert "cudaStreamBeginCapture" not in machine.gpu.calls


def test_threads_get_the_answers_of_their_own_batches(machine, nano_artifact, plan_of):
    onnx = nano_artifact("qa")
    with Session(plan_of(onnx, ROWS["small and large"], dtypes=NARROW), device="cuda:1") as session:
        batches = list(requests(session.manifest, np.random.default_rng(5), 16, (6, 3, 60))) * 2
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda b: session.run(input_ids=b[0], attention_mask=b[1]), batches))
    for (ids, mask), outputs in zip(batches, found, strict=True):
        assert_same(outputs, expected(onnx, ids, mask))


def test_threads_do_not_wait_for_one_another(machine, heads, plan_of):
    """Three runs are inside the engine at once, or the barrier breaks."""
    barrier = threading.Barrier(3)
    with Session(plan_of(heads["qa"].path)) as session, ThreadPoolExecutor(3) as pool:
        machine.trt.on_execute = lambda: barrier.wait(10)
        jobs = [pool.submit(session.run, {"input_ids": IDS}) for _ in range(3)]
        assert len([job.result(20) for job in jobs]) == 3
        machine.trt.on_execute = lambda: None
    assert machine.gpu.calls.count("cudaStreamCreateWithFlags") == 3


def test_lanes_are_few_and_used_again(machine, heads, plan_of):
    with Session(plan_of(heads["qa"].path)) as session, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: session.run(input_ids=IDS), range(64)))
    assert 1 <= machine.gpu.calls.count("cudaStreamCreateWithFlags") <= tensorrt.LANES


def test_closing_lets_runs_finish_and_refuses_new_ones(machine, heads, plan_of):
    session = Session(plan_of(heads["qa"].path))
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        inside.set()
        assert go_on.wait(10)

    machine.trt.on_execute = hold
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(session.run, {"input_ids": IDS})
        assert inside.wait(10)
        session.close()
        with pytest.raises(InvalidInputError, match=r"the session on .*qa\.plan is closed; open it again"):
            session.run(input_ids=IDS)
        go_on.set()
        assert_same(job.result(10), expected(heads["qa"].path, IDS, IDS != 1))
    session.close()


def test_a_session_that_is_dropped_gives_all_back(machine, heads, plan_of):
    Session(plan_of(heads["qa"].path)).run(input_ids=IDS)
    machine.check()


@pytest.mark.parametrize("name", ["execute_async_v3", "set_input_shape"])
def test_after_a_failure_the_session_goes_on(machine, heads, plan_of, name):
    """In another lane: in the one that failed, copies may still be under way."""
    with Session(plan_of(heads["qa"].path)) as session:
        machine.trt.failing = {name: "something broke"}
        with pytest.raises(EngineError, match="something broke"):
            session.run(input_ids=IDS)
        assert machine.gpu.leaks() == []
        machine.trt.failing = {}
        others = IDS[:, ::-1] + 3
        assert_same(session.run(input_ids=others), expected(heads["qa"].path, others, others != 1))


def test_a_pipeline_on_a_plan(machine, nano_artifact, plan_of):
    onnx = nano_artifact("qa")
    question = {
        "question": "Wo wurde Johanna Keller geboren?",
        "context": "Johanna Keller wurde am 3. Mai 1961 in Rostock geboren. Heute wohnt sie in Leipzig." * 9,
    }
    with pipeline(plan_of(onnx, [[[1, 1], [4, 64], [8, 64]]], dtypes=NARROW)) as qa, pipeline(onnx) as oracle:
        assert qa.max_length == 64
        found, wanted = qa(question), oracle(question)
    assert found["answer"] == wanted["answer"] == "Rostock"


def test_the_manifest_is_left_as_it_is(machine, heads, plan_of):
    plan = plan_of(heads["qa"].path, [[[1, 1], [1, 4], [2, 4]]])
    before = plan.with_suffix(".json").read_bytes()
    Session(plan).close()
    assert plan.with_suffix(".json").read_bytes() == before
    assert Manifest.load(plan.with_suffix(".json")).limits.max_length == 16
