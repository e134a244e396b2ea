"""Token text to id and back, with the tokens that a checkpoint added to its vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from erniem_rt.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ._settings import TokenizerSettings


class Vocabulary:
    """The base vocabulary (one token per id) and the added tokens on top of it.

    Special tokens that neither holds get the next free ids, as in transformers.
    """

    def __init__(self, tokens: Sequence[str], settings: TokenizerSettings) -> None:
        self._lines = tokens
        self.base = dict(zip(tokens, range(len(tokens)), strict=True))
        self.added = dict(settings.added_tokens)
        self.added_ids = {token.content: i for i, token in self.added.items()}
        for token in settings.all_special_tokens:
            index = self.added_ids.get(token.content, self.base.get(token.content, len(self)))
            self.added[index] = replace(token, special=True)
            self.added_ids[token.content] = index
        self.added_ids = {token.content: i for i, token in self.added.items()}
        self.unk_token = settings.special_tokens["unk_token"].content
        self._unk_id = self.id_of(self.unk_token)

    def __len__(self) -> int:
        return len(self.base) + sum(token not in self.base for token in self.added_ids)

    def all(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        return {**self.base, **self.added_ids}

    def id_of(self, token: str) -> int:
        """The token's id, or the unknown token's."""
        added = self.added_ids.get(token)
        return self.base.get(token, self._unk_id) if added is None else added

    def ids_of(self, tokens: Iterable[str]) -> list[int]:
        """The ids of several tokens."""
        added, base, unknown = self.added_ids, self.base, self._unk_id
        return [added[token] if token in added else base.get(token, unknown) for token in tokens]

    def token_of(self, index: int) -> str:
        """The id's token, or the unknown token."""
        if index in self.added:
            return self.added[index].content
        token = self._lines[index] if 0 <= index < len(self._lines) else self.unk_token
        # A token that is listed twice has the id of its last line; the others name nothing.
        return token if self.base.get(token) == index else self.unk_token

    def text(self) -> str:
        """The content of a ``vocab.txt`` with the base vocabulary, a token per line."""
        return "".join(f"{token}\n" for token in self._lines)


def read_vocabulary(path: Path) -> list[str]:
    """The lines of a ``vocab.txt``.

    Raises:
        ArtifactError: The file is missing, empty or not UTF-8.
    """
    try:
        content = path.read_bytes().decode().replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a readable vocabulary (UTF-8, a token per line): {error}") from error
    if not content:
        raise ArtifactError(f"{path} is empty; expected a vocabulary with a token per line.")
    return content.removesuffix("\n").split("\n")
