"""Session answers as its graph does, on every head, and is left in order."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import erniem_rt
from erniem_rt import InvalidInputError, Session
from erniem_rt.manifest import HEADS

ROOT = Path(erniem_rt.__file__).parents[1]
IDS = np.array([[0, 7, 8, 2, 1], [0, 9, 2, 1, 1]])
MASK = np.array([[1, 1, 1, 1, 0], [1, 0, 1, 1, 1]])


def batch(head):
    """Ids and mask in the shape of the head."""
    return (IDS, MASK) if head != "mc" else (np.stack([IDS, IDS[::-1]]), np.stack([MASK, MASK]))


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_answers_like_its_graph(heads, head):
    ids, mask = batch(head)
    with Session(heads[head].path) as session:
        assert_same(session.run(input_ids=ids, attention_mask=mask), heads[head].answer(ids, mask))
        assert session.manifest.head == head
        assert session.manifest.task == HEADS[head].task


@pytest.mark.parametrize("head", HEADS)
def test_without_a_mask_padding_is_the_pad_token(heads, head):
    ids, _ = batch(head)
    with Session(heads[head].path) as session:
        found = session.run(input_ids=ids)
        assert_same(found, heads[head].answer(ids, ids != 1))
        assert_same(session.run({"input_ids": ids, "attention_mask": None}), found)


def test_a_row_of_padding_alone_is_masked_entirely(heads):
    ids = np.array([[0, 5, 2], [1, 1, 1]])
    with Session(heads["qa"].path) as session:
        assert not session.run(input_ids=ids)["start_logits"][1].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (7, 3), (3, 11)])
def test_batch_and_sequence_are_free(heads, shape):
    ids = np.random.default_rng(0).integers(0, 50, shape)
    with Session(heads["qa"].path) as session:
        assert_same(session.run(input_ids=ids), heads["qa"].answer(ids))


def test_inputs_come_by_keyword_by_mapping_or_both(heads):
    expected = heads["qa"].answer(IDS, MASK)
    with Session(str(heads["qa"].path)) as session:
        assert_same(session.run({"input_ids": IDS, "attention_mask": MASK}), expected)
        assert_same(session.run({"input_ids": IDS}, attention_mask=MASK), expected)


def test_the_manifest_opens_the_artifact_too(heads):
    with Session(heads["cls"].manifest) as session:
        assert_same(session.run(input_ids=IDS), heads["cls"].answer(IDS))
    assert repr(session) == f"Session({str(heads['cls'].path)!r}, head='cls', device='cpu', engine='onnxruntime')"


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("threads", [None, 1, np.int64(2)])
def test_options_do_not_change_the_answer(heads, threads, verify):
    with Session(heads["ner"].path, threads=threads, verify=verify, device="cpu") as session:
        assert_same(session.run(input_ids=IDS), heads["ner"].answer(IDS))


def test_positions_default_to_zero_one_two(make_artifact):
    artifact = make_artifact("qa", "position_ids")
    with Session(artifact.path) as session:
        assert_same(session.run(input_ids=IDS), artifact.answer(IDS, position_ids=np.arange(5)))
        backwards = np.tile(np.arange(5)[::-1], (2, 1))
        assert_same(session.run(input_ids=IDS, position_ids=backwards), artifact.answer(IDS, position_ids=backwards))


def test_positions_of_choices(make_artifact):
    artifact = make_artifact("mc", "position_ids")
    ids, mask = batch("mc")
    with Session(artifact.path) as session:
        assert_same(session.run(input_ids=ids, attention_mask=mask), artifact.answer(ids, mask))


def test_head_mask_defaults_to_ones(make_artifact):
    artifact = make_artifact("qa", "head_mask")
    half = np.array([[1, 0, 1, 0], [0.5, 0, 0, 1]])
    with Session(artifact.path) as session:
        assert_same(session.run(input_ids=IDS), artifact.answer(IDS, head_mask=np.ones((2, 4))))
        assert_same(session.run(input_ids=IDS, head_mask=half), artifact.answer(IDS, head_mask=half))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_embeddings_in_place_of_ids(make_artifact, dtype):
    artifact = make_artifact("ner", "inputs_embeds")
    embeds = np.random.default_rng(1).standard_normal((2, 5, 8)).astype(dtype)
    with Session(artifact.path) as session:
        assert_same(session.run(inputs_embeds=embeds), artifact.answer(inputs_embeds=np.float32(embeds)))
        assert_same(
            session.run(inputs_embeds=embeds, attention_mask=MASK),
            artifact.answer(inputs_embeds=np.float32(embeds), attention_mask=MASK),
        )


def test_run_after_close_is_an_error(heads):
    session = Session(heads["qa"].path)
    with session as entered:
        assert entered is session
    session.close()
    with pytest.raises(InvalidInputError, match=r"the session on .*qa\.onnx is closed; open it again"):
        session.run(input_ids=IDS)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2", 1025])
def test_bad_threads(heads, threads):
    with pytest.raises(InvalidInputError, match=r"threads must be an integer from 1 to 1024 or None, got "):
        Session(heads["qa"].path, threads=threads)


@pytest.mark.parametrize("device", ["gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:x", " cuda", "", True, 0])
def test_unknown_device(heads, device):
    with pytest.raises(InvalidInputError, match=r"device must be 'cpu', 'cuda' or 'cuda:N'.*, got "):
        Session(heads["qa"].path, device=device)


def test_a_session_loads_no_training_library(heads):
    code = (
        "import json, sys, erniem_rt\n"
        "with erniem_rt.Session(sys.argv[1]) as session: session.run(input_ids=[[0, 5, 2]])\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    command = [sys.executable, "-c", code, str(heads["qa"].path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"erniem_rt", "numpy", "onnxruntime"} <= loaded
    assert not loaded & {"torch", "transformers", "onnx", "sentencepiece", "erniem_export", "scipy"}


@pytest.mark.parametrize(
    ("cpu", "vnni", "warns"), [("vnni", False, True), ("vnni", True, False), ("avx2", False, False)]
)
def test_int8_for_another_cpu_is_a_warning_when_it_is_loaded(artifact, monkeypatch, cpu, vnni, warns):
    artifact.edit(lambda manifest: manifest.update(cpu=cpu))
    monkeypatch.setattr("erniem_rt.machine.has_vnni", lambda: vnni)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Session(artifact.path).close()
    assert [str(warning.message) for warning in caught] == warns * [
        "this artifact was exported for a CPU with VNNI, and this CPU has none: its results are less accurate here. "
        "Export it again with --int8 --cpu avx2."
    ]
    assert all(warning.filename == __file__ for warning in caught)


def test_many_batches_are_taken_one_by_one_and_answered_in_order(heads):
    taken, tokens = [], [5, 6, 99, 7]
    with Session(heads["qa"].path, threads=2) as session:
        answers = session.run_all({"input_ids": [[0, taken.append(token) or token, 2]]} for token in tokens)
        assert taken == []
        for token in tokens[:2]:
            found = next(answers)
            assert taken[-1] == token
            for name, expected in session.run(input_ids=[[0, token, 2]]).items():
                np.testing.assert_array_equal(found[name], expected)
        with pytest.raises(InvalidInputError, match=r"input_ids\[0, 1\] is 99"):
            next(answers)
    with pytest.raises(InvalidInputError, match="is closed"):
        next(session.run_all([{"input_ids": [[0, 5, 2]]}]))


def test_lanes_are_no_more(heads):
    with Session(heads["qa"].path) as session, pytest.warns(DeprecationWarning, match="always 1"):
        assert session.lanes == 1
