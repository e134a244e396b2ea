"""Answers and entities: our pipelines beside the reference.

transformers' question answering is compared with after repairs (see :mod:`benchmarks.agreement.reference`).
"""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import torch

from benchmarks.agreement.reference import load, raised_null, reference_pipeline, repaired_question_answering
from benchmarks.agreement.tally import Answer, Artifact, HeldOut, Tally, listed
from erniem_rt import pipeline
from erniem_rt.pipelines._entities import Token
from erniem_rt.pipelines._entities import entities_of_words as words_of

_EACH = 36  # per language

Question = tuple[str, dict[str, str]]


def questions(heldout: HeldOut) -> list[Question]:
    """Languages, and questions about one passage each."""
    examples = heldout("qa", 5, _EACH)
    return [(e.language, {"question": e.question, "context": e.context}) for e in examples]


def with_long_contexts(inputs: list[Question]) -> list[Question]:
    """The same; one question of each language is asked of its own passage and 19 others, over the limit together."""
    inputs = inputs.copy()
    for first in range(0, len(inputs), _EACH):
        context = " ".join(item["context"] for _, item in inputs[first : first + 20])
        language, item = inputs[first + 10]
        inputs[first + 10] = language, {**item, "context": context}
    return inputs


def answers(artifact: Artifact, heldout: HeldOut, **options: Any) -> Tally:
    """Question answering in whole words, which is all that transformers does."""
    inputs = with_long_contexts(questions(heldout))
    tally = Tally()
    with (
        pipeline(artifact("qa"), threads=1, align_to_words=True, **options) as ours,
        repaired_question_answering() as theirs,
    ):
        for (language, item), found in zip(inputs, ours([item for _, item in inputs]), strict=True):
            tally.add(language, *both_answers(found, theirs(**item, **options), item["context"]))
    return tally


def answers_or_none(artifact: Artifact, heldout: HeldOut, **options: Any) -> Tally:
    """Every other question is asked of another passage, and there may be no answer.

    nano was trained on questions that have one. On both sides the logits of ``[CLS]``, which mean that there is none,
    are raised by as much as makes most answers from another passage empty, and leaves the others.
    """
    inputs = questions(heldout)
    strangers = [*inputs[1:], inputs[0]]
    inputs[::2] = [
        (language, {**item, "context": other["context"]})
        for (language, item), (_, other) in zip(inputs[::2], strangers[::2], strict=True)
    ]
    inputs = with_long_contexts(inputs)
    options["handle_impossible_answer"] = True
    tally, empty = Tally(), 0
    with (
        pipeline(artifact("qa"), threads=1, align_to_words=True, **options) as ours,
        repaired_question_answering() as theirs,
        raised_null(ours, theirs.model, 8.0),
    ):
        for (language, item), found in zip(inputs, ours([item for _, item in inputs]), strict=True):
            tally.add(language, *both_answers(found, theirs(**item, **options), item["context"]))
            empty += not found["answer"]
    if not len(inputs) // 4 < empty < len(inputs) // 2:
        raise RuntimeError(f"{empty} of {len(inputs)} questions have no answer: this compares too few of one kind.")
    return tally


def both_answers(found: dict[str, Any], theirs: dict[str, Any], context: str) -> tuple[Answer, Answer]:
    """The words, where they begin, and their score; transformers joins words with single spaces."""
    is_cut = context[found["start"] : found["end"]] == found["answer"]
    ours = Answer((" ".join(found["answer"].split()), found["start"], is_cut), found["score"])
    return ours, Answer((theirs["answer"], theirs["start"], True), theirs["score"])


def decoded_answers(artifact: Artifact, heldout: HeldOut) -> Tally:
    """Answers that are not widened to words, our default: transformers' decoder, fed with the rows by hand."""
    from transformers.pipelines.question_answering import select_starts_ends

    model, tokenizer = load("qa")
    inputs = questions(heldout)
    tally = Tally()
    with pipeline(artifact("qa"), threads=1) as ours:
        for (language, item), found in zip(inputs, ours([item for _, item in inputs]), strict=True):
            context = item["context"]
            row = tokenizer(item["question"], context)["input_ids"]
            places = ours.tokenizer(context, add_special_tokens=False).offsets
            first = len(row) - 1 - len(places)
            mask = np.array([[0 if i == 0 or first <= i < len(row) - 1 else 1 for i in range(len(row))]])
            with torch.inference_mode():
                output = model(input_ids=torch.tensor([row]))
            logits = (output.start_logits.numpy(), output.end_logits.numpy())
            [start], [end], [score], _ = select_starts_ends(*logits, mask, None)
            begin, stop = _visible(context, places[start - first][0], places[end - first][1])
            tally.add(
                language,
                Answer((found["answer"], found["start"], found["end"]), found["score"]),
                Answer((context[begin:stop], begin, stop), float(score)),
            )
    return tally


