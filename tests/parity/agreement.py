"""Our pipelines beside transformers 4.57.6's, on nano's checkpoints and held-out texts.

``test_pipeline_agreement*.py`` run these comparisons, and ``benchmarks/pipeline_agreement.py`` writes their figures.
transformers' question answering is compared with after repairs (see ``pipeline_reference.py``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from erniem_rt import pipeline
from erniem_rt.pipelines.token_classification import Token
from erniem_rt.pipelines.token_classification import entities_of_words as words_of
from tests.parity.pipeline_reference import (
    LIMIT,
    TOLERANCE,
    Answer,
    Answers,
    Artifact,
    HeldOut,
    Reference,
    Tally,
    listed,
    load,
    raised_null,
    ranked,
    reference_pipeline,
    repaired_question_answering,
)

__all__ = ["COMPARISONS", "TOLERANCE", "Artifact", "Comparison", "HeldOut", "Tally"]

_EACH, _EACH_CLS = 36, 34  # examples per language

Input = tuple["str | None", Any]  # language, what is asked
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


def texts_and_pairs(heldout: HeldOut) -> list[Input]:
    """Single texts, pairs, and some of both that are over the limit."""
    examples = heldout("cls", 3, _EACH_CLS)
    inputs: list[Input] = [
        (e.language, e.premise if i % 3 == 0 else _pair(e.premise, e.hypothesis)) for i, e in enumerate(examples)
    ]
    for i in range(0, len(examples), _EACH_CLS):
        text = " ".join(example.premise for example in examples[i : i + _EACH_CLS])
        inputs += [(examples[i].language, text), (None, _pair(text, examples[0].hypothesis))]
    return inputs


def labels(artifact: Artifact, heldout: HeldOut) -> Tally:
    """Text classification, all labels."""
    inputs = texts_and_pairs(heldout)
    texts = [text for _, text in inputs]
    theirs = reference_pipeline("TextClassificationPipeline", "cls")(
        texts, top_k=None, truncation=True, max_length=LIMIT
    )
    tally = Tally()
    with pipeline(artifact("cls")) as ours:
        for (language, _), found, expected in zip(inputs, ours(texts, top_k=None), theirs, strict=True):
            tally.add(language, *ranked(_scored(found), _scored(expected)))
    return tally


def zero_shot(artifact: Artifact, heldout: HeldOut, multi_label: bool = False) -> Tally:
    """Zero-shot classification with candidates and a hypothesis in the language of the text."""
    theirs = reference_pipeline("ZeroShotClassificationPipeline", "cls")
    tally = Tally()
    with pipeline("zero-shot-classification", artifact("cls")) as ours:
        for language, candidates, template, texts in _zero_shot_cases(heldout):
            options = {"hypothesis_template": template, "multi_label": multi_label}
            expected = theirs(texts, candidate_labels=candidates, **options)
            for one, other in zip(ours(texts, candidates, **options), expected, strict=True):
                found, wanted = ranked(_labelled(one), _labelled(other))
                tally.add(
                    language,
                    found._replace(what=[one["sequence"], *found.what]),
                    wanted._replace(what=[other["sequence"], *wanted.what]),
                )
    return tally


def choices(artifact: Artifact, heldout: HeldOut) -> Tally:
    """Multiple choice. transformers has no pipeline for it: the reference model, asked one input at a time."""
    model, tokenizer = load("mc")
    examples = heldout("mc", 3, _EACH_CLS)
    inputs: list[Input] = [(e.language, {"prompt": e.prompt, "choices": list(e.choices)}) for e in examples]
    for i in (0, len(examples) // 2):  # over the limit
        inputs.append((None, {"prompt": " ".join(e.prompt for e in examples[i : i + 20]), "choices": ["a", "b"]}))
    tally = Tally()
    with pipeline(artifact("mc")) as ours:
        for (language, item), found in zip(inputs, ours([item for _, item in inputs]), strict=True):
            prompts = [item["prompt"]] * len(item["choices"])
            rows = tokenizer(prompts, item["choices"], truncation="only_first", padding=True, return_tensors="pt")
            with torch.inference_mode():
                scores = model(input_ids=rows["input_ids"][None]).logits[0].softmax(-1).tolist()
            expected = Answer(item["choices"][scores.index(max(scores))], scores)
            tally.add(language, Answer(found["answer"], found["scores"]), expected)
    return tally


def features(artifact: Artifact, heldout: HeldOut) -> Tally:
    """Hidden states of every token; scores are their values."""
    theirs = reference_pipeline("FeatureExtractionPipeline", "base")
    inputs = [(lang, text["text"] if isinstance(text, dict) else text) for lang, text in texts_and_pairs(heldout)]
    tally = Tally()
    with pipeline(artifact("base"), pooling="none") as ours:
        for (language, text), found in zip(inputs, ours([text for _, text in inputs]), strict=True):
            expected = theirs(text, truncation=True, return_tensors=True)[0]
            tally.add(language, Answer(found.shape, found), Answer(tuple(expected.shape), expected.numpy()))
    return tally


def _zero_shot_cases(heldout: HeldOut) -> list[tuple[str, list[str], str, list[str]]]:
    """Language, candidates, hypothesis, texts; one text of each language is over the limit."""
    from languages import load as load_language

    examples, cases = heldout("cls", 3, _EACH_CLS), []
    for code in dict.fromkeys(example.language for example in examples):
        data = load_language(code).data
        candidates = [topic["name"] for topic in data["topics"].values()][:3]
        template = data["topic_hypotheses"][0].replace("{topic}", "{}")
        texts = [example.premise for example in examples if example.language == code]
        # One candidate is a case of its own; a few texts are enough for it.
        cases.append((code, candidates, template, [*texts, " ".join(texts)]))
        cases.append((code, candidates[:1], template, texts[:3]))
    return cases


def _pair(text: str, pair: str) -> dict[str, str]:
    return {"text": text, "text_pair": pair}


def _scored(answers: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(answer["label"], answer["score"]) for answer in answers]


def _labelled(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return list(zip(answer["labels"], answer["scores"], strict=True))


def prompts(artifact: Artifact, heldout: HeldOut) -> Tally:
    """One prompt per text, some texts long; those over the limit are in ``test_pipeline_agreement_ie.py``."""
    theirs = Reference()
    tally = Tally()
    with pipeline(artifact("ie"), threads=1) as ours:
        for example in heldout("ie", 5, _EACH, 0.1):
            found = ours(example.text, schema=example.prompt)
            tally.add(example.language, flat(found), flat(theirs.extract(example.prompt, example.text)))
    return tally


def flat(found: dict[str, Answers]) -> Answer:
    """Answers at every level of a schema, each under the path of names and answers that led to it."""
    return listed(list(_flat(found, ())))


def _flat(found: dict[str, Answers], path: tuple[Any, ...]) -> Iterator[tuple[Any, float]]:
    for name, answers in found.items():
        for answer in answers:
            here = (*path, name, answer["text"], answer["start"], answer["end"])
            yield here, answer["probability"]
            yield from _flat(answer.get("relations", {}), here)


class Comparison(NamedTuple):
    """A task with options of ours, what it is compared with, and how: ``run(artifact, heldout, **arguments)``."""

    task: str
    options: str
    reference: str
    run: Callable[..., Tally]
    arguments: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Task and options."""
        return f"{self.task} {self.options}".strip()


