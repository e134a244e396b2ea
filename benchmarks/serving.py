"""Measure ``Batcher``, ``erniem-rt serve`` and Ray: requests a second and latencies, in interleaved rounds.

``python -m benchmarks.serving --artifact DIR`` takes any artifact of a task on single texts. An artifact without a
tokenizer beside it (random weights) needs ``--tokenizer DIR``. ``--transformers CHECKPOINT`` adds a server with
transformers' pipeline; it needs torch, transformers 4.57 and kserve in ``--python``.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import platform
import queue
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import erniem_rt
from benchmarks.documents import ROOT
from benchmarks.machine import describe_machine
from benchmarks.texts import real_texts
from erniem_rt.locations import find_artifact, manifest_of
from erniem_rt.manifest import Manifest
from erniem_rt.ray import Predictor, application

MEAN_TOKENS, SIGMA = 32, 0.6
CLIENTS = 32
ACTORS = 2
# Rows in a block of Ray's dataset: as many as a pipeline takes of a list at a time.
BLOCK = 128
_TRANSFORMERS = "serve, 32 clients : KServe with transformers' pipeline"
# Bars for base size in int8 on two cores, beside transformers in fp32: the smallest ratio that passes, or for "p95" the
# largest.
BARS = {
    "Batcher, 32 clients : one by one": 1.75,
    "Batcher, one client : direct call": 0.95,
    "p95 at 80 % of capacity : direct calls, 50 % of theirs": 2.0,
    "p95 at 80 % of capacity : direct calls, 50 % of the same": 2.0,
    "serve, 32 clients : KServe without the queue": 1.45,
    _TRANSFORMERS: 10.0,
    "Ray Data, 2 actors : plain process with a list": 0.95,
}
BARS_FP32 = {**BARS, _TRANSFORMERS: 4.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="where the tokenizer's files are, if not beside the artifact")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=192, help="per measurement")
    parser.add_argument("--max-batch", type=int, default=16, help="most rows that the batcher runs together")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="also ask the batcher so often a second")
    parser.add_argument("--transformers", metavar="CHECKPOINT", help="also measure transformers' pipeline on it")
    parser.add_argument("--python", default=sys.executable, help="runs the server with transformers")
    parser.add_argument("--no-servers", action="store_true", help="measure the batcher only")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--baseline", choices=("erniem-rt", "transformers"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.baseline:
        return serve_without_queue(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        arguments.artifact = with_tokenizer(arguments, Path(temporary) / "artifact")
        precision = Manifest.load(manifest_of(find_artifact(arguments.artifact))).precision["weights"]
        figures = measure(arguments)
    report(figures, BARS_FP32 if precision == "fp32" else BARS)
    if arguments.json:
        found = {"machine": describe_machine(), "versions": versions(), "engine": arguments.engine}
        write(arguments.json, {**found, "precision": precision, "figures": figures})
    return 0


def with_tokenizer(arguments: argparse.Namespace, folder: Path) -> Path:
    """Return the artifact's folder, or a copy with the tokenizer's files, hard-linked where possible."""
    artifact = arguments.artifact.resolve()  # servers and workers have other working directories
    source = artifact if artifact.is_dir() else artifact.parent
    if arguments.tokenizer is None:
        return source
    folder.mkdir()
    names = ("sentencepiece.bpe.model", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
    files = [path for path in source.iterdir() if path.is_file()]
    for path in [*files, *(arguments.tokenizer / name for name in names if (arguments.tokenizer / name).exists())]:
        try:
            os.link(path, folder / path.name)
        except OSError:
            shutil.copy2(path, folder / path.name)
    return folder


def workload(tokenizer: Any, count: int) -> list[str]:
    """Return seeded texts whose lengths in tokens are log-normal, as in real texts."""
    rng = random.Random(0)
    texts = real_texts()[1]
    mu = math.log(MEAN_TOKENS) - SIGMA**2 / 2
    return [
        cut(tokenizer, rng.choice(texts), round(min(max(rng.lognormvariate(mu, SIGMA), 4), 500))) for _ in range(count)
    ]


def cut(tokenizer: Any, text: str, tokens: int) -> str:
    while len(tokenizer(text).input_ids) < tokens:
        text += f" {text}"
    offsets = tokenizer(text, add_special_tokens=False).offsets
    return text[: offsets[max(tokens - 2, 1) - 1][1]].strip() or text[:8]


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the figures by name, one per round."""
    with contextlib.ExitStack() as stack:
        pipeline = stack.enter_context(erniem_rt.pipeline(arguments.artifact, engine=arguments.engine))
        batcher = stack.enter_context(erniem_rt.Batcher(pipeline, max_batch=arguments.max_batch))
        texts = workload(pipeline.tokenizer, arguments.requests)
        servers = {}
        if not arguments.no_servers:
            servers["serve"], served_by = stack.enter_context(serving(arguments))
            servers["KServe"] = stack.enter_context(without_queue(arguments, "erniem-rt"))
        if arguments.transformers and not arguments.no_servers:
            servers["transformers"] = stack.enter_context(without_queue(arguments, "transformers"))
        name = arguments.artifact.name
        rates: dict[str, Callable[[], float]] = {
            "direct, one by one": lambda: closed_loop(pipeline, texts, 1),
            "direct, 32 threads": lambda: closed_loop(pipeline, texts, CLIENTS),
            "Batcher, one client": lambda: closed_loop(batcher, texts, 1),
            "Batcher, 32 clients": lambda: closed_loop(batcher, texts, CLIENTS),
        }
        for server, port in servers.items():
            for clients in (1, CLIENTS):
                rates[f"{server}, {clients} clients"] = lambda port=port, clients=clients: closed_loop(  # type: ignore[misc]
                    Client(port, name), texts, clients
                )

        def all_rates() -> dict[str, float]:
            found = {key: work() for key, work in rates.items()}
            if "serve" in servers:
                used = cpu_seconds(served_by)
                closed_loop(Client(servers["serve"], name), texts, CLIENTS)
                found["serve, CPU ms a request"] = 1000 * (cpu_seconds(served_by) - used) / len(texts)
            one_by_one, capacity = found["direct, one by one"], found["Batcher, 32 clients"]
            more = texts * 2
            found["direct, p95 at 50 %"] = open_loop(one_at_a_time(pipeline), more, 0.5 * one_by_one)
            found["direct, p95 at 50 % of Batcher's"] = open_loop(one_at_a_time(pipeline), more, 0.5 * capacity)
            found["Batcher, p95 at 50 %"] = open_loop(batcher.submit, more, 0.5 * capacity)
            found["Batcher, p95 at 80 %"] = open_loop(batcher.submit, more, 0.8 * capacity)
            for rate in arguments.rates:
                found[f"Batcher, p95 at {rate:g} a second"] = open_loop(batcher.submit, more, rate)
            return found

        figures = in_rounds(arguments.rounds, all_rates)
    if arguments.no_servers:
        return figures
    # Afterwards, since a cluster takes some CPU time even without requests.
    with (
        erniem_rt.pipeline(arguments.artifact, engine=arguments.engine) as pipeline,
        on_ray(arguments, pipeline, texts) as rates,
    ):
        return figures | in_rounds(arguments.rounds, lambda: {key: work() for key, work in rates.items()})


