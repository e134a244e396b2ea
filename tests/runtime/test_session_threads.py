"""One session, many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from erniem_rt import InvalidInputError, Session


@pytest.mark.parametrize("head", ["qa", "mc"])
def test_eight_threads_get_the_serial_results_to_the_last_bit(heads, head):
    rng = np.random.default_rng(3)
    lead = (2,) if head == "mc" else ()
    batches = [rng.integers(0, 50, (*(rng.integers(1, 9),), *lead, rng.integers(1, 17))) for _ in range(160)]
    start = threading.Barrier(8)
    with Session(heads[head].path, threads=1) as session:
        serial = [session.run(input_ids=ids) for ids in batches]

        def work(first: int) -> dict[int, dict[str, np.ndarray]]:
            start.wait()
            return {i: session.run(input_ids=batches[i]) for i in range(first, len(batches), 8)}

        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(work, range(8)))
    together = {i: out for part in parts for i, out in part.items()}
    assert len(together) == len(batches)
    for i, expected in enumerate(serial):
        for name, values in expected.items():
            np.testing.assert_array_equal(together[i][name], values)


def test_a_bad_batch_disturbs_no_other_thread(heads):
    with Session(heads["qa"].path) as session, ThreadPoolExecutor(8) as pool:
        expected = session.run(input_ids=[[0, 5, 2]])["start_logits"]
        jobs = [pool.submit(session.run, {"input_ids": [[0, 99 if i % 2 else 5, 2]]}) for i in range(40)]
        for i, job in enumerate(jobs):
            if i % 2:
                assert isinstance(job.exception(), InvalidInputError)
            else:
                np.testing.assert_array_equal(job.result()["start_logits"], expected)


def test_closing_lets_runs_finish_and_refuses_new_ones(heads):
    session = Session(heads["qa"].path)

    def work() -> str:
        while True:
            try:
                assert session.run(input_ids=[[0, 5, 2]])["start_logits"].shape == (1, 3)
            except InvalidInputError as error:
                return str(error)
            running.set()

    running = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(work) for _ in range(4)]
        assert running.wait(10)
        session.close()
        assert all("is closed; open" in job.result(10) for job in jobs)
