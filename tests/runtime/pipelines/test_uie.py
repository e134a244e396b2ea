"""Schemas, prompts, pieces of text and spans of information extraction."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.pipelines.information_extraction import (
    EncodedText,
    Node,
    Prompter,
    Span,
    choose_option,
    cut_answers,
    encode,
    find_spans,
    half_width,
    join_spans,
    parse_schema,
    split,
)
from erniem_rt.pipelines.inputs import shared_tokens
from erniem_rt.tokenizer.settings import AddedToken, TokenizerSettings


def tree(nodes: tuple[Node, ...]) -> dict[str, Any]:
    return {node.name: tree(node.children) for node in nodes}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("Person", {"Person": {}}),
        (["Person", "Date"], {"Person": {}, "Date": {}}),
        (("Person",), {"Person": {}}),
        (np.array(["Person", "Date"]), {"Person": {}, "Date": {}}),
        ({"Company": np.array(["Founder"], dtype=object)}, {"Company": {"Founder": {}}}),
        ({"Company": "Founder"}, {"Company": {"Founder": {}}}),
        ({"Company": []}, {"Company": {}}),
        ({"Company": {"Founder": "Birthplace"}}, {"Company": {"Founder": {"Birthplace": {}}}}),
        (
            ["Person", {"Company": ["Founder", {"Product": ["Price"]}], "Event": ["Date"]}],
            {"Person": {}, "Company": {"Founder": {}, "Product": {"Price": {}}}, "Event": {"Date": {}}},
        ),
        ({"Person": ["Person"]}, {"Person": {"Person": {}}}),
    ],
)
def test_every_form_of_a_schema(schema, expected):
    assert tree(parse_schema(schema)) == expected


def test_a_part_may_be_used_in_two_places():
    place = ["City", "Country"]
    assert tree(parse_schema({"Birth": place, "Death": place})) == {
        "Birth": {"City": {}, "Country": {}},
        "Death": {"City": {}, "Country": {}},
    }


@pytest.mark.parametrize(
    ("name", "label", "options"),
    [
        ("Sentiment[positive,negative]", "Sentiment", ["positive", "negative"]),
        ("Sentiment [ positive , very negative ]", "Sentiment ", ["positive", "very negative"]),
        ("情感倾向[正向，负向]", "情感倾向", ["正向", "负向"]),
        ("情感倾向［正向、负向］", "情感倾向", ["正向", "负向"]),
        ("Kind [old] of[a,b] ", "Kind [old] of", ["a", "b"]),
        ("情感倾向[正向、负向]", "情感倾向", ["正向", "负向"]),
        ("行业[金融、保险,科技]", "行业", ["金融、保险", "科技"]),
        ("行业［金融、保险，科技］", "行业", ["金融、保险", "科技"]),
        ("الشعور[إيجابي، سلبي]", "الشعور", ["إيجابي", "سلبي"]),
        ("ስሜት[ጥሩ፣ መጥፎ]", "ስሜት", ["ጥሩ", "መጥፎ"]),
        ("Pay[km/h, good; bad|odd]", "Pay", ["km/h", "good; bad|odd"]),
        ("Speed [km/h]", "Speed ", ["km", "h"]),
        ("速度［公里／小时］", "速度", ["公里", "小时"]),
        ("Price [EUR] ", "Price ", []),
        ("价格[元]", "价格", []),
        ("Sure[yes]", "Sure", []),
        ("Rate [/h]", "Rate ", []),
        ("Ratio [m/m]", "Ratio ", []),
        ("[EUR]", "[EUR]", []),
        ("Person", "Person", []),
        ("Person [of old] age", "Person [of old] age", []),
    ],
)
def test_options_at_the_end_of_a_name(name, label, options):
    (node,) = parse_schema(name)
    assert node.name == name
    assert node.label == label
    assert [node.bracket[option.start : option.stop] for option in node.options] == options


@pytest.mark.parametrize(
    ("name", "text_first"),
    [("Speed [km/h]", True), ("Mood[good/bad]", True), ("Mood[good,bad]", False), ("Mood[a/b,c]", False)],
)
def test_options_between_slashes_may_be_a_unit(name, text_first):
    (node,) = parse_schema(name)
    assert node.text_first is text_first


def cyclic_list() -> Any:
    schema: list[Any] = ["Person"]
    schema.append({"Company": schema})
    return schema


def cyclic_dict() -> Any:
    schema: dict[str, Any] = {}
    schema["Company"] = {"Founder": [schema]}
    return schema


def nested(levels: int) -> Any:
    schema: Any = "End"
    for _ in range(levels - 1):
        schema = {"Next": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (3, "schema must be a name, a list or a dict, got int"),
        ([], "schema is empty"),
        ({}, "schema is empty"),
        ([{}], "schema is empty"),
        ([["Person"]], r"schema\[0\] must be a name or a dict, got list"),
        (["Person", None], r"schema\[1\] must be a name or a dict, got NoneType"),
        ({"Company": [5]}, r"schema\['Company'\]\[0\] must be a name or a dict, got int"),
        ([{"Company": 5}], r"schema\[0\]\['Company'\] must be a name, a list or a dict, got int"),
        ({1: "x"}, r"schema\[1\] has the name 1: expected a non-empty str"),
        ("", "schema has the name '': expected a non-empty str"),
        (["Person", " "], r"schema\[1\] has the name ' ': expected a non-empty str"),
        (["Person", {"Person": "Age"}], "schema has the name 'Person' twice"),
        ({"Company": ["Founder", "Founder"]}, r"schema\['Company'\] has the name 'Founder' twice"),
        ("Sentiment[]", r"'Sentiment\[\]': expected options"),
        ("Sentiment[good,,bad]", "expected options between its brackets and commas"),
        ("Sentiment[good, good]", "give each option once"),
        ("[good,bad]", "expected text before the options"),
        ("Sentiment[good;bad]", r"'Sentiment\[good;bad\]': write options with commas between them"),
        (["情感[正向；负向]"], r"schema\[0\] has the name '情感\[正向；负向\]': write options with commas"),
        ("Sentiment[good|bad]", "anything else in round brackets"),
        ("Sentiment[good｜bad/odd]", "write options with commas"),
        ("الشعور[إيجابي؛ سلبي]", "write options with commas"),
        (cyclic_list(), r"schema\[1\]\['Company'\] holds itself: a schema cannot be cyclic"),
        (cyclic_dict(), "cannot be cyclic"),
        (nested(33), "nested deeper than 32 levels"),
    ],
)
def test_what_is_no_schema_is_named(schema, message):
    with pytest.raises(InvalidInputError, match=message):
        parse_schema(schema)


def test_the_deepest_schema():
    depth, nodes = 0, parse_schema(nested(32))
    while nodes:
        depth, nodes = depth + 1, nodes[0].children
    assert depth == 32


@pytest.mark.parametrize(
    ("language", "name", "answer", "text"),
    [
        ("auto", "Person", None, "Person"),
        ("auto", "人物", None, "人物"),
        ("auto", "Sentiment [good, bad]", None, "Sentiment [good, bad]"),
        ("auto", "Founder", "苹果", "Founder of 苹果"),
        ("auto", "创始人", "Apple", "Apple的创始人"),
        ("en", "创始人", "Apple", "创始人 of Apple"),
        ("zh", "Founder", "苹果", "苹果的Founder"),
        ("auto", "情感倾向[正向，负向]", "房间", "房间的情感倾向[正向，负向]"),
        ("auto", "Sentiment[good,bad]", "room", "Sentiment of room [good,bad]"),
        ("auto", "Sentiment [good,bad]", "room", "Sentiment of room [good,bad]"),
        ("auto", "Speed [km/h]", "train", "Speed of train [km/h]"),
        ("auto", "Price [EUR]", None, "Price [EUR]"),
        ("auto", "Price [EUR]", "phone", "Price of phone [EUR]"),
        ("auto", "价格[元]", "手机", "手机的价格[元]"),
    ],
)
def test_text_of_a_prompt(tokenizer, language, name, answer, text):
    (node,) = parse_schema(name)
    prompt = Prompter()(tokenizer, node, answer, max_length=64, language=language)
    assert prompt.text == text
    assert [text[o.start : o.stop] for o in prompt.options] == [node.bracket[o.start : o.stop] for o in node.options]


def test_a_prompt_is_read_half_width(tokenizer):
    ask = partial(Prompter(), tokenizer, max_length=64, language="auto")
    wide, narrow = (ask(*parse_schema(name)) for name in ("情感［ＯＫ，负］", "情感[OK,负]"))
    assert wide.encoded.ids == narrow.encoded.ids
    assert wide.options == narrow.options


def test_a_prompt_that_leaves_no_room(tokenizer):
    (node,), ask = parse_schema("12345678"), partial(Prompter(), tokenizer, language="auto")
    assert len(ask(node, max_length=13).encoded.ids) == 8 - 1  # "12" is one token
    with pytest.raises(
        InvalidInputError, match="the prompt '12345678' takes 7 tokens; the limit is 11, of which 4 are"
    ):
        ask(node, max_length=11)
    with pytest.raises(InvalidInputError, match=r"the prompt 'Age of 333\d*…' takes \d+ tokens; the limit is 64"):
        ask(*parse_schema("Age"), answer="3" * 80, max_length=64)


def test_a_prompt_without_tokens(tokenizer):
    with pytest.raises(InvalidInputError, match=r"the prompt .* has no tokens left after normalization"):
        Prompter()(tokenizer, *parse_schema("\u200b"), max_length=64, language="auto")


def by_character(text: str) -> EncodedText:
    """A token for each character that is not whitespace."""
    places = [i for i, char in enumerate(text) if not char.isspace()]
    return EncodedText(text, [7] * len(places), [(i, i + 1) for i in places])


def parts(text: str, room: int) -> list[str]:
    encoded = by_character(text)
    return [text[encoded.offsets[p.start][0] : encoded.offsets[p.stop - 1][1]] for p in split(encoded, room)]


@given(st.text(alphabet="ab 。”!.\n", min_size=1, max_size=60), st.integers(1, 12))
def test_pieces_fit_and_cover_the_text_in_order(text, room):
    encoded = by_character(text)
    pieces = split(encoded, room)
    assert {i for piece in pieces for i in piece} == set(range(len(encoded.ids)))
    assert all(0 < len(piece) <= room for piece in pieces) or not encoded.ids
    for left, right in pairwise(pieces):
        assert left.start < right.start <= left.stop < right.stop
        # Neighbours share tokens only where the left one is full: a sentence's end needs none.
        assert left.stop - right.start == 0 or (len(left), left.stop - right.start) == (room, room // 2)


@given(st.text(alphabet="ab 。”!.\n", min_size=1, max_size=60), st.integers(1, 12))
def test_no_more_than_two_pieces_share_a_token(text, room):
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
def test_where_a_text_is_cut(text, room, expected):
    assert parts(text, room) == expected


@given(st.text(alphabet="ab 。\n", min_size=1, max_size=60), st.integers(1, 12), st.integers(1, 12))
def test_pieces_have_no_more_characters_than_they_may(text, room, most):
    encoded = by_character(text)
    pieces = split(encoded, room, most)
    assert {i for piece in pieces for i in piece} == set(range(len(encoded.ids)))
    assert all(0 < len(piece) <= room for piece in pieces) or not encoded.ids
    for piece in filter(None, pieces):
        assert encoded.offsets[piece.stop - 1][1] - encoded.offsets[piece.start][0] <= most
    assert all(left.start < right.start <= left.stop < right.stop for left, right in pairwise(pieces))


@pytest.mark.parametrize("unit", [".", "。", "”", ".”", "\n", "\n ", "a", "a ", "a. "])
def test_time_is_linear_in_the_text(unit):
    encoded = by_character(unit * (100_000 // len(unit)) + "x" * 100)
    start = time.perf_counter()
    split(encoded, 20)
    assert time.perf_counter() - start < 5


@given(st.text())
def test_half_width_moves_no_position(text):
    narrow = half_width(text)
    assert len(narrow) == len(text)
    assert all(a == b or ord(a) - ord(b) == 0xFEE0 for a, b in zip(text, narrow, strict=True))


def test_half_width_of_ascii():
    ascii_characters = "".join(map(chr, range(0x21, 0x7F)))
    assert half_width("".join(chr(ord(char) + 0xFEE0) for char in ascii_characters)) == ascii_characters


def test_a_text_keeps_its_characters_and_their_places(tokenizer):
    wide, narrow = encode(tokenizer, "９点　ＡＢ。", "text"), encode(tokenizer, "9点　AB。", "text")
    assert wide.text == "９点　ＡＢ。"
    assert (wide.ids, wide.offsets) == (narrow.ids, narrow.offsets)


@pytest.mark.parametrize(
    "wide", ["［MASK］", "［ＭＡＳＫ］", "[ＳＥＰ]", "［CLS］", "［ＵＮＫ]", "［PAD］", "x［［SEP］］"]
)
def test_a_special_token_is_never_spelled_by_halving_widths(tokenizer, wide):
    special = {tokenizer.convert_tokens_to_ids(t.content) for t in tokenizer.settings.all_special_tokens}
    special.discard(tokenizer.unk_token_id)  # what the vocabulary lacks has this one
    text = f"Ａ {wide} b"
    encoded = encode(tokenizer, text, "text")
    assert special.isdisjoint(encoded.ids)
    assert len(encoded.ids) > 5
    assert (encoded.offsets[0][0], encoded.offsets[-1]) == (0, (len(text) - 1, len(text)))


@pytest.mark.parametrize("written", ["[MASK]", "[SEP]"])
def test_what_is_written_as_a_special_token_is_one(tokenizer, written):
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
def test_tokens_that_a_checkpoint_added_are_those_of_the_text_as_it_is_written(tokenizer_dir, settings, text, is_added):
    added = {5000: AddedToken("#tag"), 5001: AddedToken("＠tag")}
    own = Tokenizer(
        tokenizer_dir / "sentencepiece.bpe.model",
        tokenizer_dir / "vocab.txt",
        settings=TokenizerSettings(added_tokens=added, **settings),
    )
    assert any(i in added for i in encode(own, text, "text").ids) is is_added


def test_a_text_without_tokens(tokenizer):
    with pytest.raises(InvalidInputError, match="text has no tokens left after normalization"):
        encode(tokenizer, "\u200b\ufeff", "text")


# Few values, so that many are equal, and equal to the threshold.
PROBABILITIES = st.sampled_from([0.0, 0.1, 0.499, 0.5, 0.501, 0.7, 0.9, 1.0])
ROWS = st.lists(st.tuples(PROBABILITIES, PROBABILITIES), max_size=24)
THRESHOLDS = st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95])


def plain_spans(start: list[float], end: list[float], threshold: float) -> set[Span]:
    """Every start takes the first end at or after it; the nearest of those that took the same end has it."""
    taken: dict[int, list[int]] = {}
    for first, probability in enumerate(start):
        if not probability > threshold:
            continue
        for last in range(first, len(end)):
            if end[last] > threshold:
                taken.setdefault(last, []).append(first)
                break
    return {Span(max(firsts), last, start[max(firsts)] * end[last]) for last, firsts in taken.items()}


def two_pointers(start: list[float], end: list[float], threshold: float) -> set[Span]:
    """The same rule as PaddleNLP walks it."""
    starts = [i for i, probability in enumerate(start) if probability > threshold]
    ends = [i for i, probability in enumerate(end) if probability > threshold]
    pairs = {}
    while starts and ends:
        if starts[0] > ends[0]:
            ends.pop(0)
            continue
        pairs[ends[0]] = starts[0]
        if starts.pop(0) == ends[0]:
            ends.pop(0)
    return {Span(first, last, start[first] * end[last]) for last, first in pairs.items()}


@given(ROWS, THRESHOLDS)
def test_spans_are_those_of_the_plain_decoders(row, threshold):
    start, end = [s for s, _ in row], [e for _, e in row]
    found = find_spans(np.array(start), np.array(end), threshold)
    assert set(found) == plain_spans(start, end, threshold) == two_pointers(start, end, threshold)
    assert found == sorted(found)


@given(ROWS.filter(lambda row: len(row) >= 6), st.data())
def test_a_part_of_a_row_by_itself_is_the_row_without_what_straddles(row, data):
    """Why it is enough to decode the prompt and the text apart, though the rule pairs over the whole row."""
    begin = data.draw(st.integers(0, len(row) - 1))
    stop = data.draw(st.integers(begin, len(row)))
    start, end = [s for s, _ in row], [e for _, e in row]
    inside = {span for span in plain_spans(start, end, 0.5) if begin <= span.first and span.last < stop}
    part = find_spans(np.array(start[begin:stop]), np.array(end[begin:stop]), 0.5)
    assert {Span(begin + first, begin + last, p) for first, last, p in part} == inside


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ([0.9, 0, 0], [0, 0, 0.8], [(0, 2)]),
        ([0.9, 0.9, 0], [0, 0, 0.8], [(1, 2)]),
        ([0.9, 0, 0], [0.9, 0.9, 0.9], [(0, 0)]),
        ([0.9, 0.9, 0.9], [0.9, 0.9, 0.9], [(0, 0), (1, 1), (2, 2)]),
        ([0, 0.9, 0], [0.9, 0, 0], []),
        ([0.5, 0, 0], [0, 0, 0.9], []),
        ([], [], []),
    ],
)
def test_the_pairing_rule(start, end, expected):
    spans = find_spans(np.array(start, float), np.array(end, float), 0.5)
    assert [(span.first, span.last) for span in spans] == expected
    assert all(span.probability == start[span.first] * end[span.last] for span in spans)


@st.composite
def marked_texts(draw: st.DrawFn) -> tuple[EncodedText, list[tuple[int, int]], int]:
    """A text of one token per character, disjoint names in it (first and last token), and the room of a piece.

    No name is longer than what two pieces share, or goes over the end of a sentence.
    """
    room = draw(st.integers(2, 40))
    text, names = "", []
    for kind, size in draw(st.lists(st.tuples(st.sampled_from("aN。"), st.integers(1, 2 * room)), max_size=30)):
        size = 1 if kind == "。" else min(size, shared_tokens(room)) if kind == "N" else size
        if kind == "N":
            names.append((len(text), len(text) + size - 1))
        text += kind * size
    return EncodedText(text, [7] * len(text), [(i, i + 1) for i in range(len(text))]), names, room


@given(marked_texts(), st.booleans())
def test_what_a_piece_shows_whole_is_found_once(marked, marks_parts):
    """The model marks names that a piece holds whole and, if so drawn, what an edge of the piece leaves of others."""
    text, names, room = marked
    pieces = split(text, room)
    found = []
    for piece in pieces:
        seen = [(max(first, piece.start), min(last, piece.stop - 1)) for first, last in names]
        shown = [part for part, name in zip(seen, names, strict=True) if part == name or marks_parts]
        found.append([Span(first, last, 0.9) for first, last in shown if first <= last])
    assert [(span.first, span.last) for span in join_spans(pieces, found)] == names


NOISY = st.lists(st.tuples(PROBABILITIES, PROBABILITIES), min_size=10, max_size=60)


@given(NOISY, st.integers(2, 30), st.randoms(use_true_random=False))
def test_joined_spans_are_some_of_those_found_in_order_and_apart(row, room, random):
    """Whatever a model marks, which may be something else in each piece."""
    pieces = split(EncodedText("a" * len(row), [7] * len(row), [(i, i + 1) for i in range(len(row))]), room)
    found = []
    for piece in pieces:
        start, end = zip(*random.sample(row, len(piece)), strict=True)
        spans = find_spans(np.array(start), np.array(end), 0.5)
        found.append([Span(piece.start + first, piece.start + last, p) for first, last, p in spans])
    joined = join_spans(pieces, found)
    assert set(joined) <= {span for spans in found for span in spans}
    assert all(left.last < right.first for left, right in pairwise(joined))
    # Where pieces share nothing, nothing is left out.
    if len(pieces) == 1:
        assert joined == found[0]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([(0, 1), (12, 13)], [(12, 13), (18, 19)], [(0, 1), (12, 13), (18, 19)]),
        ([(14, 15)], [(14, 17)], [(14, 17)]),  # the left one sees a part
        ([(8, 11)], [(10, 11)], [(8, 11)]),  # the right one does
        ([(11, 13)], [(12, 14)], [(12, 14)]),  # over the middle, each another one
        ([(12, 13)], [], []),  # what the right one shows better, and does not mark
        ([(12, 15)], [(10, 12)], [(10, 12)]),  # the places to cut are as near as one another
        ([(6, 13)], [(13, 18)], [(6, 13)]),  # no place to cut
    ],
)
def test_what_two_pieces_share(left, right, expected):
    """Tokens 10 to 15 are in both."""
    spans = [[Span(*place, 0.9) for place in places] for places in (left, right)]
    joined = join_spans([range(16), range(10, 26)], spans)
    assert [(span.first, span.last) for span in joined] == expected


def test_answers_are_cut_from_the_text_in_its_order():
    text = EncodedText("Ｓteve met ㍿", [1] * 5, [(0, 5), (5, 6), (6, 9), (10, 11), (10, 11)])
    spans = [Span(3, 3, 0.6), Span(4, 4, 0.8), Span(1, 2, 0.9), Span(0, 0, 0.7), Span(1, 1, 0.99)]
    assert cut_answers(text, spans) == [
        {"text": "Ｓteve", "start": 0, "end": 5, "probability": 0.7},
        {"text": "met", "start": 6, "end": 9, "probability": 0.9},
        {"text": "㍿", "start": 10, "end": 11, "probability": 0.8},
    ]


PROMPT = EncodedText("mood[good,bad]", [1] * 6, [(0, 4), (4, 5), (5, 9), (9, 10), (10, 13), (13, 14)])
OPTIONS = [range(5, 9), range(10, 13)]
GOOD, BAD = 2, 4


def votes(*pieces: list[tuple[int, float]]) -> list[tuple[str, float]]:
    spans = [[Span(token, token, probability) for token, probability in piece] for piece in pieces]
    return [(answer["text"], answer["probability"]) for answer in choose_option(PROMPT, OPTIONS, spans)]


def test_one_option_is_chosen():
    assert votes([(GOOD, 0.75)]) == [("good", 0.75)]
    assert votes([(GOOD, 0.75), (BAD, 0.875)]) == [("bad", 0.875)]
    assert votes([], []) == []


def test_most_pieces_decide_then_the_sum_and_the_mean_is_reported():
    assert votes([(GOOD, 0.625)], [(BAD, 0.99)], [], [(GOOD, 0.875)]) == [("good", 0.75)]
    assert votes([(GOOD, 0.25)], [(BAD, 0.99)], [(GOOD, 0.25)]) == [("good", 0.25)]
    assert votes([(GOOD, 0.75)], [(BAD, 0.875)]) == [("bad", 0.875)]
    assert votes([(GOOD, 0.75)], [(BAD, 0.75)]) == [("good", 0.75)]


# Tokens of "mood[good,bad,odd]", as above, and of the third option.
THREE = EncodedText("mood[good,bad,odd]", [1] * 8, [*PROMPT.offsets[:5], (13, 14), (14, 17), (17, 18)])
SPANS = st.builds(
    lambda first, more, probability: Span(first, min(first + more, 7), probability),
    st.integers(0, 7),
    st.integers(0, 3),
    st.sampled_from([0.125, 0.25, 0.625, 0.75, 0.99]),
)
PIECES = st.lists(st.lists(SPANS, max_size=4, unique_by=lambda span: span.probability), max_size=6)


def plain_votes(pieces: list[list[Span]]) -> set[tuple[str, float]]:
    """Letter by letter and piece by piece; all options that share the first place, each with its mean probability."""
    won: dict[str, list[float]] = {"good": [], "bad": [], "odd": []}
    for spans in pieces:
        best, choice = 0.0, ""
        for span in spans:
            letters = range(THREE.offsets[span.first][0], THREE.offsets[span.last][1])
            touched = {option for option in won for i in letters if i - THREE.text.index(option) in range(len(option))}
            if len(touched) == 1 and span.probability > best:
                best, choice = span.probability, *touched
        if choice:
            won[choice].append(best)
    most = max((len(votes), sum(votes)) for votes in won.values())
    return {(option, sum(v) / len(v)) for option, v in won.items() if v and (len(v), sum(v)) == most}


@given(PIECES)
def test_votes_are_those_of_the_plain_count(pieces):
    found = choose_option(THREE, [*OPTIONS, range(14, 17)], pieces)
    expected = plain_votes(pieces)
    assert {(answer["text"], answer["probability"]) for answer in found} <= expected
    assert len(found) == min(len(expected), 1)


def test_a_span_that_is_not_of_one_option_counts_for_nothing():
    label, both = Span(0, 1, 0.9), Span(GOOD, BAD, 0.9)
    assert choose_option(PROMPT, OPTIONS, [[label, both]]) == []
    assert choose_option(PROMPT, OPTIONS, [[Span(BAD, BAD + 1, 0.9)]]) == [{"text": "bad", "probability": 0.9}]
