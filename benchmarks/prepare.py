"""The artifacts: one checkpoint in the form that each engine reads, made as its users would make it.

Usage: python -m benchmarks.prepare STEP FOLDER MODEL (one process per step, so that a crash costs one engine).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.gpu.steps import STEPS as GPU_STEPS

ROOT = Path(__file__).resolve().parent.parent
MARKER = "complete.json"
# What a step is made from; then the code and the packages that decide whether it must be made again.
SOURCES = {
    "checkpoint": (),
    "onnx-plain": ("checkpoint",),
    "onnx-optimized": ("onnx-plain",),
    "onnx-int8": ("onnx-plain",),
    "openvino": ("onnx-plain",),
    "openvino-int8": ("openvino",),
    "ctranslate2": ("checkpoint",),
    "ctranslate2-int8": ("checkpoint",),
    "erniem-rt": ("checkpoint",),
    "erniem-rt-int8": ("checkpoint",),
    **dict.fromkeys(GPU_STEPS, ("checkpoint",)),
}
MADE_BY = ("conversions", "gpu/conversions", "minilm", "texts", "workloads", "xlm_roberta")
OUR_SOURCES = ("erniem_rt", "export/erniem_export")
PACKAGES = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "openvino",
    "nncf",
    "ctranslate2",
)


def prepare(step: str, folder: Path, model: str) -> str | None:
    """Make one artifact in ``folder / step`` and what it needs, unless they are there; return why it cannot be had."""
    for source in SOURCES[step]:
        gap = prepare(source, folder, model)
        if gap is not None:
            return gap
    target = folder / step
    signature = _signature(step, model)
    marker = target / MARKER
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == signature:
        return None
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.prepare", step, str(folder), model]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (folder / f"{step}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        return f"preparing {step} failed with exit code {done.returncode}: {last_line(done.stderr)}"
    marker.write_text(json.dumps(signature), encoding="utf-8")
    return None


def last_line(text: str) -> str:
    """Return the line that says what went wrong: the last one that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def artifact_bytes(folder: Path) -> int:
    """Size of all files that the engine is given."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != MARKER)


def _signature(step: str, model: str) -> dict[str, str]:
    made_by = [ROOT / "benchmarks" / f"{name}.py" for name in MADE_BY]
    if "erniem-rt" in step:
        made_by += [path for folder in OUR_SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
    versions = {name: _version(name) for name in PACKAGES}
    return {"model": model, "made_by": _digest(made_by), **versions}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main(argv: list[str]) -> None:
    """Run one step in this process."""
    from benchmarks import conversions

    step, folder, model = argv[0], Path(argv[1]), argv[2]
    conversions.STEPS[step](folder, folder / step, model)


if __name__ == "__main__":
    main(sys.argv[1:])
