"""Export ErnieM checkpoints from PyTorch to ONNX, and check the numbers.

:func:`export`, :func:`verify` and :func:`convert` do the same as the commands ``erniem-export``, ``erniem-verify`` and
``erniem-convert``. The models are in :mod:`erniem_export.modeling`; :func:`register` adds them to transformers 5.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erniem_export.convert import Conversion
    from erniem_rt.manifest import Manifest

__all__ = ["convert", "export", "register", "verify"]


def export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] = "out",
    *,
    head: str = "auto",
    precision: str = "fp32",
    target: str = "auto",
    embedding: str | None = None,
    cpu: str = "auto",
    calibration: str | os.PathLike[str] | None = None,
    languages: Sequence[str] = (),
    keep_tokens: str | os.PathLike[str] | None = None,
    task_set: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    profiles: Sequence[str] = (),
    compute_capabilities: Sequence[str] = (),
    hardware_compatible: bool = False,
    version_compatible: bool = False,
    workspace: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    position_ids: bool = False,
    head_mask: bool = False,
    inputs_embeds: bool = False,
    hidden_states: bool = False,
    attentions: bool = False,
    mask: str = "auto",
    base: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    layout: str = "flat",
    quiet: bool = False,
) -> tuple[Path, Manifest]:
    """Export a checkpoint; the artifact gets its final name only if it passes the gate.

    Args:
        model: Folder of a checkpoint, hub id, or ``random:tiny``, ``random:base``, ``random:large``; of an adapter of
            peft too (with ``pip install "erniem-rt[adapters]"``), which is merged into its base.
        output: Folder that receives ``HEAD.onnx``, its weights, its manifest and the tokenizer's files.
        head: ``base``, ``cls``, ``ner``, ``qa``, ``mc``, ``ie``; ``auto`` reads it from the checkpoint.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``, for the matmuls of the layers.
        target: The graph's engine: ``onnxruntime-cpu``, ``onnxruntime-cuda``, ``onnxruntime-cuda-packed``,
            ``openvino`` (int8) or ``portable`` (standard operators only). ``auto``: a CPU in fp32 and int8, a GPU in
            fp16 and bf16.
        embedding: How to store the word embeddings: ``fp32``, ``fp16`` or ``int8``; None for the type of the weights.
        cpu: The CPU for int8: ``avx2``, ``vnni``, ``arm64``, or ``auto`` for a CPU like this one.
        calibration: File of texts (UTF-8, one a line) to calibrate int8 on; None for the checkpoint's
            ``calibration.txt``, or else 200 built-in lines.
        languages: Keep only the tokens of these languages, such as ``["en", "de"]``.
        keep_tokens: File of text (UTF-8): keep only its tokens, and those of ``languages``.
        task_set: File of labelled examples; None for ``task_set.jsonl`` in the checkpoint's folder, if there is one.
        engine: The builder of a TensorRT plan: ``tensorrt``, ``tensorrt-rtx``, ``none``; ``auto``: in fp16 and bf16 an
            installed one.
        profiles: Shapes to build the plan for, each ``MIN,OPT,MAX`` such as ``"1x1,8x128,32x512"``.
        compute_capabilities: GPUs to build for with ``tensorrt-rtx``, such as ``["8.9"]``.
        hardware_compatible: With ``tensorrt``: a plan for all GPUs from Ampere on.
        version_compatible: With ``tensorrt``: a plan also for later releases of the same major version.
        workspace: Limit of the plan's scratch memory on the GPU, in MiB.
        timing_cache: With ``tensorrt``: file of kernel timings, read and written.
        position_ids: Add the input ``position_ids`` to the graph.
        head_mask: Add the input ``head_mask``, ``(layers, heads)``.
        inputs_embeds: Take ``inputs_embeds``, ``(batch, sequence, hidden)``, instead of ``input_ids``.
        hidden_states: Add the outputs ``hidden_states.0``, ``.1``, ...
        attentions: Add the outputs ``attentions.0``, ``.1``, ...
        mask: ``padding``: no token attends to padding; ``uie-m``: the mask of PaddleNLP's Taskflow with uie-m, for head
            ``ie``; ``auto``: as the checkpoint was trained, which is ``uie-m`` for UIEM from Paddle.
        base: Folder or hub id of an adapter's base; None for the one that the adapter names.
        tokenizer: Folder or hub id of the tokenizer; None for the checkpoint's own.
        layout: ``flat``: ``HEAD.onnx`` and its weights beside the other files. ``optimum``: ``onnx/model.onnx``, with
            ``model.onnx_data`` beside it, as optimum and sentence-transformers look for them.
        quiet: Print no progress to standard error.

    Returns:
        The path of the graph and its manifest, which holds the parity report.

    Raises:
        OptionError: An option is unknown, or two contradict each other.
        ErnieMError: Anything else failed. ``output`` is unchanged.
    """
    from erniem_export import options
    from erniem_export.options import parse_profile
    from erniem_export.pipeline import export as run
    from erniem_export.progress import Terminal

    wanted = options.ExportOptions(
        model=str(model),
        head=head,
        output=Path(output),
        graph=options.GraphOptions(position_ids, head_mask, inputs_embeds, hidden_states, attentions),
        precision=options.Precision(precision, embedding),
        keep=options.Keep(tuple(languages), _path(keep_tokens)),
        target=target,
        int8=options.Int8(cpu, _path(calibration)),
        engine=options.EngineOptions(
            engine,
            tuple(map(parse_profile, profiles)),
            tuple(compute_capabilities),
            hardware_compatible,
            version_compatible,
            workspace,
            _path(timing_cache),
        ),
        task_set=_path(task_set),
        mask=mask,
        base=_text(base),
        tokenizer=_text(tokenizer),
        layout=layout,
    )
    return run(wanted.resolved(), Terminal(quiet=quiet))


def verify(
    artifact: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    task_set: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Manifest:
    """Compare an exported artifact with its checkpoint again.

    Args:
        artifact: The exported folder, an artifact in it, or its hub id.
        model: As for :func:`export`.
        task_set: As for :func:`export`, and so are ``base`` and ``tokenizer``.
        quiet: As for :func:`export`.

    Returns:
        The artifact's manifest with the new parity report.

    Raises:
        ErnieMError: The artifact or the checkpoint cannot be loaded, or their outputs differ.
    """
    from erniem_export.pipeline import verify as run
    from erniem_export.progress import Terminal

    terminal = Terminal(quiet=quiet)
    return run(artifact, str(model), terminal, _path(task_set), base=_text(base), tokenizer=_text(tokenizer))


def convert(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str = "xlm-roberta",
    head: str = "auto",
    text: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Conversion:
    """Write an ErnieM checkpoint as one of XLM-R, or the other way round, or one of PaddleNLP as one of PyTorch
    (``to="ernie-m"``): the same weights under other names.

    Args:
        model: Folder of a checkpoint, or hub id.
        output: Folder that receives weights, config and the tokenizer's files; all of it or nothing.
        to: ``xlm-roberta`` or ``ernie-m``.
        head: One of the six; XLM-R has no ``mc`` and ``ie``. ``auto`` reads it from the checkpoint.
        text: File of texts (UTF-8, one a line): count for how many the two tokenizers give other ids.
        quiet: As for :func:`export`.

    Returns:
        The head, notes on what differs between the two models, and the counts for ``text``.

    Raises:
        ErnieMError: The checkpoint cannot be read, has what the other model cannot have, or a file would be lost.
    """
    from erniem_export.convert import convert as run
    from erniem_export.progress import Terminal

    return run(str(model), Path(output), to, head, _path(text), Terminal(quiet=quiet))


def register() -> None:
    """Make the auto classes and pipelines of transformers 5, which has no ErnieM, work on ErnieM checkpoints.

    This covers AutoConfig, AutoModel, the AutoModelFor... of the heads, and AutoTokenizer, whose
    :class:`~erniem_export.auto_classes.ErnieMTokenizer` has the reference's ids. Does nothing if transformers has
    ErnieM itself, like 4.57.
    """
    from erniem_export import auto_classes

    auto_classes.register()


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)


def _text(value: str | os.PathLike[str] | None) -> str | None:
    return None if value is None else str(value)
