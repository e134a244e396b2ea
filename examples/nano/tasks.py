"""The five tasks: a passage becomes a question, a hypothesis, a set of choices or an extraction prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from languages import (
    ENTITY_TYPES,
    EXCLUSIVE,
    OBJECT_KINDS,
    Filled,
    Filler,
    Language,
    Pair,
    allowed,
    load,
)
from passages import Entity, ExhaustedError, Fact, Passage, Span, Writer, join

if TYPE_CHECKING:
    from collections.abc import Callable

NLI_LABELS = ("entailment", "neutral", "contradiction")
NER_LABELS = ("O", *(f"{part}-{kind}" for kind in ("PER", "LOC", "ORG", "DATE") for part in "BI"))

_FOREIGN_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Example:
    """What all examples share.

    The language, the template-filler pairs that the texts were made of, and the named entities of the passage (its
    ``context``, ``text``, ``premise`` or ``prompt``) as ``(start, end, type)`` in code points.
    """

    language: str
    pairs: tuple[Pair, ...]
    entities: tuple[Entity, ...]


@dataclass(frozen=True, kw_only=True)
class QuestionExample(Example):
    """``context[start:end]`` answers the question."""

    question: str
    context: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class EntityExample(Example):
    """A text whose ``entities`` are to be found."""

    text: str


@dataclass(frozen=True, kw_only=True)
class InferenceExample(Example):
    """``label`` indexes :data:`NLI_LABELS`; ``topic`` marks a zero-shot topic hypothesis."""

    premise: str
    hypothesis: str
    label: int
    topic: bool


@dataclass(frozen=True, kw_only=True)
class ChoiceExample(Example):
    """``choices[label]`` fits the prompt."""

    prompt: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True, kw_only=True)
class ExtractionExample(Example):
    """Everything in ``text`` that the prompt asks for; possibly nothing."""

    prompt: str
    text: str
    spans: tuple[Span, ...]


def question_example(writer: Writer, sentences: int) -> QuestionExample:
    """A question about one fact of the passage, or about the subject of one."""
    passage = writer.passage(sentences)
    fact = _pick_fact(writer, passage)
    question, span = _question(writer, fact)
    return QuestionExample(
        language=writer.language.code,
        pairs=passage.pairs + question.pairs,
        entities=passage.entities,
        question=question.text,
        context=passage.text,
        start=span[0],
        end=span[1],
    )


def entity_example(writer: Writer, sentences: int) -> EntityExample:
    """The named entities of a passage."""
    passage = writer.passage(sentences)
    return EntityExample(
        language=writer.language.code, pairs=passage.pairs, entities=passage.entities, text=passage.text
    )


def inference_example(writer: Writer, sentences: int) -> InferenceExample:
    """A premise and a hypothesis that follows from it, contradicts it, or neither."""
    if writer.rng.random() < 0.35:
        return _topic_example(writer, min(sentences, 2))
    passage = writer.passage(sentences)
    fact = _pick_fact(writer, passage)
    label = writer.rng.randrange(3)
    hypothesis = (_entailed, _neutral, _contradicted)[label](writer, passage, fact)
    return InferenceExample(
        language=writer.language.code,
        pairs=passage.pairs + hypothesis.pairs,
        entities=passage.entities,
        premise=passage.text,
        hypothesis=hypothesis.text,
        label=label,
        topic=False,
    )


def choice_example(writer: Writer, sentences: int) -> ChoiceExample:
    """Two to four statements of which one is true, or a question with as many answers."""
    passage = writer.passage(sentences)
    fact = _pick_fact(writer, passage)
    wrong = writer.rng.randint(1, 3)
    if writer.rng.random() < 0.5:
        right = _entailed(writer, passage, fact)
        others = _distinct(lambda: _contradicted(writer, passage, fact), {right.text}, wrong)
        prompt, pairs = passage.text, passage.pairs
    else:
        question = _fill_question(writer, fact, "questions", "s", fact.subject)
        right = Filled(fact.object.text, {}, ())
        others = _distinct(lambda: Filled(_other_object(writer, passage, fact).text, {}, ()), {right.text}, wrong)
        prompt = passage.text + writer.language.joiner + question.text
        pairs = passage.pairs + question.pairs
    choices = [right, *others]
    writer.rng.shuffle(choices)
    return ChoiceExample(
        language=writer.language.code,
        pairs=pairs + tuple(pair for choice in choices for pair in choice.pairs),
        entities=passage.entities,
        prompt=prompt,
        choices=tuple(choice.text for choice in choices),
        label=choices.index(right),
    )


def extraction_example(writer: Writer, sentences: int) -> ExtractionExample:
    """An entity type or a relation to extract, in the text's own language or in English."""
    passage = writer.passage(sentences)
    prompts = _prompt_language(writer)
    if writer.rng.random() < 0.45 or not passage.facts or not prompts.data["relation_prompt"]:
        kind = writer.rng.choice(list(prompts.data["prompts"]))
        spans = tuple((entity.start, entity.end) for entity in passage.entities if entity.type == ENTITY_TYPES[kind])
        return _extraction(writer, passage, prompts.data["prompts"][kind], spans)
    fact = writer.rng.choice(passage.facts)
    relation, subject = fact.relation, fact.subject
    if writer.rng.random() < 0.3:
        relation, subject = _untold(writer, passage, fact)
    spans = tuple(f.object_span for f in passage.facts if f.relation == relation and f.subject == subject)
    prompt = prompts.data["relation_prompt"].format(child=prompts.data["children"][relation], s=subject.text)
    pair = Pair(writer.language.code, f"{prompts.data['children'][relation]}|{prompts.code}", "s", subject.text)
    return _extraction(writer, passage, prompt, spans, pair)