def in_rounds(rounds: int, measured: Callable[[], dict[str, float]]) -> dict[str, list[float]]:
    """Return the figures of each round; an additional first one warms up."""
    figures: dict[str, list[float]] = {}
    for round_ in range(rounds + 1):
        found = measured()
        if round_:
            for key, value in found.items():
                figures.setdefault(key, []).append(value)
        print(f"round {round_} of {rounds}", file=sys.stderr)
    return figures


def closed_loop(call: Callable[[str], Any], texts: list[str], clients: int) -> float:
    """Return the requests per second of ``clients`` clients that each send a request after the last answer."""
    start = time.perf_counter()
    if clients == 1:
        for text in texts:
            call(text)
    else:
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(call, texts))
    return len(texts) / (time.perf_counter() - start)


def open_loop(submit: Callable[[str], Any], texts: list[str], rate: float) -> float:
    """Return the 95th percentile of the latency, in ms, of requests at random times, ``rate`` per second."""
    rng = random.Random(1)
    ends: list[tuple[float, float]] = []
    futures = []
    due = time.perf_counter()
    for text in texts:
        due += rng.expovariate(rate)
        time.sleep(max(due - time.perf_counter(), 0))
        future = submit(text)
        future.add_done_callback(lambda _, due=due: ends.append((due, time.perf_counter())))
        futures.append(future)
    for future in futures:
        future.result()
    return 1000 * statistics.quantiles([end - due for due, end in ends], n=20)[-1]


