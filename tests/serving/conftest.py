"""Real servers on nano, in the environment of ``make test-serving``; elsewhere all tests here are skipped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import erniem_rt

HERE = Path(__file__).resolve().parent
WAIT = 60
TEXTS = ["Clara Bennett was born in 1971.", "Lakeside Motors is based in Denver, near Redwood Media."]


@dataclass(frozen=True)
class Example:
    """A request of two rows to the model ``name``: its tensors, its parameters, and the same as a pipeline's call."""

    name: str
    tensors: dict[str, list[Any]]
    parameters: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return "cls" if self.name == "nli" else self.name

    @property
    def task(self) -> str | None:
        return "zero-shot-classification" if self.name == "nli" else None

    def answers(self, artifact: Path, **session: Any) -> Any:
        """The pipeline's answers."""
        items = [dict(zip(self.tensors, row, strict=True)) for row in zip(*self.tensors.values(), strict=True)]
        with erniem_rt.pipeline(self.task, artifact, **session) as pipeline:
            return pipeline(items, **self.options)

    def assert_answered(self, found: Any, expected: Any) -> None:
        """The answers are the same to the bit."""
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected)
        else:
            assert found == expected


EXAMPLES = {
    example.name: example
    for example in (
        Example("qa", {"question": ["Who founded it?", "Where?"], "context": TEXTS}, {"top_k": 2}, {"top_k": 2}),
        Example("cls", {"text": TEXTS, "text_pair": TEXTS[::-1]}, {"top_k": "all"}, {"top_k": None}),
        Example("ner", {"text": TEXTS}, {"ignore_labels": "O, PER"}, {"ignore_labels": ["O", "PER"]}),
        Example(
            "ie",
            {"text": TEXTS},
            {"schema": '{"Person": "Year"}', "threshold": "0.25"},
            {"schema": {"Person": "Year"}, "threshold": 0.25},
        ),
        Example("mc", {"prompt": TEXTS, "choices": [["1971", "Denver"]] * 2}),
        Example("base", {"text": TEXTS}, *[{"pooling": "cls", "normalize": True}] * 2),
        Example(
            "nli",
            {"text": TEXTS},
            {"candidate_labels": '["a, b", "c"]'},
            {"candidate_labels": ["a, b", "c"]},
        ),
    )
}


@pytest.fixture(scope="session")
def examples() -> dict[str, Example]:
    """A request for each of seven models."""
    return EXAMPLES


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Example:
    """Each of them in turn."""
    return EXAMPLES[request.param]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what lies in this folder unless make said that its server is there: kserve, ray or triton."""
    there = os.environ.get("ERNIEM_SERVING")
    for item in items:
        needed = {"test_triton.py": "triton", "test_ray.py": "ray"}.get(item.path.name, "kserve")
        if HERE in item.path.parents and needed != there:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed}: make test-serving"))


@dataclass
class Server:
    """A running ``erniem-rt serve``."""

    process: subprocess.Popen
    log: Path
    address: str = ""
    grpc: str = ""

    def ready(self) -> Server:
        until = time.monotonic() + WAIT
        while time.monotonic() < until and self.process.poll() is None:
            told = self.log.read_text("utf-8")
            if found := re.search(r"serving gRPC at (\S+)", told):
                self.grpc = found[1]
                self.address = re.search(r"http://[^/]+", told)[0]
                return self
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.log.read_text('utf-8')}")

    def terminate(self) -> tuple[int, str]:
        """SIGTERM; the exit code and what the server said."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        code = self.process.wait(WAIT)
        return code, self.log.read_text("utf-8")


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """``start_server(*arguments)``: a server on free ports, ready; ``wait=False``: it need not become ready.

    ``inside`` is a command that runs the server's.
    """
    servers = []

    def start(*arguments: object, wait: bool = True, inside: tuple[str, ...] = ()) -> Server:
        log = tmp_path_factory.mktemp("server") / "log"
        command = [*inside, sys.executable, "-W", "ignore", "-m", "erniem_rt", "serve", *map(str, arguments)]
        if wait:
            command += ["--port", "0", "--grpc-port", "0"]
        with log.open("wb") as file:
            server = Server(subprocess.Popen(command, stdout=file, stderr=file), log)
        servers.append(server)
        return server.ready() if wait else server

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()
