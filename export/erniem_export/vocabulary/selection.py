"""Which tokens to keep: by the script and alphabet of languages, or by what a text uses.

Scripts tell languages apart only as far as writing does. Indonesian, Swahili and English look alike here, so for a
language in Latin script a text is the sharper tool: it keeps what the tokenizer makes of it and nothing else.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

import regex

from erniem_export.vocabulary.languages import LANGUAGES
from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from erniem_rt.tokenizer import Tokenizer

__all__ = ["Keep", "select"]

_WORD_START = "▁"
_LATIN = "Latin"
# Digits, punctuation, symbols, emoji and combining marks belong to no language.
_SHARED = (r"\p{Script=Common}", r"\p{Script=Inherited}")


@dataclass(frozen=True)
class Keep:
    """What the user needs: codes of :data:`LANGUAGES`, a UTF-8 text in the languages to come, or both."""

    languages: tuple[str, ...] = ()
    text: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.languages) or self.text is not None


def select(tokenizer: Tokenizer, keep: Keep) -> set[int]:
    """Return the ids to keep; special and added tokens are always among them.

    Of a language: tokens that are written in its script, for Latin script in its alphabet. Of a text: every token that
    it is cut into. Of either: every single character of the scripts, so that any word can still be spelled.

    Raises:
        InvalidInputError: A language is not known; the text cannot be read, is empty, or holds no known token.
    """
    vocabulary = tokenizer.get_vocab()
    ids = _special_ids(tokenizer, vocabulary)
    scripts: set[str] = set()
    if keep.text is not None:
        used = _ids_of_text(tokenizer, keep.text)
        if used <= ids:
            raise InvalidInputError(f"{keep.text} holds no token of the vocabulary: is it text in your languages?")
        ids |= used
        scripts |= _scripts_of(token for token, index in vocabulary.items() if index in used)
    if keep.languages:
        fits = _spells(keep.languages)
        ids |= {index for token, index in vocabulary.items() if fits(token)}
        scripts |= {script for code in keep.languages for script in LANGUAGES[code].scripts}
    is_shared = regex.compile(f"[{''.join(map(_script, scripts))}{''.join(_SHARED)}{string.ascii_letters}]").fullmatch
    ids |= {index for token, index in vocabulary.items() if is_shared(token.removeprefix(_WORD_START) or token)}
    return ids


def _special_ids(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> set[int]:
    settings = tokenizer.settings
    special = {vocabulary[token.content] for token in settings.all_special_tokens}
    return special | set(settings.added_tokens)


def _spells(codes: Iterable[str]) -> Callable[[str], bool]:
    """Whether a token is written in one of the languages."""
    unknown = [code for code in codes if code not in LANGUAGES]
    if unknown:
        raise InvalidInputError(f"language {unknown[0]!r} is not known; expected codes among {', '.join(LANGUAGES)}")
    languages = [LANGUAGES[code] for code in codes]
    scripts = {script for language in languages for script in language.scripts}
    letters = set(string.ascii_lowercase).union(*(language.letters for language in languages))
    allowed = regex.compile(f"[{''.join(map(_script, sorted(scripts)))}{''.join(_SHARED)}]+")
    latin = regex.compile(_script(_LATIN))

    def fits(token: str) -> bool:
        if not allowed.fullmatch(token):
            return False
        return all(set(char.lower()) & letters for char in latin.findall(token))

    return fits


def _script(name: str) -> str:
    return rf"\p{{Script={name}}}"


def _scripts_of(tokens: Iterable[str]) -> set[str]:
    characters = "".join(set("".join(tokens)))
    known = {script for language in LANGUAGES.values() for script in language.scripts}
    return {script for script in known if regex.search(_script(script), characters)}


def _ids_of_text(tokenizer: Tokenizer, path: Path) -> set[int]:
    ids: set[int] = set()
    for line in _lines(path):
        ids.update(tokenizer(line).input_ids)
    if not ids:
        raise InvalidInputError(f"{path} is empty; expected text in the languages to keep")
    return ids


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from (line.strip() for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInputError(f"the text to keep tokens of, {path}, cannot be read: {reason}") from error
