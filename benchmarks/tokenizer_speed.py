"""Compares the speed and loading time of our tokenizer with those of transformers' ErnieMTokenizer.

All ways of encoding take turns in one process, round by round; a ratio is the median of the rounds' ratios. A way with
other ids than the reference is not timed. Wall time needs an idle machine; CPU time does not, and the main thread's CPU
time is the part that more threads cannot share. Loading is measured in new processes. Writes a JSON file, prints its
tables and writes them into docs/benchmarks.md; ``--tables-only`` makes the tables from the existing file.

The texts are generated sentences in many scripts. Without ``--tokenizer`` the vocabulary is artificial: trained pieces,
the words that similar texts repeat, and concatenations of two trained pieces, up to ErnieM's size. Loading and lookup
cost the same as with ErnieM's vocabulary.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import erniem_rt
from benchmarks.documents import BENCHMARKS, RESULTS_DIR, ROOT, Blocks, load, table, write_blocks
from benchmarks.machine import describe_machine
from erniem_rt import Tokenizer
from erniem_rt.tokenizer import BatchEncoding

RESULTS = RESULTS_DIR / "tokenizer_speed.json"
REFERENCE = "transformers"
ONE_THREAD = "batch, 1 thread"
_OTHERS = ("transformers", "sentencepiece", "numpy")
Rows = list[list[int]]

VOCABULARY_SIZE = 250_002
_MARKERS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
_TRAINED_PIECES = 8000
_TRAINING_TEXTS = 6000
_REPEATED = 3  # a word that occurs this often becomes a piece
_LONGEST_WORD = 12
_WORD = re.compile(r"▁[^▁\d,;:.?!~\u4e00-\u9fff]+|\d+")  # ErnieM cuts words at these characters
_CONTROL_PIECES = 3  # <unk>, <s> and </s>, which ErnieM replaces by its own tokens


_LOADED = {
    "sentencepiece": "sentencepiece alone, a checkpoint's file",
    "checkpoint": "`Tokenizer.from_dir`, a checkpoint's files",
    "exported": "`Tokenizer.from_dir`, an exported folder's",
}


class Way(NamedTuple):
    """A way to encode the texts, and the conversion of its result to rows of ids."""

    run: Callable[[], Any]
    rows: Callable[[Any], Rows]


_LOAD = """
import json, sys, time
from pathlib import Path
import numpy, sentencepiece, erniem_rt.tokenizer
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before, wall, cpu = resident(), time.perf_counter(), time.process_time()
if sys.argv[2] == "sentencepiece":
    loaded = sentencepiece.SentencePieceProcessor()
    loaded.LoadFromSerializedProto((Path(sys.argv[1]) / "sentencepiece.bpe.model").read_bytes())
else:
    loaded = erniem_rt.tokenizer.Tokenizer.from_dir(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "added_mb": (resident() - before) / 1e6,
                  "resident_mb": resident() / 1e6}))
"""


def main() -> None:
    """Make texts and a vocabulary, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=1000, help="texts per call")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with a checkpoint's files; default: a made-up vocabulary"
    )
    parser.add_argument("--vocabulary", default="", help="what to call the files of --tokenizer")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true")
    options = parser.parse_args()
    if not options.tables_only:
        result = _measured(options)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    result = json.loads(options.output.read_text(encoding="utf-8"))
    if options.output == RESULTS:
        write_blocks(blocks(result))
    print(tables(result))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    texts = make_texts(options.texts)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.tokenizer or Path(temporary) / "made_up"
        if options.tokenizer is None:
            folder.mkdir()
            write_tokenizer(folder)
        ways = _ways(folder, [texts[i : i + options.batch] for i in range(0, len(texts), options.batch)])
        rows = _measure(ways, options.rounds)
        loading = _loading(folder, _exported(folder, Path(temporary) / "exported"))
        long_texts = _long_texts(Tokenizer.from_dir(folder), " ".join(texts))
    return {
        "texts": len(texts),
        "characters": sum(map(len, texts)),
        "texts_per_call": options.batch,
        "rounds": options.rounds,
        "vocabulary": "made up, of 250,002 tokens"
        if options.tokenizer is None
        else options.vocabulary or "a checkpoint's",
        "machine": {
            **{key: machine[key] for key in ("cpu", "cores", "python")},
            "load_average": machine["load_before"],
        },
        "versions": {
            "erniem_rt": erniem_rt.__version__,
            **{name: importlib.metadata.version(name) for name in _OTHERS},
        },
        "ways": rows,
        "loading": loading,
        "long_texts": long_texts,
    }


