"""The parent's side of a worker process."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.artifacts import last_line
from benchmarks.documents import ROOT
from benchmarks.engines import EngineSpec


class WorkerError(Exception):
    """A worker ended or timed out; the message is one line."""


class Client:
    """A running worker. ``started`` is its process's start time on ``time.perf_counter``'s clock."""

    def __init__(
        self,
        spec: EngineSpec,
        folder: Path,
        workloads: Path,
        threads: int,
        timeout: float = 600,
        command: Sequence[str] = (sys.executable, "-m", "benchmarks.worker"),
    ) -> None:
        self.spec = spec
        self._timeout = timeout
        self._ended: str | None = None
        self._log = folder / f"{spec.name}.worker.log"
        self.started = time.perf_counter()
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._exchange(
            {
                "adapter": spec.adapter,
                "artifact": str(folder / spec.artifact),
                "threads": threads,
                "options": spec.options,
                "workloads": str(workloads),
            }
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and return the answer; :class:`WorkerError` if none comes or the worker has ended."""
        return self._exchange({"do": do, **arguments})

    def close(self) -> None:
        """End the process."""
        self._ended = self._ended or "its worker was closed"
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                # close() tries again to flush data for a process that has ended.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._ended is not None:
            raise WorkerError(self._ended)
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise WorkerError(f"{self.spec.name} has no pipes")
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        if not select.select([stdout], [], [], self._timeout)[0]:
            self._process.kill()
            raise self._failure(f"no answer within {self._timeout:.0f} s")
        line = stdout.readline()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self, reason: str = "") -> WorkerError:
        """End the process; return the error, by default with its last message, which later requests raise too."""
        self.close()
        reason = reason or last_line(self._log.read_text(encoding="utf-8", errors="replace"))
        self._ended = reason or f"ended with exit code {self._process.returncode}"
        return WorkerError(self._ended)
