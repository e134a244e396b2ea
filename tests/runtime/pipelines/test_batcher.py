"""Many callers, one pipeline: what runs together and what does not, and the answers of the pipeline for each."""

from __future__ import annotations

import asyncio
import gc
import pickle
import random
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

import erniem_rt
from erniem_rt import Batcher, EngineError, InvalidInputError, QueueFullError
from erniem_rt.pipelines.base import Options, Pipeline

WAIT = 20


class Gated(Pipeline):
    """Answers a text with itself in capitals, once the test lets it; a batch with "boom" fails, "bad" is an error."""

    task = "gated"

    def __init__(self, threads: int = 2, open_gate: bool = False, **of_session: str) -> None:
        self._options = Options()
        self.session = session(threads)
        vars(self.session).update(of_session)
        self.runs: list[tuple[int, list, dict]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(10_000 if open_gate else 0)

    def options_for(self, options):
        return self._options.changed({name: value for name, value in options.items() if name != "style"})

    def __call__(self, inputs, *, errors, read_ahead, **options):
        items = list(inputs)
        self.runs.append((self.session.threads, items, options))
        self.entered.release()
        assert self.gate.acquire(timeout=WAIT)
        if "boom" in items:
            raise EngineError("out of memory")
        return iter([InvalidInputError("text is bad.") if item == "bad" else item.upper() for item in items])

    def has_run(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.entered.acquire(timeout=WAIT)

    @property
    def batches(self) -> list[list]:
        return [items for _, items, _ in self.runs]


def session(threads: int) -> SimpleNamespace:
    return SimpleNamespace(
        device="cpu", engine="onnxruntime", threads=threads, with_threads=session, close=lambda: None
    )


def test_each_caller_gets_the_answer_to_its_own_request():
    batcher = Batcher(Gated(open_gate=True))
    texts = [f"text {i}" for i in range(200)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(batcher, texts)) == [text.upper() for text in texts]
        lists = list(pool.map(batcher, [texts[i : i + i % 5] for i in range(100)]))
    assert lists == [[text.upper() for text in texts[i : i + i % 5]] for i in range(100)]
    batcher.close()
    assert sum(size * count for size, count in batcher.stats.batch_sizes.items()) == batcher.stats.answered == 300


def test_a_worker_takes_what_is_queued_when_it_is_free():
    gated = Gated()
    with Batcher(gated, workers=1, max_batch=4) as batcher:
        first = batcher.submit("a")
        gated.has_run()
        others = [batcher.submit(text) for text in "bcdefg"]
        assert batcher.stats.waiting == 6
        gated.gate.release(3)
        assert [future.result(WAIT) for future in (first, *others)] == [*"ABCDEFG"]
    assert gated.batches == [["a"], [*"bcde"], [*"fg"]]
    assert batcher.stats.batch_sizes == {1: 1, 2: 1, 4: 1}


def test_a_request_alone_gets_all_threads_and_several_get_one_each():
    gated = Gated(threads=2)
    with Batcher(gated) as batcher:
        assert batcher.workers == 2
        futures = [batcher.submit("alone")]
        gated.has_run()
        futures.append(batcher.submit("beside"))
        gated.has_run()
        futures.append(batcher.submit("then"))
        gated.gate.release(9)
        for future in futures:
            future.result(WAIT)
        assert batcher("again") == "AGAIN"
    assert [threads for threads, _, _ in gated.runs] == [2, 1, 1, 2]
    assert gated.batches == [["alone"], ["beside"], ["then"], ["again"]]


def test_a_worker_takes_its_share_of_the_queue_and_leaves_the_rest_to_the_others():
    gated = Gated(threads=2)
    with Batcher(gated, max_batch=4) as batcher:
        futures = [batcher.submit("a"), batcher.submit("b")]
        gated.has_run(2)
        futures += [batcher.submit(text) for text in "cdefghijkl"]
        for _ in range(4):  # one worker after the other is free
            gated.gate.release()
            gated.has_run()
        gated.gate.release(9)
        assert [future.result(WAIT) for future in futures] == [*"ABCDEFGHIJKL"]
    assert gated.batches == [["a"], ["b"], [*"cdef"], [*"ghi"], [*"jk"], ["l"]]


@pytest.mark.parametrize(
    ("of_session", "workers", "first"), [({"engine": "openvino"}, 1, "a"), ({"device": "cuda:0"}, 2, "ab")]
)
def test_a_worker_takes_all_where_batches_are_computed_in_turn(of_session, workers, first):
    gated = Gated(threads=4, **of_session)
    with Batcher(gated, max_batch=8) as batcher:
        assert batcher.workers == workers
        futures = [batcher.submit(text) for text in first]
        gated.has_run(workers)
        futures += [batcher.submit(text) for text in "cdefghijkl"]
        gated.gate.release(9)
        assert [future.result(WAIT) for future in futures] == [*first.upper(), *"CDEFGHIJKL"]
    assert {threads for threads, _, _ in gated.runs} == {4}
    assert sorted(gated.batches) == [*map(list, first), [*"cdefghij"], [*"kl"]]


def test_a_busy_batcher_keeps_nothing_but_the_requests_that_wait():
    def futures_alive() -> int:
        return sum(type(one) is Future for one in gc.get_objects())

    gated = Gated()
    with Batcher(gated, workers=1, max_batch=4) as batcher:
        futures = [batcher.submit("first")]
        gated.has_run()
        before = futures_alive()
        futures += [batcher.submit(str(number)) for number in range(100)]
        after = futures_alive()
        gated.gate.release(100)
        assert [future.result(WAIT) for future in futures[1:]] == [str(number) for number in range(100)]
    assert after <= before + 100  # one each, less what the garbage collector frees meanwhile


def test_one_client_has_all_threads_in_each_request():
    gated = Gated(threads=2, open_gate=True)
    with Batcher(gated) as batcher:
        for number in range(200):
            assert batcher.submit(str(number)).result(WAIT) == str(number)
        started = threading.active_count()
        gated.runs.clear()
        for number in range(200):
            assert batcher(str(number)) == str(number)
        assert threading.active_count() <= started  # such a call needs no other thread
    assert {threads for threads, _, _ in gated.runs} == {2}


def test_no_more_batches_run_than_there_are_workers():
    gated = Gated()
    with Batcher(gated, workers=2) as batcher, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(batcher, "a"), pool.submit(batcher, "b")]
        gated.has_run(2)
        calls += [pool.submit(batcher, text) for text in "cd"]
        futures = [batcher.submit(text) for text in "ef"]
        assert not gated.entered.acquire(timeout=0.1)
        assert batcher.stats.running == 2
        closing = threading.Thread(target=batcher.close)
        closing.start()
        gated.gate.release(9)
        closing.join(WAIT)
        assert [future.result(WAIT) for future in (*calls[:2], *futures)] == [*"ABEF"]
    assert batcher.stats.running == 0


@pytest.mark.parametrize(("threads", "workers"), [(2, 1), (1, 2)])
def test_one_session_is_enough_for_one_worker_or_one_thread(threads, workers):
    gated = Gated(threads, open_gate=True)
    gated.session.with_threads = None
    with Batcher(gated, workers=workers) as batcher:
        assert batcher(["a", "b"]) == ["A", "B"]


def test_other_options_never_share_a_batch():
    gated = Gated()
    styles = [None, {"style": 1}, {"style": True}, {"style": ["a"]}, {"style": "a"}, {"style": object()}]
    with Batcher(gated, workers=1) as batcher:
        futures = [batcher.submit("first")]
        gated.has_run()
        for i in range(12):
            futures.append(batcher.submit(str(i), **(styles[i % 6] or {})))
        futures.append(batcher.submit("list", style=["a"]))
        gated.gate.release(20)
        for future in futures:
            future.result(WAIT)
    _, *rest = gated.runs
    assert [items for _, items, _ in rest] == [
        ["0", "6"],
        ["1", "7"],
        ["2", "8"],
        ["3", "9", "list"],
        ["4", "10"],
        ["5", "11"],
    ]
    assert [options for _, _, options in rest] == [style or {} for style in styles]


def test_a_large_request_runs_alone_and_others_do_not_wait_for_it_twice():
    gated = Gated()
    with Batcher(gated, workers=1, max_batch=3) as batcher:
        futures = [batcher.submit("first")]
        gated.has_run()
        futures += [batcher.submit(inputs) for inputs in (["a", "b"], [*"12345"], "c", "d")]
        gated.gate.release(9)
        assert futures[2].result(WAIT) == [*"12345"]
        assert [futures[i].result(WAIT) for i in (1, 3, 4)] == [["A", "B"], "C", "D"]
    assert gated.batches == [["first"], ["a", "b", "c"], [*"12345"], ["d"]]


def test_an_error_reaches_its_own_caller_only():
    gated = Gated()
    with Batcher(gated, workers=1) as batcher:
        futures = [batcher.submit("first")]
        gated.has_run()
        wanted = ["a", "bad", ["b", "bad"], "boom", "bad", ["c"]]
        futures = [batcher.submit(inputs) for inputs in wanted]
        returned = batcher.submit(["bad", "d"], errors="return")
        gated.gate.release(99)
        assert futures[0].result(WAIT) == "A"
        assert futures[5].result(WAIT) == ["C"]
        failures = [future.exception(WAIT) for future in futures[1:5]]
        found = returned.result(WAIT)
    assert [(type(error), str(error)) for error in failures] == [
        (InvalidInputError, "text is bad."),
        (InvalidInputError, "input 1: text is bad."),
        (EngineError, "out of memory"),
        (InvalidInputError, "text is bad."),
    ]
    assert failures[0] is not failures[3]
    assert isinstance(found[0], InvalidInputError)
    assert found[1] == "D"
    assert (batcher.stats.answered, batcher.stats.failed) == (4, 4)


def test_a_full_queue_is_one_clear_error_and_the_others_are_answered():
    gated = Gated()
    with Batcher(gated, workers=1, max_queue=3) as batcher:
        taken = [batcher.submit("first")]
        gated.has_run()
        taken += [batcher.submit(inputs) for inputs in ("a", ["b", "c"])]
        with pytest.raises(QueueFullError, match=r"3 rows wait .* this request has 1; the queue takes 3: try again"):
            batcher("d")
        gated.gate.release(9)
        assert [future.result(WAIT) for future in taken] == ["FIRST", "A", ["B", "C"]]
        assert batcher("d") == "D"
    assert batcher.stats.refused == 1


def test_limits_of_a_request():
    with Batcher(Gated(open_gate=True), max_items=3, max_characters=10) as batcher:
        assert batcher(["abc", "def", "ghij"]) == ["ABC", "DEF", "GHIJ"]
        with pytest.raises(InvalidInputError, match="more rows of the model than max_items=3: it has 4 inputs"):
            batcher(["a"] * 4)
        with pytest.raises(InvalidInputError, match="has 11 characters, more than max_characters=10"):
            batcher(["abc", "def", "ghijk"])
        with pytest.raises(InvalidInputError, match="has 12 characters"):
            batcher("a", style=["bcdef", {"ghi": "jkl"}])
        with pytest.raises(InvalidInputError, match="one input or a list; pass a list"):
            batcher(iter(["a"]))
        with pytest.raises(InvalidInputError, match="takes no progress"):
            batcher("a", progress=print)
        deep: list = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(InvalidInputError, match="nested too deeply"):
            batcher("a", style=deep)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"workers": 0}, "workers must be an integer of at least 1, got 0"),
        ({"max_batch": "16"}, "max_batch must be an integer of at least 1, got '16'"),
        ({"max_queue": 0}, "max_queue must be an integer"),
        ({"max_queue": 4, "max_items": 5}, "max_items is 5, more than max_queue=4"),
        ({"max_characters": True}, "max_characters must be an integer"),
    ],
)
def test_options_that_are_none(options, told):
    with pytest.raises(InvalidInputError, match=told):
        Batcher(Gated(), **options)


