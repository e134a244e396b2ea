"""The languages that ``--languages`` knows, by what a vocabulary shows of them: their scripts and alphabets."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LANGUAGES", "Language"]


@dataclass(frozen=True)
class Language:
    """``scripts`` by their Unicode names; ``letters`` are the Latin ones beyond a to z, in lower case."""

    scripts: tuple[str, ...]
    letters: str = ""


# By ISO 639-1 code. The letters are the standard alphabets, with the diacritics of everyday loanwords.
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
_OTHER = {
    "am": ("Ethiopic",),
    "ar": ("Arabic",),
    "as": ("Bengali",),
    "be": ("Cyrillic",),
    "bg": ("Cyrillic",),
    "bn": ("Bengali",),
    "el": ("Greek",),
    "fa": ("Arabic",),
    "gu": ("Gujarati",),
    "he": ("Hebrew",),
    "hi": ("Devanagari",),
    "hy": ("Armenian",),
    "ja": ("Han", "Hiragana", "Katakana"),
    "ka": ("Georgian",),
    "kk": ("Cyrillic",),
    "km": ("Khmer",),
    "kn": ("Kannada",),
    "ko": ("Hangul",),
    "ky": ("Cyrillic",),
    "lo": ("Lao",),
    "mk": ("Cyrillic",),
    "ml": ("Malayalam",),
    "mn": ("Cyrillic",),
    "mr": ("Devanagari",),
    "my": ("Myanmar",),
    "ne": ("Devanagari",),
    "or": ("Oriya",),
    "pa": ("Gurmukhi",),
    "ps": ("Arabic",),
    "ru": ("Cyrillic",),
    "sa": ("Devanagari",),
    "sd": ("Arabic",),
    "si": ("Sinhala",),
    "ta": ("Tamil",),
    "te": ("Telugu",),
    "th": ("Thai",),
    "ug": ("Arabic",),
    "uk": ("Cyrillic",),
    "ur": ("Arabic",),
    "yi": ("Hebrew",),
    "zh": ("Han", "Bopomofo"),
}

LANGUAGES: dict[str, Language] = {
    **{code: Language(("Latin",), letters) for code, letters in _LATIN.items()},
    **{code: Language(scripts) for code, scripts in _OTHER.items()},
    "sr": Language(("Cyrillic", "Latin"), "čćđšž"),
    "uz": Language(("Latin", "Cyrillic")),
}