_QA = "`QuestionAnsweringPipeline`, repaired"
_NER = "`TokenClassificationPipeline`"
_NER_WORDS = "transformers' aggregation, fed with our words"

COMPARISONS = (
    Comparison("question-answering", "", "transformers' decoder on the reference model", decoded_answers),
    Comparison("question-answering", "align_to_words", _QA, answers),
    Comparison(
        "question-answering",
        "align_to_words, max_seq_len=80, doc_stride=16",
        _QA,
        answers,
        {"max_seq_len": 80, "doc_stride": 16},
    ),
    Comparison(
        "question-answering",
        "align_to_words, handle_impossible_answer, max_seq_len=80, doc_stride=16",
        f"{_QA}, and `[CLS]` raised",
        answers_or_none,
        {"max_seq_len": 80, "doc_stride": 16},
    ),
    Comparison("text-classification", "top_k=None", "`TextClassificationPipeline`", labels),
    Comparison("zero-shot-classification", "", "`ZeroShotClassificationPipeline`", zero_shot),
    Comparison(
        "zero-shot-classification",
        "multi_label",
        "`ZeroShotClassificationPipeline`",
        zero_shot,
        {"multi_label": True},
    ),
    Comparison("token-classification", "", _NER, token_labels, {"ignore_labels": ["O"]}),
    Comparison("token-classification", "ignore_labels=[]", _NER, token_labels, {"ignore_labels": []}),
    Comparison("token-classification", 'aggregation_strategy="simple"', _NER, simple_entities),
    *(
        Comparison(
            "token-classification",
            f'aggregation_strategy="{strategy}"',
            _NER_WORDS,
            entities_of_words,
            {"strategy": strategy},
        )
        for strategy in ("first", "average", "max")
    ),
    Comparison("multiple-choice", "", "the reference model, a row per choice", choices),
    Comparison("information-extraction", "", "PaddleNLP's rules over the reference model", prompts),
    Comparison("feature-extraction", 'pooling="none"', "`FeatureExtractionPipeline`", features),
)
