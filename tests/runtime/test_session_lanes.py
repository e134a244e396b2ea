"""Small models compute several batches at once, with the answers of one after the other."""

from __future__ import annotations

import numpy as np
import pytest

import erniem_rt._lanes
import erniem_rt.session
from erniem_rt import ArtifactError, InvalidInputError, Session


@pytest.fixture
def batches():
    rng = np.random.default_rng(5)
    return [{"input_ids": rng.integers(0, 50, (rng.integers(1, 9), rng.integers(1, 17)))} for _ in range(40)]


def test_batches_at_once_give_the_answers_of_one_by_one_in_order(heads, batches):
    with Session(heads["qa"].path, threads=3) as session:
        assert session.lanes == 3
        found = list(session.run_all(batches))
        assert len(found) == len(batches)
        for batch, outputs in zip(batches, found, strict=True):
            for name, expected in session.run(batch).items():
                np.testing.assert_allclose(outputs[name], expected, rtol=1e-6, atol=1e-6)


def test_batches_are_taken_as_they_get_their_turn(heads, batches):
    taken = []
    with Session(heads["qa"].path, threads=2) as session:
        answers = session.run_all(taken.append(i) or batch for i, batch in enumerate(batches))
        assert taken == []
        next(answers)
        assert taken == [0, 1, 2]
        answers.close()


def test_one_thread_and_large_models_have_one_lane(heads, batches, monkeypatch):
    assert Session(heads["qa"].path, threads=1).lanes == 1
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert Session(heads["qa"].path).lanes == 3
    monkeypatch.setattr(erniem_rt._lanes, "_SMALL", 100)
    with Session(heads["qa"].path, threads=4) as session:
        assert session.lanes == 1
        monkeypatch.setattr(session, "_opened_side", None)
        assert len(list(session.run_all(batches))) == len(batches)


def test_one_batch_alone_has_all_threads(heads, batches, monkeypatch):
    """A lane would take one of them, and an engine of its own would have to be opened and checked for it."""
    with Session(heads["qa"].path, threads=3) as session:
        monkeypatch.setattr(session, "_opened_side", None)
        monkeypatch.setattr(session, "_engine", watched := Watched(session._engine))
        (found,) = session.run_all(iter(batches[:1]))
        assert watched.runs == 1
        assert list(session.run_all([])) == []
        for name, expected in session.run(batches[0]).items():
            np.testing.assert_array_equal(found[name], expected)


class Watched:
    """An engine, and how often it ran."""

    def __init__(self, engine):
        self.engine, self.runs = engine, 0

    def run(self, *arguments):
        self.runs += 1
        return self.engine.run(*arguments)

    def close(self):
        self.engine.close()


def test_files_changed_since_the_session_was_opened_are_refused(artifact, batches):
    with Session(artifact.path, threads=2) as session:
        session.run(batches[0])
        content = bytearray(artifact.data.read_bytes())
        content[0] ^= 1
        artifact.data.unlink()  # the session has the old file mapped
        artifact.data.write_bytes(content)
        with pytest.raises(ArtifactError, match="was changed after export"):
            next(session.run_all(batches))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("good", [0, 1, 2, 3, 6])
def test_a_bad_batch_is_named_after_all_before_it_are_answered(heads, threads, good):
    """As with one thread, however many are computed at once."""
    tokens = [5] * good + [99, 5]
    with Session(heads["qa"].path, threads=threads) as session:
        answers = session.run_all({"input_ids": [[0, token, 2]]} for token in tokens)
        assert len([next(answers) for _ in range(good)]) == good
        with pytest.raises(InvalidInputError, match=r"input_ids\[0, 1\] is 99"):
            next(answers)
        assert list(answers) == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("good", [0, 1, 2, 5])
def test_batches_that_cannot_be_read_on_come_after_the_answers_too(heads, threads, good):
    def read():
        for _ in range(good):
            yield {"input_ids": [[0, 5, 2]]}
        raise OSError("the disk is gone")

    with Session(heads["qa"].path, threads=threads) as session:
        answers = session.run_all(read())
        assert len([next(answers) for _ in range(good)]) == good
        with pytest.raises(OSError, match="the disk is gone"):
            next(answers)


def test_a_closed_session_opens_no_lanes(heads, batches):
    session = Session(heads["qa"].path, threads=2)
    session.close()
    with pytest.raises(InvalidInputError, match="is closed"):
        next(session.run_all(batches))


def test_each_lane_has_one_thread_and_the_session_s_other_options(heads, batches, monkeypatch):
    opened = []
    load = erniem_rt.session.load_graph

    def spy(path, manifest, device, options, verify):
        opened.append((options.threads, options.share_weights))
        return load(path, manifest, device, options, verify)

    monkeypatch.setattr(erniem_rt.session, "load_graph", spy)
    with Session(heads["qa"].path, threads=3, share_weights=True) as session:
        list(session.run_all(batches[:2]))
    assert opened == [(3, True), (1, True)]
