"""Train the nano sentencepiece model and write the tokenizer files of an ErnieM checkpoint folder."""

from __future__ import annotations

import io
import json
import string
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import sentencepiece

from generate import TASKS, generate
from languages import CODES, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tasks import Example

MODEL_FILE = "sentencepiece.bpe.model"
MAX_LENGTH = 512
_SPECIAL_TOKENS = {"cls": "[CLS]", "pad": "[PAD]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
_LETTERS = "".join(map(chr, [*range(0xC0, 0x100), *range(0x410, 0x450), 0x401, 0x451, *range(0x621, 0x653)]))
_MARKS = "«»„“”‘’–—…¿¡،؛؟、。（）《》"


def write_tokenizer(folder: Path, seed: int, size: int, examples: int = 250) -> None:
    """Train on the training split and write ``sentencepiece.bpe.model``, ``vocab.txt`` and the settings to ``folder``.

    ``size`` counts sentencepiece's pieces; ``examples`` is the number of training examples per task and language.
    """
    texts = list(_corpus(seed, examples))
    # ErnieM's tokenizer cuts every CJK character off, so longer Chinese pieces would never be used.
    characters = {char for code in CODES for char in json.dumps(load(code).data, ensure_ascii=False)}
    required = "".join(sorted(char for char in characters | set(string.printable + _LETTERS + _MARKS) if char.strip()))
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text for text in texts if not any(map(_is_cjk, text))),
        model_writer=stream,
        model_type="unigram",
        vocab_size=size,
        character_coverage=1.0,
        required_chars=required,
        split_digits=True,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(stream.getvalue())
    _write_vocabulary(folder, stream.getvalue())
    _write_settings(folder)


def _corpus(seed: int, examples: int) -> Iterator[str]:
    for task in TASKS:
        for language in CODES:
            for example in generate(task, language, "train", seed, examples):
                yield from _texts(example)


def _texts(example: Example) -> Iterator[str]:
    for field in fields(example):
        value = getattr(example, field.name)
        if field.name == "choices":
            yield from value
        elif isinstance(value, str) and field.name != "language":
            yield value


def _write_vocabulary(folder: Path, model: bytes) -> None:
    """ErnieM's order: four special tokens, the pieces, [MASK]."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(i) for i in ids if not processor.is_control(i) and not processor.is_unknown(i)]
    *first, mask = _SPECIAL_TOKENS.values()
    (folder / "vocab.txt").write_text("\n".join([*first, *pieces, mask]) + "\n", encoding="utf-8")


def _write_settings(folder: Path) -> None:
    """The two files that ``ErnieMTokenizer.save_pretrained`` of transformers 4.57.6 writes, key for key."""
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    tokens = {f"{name}_token": token for name, token in _SPECIAL_TOKENS.items()}
    added = {
        str(i): {"content": token, **flags, "special": True}
        for i, token in enumerate(vocabulary)
        if token in _SPECIAL_TOKENS.values()
    }
    settings = {
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "encoding": "utf8",
        "extra_special_tokens": {},
        "model_max_length": MAX_LENGTH,
        "sp_model_kwargs": {},
        "tokenizer_class": "ErnieMTokenizer",
        **tokens,
    }
    special = {name: {"content": token, **flags} for name, token in tokens.items()}
    for file, content in {"tokenizer_config.json": settings, "special_tokens_map.json": special}.items():
        text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
        (folder / file).write_text(text + "\n", encoding="utf-8")


def _is_cjk(char: str) -> bool:
    return "\u4e00" <= char <= "\u9fff"
