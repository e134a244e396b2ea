"""``erniem_rt.ray`` on a local cluster: datasets of every batch format, a killed worker, Ray Serve."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import erniem_rt
from erniem_rt.ray import Predictor, application, build

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "serving.md").read_text("utf-8")
CURL = re.findall(r"^```bash\n(curl .*?)^```\n\n```console\n(.*?)^```\n", DOCUMENT, re.MULTILINE | re.DOTALL)
TEXTS = ["Clara Bennett was born in 1971.", None, "Lakeside Motors is based in Denver, near Redwood Media.", " "]
PLAIN = [TEXTS[0], TEXTS[2], TEXTS[0], TEXTS[2]]
# The columns and the options of each model, and the fields that become columns; none: JSON.
ASKED = {
    "qa": ({"question": TEXTS, "context": PLAIN}, {}, ["answer", "score", "start", "end"]),
    "qa, two": ({"question": TEXTS, "context": PLAIN}, {"top_k": 2}, []),
    "cls": ({"text": TEXTS, "text_pair": PLAIN}, {}, ["label", "score"]),
    "cls, all": ({"text": TEXTS}, {"top_k": None}, []),
    "ner": ({"text": TEXTS}, {"aggregation_strategy": "simple"}, []),
    "ie": ({"text": TEXTS}, {"schema": ["Person", {"Organization": ["Headquarters"]}]}, []),
    "mc": ({"prompt": TEXTS, "choices": [["1971", "Denver"]] * 4}, {}, ["answer", "index", "scores"]),
    "base": ({"text": TEXTS}, {"normalize": True}, ["embedding"]),
    "nli": (
        {"text": TEXTS},
        {"task": "zero-shot-classification", "candidate_labels": ["a", "b"]},
        ["labels", "scores"],
    ),
}
KINDS = ("numpy", "pandas", "pyarrow")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=3, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


def folder_of(nano_artifact, name):
    return nano_artifact("cls" if name == "nli" else name.partition(",")[0]).parent


def batch_of(kind, columns):
    """A batch as Ray gives it to the class."""
    import pyarrow

    table = pyarrow.table({**columns, "id": list(range(4))})
    if kind == "pyarrow":
        return table
    if kind == "pandas":
        return table.to_pandas()
    return {name: table[name].to_numpy() for name in table.column_names}


def rows_of(kind, batch):
    """A batch's rows, with None for every missing value."""
    if kind == "pyarrow":
        return batch.to_pylist()
    if kind == "pandas":
        batch = {name: batch[name].tolist() for name in batch.columns}
    return [dict(zip(batch, map(plain, row), strict=True)) for row in zip(*batch.values(), strict=True)]


def plain(value):
    if isinstance(value, np.ndarray):
        return None if value.dtype.kind == "f" and np.isnan(value).all() else value.tolist()
    value = value.item() if isinstance(value, np.generic) else value
    return None if type(value).__name__ == "NAType" or value != value else value


@pytest.mark.parametrize("name", ASKED)
def test_a_batch_of_each_kind_gets_columns_of_answers(nano_artifact, name):
    columns, options, fields = ASKED[name]
    with erniem_rt.pipeline(options.get("task"), folder_of(nano_artifact, name)) as pipeline:
        calls = {key: value for key, value in options.items() if key != "task"}
        expected = pipeline(columns, errors="return", **calls)
    for kind in KINDS:
        given = batch_of(kind, columns)
        found = Predictor(folder_of(nano_artifact, name), **options)(given)
        assert type(found) is type(given)
        rows = rows_of(kind, found)
        assert [row["id"] for row in rows] == list(range(4))
        assert set(rows[0]) == {*columns, "id", *(fields or ["answer"]), "error"}
        for row, answer in zip(rows, expected, strict=True):
            error = str(answer) if isinstance(answer, erniem_rt.InvalidInputError) else None
            assert row["error"] == error
            if error is not None:
                assert [row[field] for field in fields or ["answer"]] == [None] * len(fields or "1")
            elif fields == ["embedding"]:
                assert row["embedding"] == answer.tolist()
            elif fields:
                assert {field: row[field] for field in fields} == {field: answer[field] for field in fields}
            else:
                assert json.loads(row["answer"]) == answer
        assert [row["error"] is None for row in rows] == [True, False, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_other_names_a_prefix_and_an_empty_batch(nano_artifact, kind):
    predictor = Predictor(folder_of(nano_artifact, "cls"), columns={"text": "body"}, prefix="our_")
    batch = batch_of(kind, {"body": TEXTS, "label": ["x"] * 4})
    rows = rows_of(kind, predictor(batch))
    assert set(rows[0]) == {"body", "label", "id", "our_label", "our_score", "our_error"}
    none = {name: values[:0] for name, values in batch.items()} if kind == "numpy" else batch[:0]
    assert rows_of(kind, predictor(none)) == []
    with pytest.raises(erniem_rt.InvalidInputError, match="has a column 'label' already: pass prefix="):
        Predictor(folder_of(nano_artifact, "cls"), columns={"text": "body"})(batch)
    with pytest.raises(erniem_rt.InvalidInputError, match="reads the column 'text'; this batch has 'body', 'label'"):
        Predictor(folder_of(nano_artifact, "cls"), prefix="our_")(batch)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"errors": "raise"}, "Predictor takes no errors"),
        ({"columns": {"question": "text"}}, "columns must name a column for each of 'text', 'text_pair'"),
        ({"batch_sise": 2}, "takes no option 'batch_sise'"),
    ],
)
def test_what_a_predictor_refuses(nano_artifact, options, told):
    with pytest.raises(erniem_rt.InvalidInputError, match=told):
        Predictor(folder_of(nano_artifact, "cls"), **options)


