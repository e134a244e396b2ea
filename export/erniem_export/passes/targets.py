"""Runs the passes of each target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from erniem_export.errors import FusionError
from erniem_export.options import PORTABLE
from erniem_export.passes.attention import fuse_attention
from erniem_export.passes.key_lengths import align_rows
from erniem_export.passes.packing import keep_first_tokens, pack_tokens

if TYPE_CHECKING:
    import onnx_ir as ir

    from erniem_export.options import GraphOptions

__all__ = ["optimize_for"]

_POOLED_HEADS = ("cls", "mc")


def optimize_for(target: str, model: ir.Model, head: str, layers: int, options: GraphOptions) -> dict[str, Any] | None:
    """Rewrite the canonical graph for a target, in place; return the manifest's record of the passes.

    The passes are exact except at padding, where a packed graph gives zeros.

    Raises:
        FusionError: The passes do not support an input or output of the graph, or the graph is not as expected.
    """
    if target == PORTABLE:
        return None
    done: dict[str, Any] = {"name": target, "fused_attention": fuse_attention(model, layers)}
    moves = options.position_ids or options.inputs_embeds or options.hidden_states
    pooled = head in _POOLED_HEADS and not options.hidden_states
    if target == "onnxruntime-cuda":
        align_rows(model, pooled=pooled)
        return {**done, "packed": False, "first_token_layer": pooled, "mask": "key lengths"}
    if target == "onnxruntime-cuda-packed":
        if moves:
            raise FusionError("packing needs ids alone, and outputs that it can unpack: use --target onnxruntime-cuda")
        pack_tokens(model, by_length=True)
    elif moves:
        if target == "openvino":
            raise FusionError("--target openvino packs tokens, and needs ids alone: use --target onnxruntime-cpu")
        return {**done, "packed": False, "first_token_layer": False}
    else:
        pack_tokens(model)
    if pooled:
        keep_first_tokens(model)
    mask = {"mask": "key lengths"} if target == "onnxruntime-cuda-packed" else {}
    return {**done, "packed": True, "first_token_layer": pooled, **mask}
