"""What to extract, as a user writes it, made a tree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from erniem_rt.errors import InvalidInputError
from erniem_rt.pipelines._containers import is_list, strings
from erniem_rt.pipelines._uie_text import half_width

__all__ = ["Node", "parse_schema"]

_DEEPEST = 32
_COMMA = re.compile("[,、]")


@dataclass(frozen=True)
class Node:
    """One thing to extract, or one classification, and what to ask about each of its answers.

    Attributes:
        name: As it stands in the schema, and so in the answers.
        label: The name without its options, and all of it where there are none.
        choices: The options with their brackets, which end the name: ``"[positive, negative]"``, or "".
        options: Where each option stands in ``choices``; there are none unless this is a classification.
        children: What to ask about each answer.
    """

    name: str
    label: str
    choices: str
    options: tuple[range, ...]
    children: tuple[Node, ...]


def parse_schema(schema: object) -> tuple[Node, ...]:
    """Read a schema: a name, a list of names and dicts, or a dict of names to schemas.

    Raises:
        InvalidInputError: It is something else, is empty, has a name twice in one place, is cyclic or nested deeper
            than 32 levels, or a name in it is empty or not str, or has no options between its brackets. The message
            says where.
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
        return Node(name, name, "", (), children)
    label, choices = name[:opening], name[opening : len(flat)]
    options = _options(choices)
    texts = [choices[option.start : option.stop] for option in options]
    if not label.strip():
        raise InvalidInputError(f"{place} has the name {name!r}: expected text before the options.")
    if "" in texts:
        raise InvalidInputError(f"{place} has the name {name!r}: expected options between its brackets and commas.")
    if len(set(texts)) < len(texts):
        raise InvalidInputError(f"{place} has the name {name!r}: give each option once.")
    return Node(name, label, choices, options, children)


def _options(choices: str) -> tuple[range, ...]:
    """Where the options stand, without the brackets, commas and spaces around them; an empty range for an empty one."""
    options = []
    start = 1
    for option in _COMMA.split(half_width(choices)[1:-1]):
        options.append(range(start + len(option) - len(option.lstrip()), start + len(option.rstrip())))
        start += len(option) + 1
    return tuple(options)
