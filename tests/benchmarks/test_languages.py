"""What --languages leaves: the document says what the committed results say, and those meet the bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import languages
from benchmarks.tables import block
from erniem_rt.tokenizer import Tokenizer


@pytest.fixture
def result() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(languages.RESULTS.read_text(encoding="utf-8"))
    return content


def test_the_document_says_what_the_committed_results_say(result: dict[str, Any]) -> None:
    content = languages.DOCUMENT.read_text(encoding="utf-8")
    span = block(content, "languages")
    assert span is not None
    assert content[span] == languages.table(result), "run: python -m benchmarks.languages"


def test_one_european_language_and_english_are_under_half(result: dict[str, Any]) -> None:
    by_words = [row for row in result["rows"] if set(row["rules"].values()) == {"words"}]
    assert [row["languages"] for row in by_words] == list(languages.PAIRS)
    for row in by_words:
        for precision, size in row["bytes"].items():
            assert size < result["bytes"][precision] / 2
        for code, found in row["texts"].items():
            given = result["texts"][code]
            assert found["same"] >= 0.98 * given["texts"]
            assert 0.998 * given["tokens"] <= found["tokens_kept"] <= given["tokens"]
            assert found["texts_with_new_unknowns"] == 0


def test_what_is_compared(tokenizer_dir: Path, tmp_path: Path) -> None:
    whole, texts = Tokenizer.from_dir(tokenizer_dir), ["Straßenfest in Zürich", "in 1897"]
    before = list(map(whole.tokenize, texts))
    lost = {token for token in before[0] if len(token) > 3}
    assert lost
    ids = [index for token, index in sorted(whole.get_vocab().items(), key=lambda pair: pair[1]) if token not in lost]
    languages.write_part(tokenizer_dir, ids, tmp_path)
    part = Tokenizer.from_dir(tmp_path)
    found = languages._compared(before, list(map(part.tokenize, texts)), whole, part)
    known = languages._known(before, whole)
    assert found["same"] == 1
    assert found["tokens_kept"] == known - sum(token in lost for token in before[0])
    assert found["tokens_after"] > sum(map(len, before))
    assert found["texts_with_new_unknowns"] == 0