def token_labels(artifact: Artifact, heldout: HeldOut, ignore_labels: list[str]) -> Tally:
    """Token classification without aggregation."""
    recognizer = reference_pipeline("TokenClassificationPipeline", "ner")
    tally = Tally()
    with pipeline(artifact("ner"), threads=1, ignore_labels=ignore_labels) as ours:
        for language, text, found in _recognized(ours, heldout):
            tokens = ours.tokenizer.convert_ids_to_tokens(ours.tokenizer(text, add_special_tokens=False).input_ids)
            expected = recognizer(text, ignore_labels=ignore_labels)
            tally.add(
                language,
                listed([((e["entity"], e["index"], tokens[e["index"] - 1]), e["score"]) for e in found]),
                listed([((e["entity"], e["index"], e["word"]), e["score"]) for e in expected]),
            )
    return tally


def simple_entities(artifact: Artifact, heldout: HeldOut) -> Tally:
    """Neighbouring tokens joined. transformers joins tokens to words; ours are cut from the text."""
    recognizer = reference_pipeline("TokenClassificationPipeline", "ner")
    tally = Tally()
    with pipeline(artifact("ner"), threads=1, aggregation_strategy="simple") as ours:
        for language, text, found in _recognized(ours, heldout):
            expected = [e for e in recognizer(text, aggregation_strategy="simple") if e["word"]]
            theirs = [(e["entity_group"], "".join(e["word"].split()), True) for e in expected]
            # What the vocabulary lacks cannot be told from their words.
            unknown = {i for i, (_, word, _) in enumerate(theirs) if "[UNK]" in word}
            words = [theirs[i][1] if i in unknown else _normalized(e["word"]) for i, e in enumerate(found)]
            is_cut = [text[e["start"] : e["end"]] == e["word"] == e["word"].strip() for e in found]
            tally.add(
                language,
                Answer(
                    list(zip((e["entity_group"] for e in found), words, is_cut, strict=True)),
                    [e["score"] for e in found],
                ),
                Answer(theirs, [e["score"] for e in expected]),
            )
    return tally


def entities_of_words(artifact: Artifact, heldout: HeldOut, strategy: str) -> Tally:
    """transformers refuses words with ErnieM's tokenizer: its own aggregation, fed with our offsets and words."""
    from transformers.pipelines.token_classification import AggregationStrategy

    recognizer = reference_pipeline("TokenClassificationPipeline", "ner")
    tally = Tally()
    with pipeline(artifact("ner"), threads=1, aggregation_strategy=strategy) as ours:
        for language, text, found in _recognized(ours, heldout):
            tokens = recognizer.tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                scores = torch.softmax(recognizer.model(input_ids=tokens).logits[0, 1:-1], -1).numpy()
            entities = _pre_entities(text, ours.tokenizer(text, add_special_tokens=False).offsets, scores)
            groups = recognizer.aggregate(entities, AggregationStrategy(strategy))
            expected = [group for group in groups if group["entity_group"] != "O"]
            tally.add(language, *(listed([_placed(e) for e in side]) for side in (found, expected)))
    return tally


def _recognized(ours: Any, heldout: HeldOut) -> list[tuple[str, str, list[dict[str, Any]]]]:
    examples = heldout("ner", 5, _EACH)
    found = ours([example.text for example in examples])
    return [(example.language, example.text, one) for example, one in zip(examples, found, strict=True)]


def _placed(entity: dict[str, Any]) -> tuple[Any, float]:
    return (entity["entity_group"], entity["start"], entity["end"]), entity["score"]


def _pre_entities(text: str, places: list[tuple[int, int]], scores: Any) -> list[dict[str, Any]]:
    """What ``TokenClassificationPipeline.gather_pre_entities`` gives, words being ours."""
    tokens = [Token(*place, np.ones(1)) for place in places]
    starts = {word.start for word in words_of(text, tokens, ["any"], "first")}
    return [
        {
            "word": text[start:end],
            "scores": row,
            "start": start,
            "end": end,
            "index": index,
            "is_subword": start not in starts,
        }
        for index, ((start, end), row) in enumerate(zip(places, scores, strict=True))
        if not text[start:end].isspace()
    ]


def _visible(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _normalized(word: str) -> str:
    return "".join(unicodedata.normalize("NFKC", word).split())
