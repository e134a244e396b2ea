"""Information extraction beside a slow and obvious loop over the reference model, on nano's checkpoint.

transformers has no such pipeline. The loop is PaddleNLP's, written plainly: one prompt and one text at a time, every
start with every end, node after node of the schema. Ids come from transformers' tokenizer; it knows no positions,
so those are ours, of the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import erniem_rt
from erniem_rt import Tokenizer

NANO = Path(__file__).parents[2] / "examples" / "nano"
CHECKPOINT = NANO / "checkpoints" / "ie"
LIMIT = 512
EACH = 36  # per language
TOLERANCE = 1e-4

SCHEMA = {"Person": ["Employer", "Birthplace"], "Organization": [{"Founder": "Residence"}, "Headquarters"]}
CHINESE_SCHEMA = {"人物": ["雇主", "出生地"], "组织机构": [{"创始人": "居住地"}, "总部"]}

Answers = list[dict[str, Any]]


class Reference:
    """The reference's model and tokenizer, asked a prompt at a time."""

    def __init__(self, modeling: ModuleType, folder: Path) -> None:
        from transformers.models.deprecated.ernie_m.tokenization_ernie_m import ErnieMTokenizer

        loaded = modeling.ErnieMForInformationExtraction.from_pretrained(folder, dtype=torch.float32)
        self.model = loaded.eval()
        self.tokenizer = ErnieMTokenizer.from_pretrained(folder, model_max_length=LIMIT)
        self.positions = Tokenizer.from_dir(folder)

    def ask(self, prompt: str, text: str) -> Answers:
        """Answers from a text of any length, in its order."""
        prompt_ids, ids = (self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
        encoding = self.positions(text, add_special_tokens=False)
        assert encoding.input_ids == ids
        answers: Answers = []
        for first, stop in pieces(text, encoding.offsets, LIMIT - len(prompt_ids) - 4):
            row = self.tokenizer.build_inputs_with_special_tokens(prompt_ids, ids[first:stop])
            before = len(row) - 1 - (stop - first)
            for start, end, probability in self.spans(row):
                if before <= start and end < len(row) - 1:
                    begin = encoding.offsets[first + start - before][0]
                    finish = encoding.offsets[first + end - before][1]
                    while begin < finish and text[begin].isspace():
                        begin += 1
                    while begin < finish and text[finish - 1].isspace():
                        finish -= 1
                    found = {"text": text[begin:finish], "start": begin, "end": finish, "probability": probability}
                    answers += [found] if found["text"] else []
        return sorted(answers, key=lambda answer: answer["start"])

    def spans(self, row: list[int]) -> list[tuple[int, int, float]]:
        """Every start over one half with the first end at or after it, unless a nearer start has that end."""
        with torch.inference_mode():
            output = self.model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row)))
        starts, ends = (torch.sigmoid(x[0]).tolist() for x in (output.start_logits, output.end_logits))
        found = {}
        for i, start in enumerate(starts):
            for j in range(i, len(ends)):
                if start > 0.5 and ends[j] > 0.5:
                    found[j] = (i, j, start * ends[j])
                    break
        return list(found.values())

    def extract(self, schema: Any, text: str, parent: str | None = None) -> dict[str, Answers]:
        """Answers by name to a schema, each with what was found about it."""
        found = {}
        for name, children in schema.items() if isinstance(schema, dict) else children_of(schema):
            prompt = name if parent is None else f"{parent}的{name}" if name >= "\u4e00" else f"{name} of {parent}"
            answers = self.ask(prompt, text)
            for answer in answers:
                relations = self.extract(children, text, answer["text"])
                if relations:
                    answer["relations"] = relations
            if answers:
                found[name] = answers
        return found


def children_of(schema: Any) -> Iterator[tuple[str, Any]]:
    for item in [schema] if isinstance(schema, str) else schema:
        if isinstance(item, str):
            yield item, []
        else:
            yield from item.items()


def pieces(text: str, offsets: list[tuple[int, int]], room: int) -> list[tuple[int, int]]:
    """Tokens from the end of one sentence to the end of the last that fits."""
    ends = [
        i
        for i in range(1, len(offsets))
        if text[: offsets[i][0]].rstrip()[-1] in "。！？؟"
        or (text[: offsets[i][0]].rstrip()[-1] in ".!?" and text[offsets[i][0] - 1].isspace())
    ]
    found, first = [], 0
    while len(offsets) - first > room:
        stop = max(i for i in ends if first < i <= first + room)
        found.append((first, stop))
        first = stop
    return [*found, (first, len(offsets))]


def assert_same(found: Any, expected: Any) -> int:
    """Same names, spans and relations, probabilities within the tolerance; how many answers were compared."""
    assert list(found) == list(expected)
    count = 0
    for name in found:
        assert [(a["text"], a["start"], a["end"]) for a in found[name]] == [
            (a["text"], a["start"], a["end"]) for a in expected[name]
        ]
        for ours, theirs in zip(found[name], expected[name], strict=True):
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=TOLERANCE)
            count += 1 + assert_same(ours.get("relations", {}), theirs.get("relations", {}))
    return count


@pytest.fixture(scope="module")
def heldout(nano_heldout: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """``heldout(count, long_share=0.0)``: held-out examples, as many in each language."""
    return lambda count, long_share=0.0: nano_heldout("ie", 5, count, long_share)


@pytest.fixture(scope="module")
def ours(nano_artifact: Callable[[str], Path]) -> Iterator[Any]:
    """Our pipeline on nano's checkpoint."""
    with erniem_rt.pipeline(nano_artifact("ie"), threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def theirs(reference: ModuleType) -> Reference:
    return Reference(reference, CHECKPOINT)


def test_single_prompts(ours: Any, theirs: Reference, heldout: Callable[..., list[Any]]) -> None:
    examples, languages = heldout(EACH, 0.1), set()
    assert len(examples) >= 200
    for example in examples:
        found = ours(example.text, schema=example.prompt)
        if assert_same(found, theirs.extract(example.prompt, example.text)):
            languages.add(example.language)
    assert len(languages) == 6


def test_schemas_over_a_list(ours: Any, theirs: Reference, heldout: Callable[..., list[Any]]) -> None:
    examples = heldout(4)
    for schema, chosen in (
        (SCHEMA, examples),
        (CHINESE_SCHEMA, [example for example in examples if example.language == "zh"]),
    ):
        texts = [example.text for example in chosen]
        found = ours(texts, schema=schema)
        expected = [theirs.extract(schema, text) for text in texts]
        assert sum(assert_same(*pair) for pair in zip(found, expected, strict=True)) >= len(texts)
        assert any("relations" in answer for answers in found for name in answers for answer in answers[name])


def test_texts_over_the_limit(ours: Any, theirs: Reference, heldout: Callable[..., list[Any]]) -> None:
    examples = heldout(30)
    for code in ("en", "zh", "ar"):
        text = " ".join(example.text for example in examples if example.language == code)
        assert len(theirs.tokenizer(text)["input_ids"]) > 2 * LIMIT
        found = ours(text, schema=["Person", "Location"])
        assert assert_same(found, theirs.extract(["Person", "Location"], text)) > 10
        assert max(answer["end"] for name in found for answer in found[name]) > len(text) // 2