def test_calls_that_are_there_at_once_run_together():
    gated = Gated(open_gate=True)
    with Batcher(gated, workers=1, max_items=4) as batcher:
        futures = batcher.submit_all([("a", {}), (["b", "bad"], {}), (["c"] * 5, {}), ("d", {"style": 1}), (["e"], {})])
        assert [futures[i].result(WAIT) for i in (0, 3, 4)] == ["A", "D", ["E"]]
        assert str(futures[1].exception(WAIT)) == "input 1: text is bad."
        assert "max_items=4" in str(futures[2].exception(WAIT))
    assert gated.batches == [["a", "b", "bad", "e"], ["d"]]


def test_only_a_pipeline_will_do():
    with pytest.raises(InvalidInputError, match="pipeline must be a pipeline, like"):
        Batcher("out/qa")


def test_closing_answers_what_was_taken_and_refuses_the_rest():
    gated = Gated()
    batcher = Batcher(gated, workers=1)
    futures = [batcher.submit("a")]
    gated.has_run()
    futures += [batcher.submit(text) for text in "bc"]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gated.gate.release(9)
    closing.join(WAIT)
    assert [future.result(0) for future in futures] == ["A", "B", "C"]
    with pytest.raises(InvalidInputError, match="the batcher is closed; make a new one"):
        batcher("d")
    batcher.close()


