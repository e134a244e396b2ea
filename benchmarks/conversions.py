"""How each artifact is made: the calls that the engines' own documentation gives, nothing tuned for this benchmark."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adapters.base import pad
from benchmarks.gpu import conversions as gpu
from benchmarks.machine import has_vnni
from benchmarks.minilm import build_checkpoint, tokenize
from benchmarks.texts import calibration_texts
from benchmarks.workloads import build_workloads

# Between the released sizes and a toy: enough work per call that products and not calls decide, yet done in seconds.
SMALL: dict[str, Any] = {
    "vocab_size": 30000,
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
# Many, so that a few rows of logits are enough to tell coarse rounding from wrong answers (correctness.py).
LABELS = 64
CALIBRATION_ROWS = 300


def checkpoint(_: Path, target: Path, model: str) -> None:
    """Write a checkpoint of head ``cls`` with seeded weights, as transformers 4 writes it."""
    if model == "minilm":
        build_checkpoint(target)
        return
    from erniem_export.configuration import ErnieMConfig
    from erniem_export.modeling import ErnieMForSequenceClassification
    from erniem_export.random_weights import SIZES, randomize

    size = SMALL if model == "small" else SIZES[model.removeprefix("random:")]
    network = ErnieMForSequenceClassification(ErnieMConfig(**size, num_labels=LABELS))
    randomize(network)
    network.save_pretrained(target)


def onnx_plain(folder: Path, target: Path, _: str) -> None:
    """Export transformers' own class with torch.onnx.export and its defaults."""
    import torch

    network = _reference(folder)
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
    shutil.copy(folder / "checkpoint" / "config.json", target)


def onnx_optimized(folder: Path, target: Path, _: str) -> None:
    """Run onnxruntime's stock transformer optimiser for BERT."""
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
    """Quantise the plain export as onnxruntime's documentation recommends: pre-processed, dynamic, per channel."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

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
    """Convert the plain export, weights left in fp32."""
    import openvino

    network = openvino.convert_model(folder / "onnx-plain" / "model.onnx")
    openvino.save_model(network, target / "model.xml", compress_to_fp16=False)


def openvino_int8(folder: Path, target: Path, _: str) -> None:
    """Quantise with NNCF after training, weights and activations, its preset for transformers, its 300 samples."""
    import nncf
    import openvino

    network = openvino.Core().read_model(folder / "openvino" / "model.xml")
    rows = _calibration_rows(folder / "checkpoint", _reference(folder).config.vocab_size)
    samples = nncf.Dataset([dict(zip(("input_ids", "attention_mask"), pad([row]), strict=True)) for row in rows])
    quantized = nncf.quantize(network, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(quantized, target / "model.xml", compress_to_fp16=False)


def ctranslate2_fp32(folder: Path, target: Path, _: str) -> None:
    """Convert for CTranslate2."""
    _ctranslate2(folder, target, None)


def ctranslate2_int8(folder: Path, target: Path, _: str) -> None:
    """Convert for CTranslate2, weights in int8."""
    _ctranslate2(folder, target, "int8")


def erniem_rt(folder: Path, target: Path, _: str) -> None:
    """Export with our own command for the engine that serves it here."""
    _erniem_export(folder / "checkpoint", target)


def erniem_rt_int8(folder: Path, target: Path, _: str) -> None:
    """Export with our own command, products and word embeddings in int8."""
    _erniem_export(folder / "checkpoint", target, "--int8", "--embedding", "int8")


STEPS: dict[str, Callable[[Path, Path, str], None]] = {
    "checkpoint": checkpoint,
    "onnx-plain": onnx_plain,
    "onnx-optimized": onnx_optimized,
    "onnx-int8": onnx_int8,
    "openvino": openvino_fp32,
    "openvino-int8": openvino_int8,
    "ctranslate2": ctranslate2_fp32,
    "ctranslate2-int8": ctranslate2_int8,
    "erniem-rt": erniem_rt,
    "erniem-rt-int8": erniem_rt_int8,
    **gpu.STEPS,
}


def _reference(folder: Path) -> Any:
    from transformers.models.deprecated import ernie_m

    (architecture,) = ernie_m.ErnieMConfig.from_pretrained(folder / "checkpoint").architectures
    return getattr(ernie_m, architecture).from_pretrained(folder / "checkpoint").eval()


def _outputs(network: Any) -> list[str]:
    return ["logits"] if hasattr(network, "classifier") else ["last_hidden_state", "pooler_output"]


def _calibration_rows(checkpoint: Path, vocab_size: int) -> Sequence[Sequence[int]]:
    """NNCF's usual number of rows: of text where the model has a tokenizer, else drawn as the mixed workload's are."""
    if (checkpoint / "tokenizer.json").exists():
        return tokenize(checkpoint, calibration_texts()[:CALIBRATION_ROWS])
    drawn = [row for seed in range(1, 6) for row in build_workloads(("mixed",), vocab_size, seed)[0].rows]
    return drawn[:CALIBRATION_ROWS]


def _ctranslate2(folder: Path, target: Path, quantization: str | None) -> None:
    """Hand the weights over as XLM-R's, which computes the same on rows padded on the right."""
    from ctranslate2.converters.transformers import XLMRobertaLoader

    from benchmarks.xlm_roberta import as_xlm_roberta

    network = _reference(folder)
    loader = XLMRobertaLoader()
    spec = loader.get_model_spec(as_xlm_roberta(network))
    spec.config.unk_token = "3"
    spec.config.layer_norm_epsilon = network.config.layer_norm_eps
    # The encoder is given ids; the vocabulary only has to have the right size.
    loader.set_vocabulary(spec, [str(i) for i in range(network.config.vocab_size)])
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(target))
    if not hasattr(network, "classifier"):
        return
    weight, bias = (tensor.detach().numpy() for tensor in (network.classifier.weight, network.classifier.bias))
    np.savez(target / "classifier.npz", weight=weight, bias=bias)


def _erniem_export(checkpoint: Path, target: Path, *flags: str) -> None:
    """Run erniem-export of this environment; leave with its exit code if it fails."""
    command = [Path(sys.executable).with_name("erniem-export"), "--model", checkpoint, "--output", target]
    done = subprocess.run([*command, "--target", "onnxruntime", *flags], check=False)
    if done.returncode:
        sys.exit(done.returncode)
