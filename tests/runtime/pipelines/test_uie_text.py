"""Texts cut into pieces: whole, within the room, at the best place that there is."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.pipelines._uie_text import EncodedText, encode, half_width, split
from erniem_rt.tokenizer.settings import AddedToken, TokenizerSettings


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
    assert {i for piece in pieces for i in piece} == set(range(len(encoded.ids)))
    assert all(0 < len(piece) <= room for piece in pieces) or not encoded.ids
    for left, right in pairwise(pieces):
        assert left.start < right.start <= left.stop < right.stop
        # Neighbours share tokens only where the left one is full: a sentence's end needs none.
        assert left.stop - right.start == 0 or (len(left), left.stop - right.start) == (room, room // 2)


@given(st.text(alphabet="ab 。”!.\n", min_size=1, max_size=60), st.integers(1, 12))
def test_no_more_than_two_pieces_share_a_token(text: str, room: int) -> None:
    pieces = split(by_character(text), room)
    assert all(left.stop <= right.start for left, right in zip(pieces, pieces[2:], strict=False))


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("First. Second. Third.", 40, ["First. Second. Third."]),
        ("First. Second. Third.", 13, ["First. Second.", "Third."]),
        ("First. Second. Third.", 18, ["First. Second.", "Third."]),
        ("One! Two? Three!", 5, ["One!", "Two?", "Three", "ee!"]),
        ("他说：“好。”她走了。", 8, ["他说：“好。”", "她走了。"]),
        ("什么？！她走了。", 6, ["什么？！", "她走了。"]),
        ("ماذا؟ لا.", 6, ["ماذا؟", "لا."]),
        ("first lines\n \nsecond ones", 12, ["first lines", "second ones"]),
        ("first line\nsecond", 12, ["first line\nsec", "ine\nsecond"]),
        ("no end is in 1.5 here", 12, ["no end is in 1.5", "s in 1.5 here"]),
        ("by the book. J. R. Smith wrote", 13, ["by the book.", "J. R. Smith wrot", "th wrote"]),
        ("From there. Prof. Ada", 14, ["From there.", "Prof. Ada"]),
        ("bis zum 4. Mai dort", 11, ["bis zum 4. Mai", "4. Mai dort"]),
        ("the year 1998. Ada", 14, ["the year 1998.", "Ada"]),
        ("this is it. ул. Мира", 15, ["this is it. ул. Мир", ". ул. Мира"]),
        ("يسكن في دبي. ثم", 11, ["يسكن في دبي.", "ثم"]),
        ("一二三四五六七", 4, ["一二三四", "三四五六", "五六七"]),
    ],
)
def test_where_a_text_is_cut(text: str, room: int, expected: list[str]) -> None:
    assert parts(text, room) == expected


@given(st.text(alphabet="ab 。\n", min_size=1, max_size=60), st.integers(1, 12), st.integers(1, 12))
def test_pieces_have_no_more_characters_than_they_may(text: str, room: int, most: int) -> None:
    encoded = by_character(text)
    pieces = split(encoded, room, most)
    assert {i for piece in pieces for i in piece} == set(range(len(encoded.ids)))
    assert all(0 < len(piece) <= room for piece in pieces) or not encoded.ids
    for piece in filter(None, pieces):
        assert encoded.offsets[piece.stop - 1][1] - encoded.offsets[piece.start][0] <= most
    assert all(left.start < right.start <= left.stop < right.stop for left, right in pairwise(pieces))


@pytest.mark.parametrize("unit", [".", "。", "”", ".”", "\n", "\n ", "a", "a ", "a. "])
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


@pytest.mark.parametrize(
    "wide", ["［MASK］", "［ＭＡＳＫ］", "[ＳＥＰ]", "［CLS］", "［ＵＮＫ]", "［PAD］", "x［［SEP］］"]
)
def test_a_special_token_is_never_spelled_by_halving_widths(tokenizer: Tokenizer, wide: str) -> None:
    special = {tokenizer.convert_tokens_to_ids(t.content) for t in tokenizer.settings.all_special_tokens}
    special.discard(tokenizer.unk_token_id)  # what the vocabulary lacks has this one
    text = f"Ａ {wide} b"
    encoded = encode(tokenizer, text, "text")
    assert special.isdisjoint(encoded.ids)
    assert len(encoded.ids) > 5
    assert (encoded.offsets[0][0], encoded.offsets[-1]) == (0, (len(text) - 1, len(text)))


@pytest.mark.parametrize("written", ["[MASK]", "[SEP]"])
def test_what_is_written_as_a_special_token_is_one(tokenizer: Tokenizer, written: str) -> None:
    encoded = encode(tokenizer, f"（{written}）", "text")
    assert tokenizer.convert_tokens_to_ids(written) in encoded.ids


@pytest.mark.parametrize(
    ("settings", "text", "is_added"),
    [
        ({}, "the ＃tag。", False),
        ({}, "the #tag，", True),
        ({}, "the ＠tag", True),
        ({}, "the @tag，", False),
        ({"do_lower_case": True}, "the ＃ＴＡＧ", False),
    ],
)
def test_tokens_that_a_checkpoint_added_are_those_of_the_text_as_it_is_written(
    tokenizer_dir: Path, settings: dict[str, Any], text: str, is_added: bool
) -> None:
    added = {5000: AddedToken("#tag"), 5001: AddedToken("＠tag")}
    own = Tokenizer(
        tokenizer_dir / "sentencepiece.bpe.model",
        tokenizer_dir / "vocab.txt",
        settings=TokenizerSettings(added_tokens=added, **settings),
    )
    assert any(i in added for i in encode(own, text, "text").ids) is is_added


def test_a_text_without_tokens(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match="text has no tokens left after normalization"):
        encode(tokenizer, "\u200b\ufeff", "text")
