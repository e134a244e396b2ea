"""How the artifacts of the GPU's engines are made.

With the package's own classes and not transformers': version 5, which is what a GPU machine has, holds no ErnieM. The
two compute the same (tests/parity).
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.steps import EXPORTS, PLAIN, PLAIN_FP16

_EXPORT = "import sys; from erniem_export.cli import main; sys.exit(main())"


def plain(folder: Path, target: Path, _: str) -> None:
    """Export with torch.onnx.export and its defaults."""
    import torch

    from erniem_export.checkpoint import load_checkpoint

    network = load_checkpoint(str(folder / "checkpoint")).model
    network.config.return_dict = False
    ids = torch.ones(2, 5, dtype=torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    torch.onnx.export(
        network,
        kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        f=target / "model.onnx",
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        external_data=True,
    )


def plain_fp16(folder: Path, target: Path, model: str) -> None:
    """Convert the same to fp16 as onnxruntime's documentation says, inputs and outputs left as they are."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    plain(folder, target, model)
    path = target / "model.onnx"
    # Without shapes it leaves Casts out where values cross between the types.
    onnx.shape_inference.infer_shapes_path(path, path)
    converted = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    Path(f"{path}.data").unlink(missing_ok=True)
    onnx.save(converted, path, save_as_external_data=True, location="model.onnx.data")


def export(flags: tuple[str, ...], folder: Path, target: Path, _: str) -> None:
    """Run erniem-export of this environment, gate included; leave with its exit code if it fails."""
    command = [sys.executable, "-c", _EXPORT, "--model", str(folder / "checkpoint"), "--output", str(target), *flags]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)


STEPS: dict[str, Callable[[Path, Path, str], None]] = {
    PLAIN: plain,
    PLAIN_FP16: plain_fp16,
    **{step: functools.partial(export, flags) for step, flags in EXPORTS.items()},
}