def test_a_cancelled_request_is_not_run():
    gated = Gated()
    with Batcher(gated, workers=1, max_queue=2) as batcher:
        first = batcher.submit("first")
        gated.has_run()
        gone, kept = batcher.submit("gone"), batcher.submit("kept")
        assert gone.cancel()
        gated.gate.release(9)
        assert (first.result(WAIT), kept.result(WAIT)) == ("FIRST", "KEPT")
        with pytest.raises(CancelledError):
            gone.result(0)
        assert batcher(["again", "twice"]) == ["AGAIN", "TWICE"]
    assert gated.batches == [["first"], ["kept"], ["again", "twice"]]
    assert batcher.stats.cancelled == 1


def test_coroutines_run_together_too():
    gated = Gated()

    async def main() -> list:
        tasks = [asyncio.create_task(batcher.answer("first"))]
        await asyncio.to_thread(gated.has_run)
        tasks += [asyncio.create_task(batcher.answer(text)) for text in ("a", "bad", "gone", "b")]
        await asyncio.sleep(0)
        tasks[3].cancel()
        await asyncio.sleep(0)
        gated.gate.release(9)
        return await asyncio.gather(*tasks, return_exceptions=True)

    with Batcher(gated, workers=1) as batcher:
        first, a, bad, gone, b = asyncio.run(main())
    assert (first, a, b) == ("FIRST", "A", "B")
    assert str(bad) == "text is bad."
    assert isinstance(gone, asyncio.CancelledError)
    assert gated.batches == [["first"], ["a", "bad", "b"]]


