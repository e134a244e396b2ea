"""What a runner tells its parent: one JSON line, written when the first result is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def report(logits: Any, versions: str) -> None:
    """Write the result and this process's memory, in bytes, as Linux counts it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.endswith(" kB")}
    result = {
        "logits": [float(value) for value in logits.ravel()],
        "resident": sizes["VmRSS"],
        "resident_private": sizes["RssAnon"],
        "peak": sizes["VmHWM"],
        "versions": versions,
        "torch_loaded": "torch" in sys.modules,
    }
    print(json.dumps(result), flush=True)
