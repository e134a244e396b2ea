"""Calls in other threads: at most so many, in order, and without threads where none can be started."""

from __future__ import annotations

import threading
import time

import pytest

from erniem_rt.processes import Workers


def test_calls_run_beside_each_other_and_no_more_than_wanted():
    together, most, lock = [0], [0], threading.Lock()

    def work(number: int) -> int:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.01)
        with lock:
            together[0] -= 1
        return number

    with Workers(3) as workers:
        futures = [workers.submit(work, number) for number in range(12)]
        assert [future.result() for future in futures] == list(range(12))
    assert most == [3]


def test_leaving_waits_for_every_call_and_leaves_no_thread():
    done = []
    with Workers(2) as workers:
        for number in range(5):
            workers.submit(lambda number=number: (time.sleep(0.01), done.append(number)))
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert not [thread for thread in threading.enumerate() if thread.name == "erniem-rt"]


def test_what_a_call_raises_is_raised_where_it_is_asked_for():
    with Workers(1) as workers:
        future = workers.submit(int, "x")
        assert workers.submit(int, "5", base=10).result() == 5
        with pytest.raises(ValueError, match="invalid literal"):
            future.result()


def test_without_threads_calls_are_made_at_once(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Workers(2) as workers:
        assert [workers.submit(divmod, 7, n).result() for n in (2, 3)] == [(3, 1), (2, 1)]
        with pytest.raises(ZeroDivisionError):
            workers.submit(divmod, 7, 0).result()
