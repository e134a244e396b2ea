"""Soak a server for an hour: clients with mixed tasks and bad requests; every answer is compared with the pipeline's.

``python -m benchmarks.soak serve qa=DIR cls=DIR nli=DIR …`` starts ``erniem-rt serve``; with ``gunicorn`` it starts two
workers with a ``Batcher`` per model, and with ``ray`` a local cluster with an application per model, and kills a worker
or a replica every five minutes. With ``--url`` it asks a server that already runs, whose memory it samples with
``--pid``, and ``--kill COMMAND`` kills one of its workers. The name of a model chooses its requests: qa, cls, nli, ner,
ie, mc or base, of nano. A client tries again if a connection breaks or the server answers with 5xx; a request that
still has no answer after ``--patience`` seconds is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import erniem_rt
from benchmarks.documents import ROOT
from benchmarks.machine import describe_machine
from benchmarks.serving import children, cpu_seconds, family, free_port, process, versions, write

NANO = ROOT / "examples" / "nano" / "checkpoints"
PER_MODEL = 60
BAD_SHARE = 0.06
# The largest difference of a score or of an embedding's element to the pipeline's answer to this request alone: in a
# batch of another shape the last bits differ.
TOLERANCE = 1e-5
LABELS = ["person", "company", "place", "science"]
# By model: the task set, the columns of its examples, and the parameters of a request and of the pipeline's call.
MODELS: dict[str, tuple[str, tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "qa": ("qa", ("question", "context"), {"top_k": 2}, {"top_k": 2}),
    "cls": ("cls", ("text", "text_pair"), {"top_k": "all"}, {"top_k": None}),
    "nli": ("ner", ("text",), {"candidate_labels": ", ".join(LABELS)}, {"candidate_labels": LABELS}),
    "ner": ("ner", ("text",), {"aggregation_strategy": "simple"}, {"aggregation_strategy": "simple"}),
    "ie": ("ie", ("text",), {"schema": '{"Organization": "Founder"}'}, {"schema": {"Organization": "Founder"}}),
    "mc": ("mc", ("prompt", "choices"), {}, {}),
    "base": ("ner", ("text",), {"pooling": "mean"}, {"pooling": "mean"}),
}


@dataclass(frozen=True)
class Asked:
    """A request of one model; ``expected`` is the pipeline's answer, or None if the server must refuse it."""

    model: str
    path: str
    body: bytes
    expected: Any


