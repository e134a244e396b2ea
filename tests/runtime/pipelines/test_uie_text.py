"""Texts cut into pieces: whole, within the room, at the best place that there is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.pipelines._uie_text import EncodedText, encode, half_width, split


def by_character(text: str) -> EncodedText:
    """A token for each character that is not whitespace."""
    places = [i for i, char in enumerate(text) if not char.isspace()]
    return EncodedText(text, [7] * len(places), [(i, i + 1) for i in places])


def parts(text: str, room: int) -> list[str]:
    encoded = by_character(text)
    return [text[encoded.offsets[p.start][0] : encoded.offsets[p.stop - 1][1]] for p in split(encoded, room)]


@given(st.text(alphabet="ab 。”!.\n", min_size=1, max_size=60), st.integers(1, 12))
def test_pieces_fit_and_cover_the_text_in_order(text: str, room: int) -> None:
    encoded = by_character(text)
    pieces = split(encoded, room)
    assert [i for piece in pieces for i in piece] == list(range(len(encoded.ids)))
    assert all(0 < len(piece) <= room for piece in pieces) or not encoded.ids


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("One. Two. Three.", 40, ["One. Two. Three."]),
        ("One. Two. Three.", 9, ["One. Two.", "Three."]),
        ("One. Two. Three.", 13, ["One. Two.", "Three."]),
        ("One! Two? Three.", 5, ["One!", "Two?", "Three", "."]),
        ("他说：“好。”她走了。", 8, ["他说：“好。”", "她走了。"]),
        ("什么？！她走了。", 6, ["什么？！", "她走了。"]),
        ("ماذا؟ لا.", 6, ["ماذا؟", "لا."]),
        ("first line\nsecond line", 12, ["first line", "second line"]),
        ("version 1.5 of it", 9, ["version", "1.5 of it"]),
        ("no sentence ends here", 12, ["no sentence", "ends here"]),
        ("一二三四五六七", 3, ["一二三", "四五六", "七"]),
    ],
)
def test_where_a_text_is_cut(text: str, room: int, expected: list[str]) -> None:
    assert parts(text, room) == expected


@pytest.mark.parametrize("unit", [".", "。", "”", ".”", "\n", "a", "a "])
def test_time_is_linear_in_the_text(unit: str) -> None:
    encoded = by_character(unit * (100_000 // len(unit)) + "x" * 100)
    start = time.perf_counter()
    split(encoded, 20)
    assert time.perf_counter() - start < 5


@given(st.text())
def test_half_width_moves_no_position(text: str) -> None:
    narrow = half_width(text)
    assert len(narrow) == len(text)
    assert all(a == b or ord(a) - ord(b) == 0xFEE0 for a, b in zip(text, narrow, strict=True))


def test_half_width_of_ascii() -> None:
    ascii_characters = "".join(map(chr, range(0x21, 0x7F)))
    assert half_width("".join(chr(ord(char) + 0xFEE0) for char in ascii_characters)) == ascii_characters


def test_a_text_keeps_its_characters_and_their_places(tokenizer: Tokenizer) -> None:
    wide, narrow = encode(tokenizer, "９点　ＡＢ。", "text"), encode(tokenizer, "9点　AB。", "text")
    assert wide.text == "９点　ＡＢ。"
    assert (wide.ids, wide.offsets) == (narrow.ids, narrow.offsets)


def test_a_text_without_tokens(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match="text holds nothing that the tokenizer keeps"):
        encode(tokenizer, "\u200b\ufeff", "text")