def one_at_a_time(pipeline: Any) -> Callable[[str], Any]:
    """Return a function that queues calls for one thread, as a program without a batcher would."""
    pool = ThreadPoolExecutor(1)
    return lambda text: pool.submit(pipeline, text)


class Client:
    """Sends requests to a server, with a connection per thread."""

    def __init__(self, port: int, model: str) -> None:
        self._port = port
        self._path = f"/v2/models/{model}/infer"
        self._connections: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()

    def __call__(self, text: str) -> bytes:
        try:
            connection = self._connections.get_nowait()
        except queue.Empty:
            connection = http.client.HTTPConnection("127.0.0.1", self._port)
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
        connection.request("POST", self._path, json.dumps({"inputs": [tensor]}), {"content-type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        self._connections.put(connection)
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {body!r}")
        return body


@contextlib.contextmanager
def serving(arguments: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Yield the port and the process of ``erniem-rt serve``."""
    command = [sys.executable, "-m", "erniem_rt", "serve", str(arguments.artifact), "--port", "0"]
    command += ["--engine", arguments.engine, "--max-batch", str(arguments.max_batch)]
    with process(command, r"http://127\.0\.0\.1:(\d+)/") as found:
        yield found


@contextlib.contextmanager
def without_queue(arguments: argparse.Namespace, kind: str) -> Iterator[int]:
    """Yield the port of KServe's own server, with a model that calls the pipeline in a thread."""
    python = sys.executable if kind == "erniem-rt" else arguments.python
    command = [python, "-m", "benchmarks.serving", "--artifact", str(arguments.artifact), "--baseline", kind]
    command += ["--engine", arguments.engine]
    command += ["--transformers", arguments.transformers] if arguments.transformers else []
    with process(command, r"ready at (\d+)\.") as (port, _):
        yield port


@contextlib.contextmanager
def on_ray(arguments: argparse.Namespace, pipeline: Any, texts: list[str]) -> Iterator[dict[str, Callable[[], float]]]:
    """Yield what measures Ray Serve and Ray Data on a local cluster, and a plain process beside them."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    # Ray only counts CPUs; Serve and Data take turns, and reading takes one.
    cpus = pipeline.session.threads
    ray.init(num_cpus=cpus + ACTORS + 1, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    try:
        port, name = free_port(), arguments.artifact.name
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        replica = {"ray_actor_options": {"num_cpus": cpus}}
        serve.run(application(arguments.artifact, deployment=replica, engine=arguments.engine))
        many = texts * math.ceil(12 * BLOCK / len(texts))
        yield {
            "Ray Serve, 1 clients": lambda: closed_loop(Client(port, name), texts, 1),
            "Ray Serve, 32 clients": lambda: closed_loop(Client(port, name), texts, CLIENTS),
            "plain process with a list": lambda: list_at_once(pipeline, many),
            f"Ray Data, {ACTORS} actors": lambda: ray_data(arguments, many),
        }
    finally:
        serve.shutdown()
        ray.shutdown()


def list_at_once(pipeline: Any, texts: list[str]) -> float:
    """Return the texts per second of one call."""
    start = time.perf_counter()
    pipeline(texts)
    return len(texts) / (time.perf_counter() - start)


class Timed(Predictor):
    """Returns the rows of a batch, its times, and the process that answered it."""

    def __call__(self, batch: Any) -> Any:
        begin = time.monotonic()
        rows = len(super().__call__(batch)["error"])
        return {"process": [os.getpid()], "rows": [rows], "begin": [begin], "end": [time.monotonic()]}


def ray_data(arguments: argparse.Namespace, texts: list[str]) -> float:
    """Return the texts per second of Ray Data's actors, from when all run until one has nothing left."""
    import ray

    data = ray.data.from_items([{"text": text} for text in texts], override_num_blocks=math.ceil(len(texts) / BLOCK))
    batches = data.map_batches(
        Timed,
        fn_constructor_kwargs={"model": str(arguments.artifact), "engine": arguments.engine},
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=ACTORS),
    ).take_all()
    by_process: dict[int, list[Any]] = {}
    for batch in batches:
        by_process.setdefault(batch["process"], []).append(batch)
    if len(by_process) < ACTORS:
        raise RuntimeError(f"Ray Data gave all blocks to {len(by_process)} of {ACTORS} actors: pass more --requests.")
    start = max(min(batch["begin"] for batch in own) for own in by_process.values())
    end = min(max(batch["end"] for batch in own) for own in by_process.values())
    rows = sum(
        batch["rows"] * max(min(batch["end"], end) - max(batch["begin"], start), 0) / (batch["end"] - batch["begin"])
        for batch in batches
    )
    return float(rows / (end - start))


def free_port() -> int:
    """Return a free port below the range of outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def process(command: list[str], ready: str) -> Iterator[tuple[int, int]]:
    """Run a process, and yield the port that it prints to standard error when it is ready, and the process's id."""
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert running.stderr is not None
    said = []
    try:
        for line in running.stderr:
            said.append(line)
            if found := re.search(ready, line):
                break
        else:
            raise RuntimeError(f"{' '.join(command)}: {''.join(said[-20:])}")
        threading.Thread(target=running.stderr.read, daemon=True).start()  # so that its pipe never fills
        yield int(found[1]), running.pid
    finally:
        running.terminate()
        running.wait(60)


def cpu_seconds(pid: int | None) -> float:
    """Return the CPU time of a process and its children."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            total += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


def family(pid: int | None) -> list[int]:
    """Return a process and all its children."""
    return [] if pid is None else [pid, *(one for child in children(pid) for one in family(child))]


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def serve_without_queue(arguments: argparse.Namespace) -> int:
    """Run KServe as in its documentation: a model whose ``predict`` makes one call, here in a thread."""
    sys.argv = sys.argv[:1]
    import asyncio

    import kserve

    pipeline: Any
    if arguments.baseline == "erniem-rt":
        pipeline = erniem_rt.pipeline(arguments.artifact, engine=arguments.engine)
    else:
        from transformers import pipeline as make

        pipeline = make("text-classification", arguments.transformers)

    class Model(kserve.Model):  # type: ignore[misc]
        async def predict(self, payload: Any, headers: Any = None) -> Any:  # noqa: ARG002
            (tensor,) = payload.inputs
            (text,) = tensor.data
            answer = await asyncio.to_thread(pipeline, text)
            output = kserve.InferOutput("answer", [1], "BYTES", [json.dumps(answer, default=str)])
            return kserve.InferResponse("1", self.name, [output])

    model = Model(arguments.artifact.name)
    model.load()
    server = kserve.ModelServer(http_port=free_port(), enable_grpc=False, enable_latency_logging=False)
    threading.Thread(target=say_when_ready, args=(server,), daemon=True).start()
    server.start([model])
    return 0


def say_when_ready(server: Any) -> None:
    """Say the port once this server listens; at the port alone, another process could answer.

    The full stop ends the number even if a line of the log comes before the end of this line.
    """
    while not getattr(getattr(server._rest_server, "_server", None), "started", False):
        time.sleep(0.1)
    print(f"ready at {server.http_port}.", file=sys.stderr, flush=True)


def report(figures: dict[str, list[float]], bars: dict[str, float]) -> None:
    for name, values in figures.items():
        print(f"{name:32} {statistics.median(values):8.1f} {'ms' if 'p95' in name or 'CPU' in name else 'a second'}")
    pairs = {
        "Batcher, 32 clients : one by one": ("Batcher, 32 clients", "direct, one by one"),
        "Batcher, one client : direct call": ("Batcher, one client", "direct, one by one"),
        "p95 at 80 % of capacity : direct calls, 50 % of theirs": ("Batcher, p95 at 80 %", "direct, p95 at 50 %"),
        "p95 at 80 % of capacity : direct calls, 50 % of the same": (
            "Batcher, p95 at 80 %",
            "direct, p95 at 50 % of Batcher's",
        ),
        "serve, 32 clients : KServe without the queue": ("serve, 32 clients", "KServe, 32 clients"),
        _TRANSFORMERS: ("serve, 32 clients", "transformers, 32 clients"),
        "Ray Data, 2 actors : plain process with a list": ("Ray Data, 2 actors", "plain process with a list"),
    }
    print()
    for name, (one, other) in pairs.items():
        if other in figures:
            ratios = [a / b for a, b in zip(figures[one], figures[other], strict=True)]
            sign = "≤" if "p95" in name else "≥"
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name:56} {statistics.median(ratios):6.2f} ({spread}; bar {sign} {bars[name]})")


def versions() -> dict[str, str]:
    found = {"erniem_rt": erniem_rt.__version__, "python": platform.python_version()}
    for name in ("onnxruntime", "openvino", "numpy", "kserve", "fastapi", "uvicorn", "gunicorn", "ray"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write JSON with each list of numbers on one line."""
    text = json.dumps(figures, indent=1)
    text = re.sub(r"\[[\s\d.,]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
