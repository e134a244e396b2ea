"""Which tokens make a word, in many scripts."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniem_rt.pipelines._entities import Token, entities_of_words

LABELS = ("x",)


def words_of(text, spans):
    tokens = [Token(start, end, np.ones(1)) for start, end in spans]
    return [text[word.start : word.end] for word in entities_of_words(text, tokens, LABELS, "first")]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ("Ber|lin|.", "Berlin|."),
        ("Jean|-|Bap|tiste", "Jean|-|Baptiste"),
        ("H|2|O| is| wet", "H2O|is|wet"),
        ("27|,|50| €", "27|,|50|€"),
        ("Mün|chen", "München"),
        ("e|\u0301|te", "e\u0301te"),
        ("Київ|ський| по|їзд", "Київський|поїзд"),
        ("ي|عمل| في", "يعمل|في"),
        ("वर्ष|ा", "वर्षा"),
        ("서울|에서| 자전|거", "서울에서|자전거"),
        ("2021|年|在|北京|工作", "2021|年|在|北京|工作"),
        ("カフェ|で|コーヒー", "カフェ|で|コーヒー"),
        ("ｶﾌｪ|で", "ｶﾌｪ|で"),
        ("เมื่อ|วาน|นี้", "เมื่อ|วาน|นี้"),
        ("a| |b", "a|b"),
        ("a|\u3000|b", "a|b"),
        ("𠀀|𠀁", "𠀀|𠀁"),
        ("a|🦊|b", "a|🦊|b"),
    ],
)
def test_words(pieces, words):
    parts = pieces.split("|")
    text, spans = "", []
    for part in parts:
        start = len(text) + (len(part) - len(part.lstrip()) if part.strip() else 0)
        text += part
        spans.append((start, len(text)))
    assert words_of(text, spans) == words.split("|")


def test_tokens_of_one_character_are_one_word():
    assert words_of("㍻元", [(0, 1), (0, 1), (1, 2)]) == ["㍻", "元"]


def test_what_normalisation_dropped_does_not_part_a_word_unless_it_is_whitespace():
    assert words_of("Ber\u00adlin", [(0, 3), (4, 7)]) == ["Ber\u00adlin"]
    assert words_of("Ber\u00ad lin", [(0, 3), (5, 8)]) == ["Ber", "lin"]


@given(st.text(st.sampled_from("ab1é ж.,'\t"), max_size=30), st.data())
def test_however_it_is_cut_the_words_of_spaced_scripts_are_runs_of_letters(text, data):
    runs = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
    spans = []
    for start, end in runs:
        cuts = data.draw(st.sets(st.integers(start + 1, end - 1))) if end - start > 1 else set()
        spans += pairwise([start, *sorted(cuts), end])
    assert words_of(text, spans) == [text[start:end] for start, end in runs]
