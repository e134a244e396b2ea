"""The tokenizer's files for a part of its vocabulary.

``vocab.txt`` is the map of ids: a token's line is its new id. The sentencepiece model loses the pieces whose tokens
are gone, so text that needs them is cut into smaller pieces that are there, instead of becoming unknown. Where the
best way to cut a text used none of the lost pieces it is still the best: then the tokens are the same as before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniem_export.errors import CheckpointError
from erniem_export.sentencepiece_model import parse
from erniem_export.sources import TOKENIZER_FILES, tokenizer_files
from erniem_rt.tokenizer import Tokenizer
from erniem_rt.tokenizer.pieces import split_piece

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["original_ids", "pieces_at_the_ends", "write_part"]

_MODEL, _VOCABULARY, _CONFIG, _, _ADDED = TOKENIZER_FILES


def write_part(source: Path, kept: Sequence[int], target: Path) -> None:
    """Write the files of the tokenizer in ``source`` to ``target`` so that ``kept[i]``, in rising order, becomes ``i``.

    Raises:
        CheckpointError: The new files would not give the kept tokens these ids; the old ones contradict each other.
    """
    tokenizer = Tokenizer.from_dir(source, verify=False)
    new_ids = {old: new for new, old in enumerate(kept)}
    for file in tokenizer_files(source):
        (target / file.name).write_bytes(file.read_bytes())
    tokenizer.save_vocabulary(target)
    lines = (target / _VOCABULARY).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    content = "".join(f"{line}\n" for index, line in enumerate(lines) if index in new_ids)
    (target / _VOCABULARY).write_text(content, encoding="utf-8", newline="\n")
    lost = {token for token, index in tokenizer.get_vocab().items() if index not in new_ids}
    _drop_pieces(target / _MODEL, lost)
    for name in (_CONFIG, _ADDED):
        try:
            _renumber(target / name, new_ids)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{source / name} numbers added tokens otherwise than the tokenizer's other files: save it again"
            ) from error
    if original_ids(source, target) != list(kept):
        raise CheckpointError(f"{source} has a tokenizer whose ids have gaps that a part of its vocabulary cannot keep")


def original_ids(source: Path, part: Path) -> list[int]:
    """The ids in ``source``'s vocabulary of the tokens in ``part``'s, in the order of the latter.

    Raises:
        CheckpointError: ``part`` is not a part of it.
    """
    whole, tokens = Tokenizer.from_dir(source, verify=False).get_vocab(), Tokenizer.from_dir(part).get_vocab()
    found = {index: whole.get(token) for token, index in tokens.items()}
    ids = [index for new in range(len(found)) if (index := found.get(new)) is not None]
    if len(ids) != len(found):
        raise CheckpointError(f"the vocabulary in {part} is no part of the one in {source}")
    return ids


def pieces_at_the_ends(source: Path) -> set[str]:
    """The tokens of the likeliest and the least likely piece.

    sentencepiece reckons what an unknown character costs from them; without them, text would be cut differently.
    """
    pieces = _normal_pieces(parse((source / _MODEL).read_bytes()))
    ends = (min(pieces, key=lambda piece: piece.score), max(pieces, key=lambda piece: piece.score))
    return {span.token for piece in ends for span in split_piece(piece.piece)}


def _normal_pieces(model: Any) -> list[Any]:
    return [piece for piece in model.pieces if piece.type == piece.NORMAL]


def _drop_pieces(path: Path, lost: set[str]) -> None:
    model = parse(path.read_bytes())
    kept = [
        piece
        for piece in model.pieces
        if piece.type != piece.NORMAL or not any(span.token in lost for span in split_piece(piece.piece))
    ]
    del model.pieces[:]
    model.pieces.extend(kept)
    path.write_bytes(model.SerializeToString())


def _renumber(path: Path, new_ids: dict[int, int]) -> None:
    """Renumber the added tokens: ``added_tokens_decoder`` has ids as keys, ``added_tokens.json`` as values."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    if path.name == _ADDED:
        content = {token: new_ids[index] for token, index in content.items()}
    elif "added_tokens_decoder" in content:
        decoder = content["added_tokens_decoder"]
        content["added_tokens_decoder"] = {str(new_ids[int(index)]): token for index, token in decoder.items()}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