def test_nothing_is_left_when_the_last_reference_goes():
    gated = Gated(open_gate=True)
    batcher = Batcher(gated)
    assert batcher(["a"]) == ["A"]
    batcher._workers.wait()
    gone = weakref.ref(batcher)
    gc.disable()
    try:
        del batcher
        assert gone() is None
    finally:
        gc.enable()
    assert not [thread for thread in threading.enumerate() if thread.name == "erniem-rt"]


TASKS = {
    "qa": ({"question": "{} Wo wohnt sie?", "context": "Johanna {} wohnt in Leipzig."}, {"top_k": 2}),
    "cls": ("Clara {} founded it in 1998.", {"top_k": None}),
    "ner": ("Fiona {} left Denver on 4 March 2003.", {"aggregation_strategy": "simple"}),
    "ie": ("Samuel {} founded Beacon Energy in 1969.", {"schema": ["Person", {"Organization": ["Founder"]}]}),
    "mc": ({"prompt": "Rachel {} was born in Galway. Where?", "choices": ["Sydney {}", "Galway"]}, {}),
    "base": ("Elena {} nació en Granada.", {"pooling": "cls"}),
}


def filled(template, words: str):
    if isinstance(template, dict):
        return {name: filled(value, words) for name, value in template.items()}
    return [filled(one, words) for one in template] if isinstance(template, list) else template.format(words)


