"""Information extraction beside a plain loop over the reference model: nested schemas, long texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from erniem_rt import pipeline
from tests.parity.agreement import TOLERANCE, Artifact, flat
from tests.parity.pipeline_reference import LIMIT, Reference

SCHEMA = {"Person": ["Employer", "Birthplace"], "Organization": [{"Founder": "Residence"}, "Headquarters"]}
CHINESE_SCHEMA = {"人物": ["雇主", "出生地"], "组织机构": [{"创始人": "居住地"}, "总部"]}


@pytest.fixture(scope="module")
def ours(nano_artifact: Artifact) -> Iterator[Any]:
    with pipeline(nano_artifact("ie"), threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def theirs(reference: ModuleType) -> Reference:
    return Reference()


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> int:
    """Compare names, spans, relations and probabilities; return how many answers there are."""
    one, other = flat(found), flat(expected)
    assert one.what == other.what
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=TOLERANCE)
    return len(one.what)


def test_schemas_over_a_list(ours, theirs, nano_heldout):
    examples = nano_heldout("ie", 5, 4)
    for schema, chosen in (
        (SCHEMA, examples),
        (CHINESE_SCHEMA, [example for example in examples if example.language == "zh"]),
    ):
        texts = [example.text for example in chosen]
        found = ours(texts, schema=schema)
        expected = [theirs.extract(schema, text) for text in texts]
        assert sum(assert_same(*pair) for pair in zip(found, expected, strict=True)) >= len(texts)
        assert any("relations" in answer for answers in found for name in answers for answer in answers[name])


def test_texts_over_the_limit(ours, theirs, nano_heldout):
    examples = nano_heldout("ie", 5, 30)
    for code in ("en", "zh", "ar"):
        text = " ".join(example.text for example in examples if example.language == code)
        assert len(ours.tokenizer(text)) > 2 * LIMIT
        found = ours(text, schema=["Person", "Location"])
        assert assert_same(found, theirs.extract(["Person", "Location"], text)) > 10
        assert max(answer["end"] for name in found for answer in found[name]) > len(text) // 2


NAMES = (
    *("Gloria Underwood", "Peter Drake", "Nathan Clarke", "Thomas Vaughan", "Lucy Newton"),
    *("Victoria Ellis", "James Barrett", "Martin Parker", "Malcolm Nolan", "Sarah Doyle"),
)
CITIES = ("London", "Denver", "Toronto", "Houston", "Galway", "Sydney")


@pytest.mark.parametrize("shift", range(4))
def test_each_name_of_a_text_without_sentences(ours, shift):
    """Two rows, wherever between two words or within a name the first one ends."""
    text = "well " * shift + " and ".join(f"{NAMES[i % 10]} lives in {CITIES[i % 6]}" for i in range(80))
    expected = [found.span() for found in re.finditer("|".join(NAMES), text)]
    assert len(expected) == 80
    assert [(answer["start"], answer["end"]) for answer in ours(text, schema=["Person"])["Person"]] == expected
