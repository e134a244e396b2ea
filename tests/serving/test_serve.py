"""``erniem-rt serve``, as a process: the protocol over HTTP and gRPC, answers to the bit, bad requests, its end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
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

DOCUMENT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
GUNICORN = re.findall(r"^(gunicorn .*)$", DOCUMENT, re.MULTILINE)
CURL = re.findall(r"^```bash\n(curl .*?)^```\n\n```console\n(.*?)^```\n", DOCUMENT, re.MULTILINE | re.DOTALL)
HEADS = ("qa", "cls", "ner", "ie", "mc", "base")
LONG = " ".join(f"Fiona Kendall left Denver on {day} March." for day in range(1, 31)) * 80


@pytest.fixture(scope="module")
def server(start_server, nano_artifact):
    folders = [nano_artifact(head).parent for head in HEADS]
    nli = {"nli": {"task": "zero-shot-classification"}}
    return start_server(*folders, f"nli={nano_artifact('cls').parent}", "--options", json.dumps(nli))


def text_tensor(name, rows):
    array = np.array(rows, dtype=object)
    return {"name": name, "shape": list(array.shape), "datatype": "BYTES", "data": array.reshape(-1).tolist()}


def post(server, model, body, headers=None):
    """Status, headers and parsed body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} if headers is None else headers
    request = urllib.request.Request(f"{server.address}/v2/models/{model}/infer", data, headers)
    return opened(request)


def get(server, path):
    return opened(urllib.request.Request(f"{server.address}{path}"))


def opened(request):
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, parsed(response.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, parsed(error.read())


def parsed(content):
    try:
        return json.loads(content)
    except ValueError:
        return content


def ask(server, model, tensors, **parameters):
    """The answers to a request that must be answered."""
    body = {"inputs": [text_tensor(name, rows) for name, rows in tensors.items()], "parameters": parameters}
    status, _, found = post(server, model, body)
    assert status == 200, found
    (output,) = found["outputs"]
    if output["datatype"] == "FP32":
        return np.array(output["data"], np.float32).reshape(output["shape"])
    return [json.loads(text) for text in output["data"]]


@pytest.mark.parametrize(("command", "output"), CURL)
def test_curl_lines_of_the_document(server, command, output):
    command = command.replace("http://127.0.0.1:8080", server.address).replace("python3", sys.executable)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert rounded(done.stdout) == rounded(output)
    assert done.returncode == 0


def rounded(text):
    return re.sub(r"\d+\.\d+(e-\d+)?", lambda number: f"{float(number[0]):.2f}", text).strip()


def test_python_of_the_document(nano_artifact, monkeypatch, capsys, tmp_path):
    (tmp_path / "out").symlink_to(nano_artifact("cls").parents[1])
    monkeypatch.chdir(tmp_path)
    plain, fastapi, _ = PYTHON
    exec(compile(plain, "serving.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n2\n")
    found: dict = {}
    exec(compile(fastapi, "serving.md", "exec"), found)

    async def ask_app():
        async with found["lifespan"](found["app"]):
            assert len(await found["classify"](["One text.", "Another text."])) == 2
            with pytest.raises(found["HTTPException"]) as raised:
                await found["classify"]([""])
            assert raised.value.status_code == 400

    asyncio.run(ask_app())


@pytest.mark.parametrize(("command", "code"), list(zip(GUNICORN, PYTHON[1:], strict=True)), ids=["asgi", "wsgi"])
def test_gunicorn_of_the_document_with_a_worker_killed(command, code, nano_artifact, tmp_path):
    (tmp_path / "app.py").write_text(code)
    (tmp_path / "out").symlink_to(nano_artifact("cls").parents[1])
    _, *arguments = command.replace("8000", "0").split()
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *arguments], cwd=tmp_path, stdout=file, stderr=file
        )
    try:
        until = time.monotonic() + 60
        while not (listening := re.search(r"Listening at: (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        url = f"{listening[1]}/classify"
        with erniem_rt.pipeline(nano_artifact("cls"), threads=1) as pipeline:
            expected = pipeline(["One text.", "Another text."])
        assert until_answered(url, ["One text.", "Another text."]) == (200, expected)
        os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]), signal.SIGKILL)
        for _ in range(20):
            assert until_answered(url, ["One text.", "Another text."]) == (200, expected)
            assert until_answered(url, ["One text.", ""])[0] == 400
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()