def _ways(folder: Path, batches: list[list[str]]) -> dict[str, Way]:
    from transformers.models.deprecated.ernie_m.tokenization_ernie_m import ErnieMTokenizer

    reference = ErnieMTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_dir(folder)

    def batch(threads: int) -> list[BatchEncoding]:
        return [ours.batch(texts, threads=threads) for texts in batches]

    def batch_with(attribute: str) -> list[BatchEncoding]:
        encoded = batch(1)
        for part in encoded:
            getattr(part, attribute)
        return encoded

    return {
        REFERENCE: Way(lambda: [reference(texts)["input_ids"] for texts in batches], _flat),
        ONE_THREAD: Way(lambda: batch(1), _unpadded),
        "batch, 2 threads": Way(lambda: batch(2), _unpadded),
        "batch with .offsets": Way(lambda: batch_with("offsets"), _unpadded),
        "batch with .encodings": Way(lambda: batch_with("encodings"), _unpadded),
        "one by one, with offsets": Way(
            lambda: [[ours(text) for text in texts] for texts in batches],
            lambda rows: [row.input_ids for row in _flat(rows)],
        ),
    }


def _flat(batches: Any) -> list[Any]:
    return [row for batch in batches for row in batch]


def _unpadded(batches: list[BatchEncoding]) -> Rows:
    rows = _flat(zip(part.input_ids, part.attention_mask, strict=True) for part in batches)
    return [ids[mask == 1].tolist() for ids, mask in rows]


def _measure(ways: dict[str, Way], rounds: int) -> dict[str, dict[str, Any]]:
    expected = ways[REFERENCE].rows(ways[REFERENCE].run())
    correct = {name: way.rows(way.run()) == expected for name, way in ways.items()}  # also a warm-up
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    serial: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time(), time.thread_time()
            way.run()
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
            serial[name].append(time.thread_time() - started[2])
    return {
        name: {
            "correct": correct[name],
            "seconds": statistics.median(wall[name]) if correct[name] else None,
            "cpu_seconds": statistics.median(cpu[name]) if correct[name] else None,
            "main_thread_cpu_seconds": statistics.median(serial[name]) if correct[name] else None,
            "times_reference": _ratio(wall[REFERENCE], wall[name]) if correct[name] else None,
            "times_reference_cpu": _ratio(cpu[REFERENCE], cpu[name]) if correct[name] else None,
            "times_one_thread": _ratio(wall[ONE_THREAD], wall[name]) if correct[name] else None,
            "times_one_thread_cpu": _ratio(cpu[ONE_THREAD], cpu[name]) if correct[name] else None,
        }
        for name in ways
    }


def _ratio(base: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(base, other, strict=True))


def _exported(source: Path, target: Path) -> Path:
    """Write the files that the tokenizer of an exported folder reads."""
    from erniem_export.sources import TOKENIZER_FILES, tokenizer_files
    from erniem_export.tokenizer import in_byte_order

    target.mkdir()
    for file in tokenizer_files(source):
        content = file.read_bytes()
        (target / file.name).write_bytes(in_byte_order(content) if file.name == TOKENIZER_FILES[0] else content)
    return target


