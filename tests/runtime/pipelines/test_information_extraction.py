"""The pipeline on a scripted model: prompts, levels, positions, long texts, classifications, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from erniem_rt import InvalidInputError
from erniem_rt.pipelines.information_extraction import InformationExtractionPipeline
from erniem_rt.tokenizer import Encoding
from erniem_rt.tokenizer.settings import TokenizerSettings

CLS, SEP, FIRST = 0, 2, 10
STEVE = "In 1997, Steve was excited to become the CEO of Apple."


class Mark(NamedTuple):
    """What the scripted model marks for a prompt: these words, with this probability."""

    words: str
    probability: float = 0.81
    in_prompt: bool = False


Script = Mapping[str, Sequence[Mark]]


class Letters:
    """A tokenizer whose tokens are the visible characters, so that a row can be read back."""

    settings = TokenizerSettings()

    def __init__(self) -> None:
        self.known: list[str] = []

    def __call__(self, text: str, *, add_special_tokens: bool) -> Encoding:
        assert not add_special_tokens
        places = [i for i, char in enumerate(text) if char.isprintable() and not char.isspace()]
        self.known += [text[i] for i in places if text[i] not in self.known]
        ids = [FIRST + self.known.index(text[i]) for i in places]
        return Encoding(ids, [1] * len(ids), [(i, i + 1) for i in places], [0] * len(ids), [0] * len(ids))

    def build_inputs_with_special_tokens(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        return [CLS, *first, SEP, SEP, *second, SEP]

    def num_special_tokens_to_add(self, pair: bool) -> int:
        return 4 if pair else 2

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.known[i - FIRST] for i in ids)


class Model:
    """Answers rows ``[CLS] prompt [SEP] [SEP] text [SEP]`` by what a script says of the prompt.

    Start and end have the square root of a mark's probability; special tokens have 1, all else 0.
    """

    def __init__(self, tokenizer: Letters, script: Script) -> None:
        self.tokenizer = tokenizer
        self.script = {prompt.replace(" ", ""): marks for prompt, marks in script.items()}
        self.asked: list[str] = []

    def __call__(self, ids: list[int]) -> dict[str, np.ndarray]:
        separator = ids.index(SEP)
        prompt, text = self.tokenizer.text(ids[1:separator]), self.tokenizer.text(ids[separator + 2 : -1])
        self.asked.append(prompt)
        logits = np.full((2, len(ids)), -40.0)
        logits[:, [0, separator, separator + 1, -1]] = 40.0
        for words, probability, in_prompt in self.script.get(prompt, ()):
            words = words.replace(" ", "")
            first, part = (1, prompt) if in_prompt else (separator + 2, text)
            for found in re.finditer(re.escape(words), part):
                logits[0, first + found.start()] = logits[1, first + found.end() - 1] = _logit(probability**0.5)
        return {"start_logits": logits[0], "end_logits": logits[1]}


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


@pytest.fixture
def make(scripted_session: Callable[..., Any]) -> Callable[..., Any]:
    """``make(script, *, max_length=64, **options)``: a pipeline and its model."""

    def build(script: Script, *, max_length: int = 64, **options: Any) -> tuple[InformationExtractionPipeline, Model]:
        tokenizer: Any = Letters()
        model = Model(tokenizer, script)
        session = scripted_session("ie", model, max_length=max_length)
        return InformationExtractionPipeline(session, tokenizer, **options), model

    return build


def places(answers: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    return [(answer["text"], answer["start"], answer["end"]) for answer in answers]


def test_the_published_example(make):
    """PaddleNLP's README: the spans and probabilities of uie-m-base."""
    script = {
        "Person": [Mark("Steve", 0.99984)],
        "Company of Steve": [Mark("Apple", 0.98428)],
        "Position of Steve": [Mark("CEO", 0.96288)],
    }
    pipe, _ = make(script, schema=[{"Person": ["Company", "Position"]}], schema_lang="en")
    found = pipe(STEVE)
    assert found == {
        "Person": [
            {
                "text": "Steve",
                "start": 9,
                "end": 14,
                "probability": pytest.approx(0.99984, abs=1e-6),
                "relations": {
                    "Company": [
                        {"text": "Apple", "start": 48, "end": 53, "probability": pytest.approx(0.98428, abs=1e-6)}
                    ],
                    "Position": [
                        {"text": "CEO", "start": 41, "end": 44, "probability": pytest.approx(0.96288, abs=1e-6)}
                    ],
                },
            }
        ]
    }
    assert type(found["Person"][0]["probability"]) is float


