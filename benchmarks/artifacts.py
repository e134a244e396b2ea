"""Converts one checkpoint to the format of each engine, as the engine's documentation recommends.

Usage: python -m benchmarks.artifacts STEP FOLDER MODEL (one process per step, so that a crash costs one engine).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.documents import ROOT

MARKER = "complete.json"
# Between the released sizes and a toy: matmuls dominate the time of a call, yet a run takes seconds.
SMALL: dict[str, Any] = {
    "vocab_size": 30000,
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
# Many labels, so that a few rows of logits distinguish coarse rounding from wrong answers (measure.py).
LABELS = 64
CALIBRATION_ROWS = 300
# One for few rows and one for up to 128. The default profiles end at 32, so 128 rows would take four runs.
_PROFILES = ("1x1,1x128,4x512", "1x1,128x128,128x512")
# The options of ``erniem_export.export``, by the name of the step.
EXPORTS: dict[str, dict[str, Any]] = {
    "erniem-rt": {},
    "erniem-rt-int8": {"precision": "int8", "embedding": "int8"},
    "erniem-rt-target-openvino-int8": {"precision": "int8", "embedding": "int8", "target": "openvino"},
    "gpu-erniem-rt-fp16": {"precision": "fp16", "engine": "none"},
    "gpu-erniem-rt-packed-fp16": {"precision": "fp16", "engine": "none", "target": "onnxruntime-cuda-packed"},
    "gpu-erniem-rt-tensorrt-fp16": {"precision": "fp16", "engine": "tensorrt", "profiles": _PROFILES},
    "gpu-erniem-rt-tensorrt-rtx-fp16": {"precision": "fp16", "engine": "tensorrt-rtx", "profiles": _PROFILES},
}
# The inputs of each step, and the code and packages that require it to run again when they change.
SOURCES: dict[str, tuple[str, ...]] = {
    "checkpoint": (),
    "onnx-plain": ("checkpoint",),
    "onnx-optimized": ("onnx-plain",),
    "onnx-int8": ("onnx-plain",),
    "openvino": ("onnx-plain",),
    "openvino-int8": ("openvino",),
    "ctranslate2": ("checkpoint",),
    "ctranslate2-int8": ("checkpoint",),
    "gpu-onnx-plain": ("checkpoint",),
    "gpu-onnx-plain-fp16": ("gpu-onnx-plain",),
    **dict.fromkeys(EXPORTS, ("checkpoint",)),
}
MADE_BY = ("artifacts", "related_models", "texts", "workloads")
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


def prepare(step: str, folder: Path, model: str, timeout: float | None = None) -> str | None:
    """Make one artifact in ``folder / step`` and its inputs, unless they exist; return the reason for a failure.

    ``timeout`` is in seconds, for each process.
    """
    for source in SOURCES[step]:
        gap = prepare(source, folder, model, timeout)
        if gap is not None:
            return gap
    target = folder / step
    signature = _signature(step, model)
    marker = target / MARKER
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == signature:
        return None
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.artifacts", step, str(folder), model]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"left out, for preparing {step} took longer than {timeout:.0f} s, all that the time budget had left"
    (folder / f"{step}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        return f"preparing {step} failed with exit code {done.returncode}: {last_line(done.stderr)}"
    marker.write_text(json.dumps(signature), encoding="utf-8")
    return None


def last_line(text: str) -> str:
    """Return the last line that is not empty, which has the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def artifact_bytes(folder: Path) -> int:
    """Return the size of an artifact's files in bytes, without the hidden folder of compiled models."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return sum(path.stat().st_size for path in files if not path.relative_to(folder).parts[0].startswith("."))


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


def checkpoint(_: Path, target: Path, model: str) -> None:
    """Write a checkpoint of head ``cls`` with seeded weights with transformers 4."""
    if model == "minilm":
        from benchmarks.related_models import write_minilm

        write_minilm(target)
        return
    from erniem_export.checkpoint import SIZES, randomize
    from erniem_export.configuration import ErnieMConfig
    from erniem_export.modeling import ErnieMForSequenceClassification

    size = SMALL if model == "small" else SIZES[model.removeprefix("random:")]
    network = ErnieMForSequenceClassification(ErnieMConfig(**size, num_labels=LABELS))
    randomize(network)
    network.save_pretrained(target)


def onnx_plain(folder: Path, target: Path, _: str) -> None:
    """Export transformers' class with torch.onnx.export and its defaults."""
    _plain_export(_reference(folder), target)
    shutil.copy(folder / "checkpoint" / "config.json", target)


