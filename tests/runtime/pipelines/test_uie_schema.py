"""Schemas: what is one, what it means, and what the errors say of what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from erniem_rt import InvalidInputError
from erniem_rt.pipelines._uie_schema import Node, parse_schema


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
def test_every_form_of_a_schema(schema: Any, expected: dict[str, Any]) -> None:
    assert tree(parse_schema(schema)) == expected


def test_a_part_may_be_used_in_two_places() -> None:
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
def test_options_at_the_end_of_a_name(name: str, label: str, options: list[str]) -> None:
    (node,) = parse_schema(name)
    assert node.name == name
    assert node.label == label
    assert [node.bracket[option.start : option.stop] for option in node.options] == options


@pytest.mark.parametrize(
    ("name", "text_first"),
    [("Speed [km/h]", True), ("Mood[good/bad]", True), ("Mood[good,bad]", False), ("Mood[a/b,c]", False)],
)
def test_options_between_slashes_may_be_a_unit(name: str, text_first: bool) -> None:
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
        ({1: "x"}, r"schema\[1\] has the name 1: expected str"),
        ("", "schema has the name '': expected str with something"),
        (["Person", " "], r"schema\[1\] has the name ' ': expected str with something"),
        (["Person", {"Person": "Age"}], "schema has the name 'Person' twice"),
        ({"Company": ["Founder", "Founder"]}, r"schema\['Company'\] has the name 'Founder' twice"),
        ("Sentiment[]", r"'Sentiment\[\]': expected options"),
        ("Sentiment[good,,bad]", "expected options between its brackets and commas"),
        ("Sentiment[good, good]", "give each option once"),
        ("[good,bad]", "expected text before the options"),
        ("Sentiment[good;bad]", r"'Sentiment\[good;bad\]': write options with commas between them"),
        (["情感[正向；负向]"], r"schema\[0\] has the name '情感\[正向；负向\]': write options with commas"),
        ("Sentiment[good|bad]", "what is no option in round brackets"),
        ("Sentiment[good｜bad/odd]", "write options with commas"),
        ("الشعور[إيجابي؛ سلبي]", "write options with commas"),
        (cyclic_list(), r"schema\[1\]\['Company'\] holds itself: a schema cannot be cyclic"),
        (cyclic_dict(), "cannot be cyclic"),
        (nested(33), "nested deeper than 32 levels"),
    ],
)
def test_what_is_no_schema_is_named(schema: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_schema(schema)


def test_the_deepest_schema() -> None:
    depth, nodes = 0, parse_schema(nested(32))
    while nodes:
        depth, nodes = depth + 1, nodes[0].children
    assert depth == 32
