"""Describes the machine: the CPU, and the GPU with its measured peak. Needs only Python itself.

Usage: python benchmarks/machine.py TARGET DEVICE [PACKAGE...]: exit code 1 and one sentence if this Python or machine
lacks a requirement of the make target; and python -m benchmarks.machine --peak DEVICE SIZE, which prints JSON.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# The CPU flags that determine the engines' kernels.
_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_REMEDY = "name a Python that has them: make GPU_PYTHON=/path/to/python"
NEEDED = ("numpy", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "safetensors", "tqdm")
# For measuring the peak: rounds, matmuls per round, and the type of each precision.
_ROUNDS, _CALLS = 5, 20
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def describe_machine() -> dict[str, Any]:
    """Return CPU, its class and flags, cores, memory, system, Python, the day, and the load of the last minute."""
    from erniem_rt.machine import cpu_class

    info = _cpu_info()
    return {
        "class": cpu_class(),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": info.get("model name", platform.processor() or "unknown"),
        "flags": [flag for flag in _FLAGS if flag in info.get("flags", "").split()],
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def cpu_name(machine: dict[str, Any]) -> str:
    """Return the class and the maker of a described CPU, such as ``avx512-vnni-bf16-intel``.

    CPUs of one class differ: an Intel Xeon without AMX computed bf16 more slowly than fp32, an AMD EPYC faster.
    """
    maker = next((maker for maker in ("intel", "amd") if maker in machine["cpu"].lower()), None)
    return f"{machine['class']}-{maker}" if maker else str(machine["class"])


def has_vnni() -> bool:
    """Return whether this CPU sums int8 products exactly, so that weights may use the whole range."""
    return bool({"avx512_vnni", "avx_vnni"} & set(_cpu_info().get("flags", "").split()))


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def missing(device: str, packages: tuple[str, ...] = NEEDED) -> str | None:
    """Return a sentence on what this Python lacks for ``device``, with the remedy; None if nothing."""
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        return f"{sys.executable} has no {', '.join(absent)}; {_REMEDY}."
    if device == "cpu":
        return None
    # In another process: this one must not use the device's memory.
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        return f"torch cannot be imported by {sys.executable}: {reason}."
    version, cuda, available = done.stdout.split()
    if available != "True":
        return (
            f"PyTorch {version} ({'built without CUDA' if cuda == 'None' else f'CUDA {cuda}'}) finds no NVIDIA GPU; "
            f"run it on a machine with one, and {_REMEDY}."
        )
    return None


def measure_peak(device: str, size: int) -> dict[str, Any]:
    """Return the device, its driver, and the best FLOP/s of square matmuls of ``size`` by precision."""
    import torch

    found = {name: flops_per_second(torch, device, getattr(torch, dtype), size) for name, dtype in _DTYPES.items()}
    return {"device": _describe_device(torch, device), "matmul_size": size, "flops_per_second": found}


def flops_per_second(torch: Any, device: str, dtype: Any, size: int) -> float:
    """Return the best FLOP/s of several rounds of multiplying two square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    calls = _CALLS if device.startswith("cuda") else 1
    best = float("inf")
    for _ in range(_ROUNDS + 1):  # the first round also loads the kernels
        started = time.perf_counter()
        for _ in range(calls):
            a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)  # by default, this waits for the first GPU
        best = min(best, time.perf_counter() - started)
    return float(2 * size**3 * calls / best)


def _describe_device(torch: Any, device: str) -> dict[str, Any]:
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


def main(argv: list[str]) -> int:
    """Print what is missing and return 1 if anything is; or measure the peak."""
    target, device, *more = argv
    if target == "--peak":
        print(json.dumps(measure_peak(device, int(more[0]))))
        return 0
    lack = missing(device, (*NEEDED, *more))
    if lack is not None:
        print(f"error: {target} cannot run: {lack}", file=sys.stderr)
    return int(lack is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
