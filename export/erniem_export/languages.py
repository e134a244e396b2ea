"""The languages of ``--languages``: their scripts, alphabets and, if wordfreq is installed, words."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Language:
    """``scripts`` by their Unicode names; ``letters`` are the Latin ones beyond a to z, in lower case."""

    scripts: tuple[str, ...]
    letters: str = ""


# By ISO 639-1 code: the letters of the standard alphabets, with the diacritics of common loanwords.
_LATIN = {
    "af": "áèéêëîïôöúû",
    "az": "çəğıöşü",
    "br": "âêîôûùüñ",
    "bs": "čćđšž",
    "ca": "àçéèíïóòúü",
    "cs": "áčďéěíňóřšťúůýž",
    "cy": "áàâäéèêëíìîïóòôöúùûŵŷý",
    "da": "æøåé",
    "de": "äöüß",
    "en": "",
    "eo": "ĉĝĥĵŝŭ",
    "es": "áéíñóúü",
    "et": "äõöüšž",
    "eu": "çñ",
    "fi": "äöåšž",
    "fr": "àâæçéèêëîïôœùûüÿ",
    "fy": "âêéôúûëïöü",
    "ga": "áéíóú",
    "gd": "àèìòù",
    "gl": "áéíñóúü",
    "ha": "ɓɗƙƴ",
    "hr": "čćđšž",
    "hu": "áéíóöőúüű",
    "id": "é",
    "is": "áðéíóúýþæö",
    "it": "àèéìíîòóùú",
    "jv": "éèê",
    "ku": "çêîşû",
    "la": "āēīōūæœ",
    "lt": "ąčęėįšųūž",
    "lv": "āčēģīķļņšūž",
    "mg": "àâéèêëìîïñô",
    "ms": "é",
    "nl": "áâäèéêëíîïóôöúûü",
    "no": "æøåéèêóòâô",
    "om": "",
    "pl": "ąćęłńóśźż",
    "pt": "áâãàçéêíóôõúü",
    "ro": "ăâîșşțţ",
    "sk": "áäčďéíĺľňóôŕšťúýž",
    "sl": "čšž",
    "so": "",
    "sq": "çë",
    "su": "éè",
    "sv": "åäöé",
    "sw": "",
    "tl": "ñ",
    "tr": "çğıöşüâîû",
    "vi": "àảãáạăằẳẵắặâầẩẫấậđèẻẽéẹêềểễếệìỉĩíịòỏõóọôồổỗốộơờởỡớợùủũúụưừửữứựỳỷỹýỵ",
    "xh": "",
}
# Languages of other scripts, by their scripts.
_OTHER = {
    ("Ethiopic",): "am",
    ("Arabic",): "ar fa ps sd ug ur",
    ("Bengali",): "as bn",
    ("Cyrillic",): "be bg kk ky mk mn ru uk",
    ("Greek",): "el",
    ("Gujarati",): "gu",
    ("Hebrew",): "he yi",
    ("Devanagari",): "hi mr ne sa",
    ("Armenian",): "hy",
    ("Han", "Hiragana", "Katakana"): "ja",
    ("Georgian",): "ka",
    ("Khmer",): "km",
    ("Kannada",): "kn",
    ("Hangul",): "ko",
    ("Lao",): "lo",
    ("Malayalam",): "ml",
    ("Myanmar",): "my",
    ("Oriya",): "or",
    ("Gurmukhi",): "pa",
    ("Sinhala",): "si",
    ("Tamil",): "ta",
    ("Telugu",): "te",
    ("Thai",): "th",
    ("Han", "Bopomofo"): "zh",
}

LANGUAGES: dict[str, Language] = {
    **{code: Language(("Latin",), letters) for code, letters in _LATIN.items()},
    **{code: Language(scripts) for scripts, codes in _OTHER.items() for code in codes.split()},
    "sr": Language(("Cyrillic", "Latin"), "čćđšž"),
    "uz": Language(("Latin", "Cyrillic")),
}

# The rules that select the tokens of a language.
WORDS, ALPHABET = "words", "alphabet"
# Scripts of many languages, so that the script alone does not identify a language. For other scripts, word lists do not
# help: they cover a single script and, for languages written without spaces, depend on another tokenizer.
_SHARED_SCRIPTS = {"Latin", "Cyrillic"}
# wordfreq's codes that differ from ours; it has one list, in Latin script, for the Serbo-Croatian languages.
_CODES = {"bs": "sh", "hr": "sh", "no": "nb", "tl": "fil"}
# The least frequency of a word: three in a hundred million. Rarer ones are mostly names and foreign words.
_LEAST = 10**-7.5
_WORDS_IN_A_TEXT = 500


def rule_for(code: str) -> str:
    """Return :data:`WORDS` if the script is shared and a list of the language's words is installed, else
    :data:`ALPHABET`.
    """
    if not _SHARED_SCRIPTS.issuperset(LANGUAGES[code].scripts):
        return ALPHABET
    library = _library()
    return WORDS if library is not None and _CODES.get(code, code) in _available(library) else ALPHABET


def why_alphabet(code: str) -> str | None:
    """Return why the alphabet is used for a language with a shared script; None if it is not."""
    if not _SHARED_SCRIPTS.issuperset(LANGUAGES[code].scripts) or rule_for(code) == WORDS:
        return None
    if _library() is None:
        return 'for fewer tokens: pip install "erniem-rt[languages]"'
    return "wordfreq has no words of it"


def texts_of(code: str) -> Iterator[list[str]]:
    """Yield lists of texts with every word of the language in lower case, capitalized and in capitals.

    Each form occurs after a space and after punctuation, since these give different pieces.
    """
    frequencies: dict[str, float] = _library().get_frequency_dict(_CODES.get(code, code), "best")
    words = [word for word, frequency in frequencies.items() if frequency >= _LEAST]
    for start in range(0, len(words), _WORDS_IN_A_TEXT):
        some = words[start : start + _WORDS_IN_A_TEXT]
        forms = (some, [_capitalized(word, code) for word in some], [_upper(word, code) for word in some])
        yield [" ".join(before + word for word in form) for form in forms for before in ("", '"')]


def _upper(word: str, code: str) -> str:
    return (word.replace("i", "İ") if code == "tr" else word).upper()


def _capitalized(word: str, code: str) -> str:
    return _upper(word[:1], code) + word[1:]


def _library() -> Any:
    try:
        return importlib.import_module("wordfreq")
    except ImportError:
        return None


def _available(library: Any) -> frozenset[str]:
    return frozenset(library.available_languages("best"))
