"""Measures the size of the base model after ``--languages``, and how many texts keep their tokens.

``python -m benchmarks.languages --tokenizer DIR`` takes the folder of a released checkpoint, or its tokenizer files.
The texts are Debian's ``fortunes``, Debian's manual pages for French, and nano's held-out sentences.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.documents import RESULTS_DIR, ROOT, Blocks, table, write_blocks
from benchmarks.texts import NANO_LANGUAGES, fortunes, heldout_texts
from erniem_export.languages import rule_for
from erniem_export.options import Keep
from erniem_export.passes.precision import bytes_of_row
from erniem_export.vocabulary import pieces_at_the_ends, select, write_part
from erniem_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Collection

RESULTS = RESULTS_DIR / "languages.json"
DOCUMENT = ROOT / "docs" / "languages.md"
PAIRS = ("en,de", "en,es", "en,fr", "en,pl")
_MANUALS = Path("/usr/share/man")
# Engines in the benchmark's results: the base model in fp32, and in int8 with the embedding in int8.
_ENGINES = {"fp32": "erniem-rt", "int8": "erniem-rt-int8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, help="measure; without it, only the document is written again")
    options = parser.parse_args()
    if options.tokenizer is not None:
        RESULTS.write_text(json.dumps(measure(options.tokenizer), indent=2) + "\n", encoding="utf-8")
    write_blocks(blocks(json.loads(RESULTS.read_text(encoding="utf-8"))))


def measure(folder: Path, pairs: tuple[str, ...] = PAIRS) -> dict[str, Any]:
    """Prune the tokenizer by both rules for each pair of languages, and tokenize the texts with it."""
    texts = {code: texts_in(code) for code in sorted({code for pair in pairs for code in pair.split(",")})}
    bench = json.loads((RESULTS_DIR / "bench-avx2-amd.json").read_text(encoding="utf-8"))
    whole = {name: bench["engines"][engine]["bytes"] for name, engine in _ENGINES.items()}
    tokenizer = Tokenizer.from_dir(folder)
    cut = {code: list(map(tokenizer.tokenize, found["texts"])) for code, found in texts.items()}
    found = []
    for pair in pairs:
        found.append(_pruned(folder, tokenizer, pair, texts, cut))
        with patch.dict(sys.modules, {"wordfreq": None}):
            found.append(_pruned(folder, tokenizer, pair, texts, cut))
    for row in found:
        dropped = len(tokenizer) - row["kept"]
        row["bytes"] = {
            name: size - dropped * bytes_of_row(name, bench["model"]["hidden_size"]) for name, size in whole.items()
        }
    return {
        "tokens": len(tokenizer),
        "bytes": whole,
        "versions": {name: version(name) for name in ("sentencepiece", "wordfreq")},
        "texts": {
            code: {"source": given["source"], "texts": len(cut[code]), "tokens": _known(cut[code], tokenizer)}
            for code, given in texts.items()
        },
        "rows": found,
    }


def texts_in(code: str) -> dict[str, Any]:
    """Return the texts of a language and their source."""
    sources = {"fortunes": fortunes(code), "manual pages": [] if fortunes(code) else _manuals(code)}
    if code in NANO_LANGUAGES:
        sources["nano"] = heldout_texts(code)
    return {
        "source": " and ".join(name for name, texts in sources.items() if texts),
        "texts": [text for texts in sources.values() for text in texts],
    }


def _manuals(code: str) -> list[str]:
    """Return the lines of running text in Debian's manual pages."""
    texts = set()
    for path in sorted((_MANUALS / code).glob("man*/*.gz")):
        for line in gzip.decompress(path.read_bytes()).decode("utf-8", "ignore").splitlines():
            text = re.sub(r"\\(f\[\w*\]|f.|\((\w\w)|[&e])", "", line).replace("\\-", "-")
            if 40 < len(text) < 500 and text[0] not in ".'" and "\\" not in text:
                texts.add(text.strip())
    return sorted(texts)


def _pruned(
    folder: Path, tokenizer: Tokenizer, pair: str, texts: dict[str, Any], cut: dict[str, list[list[str]]]
) -> dict[str, Any]:
    codes, known = tuple(pair.split(",")), tokenizer.get_vocab()
    kept = select(tokenizer, Keep(codes)) | {known[token] for token in pieces_at_the_ends(folder) if token in known}
    with tempfile.TemporaryDirectory() as name:
        write_part(folder, sorted(kept), Path(name))
        part = Tokenizer.from_dir(name)
    row: dict[str, Any] = {"languages": pair, "rules": {code: rule_for(code) for code in codes}, "kept": len(part)}
    row["texts"] = {
        code: _compared(cut[code], list(map(part.tokenize, texts[code]["texts"])), tokenizer, part) for code in codes
    }
    print(json.dumps(row))
    return row


def _compared(before: list[list[str]], after: list[list[str]], whole: Tokenizer, part: Tokenizer) -> dict[str, int]:
    """Count the texts with the same tokens, the tokens that remain, and the unknown ones."""
    old_known, known = whole.get_vocab().keys(), part.get_vocab().keys()
    pairs = list(zip(before, after, strict=True))
    return {
        "same": sum(old == new for old, new in pairs),
        "tokens_kept": sum(token in known for old, _ in pairs for token in old if token in old_known),
        "tokens_after": sum(len(new) for _, new in pairs),
        "texts_with_new_unknowns": sum(_unknown(new, known) > _unknown(old, old_known) for old, new in pairs),
    }


def _known(texts: list[list[str]], tokenizer: Tokenizer) -> int:
    known = tokenizer.get_vocab().keys()
    return sum(token in known for tokens in texts for token in tokens)


def _unknown(tokens: list[str], known: Collection[str]) -> int:
    return sum(token not in known for token in tokens)


def blocks(result: dict[str, Any]) -> Blocks:
    """Return the text of each marked block."""
    return {(DOCUMENT, "languages"): markdown(result)}


def markdown(result: dict[str, Any]) -> str:
    """Return a table with a row for each pair and rule."""
    whole = result["bytes"]
    sizes = [f"{whole['fp32'] / 1e6:,.0f} MB", f"{whole['int8'] / 1e6:.0f} MB"]
    rows = [["all", "", f"{result['tokens']:,}", *sizes, "", ""]]
    for row in result["rows"]:
        sizes = [f"{row['bytes'][name] / 1e6:,.0f} MB ({row['bytes'][name] / whole[name]:.0%})" for name in whole]
        shares = [
            ", ".join(f"{code} {found[key] / result['texts'][code][of]:{form}}" for code, found in row["texts"].items())
            for key, of, form in (("same", "texts", ".2%"), ("tokens_kept", "tokens", ".3%"))
        ]
        rules = ", ".join(dict.fromkeys(row["rules"].values()))
        rows.append([row["languages"], rules, f"{row['kept']:,}", *sizes, *shares])
    header = ["`--languages`", "by", "tokens kept", "fp32", "int8", "texts cut as before", "tokens still there"]
    unknown = sum(found["texts_with_new_unknowns"] for row in result["rows"] for found in row["texts"].values())
    texts = ", ".join(f"{code} {given['texts']:,} ({given['source']})" for code, given in result["texts"].items())
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    note = f"Texts: {texts}. Texts in which something became `[UNK]` that was not: {unknown}. {versions}."
    return f"{table(header, rows)}\n\n{note}\n"


if __name__ == "__main__":
    main()
