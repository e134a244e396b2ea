"""``erniem_rt.ray`` on a local cluster: datasets of every batch format, a killed worker, Ray Serve."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import erniem_rt
from erniem_rt.ray import Predictor, application, build

# Ray warns of its own settings.
pytestmark = pytest.mark.filterwarnings(r"ignore:::ray\.")
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


@pytest.mark.parametrize(("name", "kind"), [("mc", "pyarrow"), ("nli", "pandas"), ("base", "numpy"), ("qa", "numpy")])
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
        before = wait_for(lambda: list((parquet / "out").glob("*.parquet")) if (parquet / "out").exists() else [])
        workers = processes_of(running.pid, "ray::MapWorker")
        assert workers
        os.kill(workers[0], signal.SIGKILL)
        told, _ = running.communicate(timeout=180)
    finally:
        running.kill()
    assert running.returncode == 0, (parquet / "log").read_text()[-3000:]
    assert "480 rows, 2 with an error" in told
    assert len(before) < len(list((parquet / "out").glob("*.parquet")))
    check_rows(parquet)


def test_the_example_continues_a_job_that_was_killed(nano_artifact, parquet):
    written = parquet / "out.checkpoint"
    running = example(nano_artifact, parquet, "--id", "id")
    try:
        wait_for(lambda: list(written.glob("**/*.parquet")) if written.exists() else [])
    finally:
        running.kill()
        running.communicate()
    before = {path.name for path in (parquet / "out").glob("*.parquet")}
    told, _ = (again := example(nano_artifact, parquet, "--id", "id")).communicate(timeout=180)
    assert again.returncode == 0, (parquet / "log").read_text()[-3000:]
    assert "480 rows, 2 with an error" in told
    assert before <= {path.name for path in (parquet / "out").glob("*.parquet")}
    check_rows(parquet)


RAY = DOCUMENT[DOCUMENT.index("\n## Ray") :]
DATASET, SERVE = re.findall(r"^```py\n(.*?)^```", RAY, re.MULTILINE | re.DOTALL)
(CONFIG,) = re.findall(r"^```yaml\n(.*?)^```", RAY, re.MULTILINE | re.DOTALL)


def test_the_dataset_of_the_document(cluster, nano_artifact, parquet):
    import pyarrow.parquet

    code = DATASET.replace("/data/texts", str(parquet / "in")).replace("/data/answers", str(parquet / "out"))
    code = code.replace("/models/cls", str(folder_of(nano_artifact, "cls"))).replace("size=8", "size=2")
    exec(compile(code, "serving.md", "exec"), {})
    table = pyarrow.parquet.read_table(parquet / "out")
    assert table.num_rows == 480
    assert table.column_names == ["id", "body", "predicted_label", "predicted_score", "predicted_error"]


def test_the_config_file_of_the_document():
    import yaml
    from ray.serve.schema import ServeDeploySchema

    (given,) = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG)).applications
    assert given.import_path == "erniem_rt.ray:build"
    assert build(given.args)._bound_deployment.name == given.deployments[0].name


MODELS = ("qa", "cls", "ner", "ie", "mc", "base", "nli")


@pytest.fixture(scope="module")
def served(cluster, nano_artifact):
    """The address of Ray Serve with all models, each in an application of its own name and prefix."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    targets = []
    for name in MODELS:
        task = "zero-shot-classification" if name == "nli" else None
        app = application(
            folder_of(nano_artifact, name), task, name=name, deployment={"ray_actor_options": {"num_cpus": 0.1}}
        )
        targets.append(serve.RunTarget(app, name=name, route_prefix=f"/{name}"))
    serve.run_many(targets)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def post(address, body):
    """Status, headers and parsed body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"content-type": "application/json"})
    return opened(request)


def opened(request):
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.headers, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def one(name="text", data=("Fiona Kendall left Denver.",), **changed):
    return {"inputs": [{"name": name, "shape": [len(data)], "datatype": "BYTES", "data": list(data), **changed}]}


@pytest.mark.parametrize(("command", "output"), CURL)
def test_curl_lines_of_the_document(served, command, output):
    command = re.sub(r"http://127.0.0.1:8080/v2/models/([a-z]+)", rf"{served}/\1/v2/models/\1", command)
    command = command.replace("python3", sys.executable)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert rounded(done.stdout) == rounded(output)


def rounded(text):
    return re.sub(r"\d+\.\d+(e-\d+)?", lambda number: f"{float(number[0]):.2f}", text).strip()


def test_answers_are_the_pipelines_to_the_bit(served, nano_artifact):
    from ray import serve

    texts = [TEXTS[0], TEXTS[2]]
    for name, options in (("ner", {}), ("base", {"pooling": "cls"}), ("qa", {"top_k": 2})):
        inputs = {"question": texts, "context": texts} if name == "qa" else {"text": texts}
        with erniem_rt.pipeline(folder_of(nano_artifact, name), threads=1) as pipeline:
            expected = pipeline(inputs, **options)
        tensors = [one(key, column)["inputs"][0] for key, column in inputs.items()]
        status, _, found = post(f"{served}/{name}/v2/models/{name}/infer", {"inputs": tensors, "parameters": options})
        assert status == 200, found
        (output,) = found["outputs"]
        by_handle = serve.get_app_handle(name).answer.remote(inputs, **options).result(timeout_s=120)
        if name == "base":
            np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(output["shape"]), expected)
            np.testing.assert_array_equal(by_handle, expected)
        else:
            assert [json.loads(text) for text in output["data"]] == expected == by_handle


def test_ray_serve_of_the_document(served, nano_artifact, monkeypatch, capsys):
    from ray import serve

    code = SERVE.replace("out/ner", str(folder_of(nano_artifact, "ner")))
    exec(compile(code, "serving.md", "exec"), {})
    assert "'word': 'Fiona Kendall'" in capsys.readouterr().out
    assert post(f"{served}/v2/models/ner/infer", one())[0] == 200
    serve.delete("default")


def test_errors_reach_callers_with_handles(served):
    from ray import serve

    with pytest.raises(erniem_rt.InvalidInputError, match="text is empty: expected text"):
        serve.get_app_handle("ner").answer.remote("").result(timeout_s=120)


def test_metadata_health_and_what_is_not_there(served):
    address = f"{served}/ner/v2"
    assert opened(f"{address}/health/ready")[::2] == (200, {"ready": True})
    assert opened(f"{address}/health/live")[::2] == (200, {"live": True})
    status, _, told = opened(f"{address}/models/ner")
    assert (status, told["inputs"]) == (200, [{"name": "text", "datatype": "BYTES", "shape": [-1]}])
    status, _, told = opened(f"{address}/models/other")
    assert (status, told["error"].split(";")[0]) == (404, "there is no /v2/models/other")
    assert opened(f"{address}/models/ner/infer")[::2] == (405, {"error": "/v2/models/ner/infer takes POST, not GET."})


BAD = {
    "empty body": (b"", "must be JSON of the Open Inference Protocol, but Expecting value"),
    "no UTF-8": (b'{"inputs": "\xff"}', "must be JSON"),
    "nested without end": (b"[" * 200_000, "must be JSON"),
    "a list": ([], 'must be like {"inputs": [...]'),
    "inputs of no list": ({"inputs": {}}, 'must be like {"inputs": [...]'),
    "parameters of no dict": (one() | {"parameters": [1]}, 'parameters must be like {"top_k": 2}'),
    "none of the inputs": ({"inputs": []}, "input 'text' is missing; token-classification takes text."),
    "no data": ({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES"}]}, "an input must be like"),
    "an empty text": (one(data=[""]), "input 0: text is empty: expected text."),
    "a number": (one(data=[7]), "input 0: text must be str, got int."),
    "a null": (one(data=[None]), "input 0: text must be str, got NoneType"),
    "an object": (one(data=[{}]), "input 0: "),
    "another datatype": (one(datatype="INT32"), "datatype BYTES, got INT32"),
    "another shape": (one(shape=[2]), "its data, 1 values, do not fit the shape [2]"),
    "a negative shape": (one(shape=[-1]), "do not fit the shape [-1]"),
    "a shape of texts": (one(shape=["1"]), "do not fit the shape ['1']"),
    "an unknown option": (one() | {"parameters": {"top_k": 2}}, "token-classification takes no parameter 'top_k'"),
    "an option of the server": (one() | {"parameters": {"batch_size": 9}}, "takes no parameter 'batch_size'"),
    "many texts": (one(data=["a"] * 300), "has 300 texts, and a request may have at most 256"),
    "a long text": (one(data=["a b " * 30_000]), "has 120000 characters, more than max_characters=100000"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_one_clear_answer(served, name):
    body, told = BAD[name]
    status, _, found = post(f"{served}/ner/v2/models/ner/infer", body)
    assert status == 400, found
    assert told in found["error"]
    assert post(f"{served}/ner/v2/models/ner/infer", one())[0] == 200


def test_binary_data_is_refused(served):
    headers = {"inference-header-content-length": "5", "content-type": "application/octet-stream"}
    status, _, found = opened(urllib.request.Request(f"{served}/ner/v2/models/ner/infer", b"{}abc", headers))
    assert (status, found["error"]) == (400, "Ray Serve takes JSON only: send the request without binary data.")


def test_a_full_queue_is_503_and_open_requests_are_answered_at_the_end(served, nano_artifact):
    from ray import serve

    args = {"model": str(folder_of(nano_artifact, "ner")), "name": "full", "batcher": {"max_queue": 1, "workers": 1}}
    args |= {"deployment": {"ray_actor_options": {"num_cpus": 0.1}}}
    serve.run(build(args), name="full", route_prefix="/full")
    body = one(data=["Fiona Kendall left Denver. " * 2000])
    with ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(post, f"{served}/full/v2/models/full/infer", body) for _ in range(8)]
        wait_for(lambda: any(future.done() for future in futures))  # the first that is refused
        ending = pool.submit(serve.delete, "full")
        found = [future.result() for future in futures]
        ending.result()
    assert {status for status, _, _ in found} == {200, 503}
    for status, headers, told in found:
        if status == 503:
            assert headers["Retry-After"] == "1"
            assert told["error"].startswith("1 rows wait for an answer")
        else:
            assert len(json.loads(told["outputs"][0]["data"][0])) > 1000


def test_a_replica_checks_its_engine_and_closes(nano_artifact):
    import asyncio

    from erniem_rt.ray import _Replica

    replica = _Replica("mc", str(folder_of(nano_artifact, "mc")), None, {"max_queue": 4}, {"threads": 1})
    asyncio.run(replica.check_health())
    replica.__del__()
    with pytest.raises(erniem_rt.ErnieMError):
        asyncio.run(replica.check_health())
    with pytest.raises(erniem_rt.InvalidInputError, match="the batcher is closed"):
        asyncio.run(replica.answer({"prompt": "a", "choices": ["b", "c"]}))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({}, "args must have 'model'"),
        ({"model": "out/cls", "name": "a/b"}, "name must be a name without '/'"),
        ({"model": "out/cls", "batcher": {"max_queu": 2}}, "Batcher takes no 'max_queu'; expected one of workers"),
    ],
)
def test_what_an_application_refuses(args, told):
    with pytest.raises(erniem_rt.InvalidInputError, match=told):
        build(args)
