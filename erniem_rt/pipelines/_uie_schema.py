"""What to extract, as a user writes it, made a tree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines._containers import is_list, strings
from erniem_rt.pipelines._options import comma_parts, parts
from erniem_rt.pipelines._uie_text import half_width

__all__ = ["Node", "parse_schema"]

_DEEPEST = 32
_SLASH = re.compile("/")
_OTHER_DIVIDER = re.compile("[;؛|]")


@dataclass(frozen=True)
class Node:
    """One thing to extract, or one classification, and what to ask about each of its answers.

    Attributes:
        name: As it stands in the schema, and so in the answers.
        label: The name without the brackets that end it, and all of it where none do.
        bracket: What ends the name in brackets: options, ``"[positive, negative]"``, or part of the name, ``"[EUR]"``.
        options: Where each option stands in ``bracket``; there are none unless this may be a classification.
        text_first: Whether the options may be a unit, ``"[km/h]"``: then one of them is an answer only where the text
            has none.
        children: What to ask about each answer.
    """

    name: str
    label: str
    bracket: str
    options: tuple[range, ...]
    text_first: bool
    children: tuple[Node, ...]


def parse_schema(schema: object) -> tuple[Node, ...]:
    """Read a schema: a name, a list of names and dicts, or a dict of names to schemas.

    Raises:
        InvalidInputError: It is something else, is empty, has a name twice in one place, is cyclic or nested deeper
            than 32 levels, or a name in it is empty or not str, has nothing between its brackets, or has options that
            something else than commas divides. The message says where.
    """
    nodes = _nodes(schema, "schema", ())
    if not nodes:
        raise InvalidInputError('schema is empty: expected names, like ["Person", {"Company": ["Founder"]}].')
    return nodes


def _nodes(schema: object, place: str, above: tuple[object, ...]) -> tuple[Node, ...]:
    if any(schema is other for other in above):
        raise InvalidInputError(f"{place} holds itself: a schema cannot be cyclic.")
    nodes: dict[str, Node] = {}
    for name, children, where in _entries(schema, place):
        if len(above) == _DEEPEST:
            raise InvalidInputError(f"schema is nested deeper than {_DEEPEST} levels.")
        if not isinstance(name, str) or not name.strip():
            raise InvalidInputError(f"{where} has the name {name!r}: expected str with something in it.")
        if name in nodes:
            raise InvalidInputError(f"{place} has the name {name!r} twice: give each name once.")
        nodes[name] = _node(name, where, _nodes(children, where, (*above, schema)))
    return tuple(nodes.values())


def _entries(schema: object, place: str) -> Iterator[tuple[object, object, str]]:
    """Yield name, schema of the children, and place of each name on one level."""
    if isinstance(schema, str):
        yield schema, (), place
    elif isinstance(schema, Mapping):
        for name, children in schema.items():
            yield name, children, f"{place}[{name!r}]"
    elif is_list(schema):
        for i, item in enumerate(strings(place, schema)):
            if not isinstance(item, (str, Mapping)):
                raise InvalidInputError(f"{place}[{i}] must be a name or a dict, got {type(item).__name__}.")
            yield from _entries(item, f"{place}[{i}]")
    else:
        raise InvalidInputError(f"{place} must be a name, a list or a dict, got {type(schema).__name__}.")


def _node(name: str, place: str, children: tuple[Node, ...]) -> Node:
    flat = half_width(name).rstrip()
    opening = flat.rfind("[")
    if not flat.endswith("]") or opening < 0:
        return Node(name, name, "", (), False, children)
    label, bracket = name[:opening], name[opening : len(flat)]
    try:
        options, text_first = _options(label, half_width(bracket)[1:-1])
    except ValueError as error:
        raise InvalidInputError(f"{place} has the name {name!r}: {error}") from None
    if not label.strip():
        return Node(name, name, "", (), False, children)
    return Node(name, label, bracket, tuple(range(o.start + 1, o.stop + 1) for o in options), text_first, children)


def _options(label: str, inside: str) -> tuple[list[range], bool]:
    """Where options stand between the brackets, and whether they may be a unit; ValueError if they are no good ones.

    Two or more parts between commas are options. One part is not, ``"[EUR]"``, unless there are slashes in it.
    """
    options = comma_parts(inside)
    texts = [inside[option.start : option.stop] for option in options]
    if "" in texts:
        raise ValueError("expected options between its brackets and commas.")
    if len(options) == 1:
        return _units(inside)
    if not label.strip():
        raise ValueError("expected text before the options.")
    if len(set(texts)) < len(texts):
        raise ValueError("give each option once.")
    return options, False


def _units(inside: str) -> tuple[list[range], bool]:
    if _OTHER_DIVIDER.search(inside):
        raise ValueError(
            "write options with commas between them, like Sentiment[good,bad], and what is no option in round brackets."
        )
    options = parts(inside, _SLASH)
    texts = {inside[option.start : option.stop] for option in options}
    if len(options) == 1 or "" in texts or len(texts) < len(options):
        return [], False
    return options, True