def same(found, expected) -> bool:
    """Whether two answers are equal, to the last bit of each score."""
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("head", TASKS)
def test_answers_are_those_of_the_pipeline(nano_artifact, head):
    template, options = TASKS[head]
    rng = random.Random(3)
    inputs = [filled(template, f"{i} " + "und Haus " * rng.randrange(12)) for i in range(40)]
    with erniem_rt.pipeline(nano_artifact(head), threads=1) as pipeline:
        batches = recorded(pipeline)
        with Batcher(pipeline, workers=2) as batcher:
            # Alone: the bits of the same call, for one input and a list, with options and without.
            given = options if "schema" in options else {}
            for call in (inputs[0], inputs[:3], inputs[:1], []):
                for asked in (options, given):
                    assert same(batcher(call, **asked), pipeline(call, **asked))
            with pytest.raises(InvalidInputError) as raised:
                batcher([inputs[0], 7], **options)
            with pytest.raises(InvalidInputError) as expected:
                pipeline([inputs[0], 7], **options)
            assert str(raised.value) == str(expected.value)
            # Together: the bits of a call with the list of all that ran together.
            batches.clear()
            with ThreadPoolExecutor(16) as pool:
                found = list(pool.map(lambda one: batcher([one], **options), inputs))
        ran = [item for items, _ in batches for item in items]
        assert sorted(map(str, ran)) == sorted(map(str, inputs))
        for items, answers in batches:
            expected = pipeline(items, **options)
            for item, answer, other in zip(items, answers, expected, strict=True):
                assert same(found[inputs.index(item)][0], answer)
                assert same(answer, other)


def recorded(pipeline) -> list:
    """The inputs and answers of each call of ``pipeline`` with a stream, as it comes."""
    batches = []

    class Recorded(type(pipeline)):
        def __call__(self, inputs, **options):
            if not hasattr(inputs, "__next__"):
                return super().__call__(inputs, **options)
            items = list(inputs)
            answers = list(super().__call__(iter(items), **options))
            batches.append((items, answers))
            return iter(answers)

    pipeline.__class__ = Recorded
    return batches


def test_zero_shot_counts_a_row_for_each_label(nano_artifact):
    pipeline = erniem_rt.pipeline("zero-shot-classification", nano_artifact("cls"), threads=1)
    labels = ["politics", "sports", "food"]
    with pipeline, Batcher(pipeline, max_items=6) as batcher:
        expected = pipeline("A tennis final.", labels)
        assert batcher("A tennis final.", candidate_labels=labels) == expected
        assert batcher("A tennis final.", candidate_labels="politics, sports, food") == expected
        for too_many in ({"candidate_labels": labels}, {"candidate_labels": "politics, sports, food"}):
            with pytest.raises(InvalidInputError, match="more rows of the model than max_items=6: it has 3 inputs"):
                batcher(["a", "b", "c"], **too_many)
        with pytest.raises(InvalidInputError, match="needs candidate_labels"):
            batcher("A tennis final.")
        with pytest.raises(InvalidInputError, match="takes no option 'schema'"):
            batcher("A tennis final.", schema=["Person"])


