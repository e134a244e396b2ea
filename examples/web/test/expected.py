"""Write what the Python package makes of many texts, for the tests in JavaScript to compare with.

Usage: python examples/web/test/expected.py ARTIFACTS OUTPUT   (ARTIFACTS/HEAD, exported from examples/nano)
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

import erniem_rt
from erniem_rt.tokenizer import Tokenizer

CHECKPOINTS = Path(__file__).resolve().parents[2] / "nano" / "checkpoints"
ODD = [
    "شَدَّة مُشَدَّدَة َّ ّ َ اَلْعَرَبِيَّةُ", "ﷺ ﷽ لا ﻻ", "👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️‍🔥 👍🏽", "ＡＢＣ　１２３　ｶﾞｷﾞ！？",
    "东京塔位于日本东京都港区芝公园。", "東京タワーは高さ333メートルです", "ภาษาไทยไม่มีช่องว่าง",
    "a\x00b\x01c\x1fd\x7fe\x85f", "a\u200bb\u200dc\ufeffd\u00ade", "\ufeffBOM first", "\ud83d alone, \ude00 alone",
    "\ude00\ud83d", "x\udfff", "한국어 텍스트 ㅎㅏㄴ", "한국", "é é ﬁ ﬀ ㎏ ㍻ ㈱ ½ ² ① ❶ ፩ ٣ ३ 𝟘",
    " leading", "trailing ", "two  spaces\t\ttabs\n\nlines\r\n", "\u3000ideographic\u3000", "▁ a ▁▁ b ▁", "▁", " ▁ ",
    "[CLS] a [SEP]b[MASK] c[PAD][UNK]", "x[MASK]", "[mask] [[MASK]]", "<s> </s> <unk> <pad>",
    "1a2b3c 12ab34 3.14 1,000,000 2026-11-28", "...!!! ,,,;;; ~~~ ，。；：？！《》【】",
    "ΣΑΣ ὈΔΥΣΣΕΎΣ İstanbul DİYARBAKIR ẞ ŉ ǰ", "\u1100\u1161\u11a8 \u0344 \u0f73 \u2126 \u212b", "a" * 300,
    "\U0010ffff \U000f0000 \ue000 \ufffe \uffff", "ー゛゜ヽヾ〱", "‮right to left‬ \u2066isolate\u2069",
    "नमस्ते दुनिया क्षि", "𠮷野家 𪚥", "\x1c\x1d\x1e\x1f", "\u00a0\u2009\u202f", " ", "",
]  # fmt: skip
AROUND_ADDED = [
    "a [NEW] b", "a  [NEW]\u3000b[NEW]c", "Neu neu NEU", "word sword words a word", "x [NEW]ER y", "x[NEW]ERy  [NEW]ER",
    "a.b*c A.B*C aXb*c", "<x> [NEW] İ Σ word ΑΣ İ[NEW]İ", "ΑΣ [MASK] ΑΣ", "İİ Neu İİ", "😀[NEW]😀 😀 word😀", "[NEW]",
    "a R>  b <L c", "a  <LR>  b",
]  # fmt: skip
ADDED = {
    "4000": {"content": "[NEW]", "lstrip": True, "rstrip": True, "special": True, "normalized": False},
    "4001": {"content": "Neu"},
    "4002": {"content": "word", "single_word": True},
    "4003": {"content": "[NEW]ER", "lstrip": True, "single_word": True, "special": True, "normalized": False},
    "4004": {"content": "a.b*c", "normalized": False},
    "4006": {"content": "R>", "rstrip": True},
    "4007": {"content": "<L", "lstrip": True},
}
# Changes to tokenizer_config.json; None removes a key.
VARIANTS: dict[str, dict[str, Any]] = {
    "as exported": {},
    "lower case": {"do_lower_case": True},
    "added tokens": {"added_tokens_decoder": ADDED, "additional_special_tokens": ["<x>", {"content": "[NEW]"}]},
    "added tokens, lower case": {"added_tokens_decoder": ADDED, "do_lower_case": True},
    "special tokens split, no lone marks": {"split_special_tokens": True, "drop_lone_marks": True},
    "older files": {"added_tokens_decoder": None, "additional_special_tokens": ["<x>"]},
}


def main(artifacts: Path, output: Path) -> None:
    """Write tokens, digits and answers."""
    found = {
        "variants": [variant(artifacts / "qa", name, changes) for name, changes in VARIANTS.items()],
        "answers": [case for task in TASKS for case in answers(artifacts, task)],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found), encoding="utf-8")
    optimum_layout(artifacts / "qa", output.parent / "optimum")
    texts = sum(len(variant["texts"]) for variant in found["variants"])
    print(f"{output}: {texts} texts, {sum(len(case['inputs']) for case in found['answers'])} answers")


def optimum_layout(folder: Path, copy: Path) -> None:
    """A copy of nano's qa as optimum lays out files: onnx/model.onnx and onnx/model.onnx_data."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / "onnx").mkdir()
    graph = onnx.load(copy / "qa.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "model.onnx_data" if entry.key == "location" else entry.value
    onnx.save(graph, copy / "onnx" / "model.onnx")
    (copy / "qa.onnx.data").rename(copy / "onnx" / "model.onnx_data")
    (copy / "qa.onnx").unlink()
    manifest = json.loads((copy / "qa.json").read_text())
    manifest["artifact"] = "onnx/model.onnx"
    del manifest["files"]["qa.onnx"], manifest["files"]["qa.onnx.data"]
    for file in (copy / "onnx").iterdir():
        manifest["files"][f"onnx/{file.name}"] = {"size": file.stat().st_size}
    (copy / "qa.json").write_text(json.dumps(manifest))


def variant(folder: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Settings of a tokenizer, and texts with the ids and offsets that it gives."""
    config = {**json.loads((folder / "tokenizer_config.json").read_text()), **changes}
    files = {
        "tokenizer_config.json": {key: value for key, value in config.items() if value is not None},
        "special_tokens_map.json": json.loads((folder / "special_tokens_map.json").read_text()),
        "added_tokens.json": {"Neu": 4001, "<x>": 4005},
    }
    with tempfile.TemporaryDirectory() as copy:
        for file in ("vocab.txt", "sentencepiece.bpe.model"):
            shutil.copy(folder / file, copy)
        for file, content in files.items():
            (Path(copy) / file).write_text(json.dumps(content))
        tokenizer = Tokenizer.from_dir(copy)
    texts = ODD + AROUND_ADDED
    if not changes:
        texts = [*dict.fromkeys(task_texts()), *every_character(), *random_texts(3000), *repeats(folder), *texts]
    encoded = [(text, tokenizer(text, add_special_tokens=False)) for text in texts]
    return {"name": name, "files": files, "texts": [[text, row.input_ids, row.offsets] for text, row in encoded]}


def task_texts() -> Iterator[str]:
    """The texts of all task sets, and those to calibrate on."""
    for file in sorted(CHECKPOINTS.glob("*/task_set.jsonl")):
        for example in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            for key in ("text", "text_pair", "prompt", "question", "context"):
                yield from [example[key]] if key in example else []
            yield from example.get("choices", [])
    yield from (CHECKPOINTS / "qa" / "calibration.txt").read_text(encoding="utf-8").splitlines()


def every_character() -> list[str]:
    """Every character that this Python knows, between others, some together."""
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    return ["".join(f"a{c}1{c} " for c in known[start : start + 50]) for start in range(0, len(known), 50)]


def random_texts(count: int) -> list[str]:
    """Strings of everything that is treated in a way of its own."""
    rng = random.Random(1)
    pool = [
        *"aeiouAB 123  ,.!?~",
        *"的中国東京，。！",
        *"ابةىَّ",
        *"абвЖ",
        *"กาที่",
        *"ＡｂｶﾞⅣ①㍻½ﬁ",
        *"\u0301\u0308\u200d\ufe0f",
    ]
    pool += [
        "\u3000",
        "\u00a0",
        "\t",
        "\n",
        "\x00",
        "\x1f",
        "\u200b",
        "\ufeff",
        "▁",
        "😀",
        "👩‍👧",
        "\ud800",
        "\udc01",
        "한",
        "한",
        "[MASK]",
    ]
    pool += [word for text in ODD for word in text.split()]
    texts = ("".join(rng.choices(pool, k=rng.randint(1, 30))) for _ in range(count))
    # Two halves of a character that come together are that character in JavaScript.
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") for text in texts]


def repeats(folder: Path) -> list[str]:
    """Words of the vocabulary again and again: cuts of equal probability, which rounding to float32 decides."""
    rng = random.Random(2)
    words = [word.replace("▁", "") for word in (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()[4:-1]]
    short = [word for word in words if 0 < len(word) <= 2]
    return [
        "".join(rng.choices(words, k=5)) + "".join(rng.choices(short, k=rng.randint(1, 2))) * rng.randint(3, 40)
        for _ in range(5000)
    ]


def examples(head: str, count: int) -> list[dict[str, Any]]:
    """The first inputs of a head's task set, which has the languages in turn."""
    lines = (CHECKPOINTS / head / "task_set.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:: len(lines) // count][:count]]


def long_text(head: str, key: str) -> str:
    """Some hundred tokens of a head's texts."""
    return " 😀 ".join(example[key] for example in examples(head, 24))


def question_answering() -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Inputs and options, as the others of TASKS."""
    inputs = [{key: example[key] for key in ("question", "context")} for example in examples("qa", 80)]
    yield inputs, {}
    yield inputs[:40], {"top_k": 4, "max_answer_len": 5}
    yield inputs[:40], {"handle_impossible_answer": True}
    long = [{**example, "context": long_text("qa", "context")} for example in inputs[:2]]
    yield long, {}
    yield long, {"max_seq_len": 64, "doc_stride": 20, "top_k": 3, "handle_impossible_answer": True}


def text_classification() -> Iterator[tuple[list[Any], dict[str, Any]]]:
    inputs = [{key: example[key] for key in ("text", "text_pair")} for example in examples("cls", 120)]
    yield inputs, {}
    yield [example["text"] for example in inputs[:40]], {"top_k": None}
    long = long_text("cls", "text")
    yield [long, {"text": long, "text_pair": long}, {"text": "a", "text_pair": long}], {"function_to_apply": "sigmoid"}
    for length in (20, 21):
        yield inputs[:40], {"top_k": 2, "function_to_apply": "none", "max_seq_len": length}


def token_classification() -> Iterator[tuple[list[Any], dict[str, Any]]]:
    inputs = [example["text"] for example in examples("ner", 40)]
    odd = [text for text in ODD if text.strip() and len(text.split()) > 1 and "\x1c" not in text]
    yield inputs, {}
    for strategy in ("simple", "first", "average", "max"):
        yield inputs + odd, {"aggregation_strategy": strategy, "ignore_labels": []}
    yield [long_text("ner", "text")], {"aggregation_strategy": "simple"}
    yield [long_text("ner", "text")], {"aggregation_strategy": "max", "max_seq_len": 40, "stride": 7}


def zero_shot_classification() -> Iterator[tuple[list[Any], dict[str, Any]]]:
    inputs = [example["text"] for example in examples("cls", 20)] + [long_text("cls", "text")]
    yield inputs, {"candidate_labels": ["sports", "politics", "food"], "hypothesis_template": "This is about {}."}
    yield inputs, {"candidate_labels": "Sport, Essen", "multi_label": True}
    yield inputs[:3], {"candidate_labels": "体育、商业"}


TASKS = {
    "question-answering": ("qa", question_answering),
    "text-classification": ("cls", text_classification),
    "token-classification": ("ner", token_classification),
    "zero-shot-classification": ("cls", zero_shot_classification),
}


def answers(artifacts: Path, task: str) -> Iterator[dict[str, Any]]:
    """Inputs, options and answers of a task."""
    head, cases = TASKS[task]
    with erniem_rt.pipeline(task, artifacts / head, engine="onnxruntime") as pipeline:
        for inputs, options in cases():
            yield {
                "task": task,
                "head": head,
                "options": options,
                "inputs": inputs,
                "answers": pipeline(inputs, **options),
            }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
