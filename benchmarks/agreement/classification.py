"""Labels, candidates, choices and vectors: our pipelines beside the reference."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.agreement.reference import LIMIT, load, reference_pipeline
from benchmarks.agreement.tally import Answer, Artifact, HeldOut, Tally, ranked
from erniem_rt import pipeline

_EACH = 34  # per language

Input = tuple["str | None", Any]  # language, what is asked


def texts_and_pairs(heldout: HeldOut) -> list[Input]:
    """Single texts, pairs, and some of both that are over the limit."""
    examples = heldout("cls", 3, _EACH)
    inputs: list[Input] = [
        (e.language, e.premise if i % 3 == 0 else _pair(e.premise, e.hypothesis)) for i, e in enumerate(examples)
    ]
    for i in range(0, len(examples), _EACH):
        text = " ".join(example.premise for example in examples[i : i + _EACH])
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
    with pipeline(artifact("cls"), "zero-shot-classification") as ours:
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
    examples = heldout("mc", 3, _EACH)
    inputs: list[Input] = [(e.language, {"prompt": e.prompt, "choices": list(e.choices)}) for e in examples]
    for i in (0, 100):  # over the limit
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

    examples, cases = heldout("cls", 3, _EACH), []
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
