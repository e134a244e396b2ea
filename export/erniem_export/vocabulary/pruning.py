"""A checkpoint with a part of its vocabulary."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from erniem_export.errors import CheckpointError
from erniem_export.options import Keep
from erniem_export.sources import CONFIG_FILE
from erniem_export.vocabulary.selection import select
from erniem_export.vocabulary.tokenizer_files import original_ids, pieces_at_the_ends, write_part
from erniem_export.vocabulary.words import ALPHABET, WORDS, rule_for, why_alphabet
from erniem_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from erniem_export.checkpoint import Checkpoint

__all__ = ["Vocabulary", "prune", "prune_like"]

# What a config may say about tokens by their ids.
_ID_KEYS = tuple(f"{name}_token_id" for name in ("bos", "eos", "cls", "sep", "pad", "unk", "mask"))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What became of the vocabulary: tokens kept, and the rule for each language, as :func:`rule_for` says.

    Once the artifact is written: the bytes of its graph and weights, and what they would be with all tokens.
    """

    kept: int
    of: int
    rules: Mapping[str, str]
    bytes_before: int | None = None
    bytes_after: int | None = None

    def __str__(self) -> str:
        parts = [f"kept {self.kept} of {self.of} tokens"]
        by_words = [code for code, rule in self.rules.items() if rule == WORDS]
        by_alphabet = [code for code, rule in self.rules.items() if rule == ALPHABET]
        if by_words:
            parts.append(f"{', '.join(by_words)} by the words of wordfreq")
        if by_alphabet:
            reasons = dict.fromkeys(filter(None, map(why_alphabet, by_alphabet)))
            parts.append(f"{', '.join(by_alphabet)} by the alphabet{''.join(f' ({reason})' for reason in reasons)}")
        return "; ".join(parts)

    def in_files(self, size: int, bytes_of_row: int) -> Vocabulary:
        """With the sizes of an artifact of ``size`` bytes that stores a token in ``bytes_of_row``."""
        before = size + (self.of - self.kept) * bytes_of_row
        return dataclasses.replace(self, bytes_before=before, bytes_after=size)


def prune(checkpoint: Checkpoint, keep: Keep, folder: Path) -> tuple[Checkpoint, Vocabulary]:
    """Return the checkpoint with the tokens that ``keep`` asks for; its tokenizer's files are written to ``folder``.

    The model is edited in place: its embedding keeps the rows of these tokens, and nothing else changes, so it
    computes exactly what it did before on text that is made of them.

    Raises:
        InvalidInputError: As :func:`select`.
        CheckpointError: There is no tokenizer to tell tokens by, it does not fit the model or itself, or the config
            names a list of ids where one belongs.
    """
    source = checkpoint.tokenizer_dir
    if source is None:
        raise CheckpointError(
            f"{checkpoint.source} has no tokenizer; without one it cannot be told which tokens to keep"
        )
    _require_single_ids(checkpoint)
    tokenizer, size = Tokenizer.from_dir(source, verify=False), checkpoint.config.vocab_size
    tokens = tokenizer.get_vocab()
    wanted = select(tokenizer, keep) | {checkpoint.config.pad_token_id}
    wanted |= {tokens[token] for token in pieces_at_the_ends(source) if token in tokens}
    kept = sorted(wanted)
    if kept[-1] >= size or checkpoint.config.pad_token_id not in tokens.values():
        raise CheckpointError(f"{source} has a tokenizer of {len(tokenizer)} tokens, and its model knows {size}")
    write_part(source, kept, folder)
    vocabulary = Vocabulary(len(kept), size, {code: rule_for(code) for code in keep.languages})
    return dataclasses.replace(_with_rows(checkpoint, kept), tokenizer_dir=folder), vocabulary


def prune_like(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return the checkpoint with the vocabulary of the tokenizer in ``folder``, an artifact of it.

    Raises:
        CheckpointError: It has no tokenizer, or another one, or a config as :func:`prune` refuses it.
    """
    if checkpoint.tokenizer_dir is None:
        raise CheckpointError(f"{checkpoint.source} has no tokenizer, and the artifact holds a part of its vocabulary")
    _require_single_ids(checkpoint)
    kept = original_ids(checkpoint.tokenizer_dir, folder)
    if max(kept) >= checkpoint.config.vocab_size:
        raise CheckpointError(f"{checkpoint.source} has fewer tokens than the vocabulary that was exported")
    return dataclasses.replace(_with_rows(checkpoint, kept), tokenizer_dir=folder)


def _with_rows(checkpoint: Checkpoint, kept: Sequence[int]) -> Checkpoint:
    model, config = checkpoint.model, checkpoint.config
    new_ids = {old: new for new, old in enumerate(kept)}
    table = model.get_input_embeddings()
    rows = table.weight.detach()[torch.tensor(kept)]
    config.vocab_size, config.pad_token_id = len(kept), new_ids[config.pad_token_id]
    smaller = nn.Embedding(rows.shape[0], rows.shape[1], padding_idx=config.pad_token_id)
    smaller.weight = nn.Parameter(rows)
    model.set_input_embeddings(smaller)
    content: dict[str, Any] = json.loads(checkpoint.config_text)
    content |= {key: new_ids.get(content[key]) for key in _ID_KEYS if key in content}
    content |= {"vocab_size": config.vocab_size, "pad_token_id": config.pad_token_id}
    return dataclasses.replace(checkpoint, config_text=_text(content))


def _require_single_ids(checkpoint: Checkpoint) -> None:
    content: dict[str, Any] = json.loads(checkpoint.config_text)
    for key in _ID_KEYS:
        if not isinstance(content.get(key), int | None):
            raise CheckpointError(f"{CONFIG_FILE} of {checkpoint.source} has {key} = {content[key]}; expected one id")


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
