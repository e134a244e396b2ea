"""Real servers on nano, in the environment of ``make test-serving``; elsewhere all tests here are skipped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
WAIT = 60


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
    """``start_server(*arguments)``: a server on free ports, ready; ``wait=False``: it need not become ready."""
    servers = []

    def start(*arguments: object, wait: bool = True) -> Server:
        log = tmp_path_factory.mktemp("server") / "log"
        command = [sys.executable, "-W", "ignore", "-m", "erniem_rt", "serve", *map(str, arguments)]
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
