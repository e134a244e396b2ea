"""Selects the tokens to keep: by the words or the alphabets of languages, or by a text.

Scripts do not separate languages such as Indonesian, Swahili and English. So if a list of a language's words is
installed, the tokens of these words are kept, otherwise all tokens in its alphabet.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import numpy as np
import regex

from erniem_export.vocabulary.languages import ALPHABET, LANGUAGES, WORDS, rule_for, texts_of
from erniem_rt.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from erniem_export.options import Keep
    from erniem_rt.tokenizer import Tokenizer

__all__ = ["select"]

_WORD_START = "▁"
_LATIN = "Latin"
# Digits, punctuation, symbols, emoji and combining marks belong to no language.
_SHARED = (r"\p{Script=Common}", r"\p{Script=Inherited}")
# Capitals inside a word, as in McDonald and MHz, which word lists lack.
_INNER_CAPITAL = regex.compile(r"\p{Lowercase_Letter}\p{Uppercase_Letter}")


def select(tokenizer: Tokenizer, keep: Keep) -> set[int]:
    """Return the ids to keep, always including special and added tokens.

    For a language, by its rule (:func:`rule_for`): the tokens of its words, or all tokens in its script, for Latin
    script in its alphabet. For a text: its tokens. For both: every single character of the scripts, so that any word
    can still be spelled.

    Raises:
        InvalidInputError: A language is unknown; the text cannot be read, is empty, or has no known token.
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
        ids |= _ids_of_languages(tokenizer, vocabulary, keep.languages)
        scripts |= {script for code in keep.languages for script in LANGUAGES[code].scripts}
    is_shared = regex.compile(f"[{''.join(map(_script, scripts))}{''.join(_SHARED)}{string.ascii_letters}]").fullmatch
    ids |= {index for token, index in vocabulary.items() if is_shared(token.removeprefix(_WORD_START) or token)}
    return ids


def _special_ids(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> set[int]:
    settings = tokenizer.settings
    special = {vocabulary[token.content] for token in settings.all_special_tokens}
    return special | set(settings.added_tokens)


def _ids_of_languages(tokenizer: Tokenizer, vocabulary: dict[str, int], codes: Sequence[str]) -> set[int]:
    unknown = [code for code in codes if code not in LANGUAGES]
    if unknown:
        raise InvalidInputError(f"language {unknown[0]!r} is not known; expected codes among {', '.join(LANGUAGES)}")
    rules = {code: rule_for(code) for code in codes}
    fits = [_spells([code for code in codes if rules[code] == ALPHABET])]
    used: set[int] = set()
    for code in (code for code in codes if rules[code] == WORDS):
        written = _written(LANGUAGES[code].scripts)
        words = {int(index) for texts in texts_of(code) for index in np.unique(tokenizer.batch(texts).input_ids)}
        used |= {index for token, index in vocabulary.items() if index in words and written(token)}
        fits.append(_spelled_as_no_list_has_it(code))
    return used | {index for token, index in vocabulary.items() if any(fit(token) for fit in fits)}


def _spelled_as_no_list_has_it(code: str) -> Callable[[str], bool]:
    """Return a predicate for a language's tokens that word lists lack.

    The lists fold ß to ss and upper to lower case, and have neither numbers nor punctuation.
    """
    spells, shared = _spells([code]), _written(())
    folded = {letter for letter in LANGUAGES[code].letters if letter.casefold() != letter}

    def fits(token: str) -> bool:
        return shared(token) or (bool(folded & set(token) or _INNER_CAPITAL.search(token)) and spells(token))

    return fits


def _spells(codes: Sequence[str]) -> Callable[[str], bool]:
    """Return a predicate for tokens in the alphabet of one of the languages."""
    languages = [LANGUAGES[code] for code in codes]
    letters = set(string.ascii_lowercase).union(*(language.letters for language in languages))
    written = _written({script for language in languages for script in language.scripts})
    latin = regex.compile(_script(_LATIN))

    def fits(token: str) -> bool:
        return written(token) and all(set(char.lower()) & letters for char in latin.findall(token))

    return fits


def _written(scripts: Iterable[str]) -> Callable[[str], bool]:
    """Return a predicate for tokens of only these scripts and characters that belong to no language."""
    allowed = regex.compile(f"[{''.join(map(_script, sorted(scripts)))}{''.join(_SHARED)}]+")
    return lambda token: allowed.fullmatch(token) is not None


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
