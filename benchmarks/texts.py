"""Texts in several languages: Debian's ``fortunes`` if installed, and examples from nano's generator."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.documents import ROOT

FORTUNES = Path("/usr/share/games/fortunes")
_FILES = {
    "en": ("literature", "fortunes", "computers"),
    "de": ("de/*",),
    "es": ("es/*",),
    "it": ("it/*", "italia"),
    "ru": ("ru/*",),
    "zh": ("tang300", "song100", "chinese"),
    "cs": ("cs/*",),
    "pl": ("pl/*",),
}
# The index of each file, and a link to it.
_NO_TEXT = (".dat", ".u8")
NANO_LANGUAGES = ("ar", "de", "en", "es", "ru", "zh")
COUNT = 343


def real_texts(folder: Path = FORTUNES) -> tuple[str, list[str]]:
    """Return the source, and up to ``COUNT`` texts, seeded, spread evenly over the languages."""
    per_language = {language: _fortunes(folder, patterns) for language, patterns in _FILES.items()}
    found = {language: texts for language, texts in per_language.items() if texts}
    if sum(map(len, found.values())) >= COUNT:
        return f"Debian's fortunes in {', '.join(found)}", _spread(found)
    generated = {language: _generated(language) for language in NANO_LANGUAGES}
    return f"sentences generated for nano in {', '.join(generated)}", _spread(generated)


def fortunes(language: str, folder: Path = FORTUNES) -> list[str]:
    """Return Debian's ``fortunes`` of up to 500 characters in a language; none if they are not installed."""
    return _fortunes(folder, _FILES.get(language, ()))


def heldout_texts(language: str) -> list[str]:
    """Return sentences of nano's held-out split."""
    return _generated(language)


def calibration_texts() -> list[str]:
    """Return sentences of nano's training split for calibration; no comparison uses them."""
    return _spread({language: _generated(language, "train") for language in NANO_LANGUAGES})


def _spread(texts: dict[str, list[str]]) -> list[str]:
    """Return texts of all languages in turn, until there are enough."""
    rng = random.Random(0)
    shuffled = [rng.sample(found, len(found)) for found in texts.values()]
    in_turn = [found[i] for i in range(COUNT) for found in shuffled if i < len(found)]
    return in_turn[:COUNT]


def _fortunes(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    texts = set()
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        if path.suffix in _NO_TEXT or not path.is_file():
            continue
        for entry in path.read_text(encoding="utf-8", errors="ignore").split("\n%\n"):
            text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", entry).split())
            if 15 < len(text) < 500:
                texts.add(text)
    return sorted(texts)


def _generated(language: str, split: str = "heldout") -> list[str]:
    return sorted({example["text"] for example in nano_examples("ner", language, 80, split)})


def nano_examples(task: str, language: str, count: int, split: str = "heldout") -> list[dict[str, Any]]:
    """Return examples of nano's generator, seeded."""
    command = [sys.executable, str(ROOT / "examples" / "nano" / "generate.py"), "--task", task]
    command += ["--split", split, "--count", str(count), "--language", language]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]
