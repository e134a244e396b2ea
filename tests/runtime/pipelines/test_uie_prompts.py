"""Prompts as uie-m is asked."""

from __future__ import annotations

from functools import partial

import pytest

from erniem_rt import InvalidInputError, Tokenizer
from erniem_rt.pipelines._uie_prompts import Prompter, SchemaLanguage
from erniem_rt.pipelines._uie_schema import parse_schema


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
def test_text_of_a_prompt(
    tokenizer: Tokenizer, language: SchemaLanguage, name: str, answer: str | None, text: str
) -> None:
    (node,) = parse_schema(name)
    prompt = Prompter(tokenizer)(node, answer, max_length=64, language=language)
    assert prompt.text == text
    assert [text[o.start : o.stop] for o in prompt.options] == [node.bracket[o.start : o.stop] for o in node.options]


def test_a_prompt_is_read_half_width(tokenizer: Tokenizer) -> None:
    ask = partial(Prompter(tokenizer), max_length=64, language="auto")
    wide, narrow = (ask(*parse_schema(name)) for name in ("情感［ＯＫ，负］", "情感[OK,负]"))
    assert wide.encoded.ids == narrow.encoded.ids
    assert wide.options == narrow.options


def test_a_prompt_that_leaves_no_room(tokenizer: Tokenizer) -> None:
    (node,), ask = parse_schema("12345678"), partial(Prompter(tokenizer), language="auto")
    assert len(ask(node, max_length=13).encoded.ids) == 8 - 1  # "12" is one token
    with pytest.raises(
        InvalidInputError, match="the prompt '12345678' takes 7 tokens; the limit is 11, of which 4 are"
    ):
        ask(node, max_length=11)
    with pytest.raises(InvalidInputError, match=r"the prompt 'Age of 333\d*…' takes \d+ tokens; the limit is 64"):
        ask(*parse_schema("Age"), answer="3" * 80, max_length=64)


def test_a_prompt_without_tokens(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match=r"the prompt .* has no tokens left after normalization"):
        Prompter(tokenizer)(*parse_schema("\u200b"), max_length=64, language="auto")