def test_what_is_not_found_has_no_key_and_leads_to_no_question(make):
    pipe, model = make({"Date": [Mark("1997")]}, schema=["Date", {"Person": ["Company"]}, {"Date2": "Month"}])
    assert places(pipe(STEVE).pop("Date")) == [("1997", 3, 7)]
    assert len(model.asked) == 3


def test_levels_are_asked_breadth_first_and_answers_hang_under_their_parents(make):
    text = "Ada met Bob in Oslo. Bob met Eva in Rome."
    script = {
        "P": [Mark("Ada"), Mark("Bob")],
        "City": [Mark("Oslo"), Mark("Rome")],
        "met of Ada": [Mark("Bob")],
        "met of Bob": [Mark("Eva")],
        "in of Eva": [Mark("Rome")],
    }
    pipe, model = make(script, schema=[{"P": {"met": "in"}}, "City"])
    found = pipe(text)
    assert places(found["P"]) == [("Ada", 0, 3), ("Bob", 8, 11), ("Bob", 21, 24)]
    assert places(found["City"]) == [("Oslo", 15, 19), ("Rome", 36, 40)]
    ada, first_bob, second_bob = found["P"]
    assert places(ada["relations"]["met"]) == [("Bob", 8, 11), ("Bob", 21, 24)]
    assert places(first_bob["relations"]["met"]) == places(second_bob["relations"]["met"]) == [("Eva", 29, 32)]
    assert first_bob["relations"]["met"] is not second_bob["relations"]["met"]
    assert places(first_bob["relations"]["met"][0]["relations"]["in"]) == [("Rome", 36, 40)]
    assert sorted(model.asked[:2], key=str) == ["City", "P"]
    # Both Bobs lead to the same prompt, which is asked once a level.
    assert len(model.asked) == 2 + 2 + 2


def test_a_classification_and_an_extraction_may_be_asked_in_the_same_words(make):
    script = {
        "P": [Mark("room [a,b]")],
        "Q": [Mark("room")],
        "Mood of room [a,b]": [Mark("a", 0.9, in_prompt=True), Mark("calm", 0.8)],
    }
    pipe, _ = make(script, schema=[{"P": "Mood"}, {"Q": "Mood[a,b]"}])
    text = "This room [a,b] is calm."
    found = pipe(text)
    assert places(found["P"][0]["relations"]["Mood"]) == [("calm", 19, 23)]
    assert found["Q"][0]["relations"]["Mood[a,b]"] == [{"text": "a", "probability": pytest.approx(0.9)}]


def test_positions_are_those_of_the_text_as_it_was_given(make):
    text = "  “Ada”  和９点\u200b🦊 Ada"
    pipe, _ = make({"P": [Mark("Ada")]}, schema="P")
    found = pipe(text)["P"]
    assert [text[answer["start"] : answer["end"]] for answer in found] == ["Ada", "Ada"]
    assert [answer["text"] for answer in found] == ["Ada", "Ada"]


def test_chinese_relations_and_opinions(make):
    options = "情感倾向[正向，负向]"
    script = {
        "图书馆": [Mark("图书馆")],
        "图书馆的开门": [Mark("9点")],
        "图书馆的情感倾向[正向,负向]": [Mark("正向", 0.9, in_prompt=True), Mark("负向", 0.6, in_prompt=True)],
    }
    pipe, _ = make(script, schema={"图书馆": ["开门", options]})
    (library,) = pipe("图书馆今天上午9点开门。")["图书馆"]
    assert places(library["relations"]["开门"]) == [("9点", 7, 9)]
    assert library["relations"][options] == [{"text": "正向", "probability": pytest.approx(0.9)}]


