"""How many threads a session and its tokenizer take, and whether those that wait use the CPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any

import onnxruntime
import pytest

import erniem_rt
from erniem_rt import InvalidInputError, Session, Tokenizer, machine
from erniem_rt.machine import default_threads


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_affinity", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def engine_options(holder: Any) -> Any:
    """onnxruntime's options of a session."""
    return holder._engine._run.__self__._session.get_session_options()


V1 = "11:memory:/user\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n"
V1_BOX = "cpu,cpuacct/docker/ab/cpu.cfs"
V2 = "0::/kubepods/pod1/box\n"
BASE = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("cgroup", "files", "count"),
    [
        (None, {}, 64),
        (V2, {}, 64),
        (V2, {"kubepods/pod1/box/cpu.max": "max 100000\n"}, 64),
        (V2, {"kubepods/pod1/box/cpu.max": "150000 100000\n"}, 2),
        (V2, {"kubepods/pod1/box/cpu.max": "50000 100000\n"}, 1),
        (V2, {"kubepods/pod1/box/cpu.max": "max 100000\n", "kubepods/pod1/cpu.max": "300000 100000\n"}, 3),
        (V2, {"kubepods/pod1/box/cpu.max": "800000 100000\n", "kubepods/cpu.max": "250000 50000\n"}, 5),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        (V2, {"cpu.max": "400000 100000\n"}, 4),  # in a container without a namespace of its own
        ("0::/../../box\n", {"box/cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "what is this\n"}, 64),
        ("0::/\n", {"cpu.max": ""}, 64),
        ("no colons\n\n", {}, 64),
        (V1, {f"{V1_BOX}_quota_us": "-1\n", f"{V1_BOX}_period_us": "100000\n"}, 64),
        (V1, {f"{V1_BOX}_quota_us": "250000\n"}, 64),
        (V1, {f"{V1_BOX}_quota_us": "250000\n", f"{V1_BOX}_period_us": "100000\n"}, 3),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "700000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 7),
        (V1 + "0::/x\n", {"unified/x/cpu.max": "900000 100000\n"}, 9),
    ],
)
def test_the_default_keeps_to_the_quota_of_every_cgroup(tmp_path, cgroup, files, count):
    if cgroup is not None:
        files = {"/proc/self/cgroup": cgroup} | files
    for name, content in files.items():
        path = tmp_path / (name[1:] if name.startswith("/") else f"{BASE}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert default_threads(tmp_path, {}) == count


@pytest.mark.parametrize(
    ("value", "count"), [("3", 3), ("200", 64), (" 2 ", 2), ("4,2", 4), ("", 64), ("0", 64), ("-1", 64), ("many", 64)]
)
def test_the_default_keeps_to_omp_num_threads(tmp_path, value, count):
    assert default_threads(tmp_path, {"OMP_NUM_THREADS": value}) == count


def test_sessions_and_tokenizers_take_the_default(heads, tokenizer_dir, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with Session(heads["qa"].path) as session:
        assert session.threads == 3
        assert engine_options(session).intra_op_num_threads == 3
    tokenizer, taken = Tokenizer.from_dir(tokenizer_dir), []
    encode = tokenizer._model.encode
    monkeypatch.setattr(tokenizer._model, "encode", lambda runs, count: (taken.append(count), encode(runs, count))[1])
    tokenizer.batch(["one", "two"])
    tokenizer.batch(["one", "two"], threads=2)
    assert taken == [3, 2]
    with pytest.raises(InvalidInputError, match="threads must be an integer from 1 to 1024 or None, got 0"):
        tokenizer.batch(["one"], threads=0)


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification", "zero-shot-classification"])
def test_a_pipeline_cuts_texts_on_as_many_threads_as_its_session_has(nano_artifact, monkeypatch, task):
    artifact = nano_artifact("base" if task == "feature-extraction" else "cls")
    with erniem_rt.pipeline(task, artifact, threads=3) as pipe:
        encode, taken = pipe.tokenizer._model.encode, []
        monkeypatch.setattr(
            pipe.tokenizer._model, "encode", lambda runs, count: (taken.append(count), encode(runs, count))[1]
        )
        pipe(["one", "two"], **({"candidate_labels": ["sport"]} if "zero" in task else {}))
    assert set(taken) == {3}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity")
def test_a_process_on_one_cpu_starts_no_thread_of_the_engine(heads):
    code = f"""
import os
os.environ.pop("OMP_NUM_THREADS", None)
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import erniem_rt
with erniem_rt.Session({str(heads["qa"].path)!r}) as session:
    session.run(input_ids=[[0, 5, 2]])
    print(session.threads, len(os.listdir("/proc/self/task")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["1", "1"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("spinning", "version", "entries"),
    [
        (None, "1.31.1", {"session.intra_op.spin_duration_us": "200"}),
        (None, "1.20.2", {"session.intra_op.allow_spinning": "0"}),
        (False, "1.31.1", {"session.intra_op.allow_spinning": "0"}),
        (True, "1.31.1", {}),
    ],
)
def test_how_long_threads_without_work_spin(heads, monkeypatch, spinning, version, entries):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with Session(heads["qa"].path, threads=2, spinning=spinning) as session:
        options, found = engine_options(session), {}
        for name in ("spin_duration_us", "allow_spinning"):
            with contextlib.suppress(RuntimeError):
                found[f"session.intra_op.{name}"] = options.get_session_config_entry(f"session.intra_op.{name}")
    assert found == entries


@pytest.mark.parametrize("name", ["spinning", "shrink_memory"])
def test_options_that_are_neither_true_nor_false(heads, name):
    with pytest.raises(InvalidInputError, match=f"{name} must be True, False or None, got 'no'"):
        Session(heads["qa"].path, **{name: "no"})
