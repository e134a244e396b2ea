"""Reads the names of a checkpoint's tensors: ErnieM's, and the prefixes of training libraries and other layouts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from erniem_export.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["PREFIX", "is_left_over", "some", "wrapper_of"]

PREFIX = "ernie_m."

_WORDS = "embeddings.word_embeddings.weight"
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
    """The prefix that a training library has put before the name of every tensor; empty without one.

    ``prefix`` and ``layers`` begin the names of the model's own tensors, and of its layers behind that.

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
    if before == "encoder.":
        raise CheckpointError(
            f"the weights have the names of uie_pytorch, as {words}: rename them as transformers does, "
            f"{prefix}{_WORDS} and so on"
        )
    if not before or not any(name.startswith(f"{base}{layers}") for name in names):
        return ""
    bare = sorted(name for name in names if not name.startswith(before) and not is_left_over(name))
    if before not in _WRAPPERS or bare:
        rest = f", which {some(bare)} {'does' if len(bare) == 1 else 'do'} not" if bare else ""
        raise CheckpointError(
            f"the weights have {words} in place of {prefix}{_WORDS}: take {before} off the names that begin with it"
            f"{rest}"
        )
    return before


def is_left_over(name: str) -> bool:
    """Return whether no output depends on a tensor."""
    return _LEFT_OVER.fullmatch(name) is not None


def some(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
