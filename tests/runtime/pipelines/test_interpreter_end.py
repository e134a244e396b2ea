"""Answers when the program is at its end: in a thread that outlives the main one, and in functions of atexit."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