@dataclass
class Counts:
    """What the clients saw, since the start."""

    lock: Any = field(default_factory=threading.Lock)
    asked: int = 0
    answered: int = 0
    to_the_bit: int = 0
    largest_difference: float = 0.0
    wrong: int = 0
    refused: int = 0
    not_refused: int = 0
    lost: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    most_tries: int = 1
    by_model: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def note(self, kind: str, told: object = None) -> None:
        """Count an answer, and keep an example if one is given."""
        setattr(self, kind, getattr(self, kind) + 1)
        if told is not None and len(self.examples) < 20:
            self.examples.append(f"{kind}: {told}"[:500])

    def summary(self) -> dict[str, Any]:
        with self.lock:
            cuts = statistics.quantiles(self.seconds, n=100) if len(self.seconds) > 1 else [0.0] * 99
            names = ("asked", "answered", "to_the_bit", "largest_difference", "wrong", "refused", "not_refused", "lost")
            return {
                **{name: getattr(self, name) for name in names},
                "retried": dict(self.retried),
                "most_tries": self.most_tries,
                "by_model": dict(sorted(self.by_model.items())),
                "latency_ms": {f"p{p}": round(1000 * cuts[p - 1], 1) for p in (50, 95, 99)},
                "examples": self.examples,
            }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("server", choices=("serve", "gunicorn", "ray", "url"))
    parser.add_argument("models", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--url", help="of a server that already runs")
    parser.add_argument("--pid", type=int, help="its process, whose memory is sampled with its children's")
    parser.add_argument("--kill", metavar="COMMAND", help="a shell command that kills one worker")
    parser.add_argument("--every", type=float, default=300, help="seconds between kills; default: 300")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--think", type=float, default=1.0, help="mean seconds between a client's requests")
    parser.add_argument("--patience", type=float, default=30)
    parser.add_argument("--sample", type=float, default=10, help="seconds between samples of the memory")
    parser.add_argument("--note", help="what else the machine did meanwhile")
    parser.add_argument("--json", type=Path, help="where to write the figures, every minute and at the end")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server stops too
    models = dict(model.split("=", 1) for model in arguments.models)
    requests = [
        request
        for name, path in models.items()
        for request in requests_of(name, Path(path), f"/{name}" if arguments.server == "ray" else "")
    ]
    with started(arguments, models) as (url, pid):
        found = soak(arguments, requests, url, pid)
    print(json.dumps({name: found[name] for name in ("counts", "kills", "memory", "load")}, indent=1))
    counts = found["counts"]
    return int(bool(counts["lost"] or counts["wrong"] or counts["not_refused"]))


def requests_of(name: str, folder: Path, prefix: str) -> list[Asked]:
    """Return seeded requests of one to four rows, with the pipeline's answers, and some that are bad."""
    path = f"{prefix}/v2/models/{name}/infer"
    source, columns, parameters, options = MODELS[name]
    lines = (NANO / source / "task_set.jsonl").read_text("utf-8").splitlines()
    rng = random.Random(name)
    rows = [{column: row[column] for column in columns} for row in map(json.loads, rng.sample(lines, 4 * PER_MODEL))]
    requests = []
    with erniem_rt.pipeline("zero-shot-classification" if name == "nli" else None, folder) as pipeline:
        for number in range(PER_MODEL):
            items = rows[4 * number : 4 * number + 1 + number % 4]
            if "choices" in columns:  # a tensor has as many choices in each row
                items = [item for item in items if len(item["choices"]) == len(items[0]["choices"])]
            answers = pipeline(items, **options)
            expected = answers.tolist() if isinstance(answers, np.ndarray) else json.loads(json.dumps(answers))
            requests.append(Asked(name, path, body(items, columns, parameters), expected))
    for bad in bad_bodies(rows[:1], columns, parameters):
        requests.append(Asked(name, path, bad, None))
    unknown = f"{prefix}/v2/models/unknown/infer"
    requests.append(Asked("unknown", unknown, body(rows[:1], columns, parameters), None))
    return requests


def body(items: list[dict[str, Any]], columns: tuple[str, ...], parameters: dict[str, Any]) -> bytes:
    inputs = []
    for column in columns:
        array = np.array([item[column] for item in items], dtype=object)
        array = array.reshape(len(items), -1)
        inputs.append(
            {"name": column, "shape": list(array.shape), "datatype": "BYTES", "data": array.reshape(-1).tolist()}
        )
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()


def bad_bodies(items: list[dict[str, Any]], columns: tuple[str, ...], parameters: dict[str, Any]) -> Iterator[bytes]:
    """Yield requests that a server must refuse: empty, long, unknown option, missing input, not JSON."""
    first = columns[0]
    yield body([{**items[0], first: ""}], columns, parameters)
    yield body([{**items[0], first: "many words " * 12_000}], columns, parameters)
    yield body(items, columns, {**parameters, "no_such_option": 1})
    yield body(items, columns[1:] or ("context",), parameters) if columns[1:] else b'{"inputs": []}'
    yield b'{"inputs": [{"name": "text", "shape": [1], '


@contextlib.contextmanager
def started(arguments: argparse.Namespace, models: dict[str, str]) -> Iterator[tuple[str, int | None]]:
    """Yield the address of the server, and the process whose memory counts."""
    if arguments.server == "url":
        yield arguments.url, arguments.pid
        return
    if arguments.server == "ray":
        with on_ray(models) as found:
            yield found
        return
    named = [f"{name}={Path(path).resolve()}" for name, path in models.items()]
    if arguments.server == "serve":
        options = json.dumps({"nli": {"task": "zero-shot-classification"}} if "nli" in models else {})
        command = [sys.executable, "-m", "erniem_rt", "serve", *named, "--port", "0", "--options", options]
        ready = r"serving .* at http://127\.0\.0\.1:(\d+)/"
    else:
        app = f"benchmarks.soak:application({', '.join(map(repr, named))})"
        command = [sys.executable, "-m", "gunicorn", "-k", "asgi", "--workers", "2", app]
        command += ["--bind", "127.0.0.1:0"]
        ready = r"Listening at: http://127\.0\.0\.1:(\d+)"
    print(shlex.join(command), file=sys.stderr)
    with process(command, ready) as (port, pid):
        yield f"http://127.0.0.1:{port}", pid


@contextlib.contextmanager
def on_ray(models: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Yield the address of Ray Serve with an application per model, and the process that starts the replicas."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    from erniem_rt.ray import application as on_serve

    # Ray only counts CPUs: the replicas share those of the machine.
    ray.init(num_cpus=len(models) + 1, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        for name, path in models.items():
            task = "zero-shot-classification" if name == "nli" else None
            serve.run(on_serve(path, task, name=name), name=name, route_prefix=f"/{name}")
        (raylet,) = [pid for pid in children(os.getpid()) if command_of(pid).partition(" ")[0].endswith("raylet")]
        yield f"http://127.0.0.1:{port}", raylet
    finally:
        serve.shutdown()
        ray.shutdown()


def command_of(pid: int) -> str:
    """Return the command line of a process; empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def application(*models: str) -> Any:
    """Return a web application with a ``Batcher`` per model, in the Open Inference Protocol, for gunicorn's workers."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from erniem_rt.serve import Served

    served: dict[str, Served] = {}

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for name, path in (model.split("=", 1) for model in models):
                task = "zero-shot-classification" if name == "nli" else None
                pipeline = stack.enter_context(erniem_rt.pipeline(task, path, threads=1))
                batcher = erniem_rt.Batcher(pipeline, max_items=256, max_characters=100_000)
                served[name] = Served(name, stack.enter_context(batcher))
            yield

    async def infer(request: Any) -> Any:
        name = request.path_params["name"]
        if name not in served:
            return JSONResponse({"error": f"there is no model {name!r}."}, 404)
        try:
            asked = json.loads(await request.body())
            tensors = [
                (one["name"], one["datatype"], np.array(one["data"], object).reshape(one["shape"]))
                for one in asked["inputs"]
            ]
            _, _, array = await served[name].answer(tensors, asked.get("parameters", {}))
        except (erniem_rt.InvalidInputError, ValueError, KeyError) as error:
            return JSONResponse({"error": str(error)}, 400)
        except erniem_rt.QueueFullError as error:
            return JSONResponse({"error": str(error)}, 503)
        data = [one.decode() if isinstance(one, bytes) else one for one in array.reshape(-1).tolist()]
        return JSONResponse({"outputs": [{"shape": array.shape, "data": data}]})

    return Starlette(routes=[Route("/v2/models/{name}/infer", infer, methods=["POST"])], lifespan=lifespan)


def soak(arguments: argparse.Namespace, requests: list[Asked], url: str, pid: int | None) -> dict[str, Any]:
    """Return the figures of one run."""
    counts = Counts()
    good = [request for request in requests if request.expected is not None]
    bad = [request for request in requests if request.expected is None]
    machine = describe_machine()
    wait_until_ready(url, good)
    start = time.monotonic()
    ending = threading.Event()
    clients = [
        threading.Thread(target=client, args=(url, good, bad, number, arguments, counts, ending))
        for number in range(arguments.clients)
    ]
    for thread in clients:
        thread.start()
    samples: list[float] = []
    loads: list[float] = []
    kills = 0
    used = cpu_seconds(pid)
    due = start + arguments.every
    figures: dict[str, Any] = {}
    while (now := time.monotonic()) < start + arguments.seconds:
        time.sleep(min(arguments.sample, max(start + arguments.seconds - now, 0)))
        samples.append(resident(pid))
        loads.append(os.getloadavg()[0])
        if time.monotonic() >= due and time.monotonic() < start + arguments.seconds - 10:
            kills += kill_one(arguments, pid)
            due += arguments.every
        figures = {
            "server": arguments.server,
            "machine": machine,
            "versions": versions(),
            "note": arguments.note,
            "seconds": round(time.monotonic() - start),
            "clients": arguments.clients,
            "think_seconds": arguments.think,
            "models": sorted({request.model for request in good}),
            "bad_share": BAD_SHARE,
            "counts": counts.summary(),
            "kills": kills,
            "memory": memory(samples, arguments.sample),
            # Of processes that live at the end: killed ones take their time along.
            "server_cores": None if kills else round((cpu_seconds(pid) - used) / (time.monotonic() - start), 2),
            "load": {"mean": round(statistics.fmean(loads), 2), "max": round(max(loads), 2)},
        }
        if arguments.json and len(samples) % 6 == 0:
            write(arguments.json, figures)
    ending.set()
    for thread in clients:
        thread.join()
    figures["counts"] = counts.summary()
    if arguments.json:
        write(arguments.json, figures)
    return figures


def wait_until_ready(url: str, good: list[Asked]) -> None:
    """Ask each model until it answers."""
    until = time.monotonic() + 120
    for request in {request.model: request for request in good}.values():
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if post(connect(url), request)[0] == 200:
                    break
            if time.monotonic() > until:
                raise RuntimeError(f"{url} does not answer {request.model}")
            time.sleep(0.2)


def client(
    url: str,
    good: list[Asked],
    bad: list[Asked],
    number: int,
    arguments: argparse.Namespace,
    counts: Counts,
    ending: threading.Event,
) -> None:
    """Ask one request after another: half of them at moments that all clients share, so that batches form."""
    rng = random.Random(number)
    connection = None
    last = 0.0
    while True:
        think = arguments.think
        shared = 2 * think - time.time() % (2 * think)
        if ending.wait(shared if rng.random() < 0.5 else min(rng.expovariate(1 / think), 5 * think)):
            return
        request = rng.choice(bad if rng.random() < BAD_SHARE else good)
        if time.monotonic() - last > 1:  # servers close idle connections; gunicorn after two seconds
            connection = None
        start = time.monotonic()
        tries, status, content = 0, 0, b""
        while time.monotonic() < start + arguments.patience:
            tries += 1
            connection = connection or connect(url)
            try:
                status, content = post(connection, request)
                if status < 500:
                    break
                again = f"{status}"
            except (OSError, http.client.HTTPException) as error:
                connection, status, again = None, 0, type(error).__name__
            with counts.lock:
                counts.retried[again] += 1
            time.sleep(0.2)
        last = time.monotonic()
        with counts.lock:
            counts.asked += 1
            counts.most_tries = max(counts.most_tries, tries)
            counts.by_model[request.model] += 1
            counts.seconds.append(last - start)
            judge(counts, request, status, content)


def judge(counts: Counts, request: Asked, status: int, content: bytes) -> None:
    """Count one answer."""
    if status == 0 or status >= 500:
        return counts.note("lost", (request.model, status, content))
    if request.expected is None:
        refused = 400 <= status < 500 and b'"error"' in content
        return counts.note("refused") if refused else counts.note("not_refused", (status, request.body, content))
    if status != 200:
        return counts.note("wrong", (status, request.body, content))
    (output,) = json.loads(content)["outputs"]
    if request.model == "base":
        found: Any = np.array(output["data"], np.float32).reshape(output["shape"]).tolist()
    else:
        found = [json.loads(text) for text in output["data"]]
    apart = difference(found, request.expected)
    if apart is None or apart > TOLERANCE:
        return counts.note("wrong", (apart, request.body, content))
    counts.to_the_bit += apart == 0
    counts.largest_difference = max(counts.largest_difference, apart)
    return counts.note("answered")


def difference(found: Any, expected: Any) -> float | None:
    """Return the largest difference of numbers; None if anything else differs."""
    if isinstance(found, float) and isinstance(expected, float):
        return abs(found - expected)
    if type(found) is not type(expected):
        return None
    if isinstance(found, dict):
        if list(found) != list(expected):
            return None
        found, expected = list(found.values()), list(expected.values())
    if not isinstance(found, list):
        return 0.0 if found == expected else None
    if len(found) != len(expected):
        return None
    parts = [difference(one, other) for one, other in zip(found, expected, strict=True)]
    return None if None in parts else max((part for part in parts if part is not None), default=0.0)


def connect(url: str) -> http.client.HTTPConnection:
    address = urllib.parse.urlsplit(url)
    return http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)


def post(connection: http.client.HTTPConnection, request: Asked) -> tuple[int, bytes]:
    connection.request("POST", request.path, request.body, {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def kill_one(arguments: argparse.Namespace, pid: int | None) -> int:
    """Kill one worker, where the server has any; return how many died."""
    if arguments.kill:
        return int(subprocess.run(arguments.kill, shell=True, check=False).returncode == 0)
    workers = children(pid) if arguments.server in ("gunicorn", "ray") and pid is not None else []
    if arguments.server == "ray":
        workers = [one for one in workers if command_of(one).startswith("ray::ServeReplica")]
    if not workers:
        return 0
    os.kill(random.choice(workers), signal.SIGKILL)
    return 1


def resident(pid: int | None) -> float:
    """Return the resident memory of a process and its children in MB; pages that they share count in each."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return round(total * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def memory(samples: list[float], every: float) -> dict[str, Any]:
    """Return the samples, and the medians of the second and the last quarter: without growth they are the same."""
    quarter = max(len(samples) // 4, 1)
    early, late = statistics.median(samples[quarter : 2 * quarter] or samples), statistics.median(samples[-quarter:])
    return {
        "second_quarter_mb": early,
        "last_quarter_mb": late,
        "growth_percent": round(100 * (late / early - 1), 2) if early else None,
        "max_mb": max(samples),
        "every_seconds": every,
        "samples_mb": samples,
    }


if __name__ == "__main__":
    sys.exit(main())