def test_another_batch_and_vectors_per_token_are_refused(nano_artifact):
    with pytest.raises(erniem_rt.InvalidInputError, match="pass batch_format='numpy', 'pandas' or 'pyarrow'"):
        Predictor(folder_of(nano_artifact, "cls"))(TEXTS)
    with pytest.raises(erniem_rt.InvalidInputError, match="a column needs one"):
        Predictor(folder_of(nano_artifact, "base"), pooling="none")


@pytest.mark.parametrize(("name", "kind"), [("mc", "numpy"), ("nli", "pandas"), ("base", "numpy"), ("qa", "pyarrow")])
def test_a_dataset_written_and_read(cluster, nano_artifact, tmp_path, name, kind):
    columns, options, fields = ASKED[name]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    # The first block has no error, the last has errors only.
    rows = [{**rows[i], "id": number} for number, i in enumerate((0, 2, 0, 2, 0, 1, 1, 3))]
    data = cluster.data.from_items(rows, override_num_blocks=4).map_batches(
        Predictor,
        fn_constructor_kwargs={"model": str(folder_of(nano_artifact, name)), **options},
        batch_format=kind,
        num_cpus=2,
        compute=cluster.data.ActorPoolStrategy(size=1),
    )
    data.write_parquet(str(tmp_path))
    found = sorted(cluster.data.read_parquet(str(tmp_path)).take_all(), key=lambda row: row["id"])
    assert [row["id"] for row in found] == list(range(8))
    assert [row["error"] is None for row in found] == [True] * 5 + [False] * 3
    with erniem_rt.pipeline(options.get("task"), folder_of(nano_artifact, name)) as pipeline:
        inputs = {key: [row[key] for row in rows[:5]] for key in columns}
        calls = {key: value for key, value in options.items() if key != "task"}
        for row, answer in zip(found, pipeline(inputs, **calls), strict=False):
            for field in fields:
                value = row[field] if isinstance(row[field], (str, int, float)) else list(row[field])
                expected = answer if field == "embedding" else answer[field]
                assert value == (pytest.approx(expected, abs=1e-5) if field != "labels" else expected)


class Threads:
    """Asks for the threads of a predictor in an actor."""

    def __init__(self, model):
        self._predictor = Predictor(model)

    def threads(self):
        return self._predictor._pipeline.session.threads


@pytest.mark.parametrize(("cpus", "threads"), [(2, 2), (1, 1), (0.5, 1), (0, 1)])
def test_threads_are_the_actors_cpus(cluster, nano_artifact, cpus, threads):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    kind = cluster.remote(Threads).options(num_cpus=cpus, runtime_env={"env_vars": {"OMP_NUM_THREADS": "7"}})
    actor = kind.remote(str(folder_of(nano_artifact, "cls")))
    assert cluster.get(actor.threads.remote(), timeout=120) == threads
    cluster.kill(actor)


def processes_of(parent, title):
    """The processes that ``parent`` and its children started, by their title."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if title in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            continue  # it ended

    def is_child(process):
        while process in parents and process != parent:
            process = parents[process]
        return process == parent

    return [process for process in found if is_child(process)]


@pytest.fixture
def parquet(tmp_path):
    """480 rows in ten files, some of them bad."""
    import pyarrow
    import pyarrow.parquet

    texts = [f"Fiona Kendall left Denver on {1 + row % 28} March {1900 + row}." for row in range(480)]
    texts[7], texts[300] = None, ""
    for start in range(0, 480, 48):
        table = pyarrow.table({"id": range(start, start + 48), "body": texts[start : start + 48]})
        (tmp_path / "in").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / "in" / f"{start:03}.parquet")
    return tmp_path


def example(nano_artifact, parquet, *arguments):
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "ray_parquet.py")]
    command += [str(folder_of(nano_artifact, "ner")), str(parquet / "in"), str(parquet / "out")]
    options = '{"aggregation_strategy": "simple", "batch_size": 1}'
    command += ["--columns", '{"text": "body"}', "--options", options, "--rows", "16", *arguments]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with (parquet / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)


def check_rows(parquet):
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(parquet / "out").to_pylist()
    assert sorted(row["id"] for row in rows) == list(range(480))
    for row in rows:
        if row["id"] in (7, 300):
            assert row["error"].startswith("text ")
            assert row["answer"] is None
        else:
            assert row["error"] is None
            assert json.loads(row["answer"])[0]["word"] == "Fiona Kendall"


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def test_the_example_loses_no_row_when_a_worker_is_killed(nano_artifact, parquet):
    running = example(nano_artifact, parquet)
    try:
        wait_for(lambda: list((parquet / "out").glob("*.parquet")) if (parquet / "out").exists() else [])
        workers = processes_of(running.pid, "ray::MapWorker")
        assert workers
        os.kill(workers[0], signal.SIGKILL)
        told, _ = running.communicate(timeout=180)
    finally:
        running.kill()
    assert running.returncode == 0, (parquet / "log").read_text()[-3000:]
    assert "480 rows, 2 with an error" in told
    check_rows(parquet)