def gpu_onnx_plain(folder: Path, target: Path, _: str) -> None:
    """Export this package's class in the same way: transformers 5, which a GPU machine may have, has no ErnieM.

    The two classes are equivalent (tests/parity).
    """
    from erniem_export.checkpoint import load_checkpoint

    _plain_export(load_checkpoint(str(folder / "checkpoint")).model, target)


def gpu_onnx_plain_fp16(folder: Path, target: Path, _: str) -> None:
    """Convert the plain export to fp16 as onnxruntime's documentation says, except for inputs and outputs."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = target / "model.onnx"
    # Without shapes, the conversion omits Casts between the types.
    onnx.shape_inference.infer_shapes_path(folder / "gpu-onnx-plain" / "model.onnx", path)
    for data in (folder / "gpu-onnx-plain").glob("*.data"):
        shutil.copy(data, target)
    converted = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    Path(f"{path}.data").unlink(missing_ok=True)
    onnx.save(converted, path, save_as_external_data=True, location="model.onnx.data")


def _plain_export(network: Any, target: Path) -> None:
    import torch

    network.config.return_dict = False
    ids = torch.ones(2, 5, dtype=torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    torch.onnx.export(
        network,
        kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        f=target / "model.onnx",
        input_names=["input_ids", "attention_mask"],
        output_names=_outputs(network),
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        external_data=True,
    )


def onnx_optimized(folder: Path, target: Path, _: str) -> None:
    """Run onnxruntime's stock transformer optimizer for BERT."""
    from onnxruntime.transformers import optimizer

    config = _reference(folder).config
    optimized = optimizer.optimize_model(
        str(folder / "onnx-plain" / "model.onnx"),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
    )
    print(optimized.get_fused_operator_statistics())
    optimized.save_model_to_file(str(target / "model.onnx"), use_external_data_format=True)


