"""One pipeline in many processes: forked, spawned, in pools, pickled, and at the interpreter's end."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import erniem_rt
from erniem_rt import ArtifactError, InvalidInputError, Session, Tokenizer

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
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
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
        for _ in range(12):
            well(forked(child))
    finally:
        stop.set()
    """
    runs(script, tmp_path, cls)


def test_children_forked_during_runs_of_openvino_run_it_too(nano_artifact, tmp_path):
    """If another thread ran the model at a fork, OpenVINO waited forever in the child."""
    pytest.importorskip("openvino")
    script = """
    session = erniem_rt.Session(path, engine="openvino", threads=1, cache=False)
    long, short = [[3 + i % 40 for i in range(200)]] * 8, [[3, 4, 5]]
    expected = session.run(input_ids=short)["logits"]
    stop = threading.Event()

    def work():
        while not stop.is_set():
            session.run(input_ids=long)

    def child():
        assert (session.run(input_ids=short)["logits"] == expected).all()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    try:
        for _ in range(4):
            well(forked(child))
    finally:
        stop.set()
    """
    runs(script, tmp_path, nano_artifact("cls"))


def test_ctrl_c_during_a_fork_blocks_no_later_run(cls, tmp_path):
    """Python ignores exceptions of what runs before a fork, and forks."""
    script = """
    import ctypes
    from functools import partial

    session = erniem_rt.Session(path)
    # Runs first, as it comes last: the signal arrives when the next one starts.
    os.register_at_fork(before=partial(ctypes.CDLL(None).kill, os.getpid(), signal.SIGINT))
    try:
        pid = os.fork()
        if not pid:
            os._exit(0)
    except KeyboardInterrupt:
        pid = os.wait()[0]
    thread = threading.Thread(target=erniem_rt.Session, args=(path,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    """
    runs(script, tmp_path, cls)


def test_what_another_thread_is_at_during_a_fork_holds_no_child_up(cls, tmp_path):
    script = """
    from erniem_rt.processes import no_fork
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


def test_streams_and_batches_go_on_in_the_child_and_the_parent(cls, tmp_path):
    script = """
    pipe = erniem_rt.pipeline(path, threads=2, batch_size=2)
    expected = pipe(texts)
    stream = pipe(iter(texts))
    same([next(stream)], expected[:1])
    batches = pipe.session.run_all({"input_ids": [[0, 5, 2]]} for _ in range(9))
    next(batches)

    def child():
        same(list(stream), expected[1:])
        assert len(list(batches)) == 8

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


QUESTION = {"question": "Wo ist das Haus?", "context": "Das Haus steht am See, der Hof im Dorf."}
CHOICE = {"prompt": "Was steht am See?", "choices": ["das Haus", "der Hof"]}
TEXT = "Das Haus steht am See."
CASES = [
    ("base", None, {"pooling": "cls", "normalize": True}, TEXT, {}),
    ("cls", None, {"batch_size": 3}, TEXT, {}),
    ("cls", "zero-shot-classification", {}, TEXT, {"candidate_labels": ["Haus", "Hof"]}),
    ("ner", None, {"aggregation_strategy": "simple"}, TEXT, {}),
    ("mc", None, {}, CHOICE, {}),
    ("qa", None, {"top_k": 2, "max_seq_len": 24, "doc_stride": 8}, QUESTION, {}),
    ("ie", None, {"schema": ["Haus", {"Hof": ["See[a,b]"]}], "threshold": 0.1}, TEXT, {}),
]
LABELS = {"cls": ("contradiction", "entailment"), "ner": ("O", "B-PER", "I-PER")}


