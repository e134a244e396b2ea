"""The mask of uie-m: computes rows as PaddleNLP's Taskflow does, without its 512 columns.

Taskflow pads every row to the model's length, with position 0 for padding and without a mask; PaddleNLP's ErnieM then
masks id 0, which is ``[CLS]``. So every token attends to the padding and none to ``[CLS]``, and the released weights
depend on it. All padding keys are equal, so one key replaces all n of them, with a bias of log(n) on its scores.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from erniem_export.checkpoint import Checkpoint
from erniem_export.configuration import ErnieMConfig
from erniem_export.errors import ExportError
from erniem_export.modeling import POSITION_OFFSET
from erniem_export.options import ExportOptions
from erniem_export.passes.rewriter import Rewriter, producer_if
from erniem_rt.manifest import MASK_MODES

PADDING, UIE_M = MASK_MODES
# Paddle masks this id if it gets no mask.
_MASKED_ID = 0
_BIAS_NAME = "key_bias"
# Suffix of names of values without the padding key.
_CUT = "without_padding_key"
_ORIGIN = re.compile(r"uie[-_]?m\b|uie[-_]?m[-_]", re.IGNORECASE)


def mask_mode_of(options: ExportOptions, checkpoint: Checkpoint) -> str:
    """Return one of :data:`~erniem_rt.manifest.MASK_MODES`: the given one, or that of the checkpoint's training.

    Raises:
        ExportError: The head, the target or an input does not support the mode.
    """
    if options.mask == "auto":
        mode = UIE_M if checkpoint.paddle and checkpoint.head == "ie" else PADDING
    else:
        mode = options.mask
    if mode == PADDING:
        return mode
    if checkpoint.head != "ie":
        raise ExportError(f"--mask {UIE_M} is for head ie, and this is head {checkpoint.head}: leave it out")
    if checkpoint.config.pad_token_id == _MASKED_ID:
        raise ExportError(
            f"the config says pad_token_id = {_MASKED_ID}, which is [CLS] and masked by PaddleNLP's ErnieM, so that "
            f"--mask {UIE_M} has no padding to attend to: set pad_token_id to the id of [PAD], 1 for uie-m"
        )
    if reason := options.without_mask_of_uie_m():
        raise ExportError(
            f"this checkpoint needs --mask {UIE_M}, and {reason}; with --mask {PADDING} its answers are not Paddle's"
        )
    return mode


def note_of_mask(options: ExportOptions, checkpoint: Checkpoint) -> str | None:
    """Return a note on the mask, after :meth:`~erniem_export.options.ExportOptions.with_mask`; None without one."""
    if options.graph.mask_mode == UIE_M:
        return f"rows are computed as PaddleNLP's Taskflow does it for uie-m (--mask {UIE_M})"
    said = json.loads(checkpoint.config_text)
    names = (checkpoint.source, said.get("_name_or_path"), said.get("name_or_path"))
    copied = "paddlenlp_version" in said or any(isinstance(name, str) and _ORIGIN.search(name) for name in names)
    if checkpoint.head != "ie" or options.mask != "auto" or not copied:
        return None
    return (
        f"this looks like a copy of uie-m, which was trained with another mask: unless it was trained further in "
        f"PyTorch, its answers need --mask {UIE_M}"
    )


def width_of_rows(config: ErnieMConfig) -> int:
    """Return the number of columns that Taskflow pads to."""
    return config.max_position_embeddings - POSITION_OFFSET


def at_full_width(ids: NDArray[Any], mask: NDArray[Any] | None, config: ErnieMConfig) -> dict[str, Tensor]:
    """Return the PyTorch model's inputs padded like Taskflow's rows, ``(batch, max_length)``.

    Args:
        ids: ``(batch, sequence)`` integers.
        mask: The same shape, 1 for tokens, 0 for padding; None: derived from the padding id.
        config: The model's.
    """
    given = ids != config.pad_token_id if mask is None else mask != 0
    shape = (len(ids), width_of_rows(config))
    full, positions = np.full(shape, config.pad_token_id), np.zeros(shape, dtype=np.int64)
    full[:, : ids.shape[1]][given] = ids[given]
    positions[:, : ids.shape[1]] = np.where(given, np.arange(ids.shape[1]), 0)
    return {
        "input_ids": torch.from_numpy(full),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": torch.from_numpy(full != _MASKED_ID),
    }


def with_padding_key(ids: Tensor, mask: Tensor, config: ErnieMConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Return the model's inputs with one more column, which replaces all padding, and the bias of the keys.

    Args:
        ids: ``(batch, sequence)`` int64.
        mask: ``(batch, sequence)``, 1 for tokens, 0 for padding.
        config: The model's.

    Returns:
        ``input_ids``, ``position_ids`` and the bool ``attention_mask``, each ``(batch, sequence + 1)``; the bias is
        ``(batch, 1, 1, sequence + 1)`` float32.
    """
    given = mask >= 1
    padding = width_of_rows(config) - given.sum(1, keepdim=True)
    columns = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    last = torch.zeros_like(padding)
    bias = torch.cat([torch.zeros_like(ids, dtype=torch.float32), padding.clamp(min=1).float().log()], dim=1)
    return {
        "input_ids": torch.cat([torch.where(given, ids, config.pad_token_id), last + config.pad_token_id], dim=1),
        "position_ids": torch.cat([torch.where(given, columns, 0), last], dim=1),
        "attention_mask": torch.cat([given & (ids != _MASKED_ID), padding > 0], dim=1),
    }, bias[:, None, None, :]


