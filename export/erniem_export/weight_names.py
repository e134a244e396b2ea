"""Reads the names of a checkpoint's tensors: ErnieM's, and the prefixes of training libraries and other layouts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from erniem_export.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["PREFIX", "from_uie_pytorch", "is_left_over", "is_uie_pytorch", "some", "wrapper_of"]

PREFIX = "ernie_m."

_WORDS = "embeddings.word_embeddings.weight"
# The name of the encoder in a class that somebody wrote around it, as uie_pytorch did: the heads have no prefix.
_ENCODER = "encoder."
# How uie_pytorch calls what is in an encoder of its own, as BERT does, and how transformers calls that.
_UIE_PYTORCH = (
    (r"\.layer\.(\d+)\.", r".layers.\1."),
    (r"attention\.self\.(q|k|v)(?:uery|ey|alue)\.", r"self_attn.self_attn.\1_proj."),
    (r"attention\.output\.dense\.", "self_attn.out_proj."),
    (r"attention\.output\.LayerNorm\.", "norm1."),
    (r"intermediate\.dense\.", "linear1."),
    (r"(?<=\d\.)output\.dense\.", "linear2."),
    (r"(?<=\d\.)output\.LayerNorm\.", "norm2."),
    (r"embeddings\.LayerNorm\.", "embeddings.layer_norm."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
# Prefixes of torch.compile, DataParallel, Lightning and peft.
_WRAPPERS = ("_orig_mod.", "module.", "model.", "base_model.model.")
# Tensors that no output depends on: position buffers, losses, pretraining heads, a counter of averaged weights.
_LEFT_OVER = re.compile(
    r"(?:ernie_m\.)?embeddings\.(?:position_ids|token_type_ids)"
    r"|(?:loss\w*|criterion|lm_head|cls\.predictions|cls\.seq_relationship)\..+"
    r"|n_averaged"
)
_ADAPTED = re.compile(r"\.(?:lora_\w+|base_layer|modules_to_save|ia3_l|adalora_\w+)\.")


def wrapper_of(names: Collection[str], prefix: str = PREFIX, layers: str = "encoder.layers.") -> str:
    """Return a training library's prefix of every tensor's name; empty without one.

    The model's own names begin with ``prefix``, and its layers' with ``layers`` after that.

    Raises:
        CheckpointError: The names are an adapter's, or have an unknown layout or prefix.
    """
    if adapted := [name for name in names if _ADAPTED.search(name)]:
        raise CheckpointError(
            f"the weights hold an adapter's tensors ({some(adapted)}): merge it with peft's merge_and_unload(), save "
            "the result with save_pretrained and export that folder"
        )
    words = min((name for name in names if name.endswith(_WORDS)), default=_WORDS)
    base = words.removesuffix(_WORDS)
    before = base.removesuffix(prefix)
    if not before or not any(name.startswith(f"{base}{layers}") for name in names):
        return ""
    bare = sorted(name for name in names if not name.startswith(before) and not is_left_over(name))
    if before == _ENCODER:
        return before
    if before not in _WRAPPERS or bare:
        rest = f", which {some(bare)} {'does' if len(bare) == 1 else 'do'} not" if bare else ""
        raise CheckpointError(
            f"the weights have {words} in place of {prefix}{_WORDS}: take {before} off the names that begin with it"
            f"{rest}"
        )
    return before


def is_uie_pytorch(names: Collection[str]) -> bool:
    """Whether tensors have the names of uie_pytorch, a port of UIE to PyTorch."""
    return any(name.startswith("encoder.encoder.layer.0.attention.self.") for name in names)


def from_uie_pytorch(name: str) -> str:
    """transformers' name of a tensor of uie_pytorch; it has the same shape."""
    if not name.startswith(_ENCODER):
        return name
    for pattern, ours in _UIE_PYTORCH:
        name = re.sub(pattern, ours, name)
    return PREFIX + name.removeprefix(_ENCODER)


def is_left_over(name: str) -> bool:
    """Return whether no output depends on a tensor."""
    return _LEFT_OVER.fullmatch(name) is not None


def some(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