@pytest.mark.parametrize(
    ("text", "trigger", "time", "place", "ask"),
    [
        ("An earthquake hit Lima at 9 pm.", "Quake trigger", "Time", "Place", "{name} of {answer}"),
        ("晚上9点利马发生地震。", "地震触发词", "时间", "震中位置", "{answer}的{name}"),
    ],
)
def test_an_event_is_a_trigger_with_what_belongs_to_it(make, text, trigger, time, place, ask):
    """As in PaddleNLP's README, where the arguments of an event are asked about the word that tells of it."""
    word, when, where = ("earthquake", "9 pm", "Lima") if text.isascii() else ("地震", "晚上9点", "利马")
    script = {
        trigger: [Mark(word)],
        ask.format(name=time, answer=word): [Mark(when)],
        ask.format(name=place, answer=word): [Mark(where)],
    }
    pipe, _ = make(script, schema={trigger: [time, place, "Magnitude"]})
    (event,) = pipe(text)[trigger]
    assert text[event["start"] : event["end"]] == word
    assert {name: [a["text"] for a in answers] for name, answers in event["relations"].items()} == {
        time: [when],
        place: [where],
    }


def test_a_classification_is_answered_from_the_prompt_and_an_extraction_from_the_text(make):
    script = {
        "mood[good,bad]": [Mark("bad"), Mark("good", 0.7, in_prompt=True)],
        "cat": [Mark("cat", in_prompt=True), Mark("Rome")],
    }
    pipe, _ = make(script, schema=["mood[good,bad]", "cat"])
    found = pipe("a bad cat in Rome")
    assert found["mood[good,bad]"] == [{"text": "good", "probability": pytest.approx(0.7)}]
    assert places(found["cat"]) == [("Rome", 13, 17)]


def test_a_long_text_is_split_and_its_answers_joined(make):
    names = "ABCDEFGH"
    text = "  ".join(f"{name} saw the {name.lower()}{i} then." for i, name in enumerate(names))
    script = {
        "P": [Mark(name) for name in names],
        "thing of E": [Mark("e4")],
        "thing of H": [Mark("the h7 then")],
    }
    pipe, model = make(script, max_length=48, schema={"P": "thing"}, batch_size=3)
    found = pipe(text)["P"]
    assert places(found) == [(name, text.index(name), text.index(name) + 1) for name in names]
    assert [places(answer.get("relations", {}).get("thing", [])) for answer in found[4:]] == [
        [("e4", text.index("e4"), text.index("e4") + 2)],
        [],
        [],
        [("the h7 then", text.index("the h7"), text.index("the h7") + 11)],
    ]
    # 14 characters a sentence: three fit beside "P", two beside "thing of E".
    assert len(model.asked) == 3 + 8 * 4
    assert max(batch.shape[1] for batch in pipe.session.batches) == 1 + 3 * 14 + 4


def test_a_row_is_as_long_as_the_longest_prompt_of_its_level_allows(make):
    pipe, _ = make({}, max_length=32, schema=["a", "abcdefghi"])
    pipe("三" * 60)
    lengths = sorted(int((row != 1).sum()) for batch in pipe.session.batches for row in batch)
    pieces = [19, 19, 19, 19, 19, 10]  # neighbours share 9
    assert lengths == sorted(prompt + 4 + piece for prompt in (1, 9) for piece in pieces)
    assert max(lengths) == 32


def test_pieces_vote_on_a_classification(make):
    """Of five pieces two say the same, two nothing, and the mean of the two is reported."""
    prompt = "mood[good,bad]"
    votes = iter([("good", 0.6), ("odd", 1.0), ("bad", 0.99), ("odd", 1.0), ("good", 0.8)])
    pipe, model = make({}, max_length=30, schema=prompt, batch_size=1)

    def vote(ids: list[int]) -> Any:
        model.script = {prompt: [Mark(*next(votes), in_prompt=True)]}
        return model(ids)

    pipe.session._function = vote
    room = 30 - 4 - len(prompt)
    assert pipe("三" * 3 * room) == {prompt: [{"text": "good", "probability": pytest.approx(0.7)}]}