def until_answered(url, texts):
    """Status and answer of the first connection that is not refused or reset."""
    until = time.monotonic() + 60
    request = urllib.request.Request(url, json.dumps(texts).encode(), {"content-type": "application/json"})
    while True:
        try:
            return opened(request)[::2]
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_the_document_has_a_line_for_each_task():
    assert {re.search("/models/([a-z]+)/", command)[1] for command, _ in CURL} == {*HEADS, "nli"}


def test_answers_are_the_pipelines_to_the_bit(server, nano_artifact, example):
    expected = example.answers(nano_artifact(example.head))
    tensors, parameters = example.tensors, example.parameters
    example.assert_answered(ask(server, example.name, tensors, **parameters), expected)
    example.assert_answered(by_grpc(server, example.name, tensors, parameters), expected)
    column = {name: [[one] if isinstance(one, str) else one for one in rows] for name, rows in tensors.items()}
    example.assert_answered(ask(server, example.name, column, **parameters), expected)


def by_grpc(server, model, tensors, parameters):
    import grpc
    from kserve import InferInput, InferRequest
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    inputs = []
    for name, rows in tensors.items():
        array = np.array(rows, dtype=object)
        inputs.append(InferInput(name, list(array.shape), "BYTES"))
        inputs[-1].set_data_from_numpy(array)
    request = InferRequest(model, inputs, parameters=parameters).to_grpc()
    with grpc.insecure_channel(server.grpc) as channel:
        response = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    from kserve import InferResponse

    (output,) = InferResponse.from_grpc(response).outputs
    array = output.as_numpy()
    return array if output.datatype == "FP32" else [json.loads(text) for text in array.tolist()]


def test_binary_data_and_one_text_without_pooling(server, nano_artifact, examples):
    from kserve import InferInput, InferRequest, InferResponse

    texts = examples["base"].tensors["text"]
    tensor = InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(texts[:1], dtype=object))
    asked = InferRequest("base", [tensor], "1", parameters={"pooling": "none", "binary_data_output": True})
    body, length = asked.to_rest()
    headers = {"inference-header-content-length": str(length), "content-type": "application/octet-stream"}
    status, found, content = post(server, "base", body, headers)
    assert status == 200
    (output,) = InferResponse.from_bytes(content, int(found["inference-header-content-length"])).outputs
    with erniem_rt.pipeline(nano_artifact("base")) as pipeline:
        np.testing.assert_array_equal(output.as_numpy(), pipeline(texts[:1], pooling="none")[0][None])
    status, _, found = post(server, "base", {"inputs": [text_tensor("text", texts)], "parameters": {"pooling": "none"}})
    assert status == 400
    assert found["error"].startswith("pooling='none' gives each text as many vectors as it has tokens")


def one(name="text", data=("Fiona Kendall left Denver.",), **changed):
    return {"inputs": [{**text_tensor(name, list(data)), **changed}]}


