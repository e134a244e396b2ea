"""What the device is, and how fast it multiplies matrices at best. As JSON on standard output.

Usage: python -m benchmarks.gpu.peak DEVICE SIZE (in a process of its own, so that the benchmark's holds no memory on
the device)
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

ROUNDS, CALLS = 5, 20
# The dtype of each precision's products.
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def measure(device: str, size: int) -> dict[str, Any]:
    """The device, the versions behind it, and FLOP/s of square products of ``size`` by dtype: the best round."""
    import torch

    found = {name: _flops_per_second(torch, device, getattr(torch, dtype), size) for name, dtype in DTYPES.items()}
    return {"device": _describe(torch, device), "matmul_size": size, "flops_per_second": found}


def _flops_per_second(torch: Any, device: str, dtype: Any, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    calls = CALLS if device.startswith("cuda") else 1
    best = float("inf")
    for _ in range(ROUNDS + 1):  # the first also loads the kernels; it can only be slower
        started = time.perf_counter()
        for _ in range(calls):
            a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)  # without it, the first GPU is waited for
        best = min(best, time.perf_counter() - started)
    return float(2 * size**3 * calls / best)


def _describe(torch: Any, device: str) -> dict[str, Any]:
    if not device.startswith("cuda"):
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().splitlines()[0]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
