"""Texts and tokenizer files to measure with: generated sentences in many scripts, a vocabulary of ErnieM's size.

The vocabulary has trained pieces, the words that similar texts repeat, and pieces joined from two trained ones up to
its size. That is not ErnieM's vocabulary, but it is loaded and searched as ErnieM's is.
"""

from __future__ import annotations

import io
import math
import random
import re
import sys
from collections import Counter
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

# The scripts of the nano corpus and the sentences of the tests are not installed.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples" / "nano"), str(ROOT / "tests")]

from conftest import SENTENCES  # noqa: E402

from generate import generate  # noqa: E402
from languages import CODES  # noqa: E402

VOCABULARY_SIZE = 250_002
_MARKERS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
_TRAINED_PIECES = 8000
_TRAINING_TEXTS = 6000
_REPEATED = 3  # a word is a piece of its own if the texts have it so often
_LONGEST_WORD = 12
_WORD = re.compile(r"▁[^▁\d,;:.?!~\u4e00-\u9fff]+|\d+")  # ErnieM cuts words at these characters
_CONTROL_PIECES = 3  # <unk>, <s> and </s>, for which ErnieM has tokens of its own


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Passages of the nano corpus in six languages, and one in four from sentences in 16 scripts."""
    rng = random.Random(seed)
    passages = [generate("ner", code, "heldout", seed, count) for code in CODES]
    texts = [" ".join(rng.sample(SENTENCES, 2)) if i % 4 == 0 else next(passages[i % 6]).text for i in range(count)]
    rng.shuffle(texts)
    return texts


def write_tokenizer(folder: Path, size: int = VOCABULARY_SIZE, seed: int = 0) -> None:
    """Write ``sentencepiece.bpe.model`` and ``vocab.txt`` with ``size`` tokens in all."""
    texts = make_texts(_TRAINING_TEXTS, seed + 1)
    needed = {char for text in make_texts(_TRAINING_TEXTS, seed) for char in text if char.strip()}
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=stream,
        model_type="unigram",
        vocab_size=_TRAINED_PIECES,
        character_coverage=1.0,
        required_chars="".join(sorted(needed)),
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(stream.getvalue())
    _add_words(model, texts)
    _add_joined_pieces(model, size - len(_MARKERS) - 1 + _CONTROL_PIECES, random.Random(seed))
    pieces = [piece.piece for piece in model.pieces][_CONTROL_PIECES:]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    (folder / "vocab.txt").write_text("\n".join([*_MARKERS, *pieces, "[MASK]"]) + "\n", encoding="utf-8")


def _add_words(model: sentencepiece_model_pb2.ModelProto, texts: list[str]) -> None:
    known = {piece.piece for piece in model.pieces}
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    words = Counter(word for text in texts for word in _WORD.findall(processor.normalize(text)))
    total = words.total()
    for word, count in words.items():
        if count >= _REPEATED and word not in known and len(word) <= _LONGEST_WORD:
            model.pieces.add(piece=word, score=math.log(count / total))


def _add_joined_pieces(model: sentencepiece_model_pb2.ModelProto, size: int, rng: random.Random) -> None:
    trained = [piece.piece for piece in model.pieces][_CONTROL_PIECES:]
    tails = [piece for piece in trained if not piece.startswith("▁")]
    known = set(trained)
    while len(model.pieces) < size:
        joined = rng.choice(trained) + rng.choice(tails)
        if joined not in known:
            known.add(joined)
            model.pieces.add(piece=joined, score=rng.uniform(-25, -18))