def _extraction(
    writer: Writer, passage: Passage, prompt: str, spans: tuple[Span, ...], *pairs: Pair
) -> ExtractionExample:
    return ExtractionExample(
        language=writer.language.code,
        pairs=passage.pairs + pairs,
        entities=passage.entities,
        prompt=prompt,
        text=passage.text,
        spans=tuple(sorted(spans)),
    )


def _prompt_language(writer: Writer) -> Language:
    own = writer.language
    foreign = 2 * _FOREIGN_SHARE if own.data["relation_prompt"] is None else _FOREIGN_SHARE
    return load("en") if writer.rng.random() < foreign else own


def _untold(writer: Writer, passage: Passage, fact: Fact) -> tuple[str, Filler]:
    """A relation of this subject that the passage does not tell, or a subject that it does not name."""
    told = {f.relation for f in passage.facts if f.subject == fact.subject}
    kinds = writer.language.subject_kinds
    untold = [r for r in OBJECT_KINDS if r not in told and kinds[r] == fact.subject.kind]
    if untold and writer.rng.random() < 0.6:
        return writer.rng.choice(untold), fact.subject
    return fact.relation, _stranger(writer, passage, fact.subject.kind)


def _pick_fact(writer: Writer, passage: Passage) -> Fact:
    if not passage.facts:
        raise ExhaustedError("a passage without facts")
    return writer.rng.choice(passage.facts)


def _question(writer: Writer, fact: Fact) -> tuple[Filled, Span]:
    backwards = writer.language.data["reverse_questions"].get(fact.relation)
    if backwards and fact.subject_span and writer.rng.random() < 0.25:
        return _fill_question(writer, fact, "reverse_questions", "o", fact.object), fact.subject_span
    return _fill_question(writer, fact, "questions", "s", fact.subject), fact.object_span


def _fill_question(writer: Writer, fact: Fact, key: str, slot: str, filler: Filler) -> Filled:
    role = f"s:{filler.kind}" if slot == "s" else fact.relation
    fitting = [
        template
        for template in writer.language.data[key][fact.relation]
        if allowed(writer.split, writer.language, template, role, filler)
    ]
    if not fitting:
        raise ExhaustedError("no question for this filler")
    return writer.language.fill(writer.rng.choice(fitting), {slot: filler})


