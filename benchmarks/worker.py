"""Runs one engine in its own process, which gets its work over pipes.

Usage: python -m benchmarks.worker, with the request ``{"adapter", "artifact", "threads", "options", "workloads"}`` as
the first line of standard input. Requests and answers are JSON, one per line; see ``_OPERATIONS``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.adapters import Adapter

Request = dict[str, Any]


class Worker:
    """The engine and its workloads: ``{name: {"rows": [...], "checked": [...], "batch_size": n}}``."""

    def __init__(self, adapter: Adapter, workloads: dict[str, Any]) -> None:
        self._adapter = adapter
        self._workloads = workloads

    def first(self, request: Request) -> Request:
        """Run the first row of a workload, for the time to a new process's first answer."""
        workload = self._workloads[request["workload"]]
        logits = self._adapter.run(workload["rows"][:1], 1)
        return {"logits": logits[0].tolist(), "versions": self._adapter.versions}

    def check(self, request: Request) -> Request:
        """Run all checked rows of a workload."""
        workload = self._workloads[request["workload"]]
        rows, batch = workload["checked"], len(workload["rows"])
        logits = [self._adapter.run(rows[i : i + batch], workload["batch_size"]) for i in range(0, len(rows), batch)]
        return {"logits": [row.tolist() for part in logits for row in part]}

    def hidden_states(self, request: Request) -> Request:
        """Write the hidden states of all rows, one array per row, into the file ``to``."""
        import numpy as np

        rows = self._workloads[request["workload"]]["rows"]
        np.savez(request["to"], *self._adapter.hidden_states(rows, request["batch_size"]))
        return {"versions": self._adapter.versions}

    def time(self, request: Request) -> Request:
        """Run the workload ``untimed`` times, then ``calls`` times timed; return the seconds of each call.

        With ``states``, compute hidden states instead of logits.
        """
        workload = self._workloads[request["workload"]]
        work = self._adapter.hidden_states if request.get("states") else self._adapter.run
        seconds = []
        for call in range(-request["untimed"], request["calls"]):
            started = time.perf_counter()
            work(workload["rows"], workload["batch_size"])
            if call >= 0:
                seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def memory(self, _: Request) -> Request:
        """Return Linux's memory counters in bytes; ``proportional`` divides shared pages among their processes."""
        return read_memory()


_OPERATIONS: dict[str, Callable[[Worker, Request], Request]] = {
    "first": Worker.first,
    "check": Worker.check,
    "hidden_states": Worker.hidden_states,
    "time": Worker.time,
    "memory": Worker.memory,
}


def read_memory() -> dict[str, int]:
    """Return this process's memory in bytes."""
    sizes: dict[str, int] = {}
    for name in ("status", "smaps_rollup"):
        for line in Path(f"/proc/self/{name}").read_text(encoding="ascii").splitlines():
            if line.endswith(" kB"):
                key, value = line.removesuffix(" kB").split(":")
                sizes[key] = int(value) * 1024
    keys = {"resident": "VmRSS", "private": "RssAnon", "peak": "VmHWM", "proportional": "Pss"}
    return {name: sizes[key] for name, key in keys.items()}


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Load the engine of the first line, then answer requests line by line until the input ends."""

    def answer(result: Request) -> None:
        answers.write(json.dumps(result) + "\n")
        answers.flush()

    from benchmarks import adapters

    start = json.loads(requests.readline())
    load = getattr(adapters, start["adapter"])
    workloads = json.loads(Path(start["workloads"]).read_text(encoding="utf-8"))
    worker = Worker(load(Path(start["artifact"]), start["threads"], **start["options"]), workloads)
    answer({"ready": True})
    for line in requests:
        request = json.loads(line)
        answer(_OPERATIONS[request["do"]](worker, request))


def main() -> None:
    """Serve on the standard streams, with the engines' output redirected to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