def onnx_int8(folder: Path, target: Path, _: str) -> None:
    """Quantize the plain export as onnxruntime's documentation recommends: pre-processed, dynamic, per channel."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from benchmarks.machine import has_vnni

    processed = folder / "onnx-int8.work" / "model.onnx"
    processed.parent.mkdir(exist_ok=True)
    plain = str(folder / "onnx-plain" / "model.onnx")
    quant_pre_process(plain, str(processed), save_as_external_data=True, all_tensors_to_one_file=True)
    quantize_dynamic(
        processed,
        target / "model.onnx",
        per_channel=True,
        reduce_range=not has_vnni(),
        use_external_data_format=True,
    )
    shutil.rmtree(processed.parent)


def openvino_fp32(folder: Path, target: Path, _: str) -> None:
    """Convert the plain export, with weights in fp32."""
    import openvino

    network = openvino.convert_model(folder / "onnx-plain" / "model.onnx")
    openvino.save_model(network, target / "model.xml", compress_to_fp16=False)


def openvino_int8(folder: Path, target: Path, _: str) -> None:
    """Quantize weights and activations with NNCF after training, with its transformer preset and 300 samples."""
    import nncf
    import openvino

    from benchmarks.adapters import pad

    network = openvino.Core().read_model(folder / "openvino" / "model.xml")
    rows = _calibration_rows(folder / "checkpoint", _reference(folder).config.vocab_size)
    samples = nncf.Dataset([dict(zip(("input_ids", "attention_mask"), pad([row]), strict=True)) for row in rows])
    quantized = nncf.quantize(network, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(quantized, target / "model.xml", compress_to_fp16=False)


def ctranslate2_fp32(folder: Path, target: Path, _: str) -> None:
    """Convert for CTranslate2."""
    _ctranslate2(folder, target, None)


def ctranslate2_int8(folder: Path, target: Path, _: str) -> None:
    """Convert for CTranslate2, with weights in int8."""
    _ctranslate2(folder, target, "int8")


def export(options: dict[str, Any], folder: Path, target: Path) -> None:
    """Export with our exporter, gate included; exit with its error if it fails."""
    import erniem_export
    from erniem_rt import ErnieMError

    try:
        erniem_export.export(folder / "checkpoint", target, **options)
    except ErnieMError as error:
        sys.exit(f"error: {error}")


STEPS: dict[str, Callable[[Path, Path, str], None]] = {
    "checkpoint": checkpoint,
    "onnx-plain": onnx_plain,
    "onnx-optimized": onnx_optimized,
    "onnx-int8": onnx_int8,
    "openvino": openvino_fp32,
    "openvino-int8": openvino_int8,
    "ctranslate2": ctranslate2_fp32,
    "ctranslate2-int8": ctranslate2_int8,
    "gpu-onnx-plain": gpu_onnx_plain,
    "gpu-onnx-plain-fp16": gpu_onnx_plain_fp16,
}


def _reference(folder: Path) -> Any:
    from transformers.models.deprecated import ernie_m

    (architecture,) = ernie_m.ErnieMConfig.from_pretrained(folder / "checkpoint").architectures
    return getattr(ernie_m, architecture).from_pretrained(folder / "checkpoint").eval()


def _outputs(network: Any) -> list[str]:
    return ["logits"] if hasattr(network, "classifier") else ["last_hidden_state", "pooler_output"]


def _calibration_rows(checkpoint: Path, vocab_size: int) -> Sequence[Sequence[int]]:
    """Return NNCF's default number of rows: of text if the model has a tokenizer, else like the mixed workload's."""
    from benchmarks.related_models import tokenize
    from benchmarks.texts import calibration_texts
    from benchmarks.workloads import build_workloads

    if (checkpoint / "tokenizer.json").exists():
        return tokenize(checkpoint, calibration_texts()[:CALIBRATION_ROWS])
    drawn = [row for seed in range(1, 6) for row in build_workloads(("mixed",), vocab_size, seed)[0].rows]
    return drawn[:CALIBRATION_ROWS]


def _ctranslate2(folder: Path, target: Path, quantization: str | None) -> None:
    """Convert the weights as XLM-R's, which is equivalent on rows padded on the right."""
    from ctranslate2.converters.transformers import XLMRobertaLoader

    from benchmarks.related_models import as_xlm_roberta

    network = _reference(folder)
    loader = XLMRobertaLoader()
    spec = loader.get_model_spec(as_xlm_roberta(network))
    spec.config.unk_token = "3"
    spec.config.layer_norm_epsilon = network.config.layer_norm_eps
    # The encoder gets ids; only the size of the vocabulary matters.
    loader.set_vocabulary(spec, [str(i) for i in range(network.config.vocab_size)])
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(target))
    if not hasattr(network, "classifier"):
        return
    weight, bias = (tensor.detach().numpy() for tensor in (network.classifier.weight, network.classifier.bias))
    np.savez(target / "classifier.npz", weight=weight, bias=bias)


def main(argv: list[str]) -> None:
    """Run one step in this process."""
    step, folder, model = argv[0], Path(argv[1]), argv[2]
    if step in EXPORTS:
        export(EXPORTS[step], folder, folder / step)
    else:
        STEPS[step](folder, folder / step, model)


if __name__ == "__main__":
    main(sys.argv[1:])