def test_question_and_context_by_name(nano_artifact):
    asked = {"question": "Who founded it?", "context": "Clara Bennett founded it in 1998."}
    with erniem_rt.pipeline(nano_artifact("qa"), threads=1) as pipeline, Batcher(pipeline) as batcher:
        assert batcher(**asked) == pipeline(**asked)
        assert batcher(**asked, top_k=2) == pipeline(**asked, top_k=2)
        with pytest.raises(InvalidInputError, match="context is missing"):
            batcher(question="Who?")


def test_two_sessions_give_the_answers_of_one(nano_artifact):
    texts = [f"Haus und Hof {i}" for i in range(60)]
    with erniem_rt.pipeline(nano_artifact("cls"), threads=2) as pipeline:
        expected = pipeline(texts)
        with Batcher(pipeline) as batcher, ThreadPoolExecutor(8) as pool:
            found = [answer for (answer,) in pool.map(batcher, texts)]
            beside = batcher._beside.session
            assert (beside.threads, beside.engine, beside.path) == (1, "onnxruntime", pipeline.session.path)
        for one, other in zip(found, expected, strict=True):
            assert one["label"] == other["label"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert pipeline(texts[:1])  # it stays open
        with pytest.raises(InvalidInputError, match="is closed"):
            beside.run(input_ids=[[0, 5, 2]])


def test_a_second_session_refuses_files_that_were_replaced(make_text_artifact):
    artifact = make_text_artifact("cls", labels=("a", "b", "c", "d"))
    with erniem_rt.pipeline(artifact.path, threads=2) as pipeline:
        data = artifact.path.with_suffix(".onnx.data")
        content = bytearray((data if data.exists() else artifact.path).read_bytes())
        content[-1] ^= 1
        data = data if data.exists() else artifact.path
        data.unlink()
        data.write_bytes(content)
        with pytest.raises(erniem_rt.ArtifactError):
            Batcher(pipeline)


def test_a_pickle_holds_the_pipeline_and_the_options(nano_artifact):
    with erniem_rt.pipeline(nano_artifact("cls"), threads=1, top_k=2) as pipeline:
        with Batcher(pipeline, workers=3, max_queue=7) as batcher:
            restored = pickle.loads(pickle.dumps(batcher))
            assert (restored.workers, restored.max_queue, restored.max_items) == (3, 7, 7)
            assert restored("Haus und Hof") == batcher("Haus und Hof")
        with pytest.raises(InvalidInputError, match="the batcher is closed"):
            pickle.dumps(batcher)
    restored.close()
    restored.pipeline.close()


FORK = """
import os, sys, threading, time, warnings
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
import erniem_rt
batcher = erniem_rt.Batcher(erniem_rt.pipeline(sys.argv[1], threads=2))
expected = batcher("Haus und Hof")
going = threading.Event()
def keep_busy():
    while not going.is_set():
        assert batcher(["Haus und Hof"] * 8)
threads = [threading.Thread(target=keep_busy) for _ in range(4)]
[thread.start() for thread in threads]
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        assert batcher.stats.waiting == batcher.stats.answered == 0
        found = [batcher.submit("Haus und Hof") for _ in range(8)]
        assert all(future.result(20)[0]["label"] == expected[0]["label"] for future in found)
        batcher.close()
        sys.exit(0)
    until = time.monotonic() + 30
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            break
        assert time.monotonic() < until, "a child never ended"
        time.sleep(0.01)
going.set()
[thread.join() for thread in threads]
assert batcher("Haus und Hof")[0]["label"] == expected[0]["label"]
futures = [batcher.submit("Haus und Hof") for _ in range(50)]
import atexit
atexit.register(lambda: print(sum(future.done() for future in futures)))
"""


def test_forked_children_and_the_end_of_the_interpreter(nano_artifact):
    command = [sys.executable, "-W", "error", "-c", FORK, str(nano_artifact("cls"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "50\n", "")
