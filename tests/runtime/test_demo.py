"""The demonstration counts an answer as right only if it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from erniem_rt.manifest import HEADS

PATH = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_head_is_shown(demo):
    assert demo.SHOWS.keys() == HEADS.keys()


CASES = [
    {
        "language": "en",
        "text": "Samuel Foster founded Beacon Energy. Beacon Energy is based in Houston and is led by Diana Ramsey.",
        "schema": ["Person", "Location", {"Organization": ["Founder", "Headquarters", "Product"]}],
        "expected": {
            "Person": ["Samuel Foster", "Diana Ramsey"],
            "Location": ["Houston"],
            "Organization": ["Beacon Energy", "Beacon Energy"],
            "Founder of Beacon Energy": ["Samuel Foster"],
            "Headquarters of Beacon Energy": ["Houston"],
            "Product of Beacon Energy": [],
        },
    },
    {
        "language": "zh",
        "text": "宏达汽车的总部位于武汉。宏达汽车由周文博创办，生产电池。",
        "schema": ["人物", "地点", {"组织机构": ["创始人", "总部"]}],
        "expected": {
            "人物": ["周文博"],
            "地点": ["武汉"],
            "组织机构": ["宏达汽车", "宏达汽车"],
            "宏达汽车的创始人": ["周文博"],
            "宏达汽车的总部": ["武汉"],
        },
    },
]


def answers(*texts: str, **relations: Any) -> list[dict[str, Any]]:
    return [{"text": text, **({"relations": relations} if relations else {})} for text in texts]


def english() -> dict[str, Any]:
    relations = {"Founder": answers("Samuel Foster"), "Headquarters": answers("Houston")}
    return {
        "Person": answers("Samuel Foster", "Diana Ramsey"),
        "Location": answers("Houston"),
        "Organization": answers("Beacon Energy", "Beacon Energy", **relations),
    }


def chinese() -> dict[str, Any]:
    relations = {"创始人": answers("周文博"), "总部": answers("武汉")}
    return {
        "人物": answers("周文博"),
        "地点": answers("武汉"),
        "组织机构": answers("宏达汽车", "宏达汽车", **relations),
    }


def verdicts(demo: ModuleType, cases: list[dict[str, Any]], *found: dict[str, Any]) -> list[bool]:
    remaining = iter(found)
    shown = demo.show_extractions(lambda text, schema: next(remaining), cases)
    return [given == expected for _, given, expected in shown]


def test_extractions_that_are_right_count(demo):
    assert verdicts(demo, CASES, english(), chinese()) == [True, True]


def wrong(change: Any) -> dict[str, Any]:
    found = english()
    change(found)
    return found


@pytest.mark.parametrize(
    "found",
    [
        {},
        wrong(lambda found: found.pop("Person")),
        wrong(lambda found: found["Organization"].pop()),
        wrong(lambda found: found["Organization"][0]["relations"].pop("Founder")),
        wrong(lambda found: found["Organization"][0]["relations"].update(Product=answers("Houston"))),
        wrong(lambda found: found["Organization"][0]["relations"].update(Founder=answers("Diana Ramsey"))),
        wrong(lambda found: found["Person"][0].update(relations={"Founder": answers("Houston")})),
    ],
)
def test_extractions_that_are_wrong_do_not(demo, found):
    assert verdicts(demo, CASES[:1], found) == [False]


@pytest.mark.parametrize(
    ("vector", "right"),
    [(np.ones(8), True), (np.ones(7), False), (np.full(8, np.nan), False), (np.ones((3, 8)), False)],
)
def test_vectors_have_the_manifests_size_and_are_finite(demo, vector, right):
    class Vectors:
        manifest = SimpleNamespace(
            outputs=[SimpleNamespace(name="last_hidden_state", shape=("batch", "sequence", 8))],
        )

        def __call__(self, texts: list[str]) -> list[Any]:
            return [vector for _ in texts]

    ((_, given, expected),) = demo.show_vectors(Vectors(), [{"language": "en", "text": "x"}])
    assert (given == expected) is right