BAD = {
    "empty body": (b"", 400, "not of the Open Inference Protocol: Field required"),
    "no JSON": (b"{nope", 400, "not of the Open Inference Protocol: 1: Expecting property name"),
    "no UTF-8": (b'{"inputs": "\xff"}', 400, ""),
    "a list": ([], 400, "not of the Open Inference Protocol: Input should be a valid dictionary"),
    "no inputs": ({}, 400, "inputs: Field required"),
    "none of the inputs": ({"inputs": []}, 400, "input 'text' is missing; token-classification takes text."),
    "no shape": ({"inputs": [{"name": "text"}]}, 400, "inputs.0.shape: Field required"),
    "an empty text": (one(data=[""]), 400, "input 0: text is empty: expected text."),
    "a number": (one(data=[7]), 400, "input 0: text must be str, got int."),
    "a null": (one(data=[None]), 400, "input 0: text must be str, got NoneType"),
    "rows of two sizes": (one(data=[["a"], ["b", "c"]], shape=[2]), 400, "input 0: text must be str, got list."),
    "another datatype": (one(datatype="INT32"), 400, "datatype INT32"),
    "another name": (one("texts"), 400, "input 'texts' is not known; token-classification takes text."),
    "twice": ({"inputs": one()["inputs"] * 2}, 400, "input 'text' is given twice"),
    "another shape": (one(shape=[2]), 400, "its data do not fit the shape [2]"),
    "a negative shape": (one(shape=[-7]), 400, "its data do not fit the shape [-7]"),
    "a matrix": (one(data=["a", "b"], shape=[1, 2]), 400, "must have the shape (rows,) or (rows, 1), got (1, 2)"),
    "an unknown option": (one() | {"parameters": {"top_k": 2}}, 400, "token-classification takes no parameter 'top_k'"),
    "an option of the server": (one() | {"parameters": {"batch_size": 9}}, 400, "takes no parameter 'batch_size'"),
    "a wrong value": (one() | {"parameters": {"aggregation_strategy": "x"}}, 400, "aggregation_strategy must be one"),
    "a list as a parameter": (one() | {"parameters": {"ignore_labels": ["O"]}}, 400, "parameters.ignore_labels"),
    "no list in JSON": (one() | {"parameters": {"ignore_labels": "[O"}}, 400, "parameter 'ignore_labels' must be JSON"),
    "another output": (one() | {"outputs": [{"name": "logits"}]}, 400, "Unexpected inference output 'logits'"),
    "many texts": (one(data=["a"] * 300), 400, "has 300 texts, and a request may have at most 256"),
    "a long text": (one(data=["a b " * 30_000]), 400, "has 120000 characters, more than max_characters=100000"),
    "a huge body": (b" " * (9 << 20), 413, "larger than --max-body=8388608 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_one_clear_answer(server, name):
    body, status, told = BAD[name]
    found, _, answer = post(server, "ner", body)
    assert found == status, answer
    assert told in answer["error"]
    assert list(answer) == ["error"]
    assert_goes_on(server)


def assert_goes_on(server):
    assert ask(server, "ner", {"text": ["Fiona Kendall left Denver."]}, aggregation_strategy="simple")[0]


SIZE = "Inference-Header-Content-Length must be the JSON's length"
TEXTS = "binary data of BYTES must be texts, each after its length"


@pytest.mark.parametrize(
    ("length", "size", "data", "told"),
    [
        ("x", 8, b"", SIZE),
        ("99999", 8, b"", SIZE),
        ("-1", 8, b"", SIZE),
        ("2", 8, b"", "Unrecognized request format"),
        (None, "8", b"\x04\x00\x00\x00abcd", "binary_data_size must be a number of bytes, got ['8']"),
        (None, -8, b"\x04\x00\x00\x00abcd", "binary_data_size must be a number of bytes, got [-8]"),
        (None, 10**30, b"\x04\x00\x00\x00abcd", "and 8 bytes follow the JSON"),
        (None, 8, b"\x04\x00\x00\x00abcde", "binary_data_size adds up to 8, and 9 bytes follow the JSON"),
        (None, 8, b"\xff\xff\xff\x7fabcd", TEXTS),
        (None, 3, b"\x01\x00\x00", TEXTS),
        (None, 8, b"\x04\x00\x00\x00\xff\xff\xff\xff", "UTF-8"),
    ],
)
def test_binary_data_that_are_wrong(server, length, size, data, told):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": length or str(len(body)), "content-type": "application/octet-stream"}
    status, _, found = post(server, "ner", body + data, headers)
    assert status == 400, found
    assert told in found["error"]
    assert_goes_on(server)


def test_an_input_with_data_and_binary_data_is_refused(server):
    sizes = {"shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 8}}
    inputs = [{"name": "question", "data": ["a"], **sizes}, {"name": "context", **sizes}]
    body = json.dumps({"inputs": inputs}).encode()
    headers = {"inference-header-content-length": str(len(body)), "content-type": "application/octet-stream"}
    status, _, found = post(server, "qa", body + 2 * b"\x04\x00\x00\x00abcd", headers)
    assert status == 400, found
    assert "an input has either data or binary_data_size" in found["error"]


def test_a_compressed_body_is_refused(server):
    status, _, found = post(server, "ner", json.dumps(one()).encode(), {"content-encoding": "gzip"})
    assert (status, found) == (415, {"error": "Content-Encoding 'gzip' is not supported: send the body as it is."})
    assert_goes_on(server)


@pytest.mark.parametrize(
    ("model", "inputs", "parameters", "status", "told"),
    [
        ("ner", {"text": [""]}, {}, "INVALID_ARGUMENT", "input 0: text is empty"),
        ("ner", {"text": ["a"]}, {"top_k": 2}, "INVALID_ARGUMENT", "takes no parameter 'top_k'"),
        ("ner", {}, {}, "INVALID_ARGUMENT", "input 'text' is missing"),
        ("nothing", {"text": ["a"]}, {}, "NOT_FOUND", "nothing does not exist"),
        ("ner", {"text": ["a" * (9 << 20)]}, {}, "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_a_bad_request_over_grpc(server, model, inputs, parameters, status, told):
    import grpc

    with pytest.raises(grpc.RpcError) as raised:
        by_grpc(server, model, inputs, parameters)
    assert raised.value.code().name == status
    assert told in raised.value.details()
    assert_goes_on(server)


def test_health_metadata_and_what_is_refused(server):
    assert get(server, "/v2/health/live")[::2] == (200, {"live": True})
    assert get(server, "/v2/health/ready")[::2] == (200, {"ready": True})
    assert get(server, "/v2/models/ner/ready")[::2] == (200, {"name": "ner", "ready": True})
    assert get(server, "/v2/models")[2] == {"models": [*HEADS, "nli"]}
    described = get(server, "/v2/models/mc")[2]
    assert described["inputs"][1] == {"name": "choices", "datatype": "BYTES", "shape": [-1, -1]}
    assert described["outputs"] == [{"name": "answer", "datatype": "BYTES", "shape": [-1]}]
    assert get(server, "/v2/models/nothing")[::2] == (404, {"error": "Model with name nothing does not exist."})
    assert post(server, "nothing", one())[::2] == (404, {"error": "Model with name nothing does not exist."})
    assert get(server, "/nothing")[::2] == (404, {"error": "Not Found"})
    for verb in ("load", "unload"):
        request = urllib.request.Request(f"{server.address}/v2/repository/models/ner/{verb}", b"")
        status, _, found = opened(request)
        assert status == 400
        assert "start erniem-rt serve with other models" in found["error"]
    assert_goes_on(server)


def test_it_listens_at_this_machine_only(server):
    port = int(server.address.rpartition(":")[2])
    listening = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert [local for local, _, state in listening if local.endswith(f":{port:04X}") and state == "0A"] == [
        f"0100007F:{port:04X}"
    ]


def test_metrics(server):
    assert_goes_on(server)
    text = get(server, "/metrics")[2].decode()
    answered = re.search(r'^erniem_requests_total{model_name="ner",outcome="answered"} (\S+)$', text, re.MULTILINE)
    assert float(answered[1]) >= 1
    for name in ("queue_rows", "running_batches", "batch_requests_sum", "request_seconds_sum"):
        assert re.search(rf'^erniem_{name}{{model_name="ner"}} \S+$', text, re.MULTILINE)
    assert 'request_predict_seconds_count{model_name="ner"}' in text


def test_many_clients_of_which_some_send_bad_requests(server, examples):
    def work(number):
        model = ("ner", "base", "nli", "qa")[number % 4]
        if number % 16 == 0:
            return post(server, model, one(data=[""]))[0]
        return len(ask(server, model, examples[model].tensors, **examples[model].parameters))

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, range(320))) == [400 if number % 16 == 0 else 2 for number in range(320)]


def running(server, model="ner"):
    text = get(server, "/metrics")[2].decode()
    return [
        float(re.search(rf'^{name}{{model_name="{model}"}} (\S+)$', text, re.MULTILINE)[1])
        for name in ("erniem_running_batches", "erniem_queue_rows")
    ]


def wait_for(server, expected):
    until = time.monotonic() + 30
    while running(server) != expected:
        assert time.monotonic() < until, running(server)
        time.sleep(0.01)


def test_a_full_queue_is_503_and_a_client_that_goes_away_disturbs_nobody(start_server, nano_artifact):
    server = start_server(nano_artifact("ner").parent, "--workers", 1, "--max-queue", 1, "--threads", 1)
    body = json.dumps(one(data=[LONG])).encode()
    gone = http.client.HTTPConnection(server.address.removeprefix("http://"))
    gone.request("POST", "/v2/models/ner/infer", body, {"content-type": "application/json"})
    wait_for(server, [1, 0])
    gone.close()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, server, "ner", {"text": ["Fiona Kendall left Denver."]})
        wait_for(server, [1, 1])
        status, headers, found = post(server, "ner", one())
        assert (status, headers["retry-after"]) == (503, "1")
        assert "1 rows wait for an answer and this request has 1; the queue takes 1" in found["error"]
        import grpc

        with pytest.raises(grpc.RpcError) as raised:
            by_grpc(server, "ner", {"text": ["a"]}, {})
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert waiting.result(60)[0]
    assert_goes_on(server)
    assert server.terminate()[0] == 0


def test_sigterm_answers_what_was_taken_and_ends(start_server, nano_artifact):
    server = start_server(nano_artifact("ner").parent, "--threads", 1, "--timeout", 120)
    with ThreadPoolExecutor(3) as pool:
        long = [pool.submit(ask, server, "ner", {"text": [LONG]}, aggregation_strategy="simple") for _ in range(2)]
        idle = socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])))
        wait_for(server, [1, 1])
        code, told = server.terminate()
        assert all(len(future.result(1)[0]) > 2000 for future in long)
    idle.close()
    assert (code, [line for line in told.splitlines() if not line.startswith("serving ")]) == (0, [])
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.address)