def bias_keys(graph: ir.Graph) -> None:
    """Add the last output, the bias of :func:`with_padding_key`, to every layer's scores, in place.

    Removes it from the outputs, and cuts the last column of the others.
    """
    bias = graph.outputs.pop()
    bias.name = _BIAS_NAME
    for layer, softmax in enumerate([node for node in graph if node.op_type == "Softmax"]):
        masked = producer_if(softmax.inputs[0], "Where")
        if masked is None or masked.inputs[2] is None:
            raise ExportError(f"attention of layer {layer} is not as it was traced: it has no mask")
        scores, rewriter = masked.inputs[2], Rewriter(graph)
        biased = rewriter.op("Add", scores, bias, name=f"encoder.layers.{layer}.{_BIAS_NAME}")
        biased.type, biased.shape = scores.type, scores.shape
        rewriter.insert_before(masked)
        masked.replace_input_with(2, biased)
    for position in range(len(graph.outputs)):
        cut_padding_key(graph, position)


def cut_padding_key(graph: ir.Graph, position: int) -> None:
    """Cut the last column of an output ``(batch, sequence + 1)`` of the graph; the output keeps its name."""
    whole = graph.outputs[position]
    name, rewriter = str(whole.name), Rewriter(graph)
    whole.name = f"{name}.with_padding_key"
    cut = rewriter.op(
        "Slice", whole, rewriter.int64([0]), rewriter.int64([-1]), rewriter.int64([1]), name=f"{name}.{_CUT}"
    )
    cut.name, cut.type, cut.shape = name, whole.type, ir.Shape(["batch", "sequence"])
    rewriter.append()
    graph.outputs[position] = cut


def uncut(graph: ir.Graph) -> bool:
    """Undo :func:`cut_padding_key` for all outputs; return whether there was anything to undo."""
    found = False
    for position, output in enumerate(list(graph.outputs)):
        node = output.producer()
        if node is None or not str(node.name).endswith(_CUT) or node.inputs[0] is None:
            continue
        whole, name, shape = node.inputs[0], output.name, output.shape
        graph.outputs[position] = whole
        graph.remove(node, safe=True)
        whole.name, whole.shape, found = name, shape, True
    return found
