"""The checkpoint's tokenizer: checks that it fits the model, and edits its sentencepiece model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from erniem_export.checkpoint import Checkpoint
from erniem_export.errors import CheckpointError
from erniem_export.gate.cases import TEXTS
from erniem_export.sources import FAST_TOKENIZER, TOKENIZER_FILES
from erniem_rt.tokenizer import Tokenizer

_MODEL, _VOCABULARY, *_ = TOKENIZER_FILES
_WITHOUT = (
    f"the checkpoint has no {_MODEL} and so no tokenizer: the artifact takes ids, and no pipeline reads "
    "texts for it; name a folder that has it with --tokenizer"
)
# The largest multiple that training tools pad embeddings to.
_PADDING = 128


def check_tokenizer(checkpoint: Checkpoint, *, pads_matter: bool = False) -> str | None:
    """Refuse a tokenizer with other ids than the model's; return a note on anything else that looks wrong.

    Raises:
        CheckpointError: The embeddings have too few rows, or one is ErnieM's and the other XLM-R's; or, if
            ``pads_matter``, its padding has another id than the config's.
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
    pad = checkpoint.config.pad_token_id
    if pads_matter and pad != tokenizer.pad_token_id:
        raise CheckpointError(
            f"the config says pad_token_id = {pad}, and in the tokenizer {tokenizer.pad_token} has the id "
            f"{tokenizer.pad_token_id}, with which uie-m was trained: set pad_token_id to {tokenizer.pad_token_id}"
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


# So far below the least likely piece that nothing is cut into it, where a tokenizer does not know of unused ones.
_NEVER = 100.0


def parse(content: bytes) -> Any:
    """Parse the ``ModelProto`` in a model file's content.

    Raises:
        CheckpointError: The content is not a sentencepiece model.
    """
    model = import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    decode_error = import_module("google.protobuf.message").DecodeError
    try:
        model.ParseFromString(content)
    except decode_error as error:
        raise CheckpointError("not a sentencepiece model, or it is damaged: fetch it again") from error
    return model


def in_byte_order(content: bytes) -> bytes:
    """Return the model with its pieces sorted by their bytes, as sentencepiece sorts them at each load.

    It cuts texts into the same pieces and loads in about three quarters of the time. Only the pieces' ids change, which
    ErnieM does not use: its ids are lines of ``vocab.txt``. Without that file, the order must not change.

    Raises:
        CheckpointError: The content is not a sentencepiece model.
    """
    model = parse(content)
    pieces = sorted(model.pieces, key=lambda piece: piece.piece.encode())
    del model.pieces[:]
    model.pieces.extend(pieces)
    return bytes(model.SerializeToString())


def with_pieces(content: bytes, pieces: Sequence[str]) -> bytes:
    """A model with these pieces behind ``<unk>``, ``<s>`` and ``</s>``, in this order, as XLM-R's has them.

    Those that the model lacks are in it, but no text is cut into them.

    Raises:
        CheckpointError: The content is not a sentencepiece model.
    """
    model = parse(content)
    known = {piece.piece: piece for piece in model.pieces}
    lowest = min((piece.score for piece in model.pieces if piece.type == piece.NORMAL), default=0.0)
    kind = type(model.pieces[0])
    wanted = [
        kind(piece="<unk>", type=kind.UNKNOWN),
        kind(piece="<s>", type=kind.CONTROL),
        kind(piece="</s>", type=kind.CONTROL),
    ]
    for name in pieces:
        wanted.append(known.get(name) or kind(piece=name, score=lowest - _NEVER, type=kind.UNUSED))
    del model.pieces[:]
    model.pieces.extend(wanted)
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    return bytes(model.SerializeToString())
