"""Token text to id and back, with the tokens that a checkpoint added to its vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from erniem_rt._files import refuse_pointer
from erniem_rt.errors import ArtifactError

from ._token_list import TokenList

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ._settings import TokenizerSettings


class Vocabulary:
    """The base vocabulary (one token per id) and the added tokens on top of it.

    Special tokens that neither holds get the next free ids, as in transformers.
    """

    def __init__(self, tokens: TokenList, settings: TokenizerSettings) -> None:
        self._base = tokens
        self.added = dict(settings.added_tokens)
        self.added_ids = {token.content: i for i, token in self.added.items()}
        for token in settings.all_special_tokens:
            index = self._index(token.content)
            self.added[index] = replace(token, special=True)
            self.added_ids[token.content] = index
        self.added_ids = {token.content: i for i, token in self.added.items()}
        self.unk_token = settings.special_tokens["unk_token"].content
        self._unk_id = self._index(self.unk_token)
        self._known = dict(self.added_ids)  # grows by what is found in the base vocabulary, and never past its size

    @property
    def base_size(self) -> int:
        """How many tokens there are without the added ones."""
        return self._base.distinct

    def __len__(self) -> int:
        return self.base_size + self._base.indices(list(self.added_ids)).count(None)

    def all(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        return {**{token: i for i, token in enumerate(self._base)}, **self.added_ids}

    def id_of(self, token: str) -> int:
        """The token's id, or the unknown token's."""
        return self.ids_of([token])[0]

    def ids_of(self, tokens: Iterable[str]) -> list[int]:
        """The ids of several tokens; faster than one by one."""
        tokens, known = list(tokens), self._known
        try:
            return [known[token] for token in tokens]
        except KeyError:
            missing = list({token for token in tokens if token not in known})
        found = zip(missing, self._base.indices(missing), strict=True)
        known.update((token, index) for token, index in found if index is not None)
        return [known.get(token, self._unk_id) for token in tokens]

    def token_of(self, index: int) -> str:
        """The id's token, or the unknown token."""
        if index in self.added:
            return self.added[index].content
        # A token that is listed twice has the id of its last line; the others name nothing.
        token = self._base.get(index)
        return self.unk_token if token is None else token

    def text(self) -> str:
        """The content of a ``vocab.txt`` with the base vocabulary, a token per line."""
        return "".join(f"{token}\n" for token in self._base)

    def _index(self, special: str) -> int:
        """The id of a special token: the one it has, or the next that is free."""
        index = self.added_ids.get(special)
        if index is None:
            (index,) = self._base.indices([special])
        return len(self) if index is None else index


def read_vocabulary(path: Path) -> TokenList:
    """The lines of a ``vocab.txt``.

    Raises:
        ArtifactError: The file is missing, empty or not UTF-8.
    """
    refuse_pointer(path)
    try:
        content = path.read_bytes()
        content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a readable vocabulary (UTF-8, a token per line): {error}") from error
    if not content:
        raise ArtifactError(f"{path} is empty; expected a vocabulary with a token per line.")
    return TokenList.of_lines(content.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
