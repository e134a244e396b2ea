"""``--int8``: calibrate, rewrite the graph, say what was done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from erniem_export.errors import ExportError
from erniem_export.options import ON_OPENVINO
from erniem_export.passes.int8 import to_int8
from erniem_export.passes.int8_openvino import to_int8_openvino
from erniem_export.passes.int8_standard import int8_products, int8_weights
from erniem_export.quantization.calibration import calibration_for, read_texts
from erniem_export.quantization.encoder import quantize_encoder
from erniem_rt._cpu import cpu_flags, has_vnni, is_arm

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from erniem_export.checkpoint import Checkpoint
    from erniem_export.options import Int8
    from erniem_export.progress import Progress
    from erniem_export.quantization.calibration import Calibration
    from erniem_export.quantization.encoder import Quantization
    from erniem_rt.manifest import Limits

__all__ = ["check_int8", "cpu_for", "quantize", "quantize_for_engine"]

# The flavour that takes int8 weights and no products, and so needs no calibration.
_WEIGHTS_ONLY = "tensorrt-rtx"


def cpu_for(options: Int8, target: str = "auto") -> str:
    """``avx2``, ``vnni`` or ``arm64``, as asked for or as here; :class:`ExportError` where it cannot be checked.

    The last two sum products of 8 bits exactly.

    ``target``: of the graph; OpenVINO's is for ``vnni`` alone.
    """
    flags, vnni = cpu_flags(), has_vnni()
    if target == ON_OPENVINO:
        if vnni is False:
            raise ExportError(
                "--target openvino is int8 for a CPU with VNNI and cannot be checked here, on one without: leave it out"
            )
        return "vnni"
    if vnni is not None and "avx2" not in flags:
        raise ExportError("--int8 needs a CPU with AVX2, and this CPU has none: leave it out")
    if options.cpu == "auto":
        return "vnni" if vnni else "arm64" if is_arm() else "avx2"
    if options.cpu in ("vnni", "arm64") and vnni is False:
        raise ExportError(f"--cpu {options.cpu} cannot be checked here, on a CPU without VNNI: leave it out")
    return options.cpu


def check_int8(options: Int8, flavour: str | None, own: Path | None = None, target: str = "auto") -> None:
    """Refuse, before the long work, what :func:`quantize` and :func:`quantize_for_engine` would.

    Args:
        options: For which CPU, and on what text.
        flavour: Of TensorRT; None for onnxruntime.
        own: The checkpoint's own text, once it is loaded.
        target: Of the graph, for onnxruntime.

    Raises:
        ExportError: The calibration text cannot be used, or the CPU is not fit.
    """
    if flavour is None:
        cpu_for(options, target)
    text = options.calibration or own
    if text is not None and flavour != _WEIGHTS_ONLY:
        read_texts(text)


def quantize(
    graph: ir.Model,
    checkpoint: Checkpoint,
    folder: Path,
    options: Int8,
    limits: Limits,
    progress: Progress,
    target: str = "auto",
) -> dict[str, Any]:
    """Put the encoder's products into int8, in place; return what was done, for the manifest.

    Args:
        graph: The checkpoint's graph.
        checkpoint: The model and its tokenizer.
        folder: Where the checkpoint is, for a tokenizer of another kind than ErnieM's.
        options: For which CPU, and on what text.
        limits: Of the ids.
        progress: Is told of the layers.
        target: Of the graph: ``openvino`` has a form of its own.

    Raises:
        ExportError: The calibration text cannot be used, or the CPU is not fit.
        FusionError: A product is not in the graph.
    """
    cpu = cpu_for(options, target)
    calibration = _calibration(checkpoint, folder, options, limits)
    progress.step(f"quantizing for {cpu}, calibrated on {calibration.source}")
    found = quantize_encoder(
        checkpoint.model,
        calibration,
        lambda layers: progress.track(layers, "layer"),
        form="pairs" if cpu == "avx2" else "exact",
    )
    (to_int8_openvino if target == ON_OPENVINO else to_int8)(graph, found.products)
    return {"cpu": cpu, **_described(found, calibration.source)}


def quantize_for_engine(
    graph: ir.Model,
    checkpoint: Checkpoint,
    folder: Path,
    options: Int8,
    limits: Limits,
    flavour: str,
    progress: Progress,
) -> dict[str, Any]:
    """As :func:`quantize`, in the form that this flavour of TensorRT takes; ``graph`` computes in what is left.

    Raises:
        ExportError: The calibration text cannot be used, or there is no tokenizer to read one with.
    """
    if flavour == _WEIGHTS_ONLY:
        progress.step("storing the weights of the layers in int8")
        parameters = {name: tensor.numpy() for name, tensor in checkpoint.model.state_dict().items()}
        return {"weights_only": int8_weights(graph, parameters)}
    calibration = _calibration(checkpoint, folder, options, limits)
    if calibration.drawn and not checkpoint.is_random:
        raise ExportError(
            "--int8 for TensorRT is calibrated on text, and this checkpoint has no tokenizer to read it with: put its "
            "tokenizer's files beside the weights, or take --fp16"
        )
    progress.step(f"quantizing for TensorRT, calibrated on {calibration.source}")
    found = quantize_encoder(
        checkpoint.model, calibration, lambda layers: progress.track(layers, "layer"), form="symmetric"
    )
    int8_products(graph, found.products)
    return _described(found, calibration.source)


def _calibration(checkpoint: Checkpoint, folder: Path, options: Int8, limits: Limits) -> Calibration:
    tokenizer = checkpoint.tokenizer_dir or folder
    return calibration_for(options.calibration, tokenizer, limits, own=checkpoint.calibration)


def _described(found: Quantization, source: str) -> dict[str, Any]:
    return {
        "calibration": source,
        "relative_l2": found.error,
        "products": {
            name: {
                "error": product.error,
                "input_scale": product.entering.scale,
                "input_zero_point": product.entering.zero_point,
                "smoothed_channels": product.smoothed_channels(),
                "channels_in_fp32": product.entering.exact.tolist(),
            }
            for name, product in found.products.items()
        },
    }