def copied(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize(("head", "task", "options", "given", "call"), CASES)
def test_a_pipeline_comes_with_its_options_and_answers(make_text_artifact, head, task, options, given, call):
    artifact = make_text_artifact(head, **({"labels": LABELS[head]} if head in LABELS else {}))
    pipe = erniem_rt.pipeline(task, artifact.path, threads=1, **{"batch_size": 5, **options})
    expected = pipe(given, **call)
    again = copied(pipe)
    pipe.close()
    assert type(again) is type(pipe)
    assert again.batch_size == pipe.batch_size != 16
    assert again.session is not pipe.session
    np.testing.assert_equal(again(given, **call), expected)
    again.close()


def test_a_session_takes_all_its_options_along(heads, monkeypatch):
    path = heads["qa"].path
    monkeypatch.chdir(path.parent)
    session = Session(path.name, threads=2, share_weights=True, verify=False)
    monkeypatch.chdir("/")
    again = copied(session)
    np.testing.assert_array_equal(*(s.run(input_ids=[[0, 5, 2]])["start_logits"] for s in (session, again)))
    assert (again._options, again._graph_options) == (session._options, session._graph_options)
    assert set(session._options) == {*inspect.signature(Session).parameters} - {"path"}
    assert again._options["verify"] is False
    assert copied(session.manifest) == session.manifest


def test_a_closed_session_and_another_artifact_are_refused(make_artifact, tmp_path):
    artifact = make_artifact("qa")
    session = Session(artifact.path)
    pickled = pickle.dumps(session)
    session.close()
    with pytest.raises(InvalidInputError, match="is closed; open it again"):
        pickle.dumps(session)
    (artifact.folder / "config.json").write_text("{}\n", "utf-8")
    artifact.rehash()
    with pytest.raises(ArtifactError, match="is not the artifact of the pickled session"):
        pickle.loads(pickled)
    shutil.rmtree(artifact.folder)
    with pytest.raises(ArtifactError, match="is missing"):
        pickle.loads(pickled)


def test_a_tokenizer_and_its_results_need_no_file(tokenizer_dir, tmp_path, sentences):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_dir, folder)
    tokenizer = Tokenizer.from_dir(folder)
    shutil.rmtree(folder)
    for again in (copied(tokenizer), copy.deepcopy(tokenizer)):
        assert again("a", sentences[0]) == tokenizer("a", sentences[0])
        assert again.get_vocab() == tokenizer.get_vocab()
        assert_same(again.batch(sentences, threads=2), tokenizer.batch(sentences))
    row = tokenizer(sentences[1])
    assert copied(row) == row
    for pairs in (None, sentences[::-1]):
        rows = tokenizer.batch([*sentences[:-1], "x [MASK] y"], pairs, truncation="longest_first", max_length=20)
        assert_same(copied(rows), rows)
        assert len(pickle.dumps(rows)) < 100_000  # without the model


def assert_same(found, expected):
    for name in ("input_ids", "attention_mask", "offsets", "text_sizes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.encodings == expected.encodings


@pytest.mark.parametrize("kind", ["InvalidInputError", "ArtifactError", "EngineUnavailableError", "EngineError"])
def test_errors_cross_processes(kind):
    error = copied(getattr(erniem_rt, kind)("what to do"))
    assert (type(error).__name__, str(error)) == (kind, "what to do")


PROGRAM = """
import atexit, sys, threading
import erniem_rt

path, when = sys.argv[1:]
texts = [f"{i} Haus und Hof" for i in range(40)]
kept = erniem_rt.pipeline(path, threads=2, batch_size=4)
expected = kept(texts)
batches = kept.session.run_all({"input_ids": [[0, 5, 2]]} for _ in range(9))
next(batches)  # and left so: no thread that waits may keep the interpreter from ending

def late():
    assert kept(texts) == expected
    with erniem_rt.pipeline(path, threads=2, batch_size=4) as pipe:
        assert pipe(texts) == expected
        assert pipe.tokenizer.batch(texts, threads=2).input_ids.shape[0] == 40
    erniem_rt.Session(path, threads=2).close()
    print("done", flush=True)

def after_main():
    threading.main_thread().join()
    late()

if when == "atexit":
    atexit.register(late)
elif when == "thread":
    threading.Thread(target=after_main).start()
else:
    late()
"""


@pytest.mark.parametrize("when", ["now", "thread", "atexit"])
def test_it_answers_to_the_end(make_text_artifact, when):
    path = make_text_artifact("cls", labels=("good", "bad")).path
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), when], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
