"""One pipeline, many processes: forked, spawned, in pools. Each child answers, on all threads, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

# ``forked(work)`` makes a child that does ``work`` and then ends as programs do; ``well(pid)`` is that it did.
HEAD = """
import multiprocessing, os, random, signal, sys, threading, time, warnings
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # 3.12 on, of a process with threads
import erniem_rt

def forked(work):
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except Exception as error:
        print(type(error).__name__, error, file=sys.stderr)
        sys.exit(3)
    sys.exit(0)

def well(pid):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise SystemExit("a child never ended")

def same(found, expected):
    found, expected = ([a[0] if isinstance(a, list) else a for a in answers] for answers in (found, expected))
    # Batches of other shapes round otherwise.
    assert [a["label"] for a in found] == [b["label"] for b in expected]
    assert all(abs(a["score"] - b["score"]) < 1e-5 for a, b in zip(found, expected)), (found, expected)

path = sys.argv[1]
texts = [f"{i} Haus und Hof " * (1 + i % 5) for i in range(40)]
"""


def runs(script: str, folder: Path, *arguments: object) -> str:
    """What a program says that ends with 0."""
    file = folder / "program.py"
    file.write_text(HEAD + textwrap.dedent(script), "utf-8")
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, str(file), *map(str, arguments)], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def cls(make_text_artifact) -> Path:
    return make_text_artifact("cls", labels=("good", "bad")).path


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_forked_child_answers_with_all_threads_and_ends(cls, tmp_path, threads, closed):
    script = """
    threads, closed = int(sys.argv[2]), sys.argv[3] == "True"
    pipe = erniem_rt.pipeline(path, threads=threads)
    expected = pipe(texts)

    def child():
        same([pipe(texts[0])], expected[:1])
        if os.path.exists("/proc/self/task"):
            assert len(os.listdir("/proc/self/task")) >= threads, os.listdir("/proc/self/task")
        same(pipe(texts), expected)
        well(forked(lambda: pipe(texts[1])))

    for _ in range(3):
        well(forked(child))
    if closed:
        pipe.close()
        well(forked(lambda: None))
        well(forked(lambda: sys.exit(1 if not refused() else 0)))
    else:
        well(forked(pipe.close))
        well(forked(lambda: None))
        same(pipe(texts), expected)
    """
    refused = """
    def refused():
        try:
            pipe(texts)
        except erniem_rt.InvalidInputError as error:
            return "is closed" in str(error)
    """
    runs(textwrap.dedent(refused) + textwrap.dedent(script), tmp_path, cls, threads, closed)


def test_children_forked_while_other_threads_run_answer_too(cls, tmp_path):
    """At a fork those threads hold locks: of the tokenizer, of sessions, of the engine."""
    script = """
    pipe = erniem_rt.pipeline(path, threads=2)
    expected = pipe(texts)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            pipe(random.sample(texts, 10) + ["".join(random.choices("abcdefgh ijklmnop", k=9)) + "a"])
            erniem_rt.pipeline(path, threads=2).close()

    def child():
        same(pipe(texts + ["ein neues Wort " + chr(random.randrange(0x400, 0x450))])[:-1], expected)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            well(forked(child))
    finally:
        stop.set()
    """
    runs(script, tmp_path, cls)


def test_what_another_thread_is_at_during_a_fork_holds_no_child_up(cls, tmp_path):
    script = """
    from erniem_rt._processes import no_fork
    pipe = erniem_rt.pipeline(path, threads=2)
    expected = pipe(texts)
    reached, finish = threading.Event(), threading.Event()

    def located():
        reached.set()
        finish.wait()
        return []

    text = pipe.tokenizer._tokenized(texts[0])
    text._locate = located

    def learn():
        with pipe.tokenizer._table._lock:
            located()

    def open_session():
        with no_fork():
            threading.Timer(0.3, finish.set).start()
            located()

    def child():
        assert pipe.tokenizer(texts[1]).offsets
        same(pipe([*texts, "ein neues Wort"])[:-1], expected)

    for work in (lambda: text.offsets, learn, open_session):
        reached.clear()
        finish.clear()
        thread = threading.Thread(target=work)
        thread.start()
        reached.wait()
        pid = forked(child)
        assert finish.is_set() == (work is open_session)  # that fork waited, the others did not
        finish.set()
        thread.join()
        well(pid)
    """
    runs(script, tmp_path, cls)


def test_a_stream_goes_on_in_the_child_and_batches_under_way_do_not(cls, tmp_path):
    script = """
    pipe = erniem_rt.pipeline(path, threads=2, batch_size=2)
    expected = pipe(texts)
    stream = pipe(iter(texts))
    same([next(stream)], expected[:1])
    batches = pipe.session.run_all({"input_ids": [[0, 5, 2]]} for _ in range(9))
    next(batches)

    def child():
        same(list(stream), expected[1:])
        try:
            next(batches)
        except erniem_rt.ErnieMError as error:
            assert "forked while run_all was under way" in str(error), error
        else:
            raise AssertionError("it went on")

    well(forked(child))
    assert len(list(batches)) == 8
    same(list(stream), expected[1:])
    """
    runs(script, tmp_path, cls)


def test_a_child_opens_the_same_files_wherever_it_works(cls, tmp_path):
    script = """
    import shutil
    os.chdir(os.path.dirname(path))
    pipe = erniem_rt.pipeline(os.path.basename(path), verify=False)
    expected = pipe(texts)

    def elsewhere():
        os.chdir("/")
        same(pipe(texts), expected)

    def refused():
        try:
            pipe(texts)
        except erniem_rt.ArtifactError as error:
            assert "not those that this session was opened on" in str(error), error
        else:
            raise AssertionError("answered by other files")

    well(forked(elsewhere))
    os.utime(path)
    well(forked(elsewhere))  # written anew, with the same content
    content = bytearray(open(path, "rb").read())
    content[len(content) // 2] ^= 1
    open("new", "wb").write(content)
    os.replace("new", path)
    well(forked(refused))
    """
    runs(script, tmp_path, cls)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_and_processes_take_a_pipeline(cls, tmp_path, method):
    script = """
    def keep(given):
        global pipe
        pipe = given

    def answer(text):
        return pipe(text)

    def answer_with(given, text, queue):
        queue.put(given(text))

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[2])
        mine = erniem_rt.pipeline(path, threads=2)
        expected = mine(texts)
        with context.Pool(2, keep, (mine,), maxtasksperchild=10) as pool:
            same(pool.map(answer, texts, chunksize=2), expected)
            pool.close()
            pool.join()
        queue = context.SimpleQueue()
        process = context.Process(target=answer_with, args=(mine, texts[0], queue))
        process.start()
        same([queue.get()], expected[:1])
        process.join(20)
        assert process.exitcode == 0, process.exitcode
    """
    runs(script, tmp_path, cls, method)
