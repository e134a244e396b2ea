"""Labels of tokens, words and entities."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniem_rt.pipelines.token_classification import Token, TokenClassificationPipeline, entities_of_words

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXT = "The lighthouse keeper wrote 3 letters."


@pytest.fixture
def make(scripted_session, tokenizer):
    """``make({token: label}, ...)``: logit 4 for that label, or ``(label, logit)``; ``O`` for all other tokens."""

    def build(table, *, labels=LABELS, max_length=64, **options):
        wanted = {tokenizer.convert_tokens_to_ids(token): value for token, value in table.items()}

        def function(ids):
            logits = np.zeros((len(ids), len(labels)), np.float32)
            for row, index in zip(logits, ids, strict=True):
                value = wanted.get(index, labels[0])
                label, logit = (value, 4) if isinstance(value, str) else value
                row[labels.index(label)] = logit
            return {"logits": logits}

        session = scripted_session("ner", function, labels=labels, max_length=max_length)
        return TokenClassificationPipeline(session, tokenizer, **options)

    return build


def sure(*logits):
    """Return the probability of a label with the first logit where the others have the rest."""
    powers = np.exp(logits)
    return pytest.approx(powers[0] / powers.sum())


def words(entities):
    return [(entity["entity_group"], entity["word"]) for entity in entities]


def test_tokens_as_they_are(make):
    found = make({"▁lighthouse": "B-PER", "3": ("I-LOC", 2)})(TEXT)
    assert found == [
        {"entity": "B-PER", "score": sure(4, 0, 0, 0, 0), "index": 2, "word": "lighthouse", "start": 4, "end": 14},
        {"entity": "I-LOC", "score": sure(2, 0, 0, 0, 0), "index": 5, "word": "3", "start": 28, "end": 29},
    ]
    assert type(found[0]["score"]) is float


def test_simple_joins_neighbours_of_one_kind(make):
    table = {"▁lighthouse": "B-PER", "▁keeper": ("I-PER", 2), "▁wrote": "I-LOC", "3": "B-LOC"}
    found = make(table, aggregation_strategy="simple")(TEXT)
    assert words(found) == [("PER", "lighthouse keeper"), ("LOC", "wrote"), ("LOC", "3")]
    mean = np.mean([np.exp(logit) / (np.exp(logit) + 4) for logit in (4, 2)])
    assert found[0] == {
        "entity_group": "PER",
        "score": pytest.approx(mean),
        "word": "lighthouse keeper",
        "start": 4,
        "end": 21,
    }


def test_plain_tags_join_without_a_beginning(make):
    pipe = make({"▁lighthouse": "place", "▁keeper": "place"}, labels=("O", "place"), aggregation_strategy="simple")
    assert words(pipe(TEXT)) == [("place", "lighthouse keeper")]


def test_the_word_is_cut_from_the_text(make):
    pipe = make({"▁lighthouse": "B-PER", "▁keeper": "I-PER"}, aggregation_strategy="simple")
    assert words(pipe("The  lighthouse\t\n keeper")) == [("PER", "lighthouse\t\n keeper")]


def test_whitespace_around_an_entity_is_not_part_of_it(make, tokenizer):
    text = "in 图书馆"
    assert tokenizer.tokenize(text) == ["▁in", "▁", "图", "书", "馆"]
    pipe = make({"▁": "B-LOC", "图": "I-LOC", "书": "I-LOC", "馆": "I-LOC"}, aggregation_strategy="simple")
    assert pipe(text) == [{"entity_group": "LOC", "score": sure(4, 0, 0, 0, 0), "word": "图书馆", "start": 3, "end": 6}]
    assert make({"▁": "B-LOC"}, aggregation_strategy="simple")(text) == []
    assert words(make({"图": "B-LOC"}, aggregation_strategy="first")(text)) == [("LOC", "图")]


# "people" is cut into pe, o, p, le; its labels are at odds.
PEOPLE = {"▁pe": ("B-PER", 1), "o": ("B-LOC", 1.5), "p": ("B-LOC", 1.5), "le": ("I-PER", 3)}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("first", "PER"), ("average", "LOC"), ("max", "PER")],
)
def test_a_word_has_one_label(make, strategy, expected):
    found = make(PEOPLE, aggregation_strategy=strategy)("14 people; two")
    assert words(found) == [(expected, "people")]
    rows = np.zeros((4, len(LABELS)))
    for row, (label, logit) in zip(rows, PEOPLE.values(), strict=True):
        row[LABELS.index(label)] = logit
    scores = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    wanted = {"first": scores[0].max(), "average": scores.mean(0).max(), "max": scores.max()}
    assert found[0]["score"] == pytest.approx(wanted[strategy])


def test_the_strategy_of_one_call(make):
    pipe = make(PEOPLE)
    assert len(pipe("14 people; two")) == 4
    assert words(pipe("14 people; two", aggregation_strategy="first")) == [("PER", "people")]


def test_labels_to_leave_out(make):
    pipe = make({"▁lighthouse": "B-PER", "▁keeper": "I-PER", "3": "B-LOC"})
    assert len(pipe(TEXT, ignore_labels=[])) == 7
    assert [entity["word"] for entity in pipe(TEXT, ignore_labels=["O", "B-PER"])] == ["keeper", "3"]
    groups = pipe(TEXT, ignore_labels=["PER"], aggregation_strategy="simple")
    assert words(groups) == [("O", "The"), ("O", "wrote"), ("LOC", "3"), ("O", "letters.")]
    quiet = make({"3": "B-LOC"}, ignore_labels=["O", "B-LOC"])
    assert quiet(TEXT) == []
    assert len(quiet(TEXT, ignore_labels=["O"])) == 1


def test_a_long_text_is_labelled_to_its_end_and_each_token_once(make):
    text = "The lighthouse keeper wrote. " * 40
    pipe = make({"▁lighthouse": "B-PER", "▁keeper": "I-PER"}, stride=20, max_length=32)
    found = pipe(text)
    assert [entity["word"] for entity in found] == ["lighthouse", "keeper"] * 40
    assert all(text[entity["start"] : entity["end"]] == entity["word"] for entity in found)
    assert [entity["index"] for entity in found] == [5 * i + j for i in range(40) for j in (2, 3)]
    assert max(batch.shape[1] for batch in pipe.session.batches) == 32


def test_entities_are_joined_across_windows(make, tokenizer):
    text = "two hired " + "keeper " * 100 + "two hired"
    for stride in (0, 7, 25):
        pipe = make({"▁keeper": "I-PER"}, aggregation_strategy="simple", max_length=32, stride=stride)
        assert words(pipe(text)) == [("PER", " ".join(["keeper"] * 100))]


def test_a_token_is_labelled_where_most_of_the_text_around_it_is_seen(scripted_session, tokenizer):
    def function(ids):
        """Label a token by how far the nearer edge of its row is."""
        distance = [min(i, len(ids) - 1 - i) for i in range(len(ids))]
        return {"logits": np.eye(64, dtype=np.float32)[distance] * 9}

    session = scripted_session("ner", function, labels=tuple(map(str, range(64))), max_length=22)
    pipe = TokenClassificationPipeline(session, tokenizer, stride=10)
    distances = [int(entity["entity"]) for entity in pipe("keeper " * 60)]
    # From the sixth token to the sixth from the end, at least half of what two windows share.
    assert min(distances[5:-5]) >= 5


def test_the_default_overlap_of_short_windows(make):
    pipe = make({}, max_length=22)
    pipe("keeper " * 60)
    assert sum(len(batch) for batch in pipe.session.batches) == 5


def test_lists_and_streams_in_order_with_progress(make):
    pipe = make({"2021": "B-LOC", "12": "B-PER"}, batch_size=2)
    texts = [f"{'letters ' * n}{number}" for n, number in [(9, 12), (1, 2021)] * 9]
    calls = []
    found = pipe(texts, progress=lambda done, total: calls.append((done, total)))
    assert [[entity["word"] for entity in entities] for entities in found] == [["12"], ["2021"]] * 9
    assert calls[-1] == (18, 18)
    assert [*pipe(iter(texts))] == found
    assert pipe([]) == []
    assert pipe(texts[:1]) == found[:1]


WORD_LABELS = ("x",)


def words_of(text, spans):
    tokens = [Token(start, end, np.ones(1)) for start, end in spans]
    return [text[word.start : word.end] for word in entities_of_words(text, tokens, WORD_LABELS, "first")]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ("Ber|lin|.", "Berlin|."),
        ("Jean|-|Bap|tiste", "Jean|-|Baptiste"),
        ("H|2|O| is| wet", "H2O|is|wet"),
        ("27|,|50| €", "27|,|50|€"),
        ("Mün|chen", "München"),
        ("e|\u0301|te", "e\u0301te"),
        ("Київ|ський| по|їзд", "Київський|поїзд"),
        ("ي|عمل| في", "يعمل|في"),
        ("वर्ष|ा", "वर्षा"),
        ("서울|에서| 자전|거", "서울에서|자전거"),
        ("2021|年|在|北京|工作", "2021|年|在|北京|工作"),
        ("カフェ|で|コーヒー", "カフェ|で|コーヒー"),
        ("ｶﾌｪ|で", "ｶﾌｪ|で"),
        ("เมื่อ|วาน|นี้", "เมื่อ|วาน|นี้"),
        ("a| |b", "a|b"),
        ("a|\u3000|b", "a|b"),
        ("𠀀|𠀁", "𠀀|𠀁"),
        ("a|🦊|b", "a|🦊|b"),
    ],
)
def test_words(pieces, words):
    parts = pieces.split("|")
    text, spans = "", []
    for part in parts:
        start = len(text) + (len(part) - len(part.lstrip()) if part.strip() else 0)
        text += part
        spans.append((start, len(text)))
    assert words_of(text, spans) == words.split("|")


def test_tokens_of_one_character_are_one_word():
    assert words_of("㍻元", [(0, 1), (0, 1), (1, 2)]) == ["㍻", "元"]


def test_what_normalisation_dropped_does_not_part_a_word_unless_it_is_whitespace():
    assert words_of("Ber\u00adlin", [(0, 3), (4, 7)]) == ["Ber\u00adlin"]
    assert words_of("Ber\u00ad lin", [(0, 3), (5, 8)]) == ["Ber", "lin"]


@given(st.text(st.sampled_from("ab1é ж.,'\t"), max_size=30), st.data())
def test_however_it_is_cut_the_words_of_spaced_scripts_are_runs_of_letters(text, data):
    runs = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
    spans = []
    for start, end in runs:
        cuts = data.draw(st.sets(st.integers(start + 1, end - 1))) if end - start > 1 else set()
        spans += pairwise([start, *sorted(cuts), end])
    assert words_of(text, spans) == [text[start:end] for start, end in runs]