def _statement(writer: Writer, relation: str, subject: Filler, object_: Filler) -> Filled:
    """A plain statement of this fact in words that the split may use."""
    fitting = [
        template
        for template in writer.language.plain_statements[relation]
        if allowed(writer.split, writer.language, template, f"s:{subject.kind}", subject)
        and allowed(writer.split, writer.language, template, relation, object_)
    ]
    if not fitting:
        raise ExhaustedError("no statement for these fillers")
    return writer.language.fill(writer.rng.choice(fitting), {"s": subject, relation: object_})


def _entailed(writer: Writer, passage: Passage, fact: Fact) -> Filled:
    del passage
    return _statement(writer, fact.relation, fact.subject, fact.object)


def _contradicted(writer: Writer, passage: Passage, fact: Fact) -> Filled:
    if fact.relation not in EXCLUSIVE:
        raise ExhaustedError("this relation has several objects")
    return _statement(writer, fact.relation, fact.subject, _other_object(writer, passage, fact))


def _neutral(writer: Writer, passage: Passage, fact: Fact) -> Filled:
    told = {f.relation for f in passage.facts if f.subject == fact.subject}
    kinds = writer.language.subject_kinds
    untold = [r for r in OBJECT_KINDS if r not in told and kinds[r] == fact.subject.kind]
    if not untold or writer.rng.random() < 0.5:
        stranger = _stranger(writer, passage, fact.subject.kind, female=fact.subject.female)
        return _statement(writer, fact.relation, stranger, fact.object)
    relation = writer.rng.choice(untold)
    return _statement(writer, relation, fact.subject, _object_for(writer, passage, relation, fact.subject, set()))


def _other_object(writer: Writer, passage: Passage, fact: Fact) -> Filler:
    return _object_for(writer, passage, fact.relation, fact.subject, {fact.object.text})


def _object_for(writer: Writer, passage: Passage, relation: str, subject: Filler, avoid: set[str]) -> Filler:
    """An object for a relation, often one that the passage mentions elsewhere."""
    kind = OBJECT_KINDS[relation]
    mentioned = [f.object for f in passage.facts if f.object.kind == kind and f.object.text not in avoid]
    template = writer.rng.choice(writer.language.plain_statements[relation])
    mentioned = [o for o in mentioned if allowed(writer.split, writer.language, template, relation, o)]
    if mentioned and writer.rng.random() < 0.5:
        return writer.rng.choice(mentioned)
    female = subject.female if kind == "job" else None
    return writer.draw(kind, template, relation, avoid, female=female)


def _stranger(writer: Writer, passage: Passage, kind: str, *, female: bool | None = None) -> Filler:
    named = {f.subject.text for f in passage.facts} | {f.object.text for f in passage.facts}
    return writer.draw(kind, "", f"s:{kind}", named, female=female if kind == "person" else None)


def _distinct(make: Callable[[], Filled], seen: set[str], count: int) -> list[Filled]:
    """So many results of ``make`` with different texts."""
    results: list[Filled] = []
    for _ in range(40):
        if len(results) == count:
            return results
        result = make()
        if result.text not in seen:
            seen.add(result.text)
            results.append(result)
    raise ExhaustedError("not enough different choices")


def _topic_example(writer: Writer, sentences: int) -> InferenceExample:
    topics = list(writer.language.data["topics"])
    topic, other = writer.rng.sample(topics, 2)
    used: set[str] = set()
    premise = join([writer.topic_sentence(topic, used) for _ in range(sentences)], writer.language.joiner)
    follows = writer.rng.random() < 0.5
    speech = load("en") if writer.rng.random() < _FOREIGN_SHARE else writer.language
    label = Filler(speech.data["topics"][topic if follows else other]["name"], "topic")
    fitting = [
        template
        for template in speech.data["topic_hypotheses"]
        if allowed(writer.split, speech, template, "topic", label)
    ]
    if not fitting:
        raise ExhaustedError("no hypothesis for this topic")
    hypothesis = speech.fill(writer.rng.choice(fitting), {"topic": label})
    return InferenceExample(
        language=writer.language.code,
        pairs=premise.pairs + hypothesis.pairs,
        entities=premise.entities,
        premise=premise.text,
        hypothesis=hypothesis.text,
        label=0 if follows else 2,
        topic=True,
    )
