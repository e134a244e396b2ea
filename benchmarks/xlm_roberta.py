"""Compares an XLM-R embedding model with sentence-transformers' ONNX and OpenVINO backends, from texts to vectors.

Usage: python -m benchmarks.xlm_roberta [--prepare-only | --tables-only] [--size base|small] [--work DIR]
What is missing in the work folder is exported first. Then both libraries take turns on the same texts in one process.
The results go into a JSON file, and their tables into docs/xlm-r.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import erniem_rt
from benchmarks.bars import median_ratio
from benchmarks.documents import EMPTY, RESULTS_DIR, ROOT, Blocks, load, table, write_blocks
from benchmarks.machine import describe_machine
from erniem_rt.errors import ErnieMError
from erniem_rt.machine import cpu_class

DOCUMENT, RESULTS = ROOT / "docs" / "xlm-r.md", RESULTS_DIR / "xlm_roberta.json"
WORK = ROOT / "build" / "bench-xlm-roberta"
NANO = ROOT / "examples" / "nano" / "checkpoints" / "base"
TOKENIZER, CALIBRATION = "sentencepiece.bpe.model", "calibration.txt"
QUALITY = "quality.json"
# The released layers with the tokenizer's smaller vocabulary, whose rows are only looked up.
SIZES = {
    "base": {},
    "small": {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1536},
}
TEXTS, BATCH = 64, 32
THEIR_PACKAGES = ("sentence-transformers", "optimum-onnx", "optimum-intel", "nncf", "datasets")
_VERSIONS = ("onnxruntime", "openvino", "torch", "transformers", *THEIR_PACKAGES)
# Our artifacts, and the options of their exports.
ARTIFACTS: dict[str, dict[str, Any]] = {
    "erniem-rt": {},
    "erniem-rt-int8": {"precision": "int8"},
    "erniem-rt-openvino-int8": {"precision": "int8", "target": "openvino"},
}
# The files of sentence-transformers' backends, in the folder ``sentence-transformers``.
_THEIR_FILES = {
    "onnx": "onnx/model.onnx",
    "onnx-int8": "onnx/model_quantized.onnx",
    "openvino": "openvino/openvino_model.xml",
    "openvino-int8": "openvino/openvino_model_quantized.xml",
}

Encode = Callable[[list[str]], Any]


class Row(NamedTuple):
    """A comparison: what is computed in which precision, our artifact and engine, their backend, and the bar."""

    precision: str
    artifact: str
    engine: str
    theirs: str
    bar: float
    floating_point: str = "fp32"


ROWS = (
    Row("fp32", "erniem-rt", "onnxruntime", "onnx", 1.5),
    Row("int8", "erniem-rt-int8", "onnxruntime", "onnx-int8", 2.0),
    Row("fp32", "erniem-rt", "openvino", "openvino", 1.3),
    Row("bf16", "erniem-rt", "openvino", "openvino", 1.3, "bf16"),
    Row("int8, fp32 between", "erniem-rt-openvino-int8", "openvino", "openvino-int8", 1.3),
    Row("int8, bf16 between", "erniem-rt-openvino-int8", "openvino", "openvino-int8", 1.3, "bf16"),
)


def rows(cpu: str) -> list[Row]:
    """Return the comparisons on a class of CPU: those in bf16 only where the CPU has it."""
    return [row for row in ROWS if row.floating_point == "fp32" or "bf16" in cpu]


def write_checkpoint(folder: Path, size: str) -> None:
    """Write a sentence-transformers folder of an XLM-R model with seeded weights, and nano's pieces."""
    import sentencepiece
    import torch
    import transformers

    from erniem_export.checkpoint import randomize

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(NANO / TOKENIZER)).get_piece_size()
    defaults = {"vocab_size": pieces + 2, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    torch.manual_seed(0)
    model = transformers.XLMRobertaModel(
        transformers.XLMRobertaConfig(**{**defaults, **SIZES[size]}), add_pooling_layer=False
    )
    randomize(model)
    model.save_pretrained(folder)
    shutil.copyfile(NANO / TOKENIZER, folder / TOKENIZER)
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    add_modules(folder, model.config.hidden_size)


def write_trained(folder: Path) -> None:
    """Write a sentence-transformers folder of nano's trained weights as XLM-R."""
    import erniem_export

    erniem_export.convert(NANO, folder, to="xlm-roberta")
    add_modules(folder, json.loads((folder / "config.json").read_text())["hidden_size"])


def add_modules(folder: Path, width: int) -> None:
    """Add mean pooling and unit length for sentence-transformers, and the text to calibrate on."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    for i, kind in enumerate(kinds[1:], start=1):
        (folder / f"{i}_{kind}").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    shutil.copyfile(NANO / CALIBRATION, folder / CALIBRATION)
    (folder / "modules.json").write_text(json.dumps(modules))  # last: it says that the folder is whole


def texts() -> list[str]:
    """Return seeded texts of nano's words with the log-normal lengths of the mixed workload."""
    from benchmarks.workloads import build_workloads

    words = (NANO / CALIBRATION).read_text(encoding="utf-8").split()
    draw, (mixed,) = random.Random(0), build_workloads(("mixed",), 30000)
    return [" ".join(draw.choices(words, k=max(1, round(len(row) * 0.6)))) for row in mixed.rows][:TEXTS]


def prepare(work: Path, size: str) -> Path:
    """Write what is missing: the models of a size and of nano for both libraries, and the quality of nano's."""
    import erniem_export

    writers: dict[str, Callable[[Path], None]] = {
        "trained": write_trained,
        size: lambda folder: write_checkpoint(folder, size),
    }
    for name, write in writers.items():
        folder = work / name
        checkpoint = folder / "checkpoint"
        if not (checkpoint / "modules.json").exists():
            shutil.rmtree(checkpoint, ignore_errors=True)
            write(checkpoint)
        for artifact, options in ARTIFACTS.items():
            if not (folder / artifact / "base.json").exists():
                _say(f"{name}: exporting {artifact}")
                erniem_export.export(checkpoint, folder / artifact, quiet=True, **options)
        _prepare_theirs(folder, name)
    if not (work / QUALITY).exists():
        _say("comparing the vectors of the trained model")
        (work / QUALITY).write_text(json.dumps(quality(work / "trained"), indent=1) + "\n")
    return work / size


def _prepare_theirs(folder: Path, name: str) -> None:
    """Write the files of sentence-transformers' backends as its documentation says."""
    from sentence_transformers import (
        SentenceTransformer,
        export_dynamic_quantized_onnx_model,
        export_static_quantized_openvino_model,
    )

    place = folder / "sentence-transformers"
    for backend in ("onnx", "openvino"):
        if not (place / _THEIR_FILES[backend]).exists():
            _say(f"{name}: exporting sentence-transformers' {backend}")
            model = SentenceTransformer(str(folder / "checkpoint"), backend=backend)
            model.save_pretrained(str(place))
    if not (place / _THEIR_FILES["onnx-int8"]).exists():
        _say(f"{name}: quantizing sentence-transformers' onnx")
        model = SentenceTransformer(str(place), backend="onnx")
        export_dynamic_quantized_onnx_model(model, _onnx_kind(), str(place), file_suffix="quantized")
    if not (place / _THEIR_FILES["openvino-int8"]).exists():
        _say(f"{name}: quantizing sentence-transformers' openvino")
        lines = (NANO / CALIBRATION).read_text(encoding="utf-8").splitlines()
        data = folder / "calibration"
        data.mkdir(exist_ok=True)
        (data / "train.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        given = {"dataset_name": str(data), "dataset_config_name": "default", "dataset_split": "train"}
        model = SentenceTransformer(str(place), backend="openvino")
        export_static_quantized_openvino_model(
            model, None, str(place), **given, column_name="text", file_suffix="quantized"
        )


def _onnx_kind() -> Any:
    """Return optimum's name of this CPU for its int8."""
    cpu = cpu_class()
    if cpu.startswith(("aarch64", "arm64")):
        return "arm64"
    return "avx512_vnni" if cpu.startswith("avx512-vnni") else "avx2"


def ours(folder: Path, row: Row, threads: int) -> Encode:
    """Return our pipeline on an artifact."""
    session = erniem_rt.Session(
        folder / row.artifact, engine=row.engine, precision=row.floating_point, threads=threads, cache=False
    )
    return erniem_rt.pipeline("feature-extraction", session)


def theirs(folder: Path, row: Row, threads: int) -> Encode:
    """Return sentence-transformers with a backend, as in its documentation; it sorts texts by length itself."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    backend = row.theirs.partition("-")[0]
    options: dict[str, Any] = {"file_name": _THEIR_FILES[row.theirs]}
    if backend == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        options |= {"provider": "CPUExecutionProvider", "session_options": session}
    else:
        hint = {"fp32": "f32", "bf16": "bf16"}[row.floating_point]
        options["ov_config"] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    model = SentenceTransformer(str(folder / "sentence-transformers"), backend=backend, model_kwargs=options)
    return lambda given: model.encode(given, batch_size=BATCH, show_progress_bar=False)


def compare(encoders: Sequence[Encode], given: list[str], rounds: int) -> dict[str, Any]:
    """Return the seconds of each, measured in turns, the ratio of speeds, and the smallest cosine of two vectors."""
    first, second = (np.asarray(encode(given)) for encode in encoders)
    taken: list[list[float]] = [[] for _ in encoders]
    for _ in range(rounds):
        for seconds, encode in zip(taken, encoders, strict=True):
            time.sleep(0.1)  # the other library's threads stop spinning
            started = time.perf_counter()
            encode(given)
            seconds.append(time.perf_counter() - started)
    return {"seconds": taken, "ratio": median_ratio(*taken), "smallest_cosine": float(_cosines(first, second).min())}


def measure(folder: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Return a row per comparison, with ``met``, or with ``gap``, the reason that there is none."""
    sample, found = texts(), []
    for row in rows(cpu_class()):
        try:
            encoders = [ours(folder, row, threads), theirs(folder, row, threads)]
        except ErnieMError as error:
            found.append({**row._asdict(), "gap": str(error)})
            _say(f"{_name(row)}: {error}")
            continue
        result = {**row._asdict(), "gap": None, **compare(encoders, sample, rounds)}
        result["met"] = result["ratio"] >= row.bar
        _say(
            f"{_name(row)}: {result['ratio']:.2f} times {row.theirs}, bar {row.bar}: "
            f"{_verdict(result)}; cosine {result['smallest_cosine']:.4f}"
        )
        found.append(result)
        del encoders
        gc.collect()
    return found


def quality(folder: Path) -> dict[str, Any]:
    """Compare the vectors of each artifact with sentence-transformers' in PyTorch, on texts in several languages."""
    from sentence_transformers import SentenceTransformer

    from benchmarks.texts import real_texts

    source, sample = real_texts()
    expected = np.asarray(SentenceTransformer(str(folder / "checkpoint"), device="cpu").encode(sample))
    found = {}
    for row in rows(cpu_class()):
        for name, opened in ((_name(row), ours), (f"sentence-transformers, {_their_name(row)}", theirs)):
            try:
                found[name] = _judge(expected, np.asarray(opened(folder, row, 2)(sample)))
            except ErnieMError as error:
                found[name] = {"gap": str(error)}
    return {"model": "nano", "texts": len(sample), "source": source, "cpu": cpu_class(), "vectors": found}


def _judge(expected: NDArray[Any], found: NDArray[Any]) -> dict[str, float]:
    return {
        "smallest_cosine": float(_cosines(found, expected).min()),
        "relative_l2": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
        "same_neighbour": float((_neighbours(found) == _neighbours(expected)).mean()),
    }


def _cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    a, b = (vectors.astype(np.float64) for vectors in (first, second))
    cosines: NDArray[Any] = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosines


def _neighbours(vectors: NDArray[Any]) -> NDArray[Any]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[Any] = similarity.argmax(axis=1)
    return nearest


def _say(message: str) -> None:
    print(message, flush=True)


def _name(row: Row) -> str:
    return f"erniem-rt, {'OpenVINO' if row.engine == 'openvino' else 'ONNX Runtime'}, {row.precision}"


def _their_name(row: Row) -> str:
    return f"{'OpenVINO' if row.engine == 'openvino' else 'ONNX'}, {row.precision}"


def _verdict(row: dict[str, Any]) -> str:
    return "met" if row["met"] else "missed"


def blocks(result: dict[str, Any]) -> Blocks:
    """Return the text of each marked block; results without rows have no speed."""
    speed = {(DOCUMENT, "speed"): _speed(result)} if result["rows"] else {}
    return {**speed, (DOCUMENT, "quality"): _quality(result["quality"])}


def _speed(result: dict[str, Any]) -> str:
    machine, lines = result["machine"], []
    for found in result["rows"]:
        row = Row(**{key: found[key] for key in Row._fields})
        cells = [row.precision, "OpenVINO" if row.engine == "openvino" else "ONNX Runtime"]
        if found["gap"]:
            lines.append([*cells, EMPTY, EMPTY, EMPTY, EMPTY, f"≥ {row.bar}: {found['gap']}"])
            continue
        speeds = [f"{result['texts'] / statistics.median(seconds):.1f}" for seconds in found["seconds"]]
        bar = f"≥ {row.bar}: {_verdict(found)}"
        lines.append([*cells, *speeds, f"**{found['ratio']:.2f}**", f"{found['smallest_cosine']:.4f}", bar])
    header = ["precision", "engine", "erniem-rt, texts/s", "sentence-transformers, texts/s", "ratio", "cosine", "bar"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{table(header, lines)}\n\n"
        f"Size `{result['size']}`, {result['texts']} texts, {result['threads']} threads, {result['rounds']} rounds on "
        f"{machine['date']}. {machine['cpu']} ({machine['class']}), {machine['cores']} cores"
        f"{load(machine['load_before'])}. Python {machine['python']}, {versions}.\n"
    )


def _quality(found: dict[str, Any]) -> str:
    lines = []
    for name, figures in found["vectors"].items():
        if "gap" in figures:
            lines.append([name, EMPTY, EMPTY, figures["gap"]])
            continue
        cells = [f"{figures['smallest_cosine']:.4f}", f"{figures['relative_l2']:.1e}"]
        lines.append([name, *cells, f"{100 * figures['same_neighbour']:.1f} %"])
    header = ["vectors", "smallest cosine", "relative L2", "nearest neighbour unchanged"]
    return (
        f"{table(header, lines)}\n\n"
        f"{found['texts']} texts: {found['source']}. CPU class: {found['cpu']}. Expected: sentence-transformers in "
        "PyTorch, fp32.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.xlm_roberta", description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--work", type=Path, default=WORK, help="where the exports are, or go")
    parser.add_argument("--prepare-only", action="store_true", help="export what is missing in --work, and stop")
    parser.add_argument("--tables-only", action="store_true", help="write the tables of the existing results")
    parser.add_argument("--output", type=Path, help="default: the committed results with size base, else in --work")
    given = parser.parse_args(argv)
    output = given.output or (RESULTS if given.size == "base" else given.work / f"{given.size}.json")
    if not given.tables_only:
        missing = [name for name in THEIR_PACKAGES if not _installed(name)]
        if missing:
            print(f"error: missing {', '.join(missing)}: make bench-xlm-roberta installs them", file=sys.stderr)
            return 1
        folder = prepare(given.work, given.size)
        if given.prepare_only:
            return 0
        versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
        found = {"machine": describe_machine(), "versions": {"erniem-rt": erniem_rt.__version__, **versions}}
        found |= {"size": given.size, "texts": TEXTS, "threads": given.threads, "rounds": given.rounds}
        found |= {"rows": measure(folder, given.rounds, given.threads)}
        found |= {"quality": json.loads((given.work / QUALITY).read_text())}
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    result = json.loads(output.read_text(encoding="utf-8"))
    if output == RESULTS:
        write_blocks(blocks(result))
    _say("\n".join(blocks(result).values()))
    return 0


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
