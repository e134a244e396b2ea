"""Compare an XLM-R embedding model with sentence-transformers' ONNX and OpenVINO backends, from texts to vectors.

Usage: python -m benchmarks.xlm_roberta [--size base|small] [--rounds N]; needs sentence-transformers with its backends.

Both libraries take turns on the same texts in one process; the result is the ratio of their medians.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.documents import ROOT
from erniem_rt.machine import cpu_class

PACKAGES = "sentence-transformers optimum-onnx[onnxruntime] optimum-intel[openvino]"
FOLDER = ROOT / "build" / "bench-xlm-roberta"
TOKENIZER = ROOT / "examples" / "nano" / "checkpoints" / "base" / "sentencepiece.bpe.model"
# The released layers with the tokenizer's smaller vocabulary, whose rows are only looked up.
SIZES = {
    "base": {},
    "small": {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1536},
}
TEXTS, BATCH = 64, 32
# Precision, our artifact, sentence-transformers' backend, and the bar for the ratio of speeds.
BARS = (
    ("fp32", "erniem-rt", "onnx", 1.5),
    ("int8", "erniem-rt-int8", "onnx-int8", 2.0),
    ("fp32", "erniem-rt-openvino", "openvino", 1.3),
)
_QUANTIZED = "onnx/model_qint8_{kind}.onnx"

Encode = Callable[[list[str]], Any]


def write_checkpoint(folder: Path, size: str) -> None:
    """Write a sentence-transformers folder of an XLM-R model with seeded weights, mean pooling and unit length."""
    import sentencepiece
    import torch
    import transformers

    from erniem_export.checkpoint import randomize

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER)).get_piece_size()
    defaults = {"vocab_size": pieces + 2, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    torch.manual_seed(0)
    model = transformers.XLMRobertaModel(
        transformers.XLMRobertaConfig(**{**defaults, **SIZES[size]}), add_pooling_layer=False
    )
    randomize(model)
    model.save_pretrained(folder)
    (folder / TOKENIZER.name).write_bytes(TOKENIZER.read_bytes())
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    for i, kind in enumerate(kinds[1:], start=1):
        (folder / f"{i}_{kind}").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def texts() -> list[str]:
    """Return seeded texts of nano's words with the log-normal lengths of the mixed workload."""
    from benchmarks.workloads import build_workloads

    source = TOKENIZER.with_name("calibration.txt")
    words = source.read_text(encoding="utf-8").split()
    draw, (mixed,) = random.Random(0), build_workloads(("mixed",), 30000)
    return [" ".join(draw.choices(words, k=max(1, round(len(row) * 0.6)))) for row in mixed.rows][:TEXTS]


def prepare(size: str) -> Path:
    """Return the folder with a size's models; export those that are missing."""
    import erniem_export

    folder = FOLDER / size
    if not (folder / "checkpoint" / "modules.json").exists():
        write_checkpoint(folder / "checkpoint", size)
    for name, options in (("erniem-rt", {}), ("erniem-rt-int8", {"precision": "int8"})):
        if not (folder / name / "base.json").exists():
            erniem_export.export(folder / "checkpoint", folder / name, **options)
    return folder


def ours(folder: Path, name: str, threads: int) -> Encode:
    """Return our pipeline on an artifact, in OpenVINO if the name ends in ``-openvino``, else in ONNX Runtime."""
    import erniem_rt

    engine = "openvino" if name.endswith("-openvino") else "onnxruntime"
    session = erniem_rt.Session(folder / name.removesuffix("-openvino"), engine=engine, threads=threads)
    return erniem_rt.pipeline("feature-extraction", session)


def theirs(folder: Path, name: str, threads: int) -> Encode:
    """Return sentence-transformers with a backend, as in its documentation; it sorts texts by length itself."""
    import torch
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    torch.set_num_threads(threads)
    backend, _, quantized = name.partition("-")
    place = folder / f"sentence-transformers-{backend}"
    if not place.exists():
        SentenceTransformer(str(folder / "checkpoint"), backend=backend).save_pretrained(str(place))
    options: dict[str, Any] = {}
    if backend == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        options = {"provider": "CPUExecutionProvider", "session_options": session}
    if backend == "openvino":
        options = {"ov_config": {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}}
    if quantized:
        kind = "avx512_vnni" if "vnni" in cpu_class() else "avx2"
        options["file_name"] = _QUANTIZED.format(kind=kind)
        if not (place / options["file_name"]).exists():
            whole = SentenceTransformer(str(place), backend=backend)
            export_dynamic_quantized_onnx_model(whole, kind, str(place))
    model = SentenceTransformer(str(place), backend=backend, model_kwargs=options)
    return lambda given: model.encode(given, batch_size=BATCH, show_progress_bar=False)


def compare(encoders: Sequence[Encode], given: list[str], rounds: int) -> tuple[list[float], float]:
    """Return the texts per second of each, measured in turns, and the smallest cosine of a text's two vectors."""
    first, second = (np.asarray(encode(given), dtype=np.float64) for encode in encoders)
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    taken: list[list[float]] = [[] for _ in encoders]
    for _ in range(rounds):
        for seconds, encode in zip(taken, encoders, strict=True):
            time.sleep(0.1)  # the other library's threads stop spinning
            started = time.perf_counter()
            encode(given)
            seconds.append(time.perf_counter() - started)
    return [len(given) / statistics.median(seconds) for seconds in taken], float(cosines.min())


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each bar, and write all results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.xlm_roberta", description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prepare", action="store_true", help="export our artifacts and stop")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(argv)
    folder = prepare(given.size)
    if given.prepare:
        return 0
    try:
        import sentence_transformers
    except ImportError:
        print(f"error: sentence-transformers is not installed: pip install {PACKAGES}", file=sys.stderr)
        return 1
    rows, sample = [], texts()
    for precision, own, other, bar in BARS:
        encoders = [ours(folder, own, given.threads), theirs(folder, other, given.threads)]
        (one, two), cosine = compare(encoders, sample, given.rounds)
        rows.append({"precision": precision, "ours": own, "theirs": other, "texts_per_second": [one, two]})
        rows[-1] |= {"ratio": one / two, "bar": bar, "smallest_cosine": cosine}
        print(f"{own} {one:.1f}/s, {other} {two:.1f}/s: {one / two:.2f} (bar {bar}), cosine {cosine:.4f}", flush=True)
        del encoders
        gc.collect()
    found = {"cpu": cpu_class(), "size": given.size, "sentence_transformers": sentence_transformers.__version__}
    found |= {"rounds": given.rounds, "threads": given.threads, "rows": rows}
    text = json.dumps(found, indent=1)
    if given.output is not None:
        given.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
