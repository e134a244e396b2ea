"""The vocabulary without a dict, beside a dict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniem_rt.tokenizer.vocabulary import TokenList

# Few letters, so that tokens repeat, share their ends, and are the beginnings of others.
LETTERS = st.sampled_from(["a", "b", "▁", "語", "😀", "\n"])
SHORT = st.text(LETTERS, max_size=6)
# Alike in length and in their first, middle and last eight bytes, so that only the whole text tells them apart.
ALIKE = st.builds(lambda i: "a" * 12 + str(i) + "b" * 40, st.integers(0, 3))
TOKENS = st.lists(st.one_of(SHORT, ALIKE), min_size=1, max_size=40)
ASKED = st.lists(st.one_of(SHORT, ALIKE, st.just("\ud800"), st.text(max_size=20)), max_size=40)


def by_dict(tokens: list[str], asked: list[str]) -> list[int | None]:
    """The obvious way: the last index counts."""
    table = {token: i for i, token in enumerate(tokens)}
    return [table.get(token) for token in asked]


@given(TOKENS, ASKED)
def test_tokens_are_found_as_in_a_dict(tokens: list[str], asked: list[str]) -> None:
    found = TokenList.of(tokens)
    assert found.indices(asked) == by_dict(tokens, asked)
    assert found.indices(tokens) == by_dict(tokens, tokens)
    assert list(found) == tokens
    assert (len(found), found.distinct) == (len(tokens), len(set(tokens)))
    last = set(by_dict(tokens, tokens))
    assert [found.get(i) for i in range(-1, len(tokens) + 1)] == [
        None,
        *(token if i in last else None for i, token in enumerate(tokens)),
        None,
    ]


@pytest.mark.parametrize("end", ["", "\n"])
@given(st.lists(st.text(st.sampled_from("ab▁語"), max_size=6), min_size=1, max_size=20))
def test_lines_are_tokens(end: str, lines: list[str]) -> None:
    lines.append("last")
    found = TokenList.of_lines(("\n".join(lines) + end).encode())
    assert list(found) == lines
    assert found.indices(lines) == by_dict(lines, lines)


def test_tokens_alike_where_keys_look_are_told_apart() -> None:
    tokens = ["a" * 12 + str(i) + "b" * 40 for i in (0, 1, 2, 1)]
    found = TokenList.of(tokens)
    assert len(found._sharing) == 3
    assert found.indices([*tokens, "a" * 12 + "3" + "b" * 40]) == [0, 3, 2, 3, None]