def test_sigterm_ends_in_time_whatever_runs(start_server, nano_artifact):
    options = {"ner": {"stride": 500}}
    server = start_server(nano_artifact("ner").parent, "--threads", 1, "--timeout", 1, "--options", json.dumps(options))
    thread = threading.Thread(target=lambda: post(server, "ner", one(data=[LONG])), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)  # the client sees its connection end
        thread.start()
        wait_for(server, [1, 0])
        start = time.monotonic()
        code, told = server.terminate()
        assert time.monotonic() - start < 20
        thread.join(10)
    assert code == 1
    assert "error: a request took longer than --timeout=1; stopped without an answer" in told


def test_sigterm_while_half_a_request_has_arrived(start_server, nano_artifact):
    server = start_server(nano_artifact("ner").parent, "--timeout", 1)
    with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), timeout=20) as client:
        client.sendall(b"POST /v2/models/ner/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert_goes_on(server)  # the other connection's bytes have arrived by then
        code, told = server.terminate()
        assert client.recv(100).startswith(b"HTTP/1.1 503 ")
    assert code == 0
    assert len([line for line in told.splitlines() if not line.startswith("serving ")]) <= 1  # uvicorn's


def test_a_port_that_is_taken_while_models_load_is_one_line(start_server, nano_artifact):
    with socket.socket() as other:  # bound, and not listening yet, like the server
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        server = start_server(nano_artifact("ner").parent, "--port", port, wait=False)
        time.sleep(
            0.7
        )  # the server binds at once, and listens when all is loaded; in either order it must say the same
        other.listen()
        code, told = server.ended()
    assert code == 1
    (line,) = told.splitlines()
    assert line.startswith(f"error: cannot listen at 127.0.0.1, port {port}: ")


def test_a_taken_port_is_one_line(server, start_server, nano_artifact):
    folder = nano_artifact("ner").parent
    for option, address in (("--port", server.address), ("--grpc-port", server.grpc)):
        port = address.rpartition(":")[2]
        other = ["--port", "0"] if option == "--grpc-port" else []
        code, told = start_server(folder, *other, option, port, wait=False).ended()
        assert code == 1
        (line,) = told.splitlines()
        assert line.startswith(f"error: cannot listen at 127.0.0.1, port {port}: ")
        assert f"Choose another {option}" in line
    assert_goes_on(server)


# Every file system read-only, another user, no capabilities: as in a strict container.
CONTAINED = """
mount --make-rprivate /
for place in $(cut -d' ' -f2 /proc/self/mounts | sort -r); do mount -o remount,ro,bind $place 2>/dev/null; done
! touch /tmp/erniem-rt /dev/shm/erniem-rt 2>/dev/null || exit 9
export HOME=/nonexistent
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all "$@"
"""


def test_it_needs_no_file_to_write_and_no_rights(start_server, nano_artifact):
    folders = [nano_artifact(head).parent for head in ("qa", "base")]
    if subprocess.run(["unshare", "--mount", "setpriv", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("needs root, unshare and setpriv")
    if not all(path.stat().st_mode & 1 for one in (*folders, Path(sys.executable)) for path in one.parents):
        pytest.skip("another user cannot read these folders")
    server = start_server(*folders, inside=("unshare", "--mount", "bash", "-c", CONTAINED, "--"))
    assert ask(server, "base", {"text": ["One text."]}).shape == (1, 96)
    assert Path(f"/proc/{server.process.pid}").stat().st_uid == 65534
    assert server.terminate()[0] == 0
