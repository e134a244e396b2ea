"""Checks that a checkpoint's tokenizer fits its embeddings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from erniem_export.errors import CheckpointError
from erniem_export.gate.cases import TEXTS
from erniem_export.sources import FAST_TOKENIZER, TOKENIZER_FILES
from erniem_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from erniem_export.checkpoint import Checkpoint

__all__ = ["check_tokenizer"]

_MODEL, _VOCABULARY, *_ = TOKENIZER_FILES
_WITHOUT = (
    f"the checkpoint has no {_MODEL} and so no tokenizer: the artifact takes ids, and no pipeline reads "
    "texts for it; name a folder that has it with --tokenizer"
)
# The largest multiple that training tools pad embeddings to.
_PADDING = 128


def check_tokenizer(checkpoint: Checkpoint) -> str | None:
    """Refuse a tokenizer with other ids than the model's; return a note on anything else that looks wrong.

    Raises:
        CheckpointError: The embeddings have too few rows, or one is ErnieM's and the other XLM-R's.
        ErnieMError: The tokenizer cannot be loaded.
    """
    folder, rows = checkpoint.tokenizer_dir, checkpoint.config.vocab_size
    if folder is None:
        return None if checkpoint.is_random else _WITHOUT
    tokenizer = Tokenizer.from_dir(folder, verify=False)
    ids, is_xlm_roberta = max(tokenizer.get_vocab().values()) + 1, tokenizer.settings.family == "xlm-roberta"
    if is_xlm_roberta != (checkpoint.original is not None):
        kinds = ("XLM-R's", "ErnieM's") if is_xlm_roberta else ("ErnieM's", "XLM-R's")
        raise CheckpointError(
            f"the tokenizer in {folder} is {kinds[0]} by its files, and the model is {kinds[1]}, with other ids: "
            "give the model's own with --tokenizer; XLM-R's needs tokenizer_config.json or config.json beside it"
        )
    has_vocabulary = is_xlm_roberta or (folder / _VOCABULARY).is_file()
    without = "" if has_vocabulary else f" (there is no {_VOCABULARY}, so they are the pieces of {_MODEL})"
    if ids > rows:
        raise CheckpointError(
            f"{checkpoint.source} has a tokenizer with ids up to {ids - 1}{without}, and its vocab_size is {rows}: "
            "put in the tokenizer that it was trained with, or resize the embeddings"
        )
    if rows - ids >= _PADDING:
        return f"the tokenizer has ids up to {ids - 1}{without}, and the embeddings {rows} rows: is it the right one?"
    if not has_vocabulary:
        return f"there is no {_VOCABULARY}: the ids are those of the pieces in {_MODEL}"
    return _unlike_fast(tokenizer, folder) if is_xlm_roberta else None


def _unlike_fast(tokenizer: Tokenizer, folder: Path) -> str | None:
    """What there is to say where XLM-R's fast tokenizer, which transformers prefers, gives other ids."""
    path = folder / FAST_TOKENIZER
    if not path.is_file():
        return None
    try:
        fast = import_module("tokenizers").Tokenizer.from_file(str(path))
    except Exception as error:  # it has no class of its own
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    fast.no_truncation()
    fast.no_padding()
    texts = [text for pair in TEXTS for text in pair]
    others = [text for text in texts if fast.encode(text).ids != tokenizer(text).input_ids]
    if not others:
        return None
    return (
        f"{FAST_TOKENIZER}, which transformers reads, gives other ids for {len(others)} of {len(texts)} texts, such as "
        f"{others[0]!r}: were both made from the same {_MODEL}?"
    )