def test_the_threshold_is_exclusive(make):
    script = {"P": [Mark("Steve", 0.25), Mark("CEO", 0.26)]}
    for threshold, expected in ((0.5, ["CEO"]), (0.49, ["Steve", "CEO"]), (0.6, [])):
        pipe, _ = make(script, schema="P", threshold=threshold)
        assert [answer["text"] for answer in pipe(STEVE).get("P", [])] == expected


def test_one_text_a_list_and_a_stream(make):
    pipe, _ = make({"P": [Mark("Ada")], "met of Ada": [Mark("Bob")]}, schema={"P": "met"}, batch_size=2)
    texts = ["Ada met Bob", "nobody", "then Ada left"] * 8
    told: list[tuple[int, int | None]] = []
    answers = pipe(texts, progress=lambda done, total: told.append((done, total)))
    assert answers == [pipe(text) for text in texts] == list(pipe(iter(texts)))
    assert answers[1] == {}
    assert told[-1] == (24, 24)
    assert pipe([]) == []


def test_a_schema_for_one_call(make):
    pipe, _ = make({"P": [Mark("Ada")], "Q": [Mark("Bob")]}, schema="P")
    assert list(pipe("Ada met Bob", schema=["Q"])) == ["Q"]
    assert list(pipe("Ada met Bob")) == ["P"]


NAMES = ["Ada Lovelace", "Bo Li", "Maximilian Ferdinand Oberländer", "Eva"]
CHINESE_NAMES = ["王建国", "欧阳修", "李白", "阿卜杜拉"]


@pytest.mark.parametrize("shift", range(12))
@pytest.mark.parametrize(
    ("names", "text"),
    [
        (NAMES, "well " + " and ".join(f"{NAMES[i % 4]} lives in city {i}" for i in range(40))),
        (NAMES, "\n".join(" ".join(f"{NAMES[i % 4]} is here" for i in range(40)).split(" "))),
        (CHINESE_NAMES, "然后" + "".join(f"{CHINESE_NAMES[i % 4]}住在那里" for i in range(60))),
        (["J. R. Smith"], "".join(f"J. R. Smith saw one, he said so to {i} " for i in range(40))),
        (["4. Mai 1998"], "und ".join(f"es war der 4. Mai 1998 Tag {i} " for i in range(40))),
    ],
    ids=["speech", "scan", "chinese", "initials", "dates"],
)
def test_no_name_is_lost_at_a_cut(make, names, text, shift):
    """Each name once, wherever the pieces begin and end; the scripted model marks what a piece shows whole."""
    pipe, model = make({"P": [Mark(name) for name in names]}, max_length=96, schema="P")
    text = "x" * shift + " " + text
    spoken = "|".join(re.escape(name).replace(r"\ ", r"\s") for name in names)
    expected = [(found[0], *found.span()) for found in re.finditer(spoken, text)]
    assert len(expected) in (40, 60)
    assert places(pipe(text)["P"]) == expected
    assert len(model.asked) > 5


def test_a_text_that_is_cut_at_sentence_ends_is_read_once(make):
    pipe, model = make({"P": [Mark("Ada"), Mark("阿达")]}, max_length=64, schema="P")
    for sentence, count in (("Ada went to the market. ", 14), ("阿达在市场上买了很多东西。", 14)):
        model.asked.clear()
        pipe.session.batches.clear()
        assert len(pipe(sentence * count)["P"]) == count
        read = sum(int((row != 1).sum()) - 5 for batch in pipe.session.batches for row in batch)
        assert read == count * len(sentence.replace(" ", ""))


def test_a_wide_special_token_is_text(make, tokenizer):
    """The model is shown no special token but those of the row."""
    rows: list[list[int]] = []

    def record(ids: list[int]) -> dict[str, np.ndarray]:
        rows.append(ids)
        return {name: np.full(len(ids), -9.0) for name in ("start_logits", "end_logits")}

    session = make({})[0].session
    session._function = record
    pipe = InformationExtractionPipeline(session, tokenizer, schema=["Kind［SEP］", "［MASK］[a，b]"])
    pipe("It is ［MASK］ or ［SEP］［CLS］.")
    assert len(rows) == 2
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    for row in rows:
        assert [i for i in row if i in special] == [tokenizer.cls_token_id] + [tokenizer.sep_token_id] * 3


