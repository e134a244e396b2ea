"""The languages of the nano corpus: templates, fillers, and which filler a template may show in which split.

One JSON file per language in ``templates/``. Lists of fillers are comma-separated strings there, ``male|female``
where a word has two forms; ``[male|female]`` inside a template agrees with the person that the sentence names.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import random

CODES = ("en", "de", "es", "ru", "zh", "ar")
Split = Literal["train", "heldout"]

# What stands in a relation's slot; the subject of a relation is the kind whose statements mention it.
OBJECT_KINDS = {
    "born_in": "city",
    "born_on": "date",
    "lives_in": "city",
    "works_at": "company",
    "job": "job",
    "founded_by": "person",
    "founded_in": "year",
    "based_in": "city",
    "makes": "product",
    "led_by": "person",
    "mayor": "person",
}
# Two different objects of these contradict each other; a company may well make two things.
EXCLUSIVE = frozenset(OBJECT_KINDS) - {"makes"}
ENTITY_TYPES = {"person": "PER", "city": "LOC", "company": "ORG", "date": "DATE", "year": "DATE"}
# Kinds with only a few dozen fillers are held out per template; the others per role, which is stricter.
SMALL_KINDS = frozenset({"job", "product", "word", "topic"})
HELD_OUT_SHARE = 0.25

_SLOT = re.compile(r"\{(\w+)\}")
_AGREEMENT = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")


class Filler(NamedTuple):
    """A word or name that fills a slot; ``female`` decides the agreement of the sentence around it."""

    text: str
    kind: str
    female: bool = False


class Pair(NamedTuple):
    """One use of a filler in a template's slot: what the held-out split must not share with training."""

    language: str
    template: str
    slot: str
    filler: str


class Filled(NamedTuple):
    """A template with its slots filled; spans are half-open code points of ``text``."""

    text: str
    spans: dict[str, tuple[int, int]]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Language:
    """Templates and fillers of one language, as its JSON file has them."""

    code: str
    data: dict[str, Any] = field(repr=False)

    @property
    def joiner(self) -> str:
        """What stands between two sentences."""
        return str(self.data["joiner"])

    @cached_property
    def subject_kinds(self) -> dict[str, str]:
        """The kind of the subject of each relation."""
        return {
            slot: kind
            for kind, templates in self.data["statements"].items()
            for template in templates
            for slot in slots_of(template)
            if slot != "s"
        }

    @cached_property
    def plain_statements(self) -> dict[str, list[str]]:
        """Relation to the statements that tell it and nothing else."""
        plain: dict[str, list[str]] = {relation: [] for relation in OBJECT_KINDS}
        for templates in self.data["statements"].values():
            for template in templates:
                relations = [slot for slot in slots_of(template) if slot != "s"]
                if len(relations) == 1:
                    plain[relations[0]].append(template)
        return plain

    def words(self, key: str) -> list[str]:
        """A comma-separated list of the file."""
        return _split_words(str(self.data[key]))

    def draw(self, rng: random.Random, kind: str, topic: str | None = None, *, female: bool | None = None) -> Filler:
        """A random filler of this kind; ``female`` chooses the form of a word that has two."""
        if kind == "person":
            is_female = rng.random() < 0.5 if female is None else female
            given = rng.choice(self.words("given_female" if is_female else "given_male"))
            name = self.data["name"].format(given=given, family=rng.choice(self.words("family")))
            return Filler(name, kind, is_female)
        if kind == "company":
            form = rng.choice(self.words("company_forms"))
            return Filler(form.format(stem=rng.choice(self.words("company_stems"))), kind)
        if kind == "date":
            month, day = rng.choice(self.words("months")), rng.randint(1, 28)
            return Filler(
                rng.choice(self.data["dates"]).format(day=day, month=month, year=rng.randint(1930, 2009)), kind
            )
        if kind == "year":
            return Filler(self.data["year"].format(year=rng.randint(1850, 2022)), kind)
        if kind == "word":
            return Filler(rng.choice(_split_words(self.data["topics"][topic]["words"])), kind)
        forms = rng.choice(self.words(kind)).split("|")
        return Filler(forms[-1 if female else 0], kind)

    def fill(self, template: str, fillers: dict[str, Filler], shown: dict[str, str] | None = None) -> Filled:
        """Fill a template; ``shown`` replaces a filler's text (a pronoun for a name) and is no use of the filler."""
        female = any(filler.female for filler in fillers.values())
        agreed = _AGREEMENT.sub(r"\2" if female else r"\1", template)
        text, spans, last = "", {}, 0
        for match in _SLOT.finditer(agreed):
            text += agreed[last : match.start()]
            slot = match.group(1)
            word = (shown or {}).get(slot, fillers[slot].text)
            spans[slot] = (len(text), len(text) + len(word))
            text += word
            last = match.end()
        hidden = shown or {}
        pairs = tuple(Pair(self.code, template, slot, fillers[slot].text) for slot in spans if slot not in hidden)
        return Filled(text + agreed[last:], spans, pairs)


def allowed(split: Split, language: Language, template: str, role: str, filler: Filler) -> bool:
    """Whether this split may show ``filler`` in ``role`` (a relation, or ``s:KIND`` for a subject) of the template."""
    scope = template if filler.kind in SMALL_KINDS else role
    return _is_held_out(language.code, scope, filler.text) == (split == "heldout")


def slots_of(template: str) -> list[str]:
    """The names of a template's slots, in order."""
    return _SLOT.findall(template)


@cache
def load(code: str) -> Language:
    """The language with this two-letter code."""
    path = Path(__file__).parent / "templates" / f"{code}.json"
    return Language(code, json.loads(path.read_text(encoding="utf-8")))


@cache
def _split_words(words: str) -> list[str]:
    return words.split(", ")


@cache
def _is_held_out(language: str, scope: str, text: str) -> bool:
    digest = hashlib.blake2b(f"{language}\0{scope}\0{text}".encode(), digest_size=2).digest()
    return int.from_bytes(digest, "little") < HELD_OUT_SHARE * 65536
