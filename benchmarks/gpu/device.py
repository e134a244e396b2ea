"""Whether the device is there: one sentence if it is not. Needs nothing but Python itself.

Usage: python benchmarks/gpu/device.py WHAT [DEVICE [PACKAGE...]]: for WHAT, the device and these packages besides.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

_REMEDY = "name a Python that has them: make GPU_PYTHON=/path/to/python"
NEEDED = ("numpy", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "safetensors", "tqdm")


def missing(device: str, packages: tuple[str, ...] = NEEDED) -> str | None:
    """What ``device`` lacks in this Python, with the remedy; None if nothing does."""
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        return f"{sys.executable} has no {', '.join(absent)}; {_REMEDY}."
    if device == "cpu":
        return None
    # In another process: this one must hold no memory on the device.
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


def main(argv: list[str]) -> int:
    """Say what is missing; 1 if something is."""
    what, device, *packages = [*argv, "cuda"] if len(argv) == 1 else argv
    lack = missing(device, (*NEEDED, *packages))
    if lack is not None:
        print(f"error: {what} cannot run: {lack}", file=sys.stderr)
    return int(lack is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