def _loading(checkpoint: Path, exported: Path, rounds: int = 9) -> dict[str, dict[str, float]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ways = {
        "sentencepiece": (checkpoint, "sentencepiece"),
        "checkpoint": (checkpoint, "erniem_rt"),
        "exported": (exported, "erniem_rt"),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (folder, what) in ways.items():
            command = [sys.executable, "-c", _LOAD, str(folder), what]
            runs[name].append(json.loads(subprocess.check_output(command, env=environment)))
    return {
        name: {
            **{key: statistics.median(run[key] for run in rows) for key in rows[0]},
            "least_seconds": min(run["seconds"] for run in rows),
        }
        for name, rows in runs.items()
    }


def _long_texts(tokenizer: Tokenizer, text: str, rounds: int = 3) -> list[dict[str, float]]:
    """Measure one text of increasing length, with offsets."""
    rows = []
    for count in (10_000, 100_000, 1_000_000):
        whole = (text * (count // len(text) + 1))[:count]
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            tokenizer(whole)
            seconds.append(time.perf_counter() - started)
        rows.append({"characters": count, "seconds": statistics.median(seconds)})
    return rows


def tables(result: dict[str, Any]) -> str:
    """Return the tables of speed, loading and long texts."""
    parts = [
        _conditions(result),
        _speed_table(result["ways"]),
        _loading_table(result["loading"]),
        _long_texts_table(result["long_texts"]),
    ]
    return "\n".join(parts)


def blocks(result: dict[str, Any]) -> Blocks:
    """Return the text of each marked block."""
    return {(BENCHMARKS, "tokenizer"): tables(result)}


def _conditions(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    return (
        f"{result['texts']:,} texts, {result['characters']:,} characters, {result['texts_per_call']:,} texts a call; "
        f"medians of {result['rounds']} interleaved rounds{load(machine['load_average'])}; vocabulary: "
        f"{result['vocabulary']}. {machine['cpu']}, "
        f"{machine['cores']} cores, Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".\n"
    )


def _speed_table(ways: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, way in ways.items():
        if not way["correct"]:
            rows.append([name, "wrong ids", "", "", ""])
            continue
        ratios = (f"{way['times_reference']:.1f}", f"{way['times_one_thread']:.2f}")
        rows.append([name, f"{way['seconds']:.3f}", f"{way['cpu_seconds']:.3f}", *ratios])
    return table(["", "seconds", "CPU seconds", "× transformers", "× one thread"], rows) + "\n"


def _loading_table(loading: dict[str, dict[str, float]]) -> str:
    rows = [
        [
            _LOADED[what],
            *(f"{row[key]:.2f}" for key in ("seconds", "least_seconds", "cpu_seconds")),
            f"{row['added_mb']:.0f} MB",
        ]
        for what, row in loading.items()
    ]
    return table(["loading 250,002 tokens", "seconds", "fastest", "CPU seconds", "memory"], rows) + "\n"


def _long_texts_table(texts: list[dict[str, float]]) -> str:
    rows = [
        [f"{row['characters']:,}", f"{row['seconds']:.3f}", f"{row['seconds'] / row['characters'] * 1e6:.2f}"]
        for row in texts
    ]
    return table(["one text of so many characters", "seconds", "microseconds a character"], rows) + "\n"


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Return passages of nano's corpus in six languages, and for every fourth one sentences in 16 scripts."""
    # nano's corpus and the tests' sentences are not installed.
    sys.path[:0] = [str(ROOT / "examples" / "nano"), str(ROOT / "tests")]
    from conftest import SENTENCES

    from generate import generate
    from languages import CODES

    rng = random.Random(seed)
    passages = [generate("ner", code, "heldout", seed, count) for code in CODES]
    texts = [" ".join(rng.sample(SENTENCES, 2)) if i % 4 == 0 else next(passages[i % 6]).text for i in range(count)]
    rng.shuffle(texts)
    return texts


def write_tokenizer(folder: Path, size: int = VOCABULARY_SIZE, seed: int = 0) -> None:
    """Write ``sentencepiece.bpe.model`` and ``vocab.txt`` with ``size`` tokens in all."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

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


def _add_words(model: Any, texts: list[str]) -> None:
    import sentencepiece

    known = {piece.piece for piece in model.pieces}
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    words = Counter(word for text in texts for word in _WORD.findall(processor.normalize(text)))
    total = words.total()
    for word, count in words.items():
        if count >= _REPEATED and word not in known and len(word) <= _LONGEST_WORD:
            model.pieces.add(piece=word, score=math.log(count / total))


def _add_joined_pieces(model: Any, size: int, rng: random.Random) -> None:
    trained = [piece.piece for piece in model.pieces][_CONTROL_PIECES:]
    tails = [piece for piece in trained if not piece.startswith("▁")]
    known = set(trained)
    while len(model.pieces) < size:
        joined = rng.choice(trained) + rng.choice(tails)
        if joined not in known:
            known.add(joined)
            model.pieces.add(piece=joined, score=rng.uniform(-25, -18))


if __name__ == "__main__":
    main()