@pytest.mark.parametrize("name", ["Price [EUR]", "价格[元]", "价格［元］", "Speed [km/h]", "Pay [EUR/month] "])
def test_a_name_in_brackets_that_are_no_options_is_answered_from_the_text(make, name):
    """Whether or not the model marks the brackets as well."""
    asked = name.strip().translate({ord("［"): "[", ord("］"): "]"})
    inside = asked[asked.index("[") + 1 : -1].split("/")[0]
    for marks in ([Mark("42")], [Mark("42", 0.6), Mark(inside, 0.9, in_prompt=True)]):
        pipe, _ = make({asked: marks}, schema=[name])
        assert places(pipe("It is 42 here")[name]) == [("42", 6, 8)]
    pipe, _ = make({}, schema=[name])
    assert pipe("It is 42 here") == {}


def test_relations_with_a_unit(make):
    script = {
        "Car": [Mark("Fiat")],
        "Price of Fiat [EUR]": [Mark("9000")],
        "Speed of Fiat [km/h]": [Mark("140")],
    }
    pipe, _ = make(script, schema={"Car": ["Price [EUR]", "Speed [km/h]"]})
    (car,) = pipe("The Fiat costs 9000 and goes 140")["Car"]
    assert places(car["relations"]["Price [EUR]"]) == [("9000", 15, 19)]
    assert places(car["relations"]["Speed [km/h]"]) == [("140", 29, 32)]


@pytest.mark.parametrize(
    ("name", "marked", "option"),
    [
        ("Mood[good/bad]", "bad", "bad"),
        ("情感［正向／负向］", "正", "正向"),
        ("行业[金融、保险,科技]", "金融、保险", "金融、保险"),
        ("行业[金融、保险,科技]", "保险", "金融、保险"),
        ("行业[金融、保险]", "保险", "保险"),
        ("الشعور[إيجابي، سلبي]", "سلبي", "سلبي"),
        ("Kind[a/b, c;d]", "c;d", "c;d"),
    ],
)
def test_options_between_dividers_of_several_kinds(make, name, marked, option):
    asked = name.translate({ord("［"): "[", ord("］"): "]", ord("／"): "/"})
    pipe, _ = make({asked: [Mark(marked, 0.9, in_prompt=True)]}, max_length=80, schema=[name])
    assert pipe("this is a text") == {name: [{"text": option, "probability": pytest.approx(0.9)}]}


def test_a_whole_bracket_is_no_option(make):
    for name in ("Speed [km/h]", "Mood [good,bad]", "Price [EUR]"):
        pipe, _ = make({name: [Mark(name[name.index("[") :], 0.9, in_prompt=True)]}, schema=[name])
        assert pipe("this is a text") == {}


@pytest.mark.parametrize("threshold", [np.float32(0.25), np.float64(0.25), np.int64(0), 0])
def test_a_threshold_may_be_any_real_number(make, threshold):
    pipe, _ = make({}, threshold=threshold)
    assert type(pipe.threshold) is float
    assert pipe.threshold == threshold


def test_no_schema(make):
    pipe, _ = make({})
    with pytest.raises(InvalidInputError, match="needs a schema"):
        pipe(STEVE)
    with pytest.raises(InvalidInputError, match=r"schema\[0\] must be a name or a dict, got int"):
        pipe(STEVE, schema=[1])


def test_an_answer_too_long_to_ask_about(make):
    pipe, _ = make({"P": [Mark("8" * 60)]}, max_length=66, schema={"P": "met"})
    with pytest.raises(InvalidInputError, match=r"the prompt 'met of 888\d*…' takes \d+ tokens; .* a higher threshold"):
        pipe("8" * 60)
    with pytest.raises(InvalidInputError, match=r"^input 1: the prompt 'met of 888"):
        pipe(["nobody", "8" * 60])
