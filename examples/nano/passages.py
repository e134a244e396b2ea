"""Passages: a few sentences about people, companies and cities, with every fact and entity located in the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from languages import ENTITY_TYPES, OBJECT_KINDS, Filler, Language, Pair, Split, allowed, slots_of

if TYPE_CHECKING:
    import random

Span = tuple[int, int]

PRONOUN_SHARE = 0.2
TOPIC_SHARE = 0.15
_TRIES = 300


class ExhaustedError(Exception):
    """No filler fits here; the caller draws again from the start."""


class Fact(NamedTuple):
    """``relation(subject) = object``; spans are code points of the passage, None where a pronoun stands."""

    relation: str
    subject: Filler
    object: Filler
    subject_span: Span | None
    object_span: Span

    def moved(self, by: int) -> Fact:
        """The same fact, ``by`` characters further on."""
        subject_span = None if self.subject_span is None else _moved(self.subject_span, by)
        return self._replace(subject_span=subject_span, object_span=_moved(self.object_span, by))


class Entity(NamedTuple):
    """A named entity: PER, LOC, ORG or DATE at code points ``start`` to ``end``."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class Passage:
    """Text and what is true of it."""

    text: str
    entities: tuple[Entity, ...]
    facts: tuple[Fact, ...]
    pairs: tuple[Pair, ...]


class Writer:
    """Writes the passages of one language and split."""

    def __init__(self, rng: random.Random, language: Language, split: Split) -> None:
        self.rng = rng
        self.language = language
        self.split: Split = split

    def draw(
        self,
        kind: str,
        template: str,
        role: str,
        avoid: set[str],
        topic: str | None = None,
        female: bool | None = None,
    ) -> Filler:
        """A filler that this split may show in this place and that is not in ``avoid``."""
        for _ in range(_TRIES):
            filler = self.language.draw(self.rng, kind, topic, female=female)
            if filler.text not in avoid and allowed(self.split, self.language, template, role, filler):
                return filler
        raise ExhaustedError(f"no {kind} for {template!r}")

    def passage(self, sentences: int) -> Passage:
        """A passage of so many sentences about several subjects, no filler twice."""
        main_kind = self.rng.choices(["person", "company", "city"], [5, 4, 1])[0]
        used: set[str] = set()
        told: set[str] = set()
        groups: list[list[Passage]] = []
        left = sentences
        while left:
            if groups and self.rng.random() < TOPIC_SHARE:
                groups.append([self.topic_sentence(self.rng.choice(list(self.language.data["topics"])), used)])
            else:
                kind = main_kind if self.rng.random() < 0.7 else self.rng.choice(["person", "company", "city"])
                groups.append(self._about(kind, min(left, self.rng.choice([1, 1, 2, 3])), used, told))
            left -= len(groups[-1])
        self.rng.shuffle(groups)
        return join([sentence for group in groups for sentence in group], self.language.joiner)

    def topic_sentence(self, topic: str, used: set[str]) -> Passage:
        """A sentence about a topic such as sports."""
        template = self.rng.choice(self.language.data["topics"][topic]["templates"])
        fillers = {}
        for slot in slots_of(template):
            fillers[slot] = self.draw(slot, template, topic, used, topic)
            used.add(fillers[slot].text)
        filled = self.language.fill(template, fillers)
        return Passage(filled.text, _entities(filled.spans, fillers), (), filled.pairs)

    def _about(self, kind: str, count: int, used: set[str], told: set[str]) -> list[Passage]:
        """Up to ``count`` sentences about one new subject; ``told`` gathers the relations told in the passage."""
        subject = self.draw(kind, "", f"s:{kind}", used)
        used.add(subject.text)
        sentences: list[Passage] = []
        known: set[str] = set()
        for _ in range(count):
            templates = [
                template
                for template in self.language.data["statements"][kind]
                if not known.intersection(slots_of(template))
            ]
            repeated = [template for template in templates if told.intersection(slots_of(template))]
            if not templates:
                break
            template = self.rng.choice(repeated if repeated and self.rng.random() < 0.5 else templates)
            sentences.append(self._statement(template, subject, used, follows=bool(sentences)))
            known.update(fact.relation for fact in sentences[-1].facts)
        told.update(known)
        return sentences

    def _statement(self, template: str, subject: Filler, used: set[str], *, follows: bool) -> Passage:
        fillers = {"s": subject}
        for relation in slots_of(template):
            if relation == "s":
                continue
            kind = OBJECT_KINDS[relation]
            fillers[relation] = self.draw(
                kind, template, relation, used, female=subject.female if kind == "job" else None
            )
            used.add(fillers[relation].text)
        pronouns = self.language.data["pronouns"] if follows and subject.kind == "person" else None
        shown = None
        if pronouns and template.startswith("{s}") and self.rng.random() < PRONOUN_SHARE:
            shown = {"s": pronouns[subject.female]}
        filled = self.language.fill(template, fillers, shown)
        named = None if shown else filled.spans["s"]
        facts = tuple(
            Fact(relation, subject, filler, named, filled.spans[relation])
            for relation, filler in fillers.items()
            if relation != "s"
        )
        spans = {slot: span for slot, span in filled.spans.items() if slot not in (shown or {})}
        return Passage(filled.text, _entities(spans, fillers), facts, filled.pairs)


def join(sentences: list[Passage], joiner: str) -> Passage:
    """One passage from several."""
    text = ""
    entities: list[Entity] = []
    facts: list[Fact] = []
    for sentence in sentences:
        text += joiner if text else ""
        by = len(text)
        entities += [Entity(entity.start + by, entity.end + by, entity.type) for entity in sentence.entities]
        facts += [fact.moved(by) for fact in sentence.facts]
        text += sentence.text
    pairs = tuple(pair for sentence in sentences for pair in sentence.pairs)
    return Passage(text, tuple(entities), tuple(facts), pairs)


def _entities(spans: dict[str, Span], fillers: dict[str, Filler]) -> tuple[Entity, ...]:
    return tuple(
        Entity(*span, ENTITY_TYPES[fillers[slot].kind])
        for slot, span in sorted(spans.items(), key=lambda item: item[1])
        if fillers[slot].kind in ENTITY_TYPES
    )


def _moved(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by
