"""Token text to id and back, with the tokens that a checkpoint added to its vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from erniem_rt.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ._settings import TokenizerSettings


class Vocabulary:
    """The base vocabulary (one token per id) and the added tokens on top of it.

    Special tokens that neither holds get the next free ids, as in transformers.
    """

    def __init__(self, tokens: Sequence[str], settings: TokenizerSettings) -> None:
        self._lines = tuple(tokens)
        self.base = {token: i for i, token in enumerate(tokens)}
        self.added = dict(settings.added_tokens)
        known = {**self.base, **{token.content: i for i, token in self.added.items()}}
        next_id = len(known)
        for token in settings.all_special_tokens:
            if token.content not in known:
                known[token.content] = next_id
                next_id += 1
            self.added[known[token.content]] = replace(token, special=True)
        self.added_ids = {token.content: i for i, token in self.added.items()}
        self._token_of = {i: token for token, i in self.base.items()} | {
            i: token.content for i, token in self.added.items()
        }
        self.unk_token = settings.special_tokens["unk_token"].content
        self._unk_id = self.id_of(self.unk_token)

    def __len__(self) -> int:
        return len(self.all())

    def all(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        return {**self.base, **self.added_ids}

    def id_of(self, token: str) -> int:
        """The token's id, or the unknown token's."""
        added = self.added_ids.get(token)
        return self.base.get(token, self._unk_id) if added is None else added

    def token_of(self, index: int) -> str:
        """The id's token, or the unknown token."""
        return self._token_of.get(index, self.unk_token)

    def text(self) -> str:
        """The content of a ``vocab.txt`` with the base vocabulary, a token per line."""
        return "".join(f"{token}\n" for token in self._lines)


def read_vocabulary(path: Path) -> list[str]:
    """The lines of a ``vocab.txt``.

    Raises:
        ArtifactError: The file is missing, empty or not UTF-8.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            tokens = [line.rstrip("\n") for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a readable vocabulary (UTF-8, a token per line): {error}") from error
    if not tokens:
        raise ArtifactError(f"{path} is empty; expected a vocabulary with a token per line.")
    return tokens
