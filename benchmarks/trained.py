"""Measurements on trained weights: the accuracy of int8 on MiniLM, and the speed from text to answer on nano.

Accuracy compares hidden states and nearest neighbours with fp32, alone and in batches. From text to answer, with the
tokenizer, our pipeline is compared with transformers'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.artifacts import prepare
from benchmarks.client import Client, WorkerError
from benchmarks.documents import ROOT
from benchmarks.engines import ENGINES, REFERENCE, EngineSpec
from benchmarks.measure import Pace, Say, close_all, measure_workloads, open_all, spread, turn_order
from benchmarks.related_models import GAP, find_weights, tokenize
from benchmarks.texts import NANO_LANGUAGES, nano_examples, real_texts
from benchmarks.workloads import Workload, write_workloads

States = list[NDArray[Any]]

MODEL, BATCH = "minilm", 16
# Number of timed texts. int8 is timed here too because trained weights keep outlier channels in fp32, random ones none.
TIMED = 128
JUDGED = (
    "openvino-bf16",
    "erniem-rt",
    "erniem-rt-openvino-bf16",
    "ort-int8",
    "openvino-int8",
    "openvino-int8-bf16",
    "ctranslate2-int8",
    "erniem-rt-int8",
    "erniem-rt-openvino-int8",
    "erniem-rt-openvino-int8-bf16",
    "erniem-rt-target-openvino-int8",
    "erniem-rt-target-openvino-int8-bf16",
)

THEIR_PIPELINE = EngineSpec("pipeline-transformers", "transformers' pipeline", "fp32", "TransformersPipeline", "nano")
OUR_PIPELINE = EngineSpec("pipeline-erniem-rt", "erniem-rt's pipeline", "fp32", "ErnieMPipeline", "nano-exported")
PER_LANGUAGE, PAIRS_BATCH = 16, 32
CHECKPOINT = ROOT / "examples" / "nano" / "checkpoints" / "cls"


def end_to_end(folder: Path, open_client: Callable[[EngineSpec, Path], Client], pace: Pace, say: Say) -> dict[str, Any]:
    """Measure both pipelines on held-out pairs in six languages; return a gap if the checkpoint is missing."""
    if not (CHECKPOINT / "config.json").exists():
        return {"gap": "examples/nano/checkpoints/cls is not there; make nano-train makes it"}
    gap = _export_nano(folder)
    if gap is not None:
        return {"gap": gap}
    texts = _pairs()
    workload = Workload("texts", f"{len(texts)} pairs of texts", texts, texts, PAIRS_BATCH)
    path = write_workloads(folder / "texts.json", [workload])
    gaps: dict[str, str] = {}
    clients = open_all([THEIR_PIPELINE, OUR_PIPELINE], lambda spec: open_client(spec, path), gaps, say)
    try:
        if THEIR_PIPELINE.name in gaps:
            return {"gap": f"{THEIR_PIPELINE.label} {gaps[THEIR_PIPELINE.name]}"}
        verdicts = measure_workloads(clients, [workload], pace, say, THEIR_PIPELINE.name)
    except WorkerError as error:
        return {"gap": str(error)}
    finally:
        close_all(clients)
    engines = {}
    for spec in (THEIR_PIPELINE, OUR_PIPELINE):
        found = verdicts[spec.name]["texts"] if spec.name in verdicts else {"gap": gaps[spec.name]}
        found.pop("first_logits", None)
        engines[spec.name] = {"label": spec.label, **found}
    return {
        "gap": None,
        "model": "examples/nano/checkpoints/cls",
        "texts": len(texts),
        "batch_size": PAIRS_BATCH,
        "engines": engines,
    }


def _export_nano(folder: Path) -> str | None:
    """Link the checkpoint and export it; return the reason for a failure."""
    import erniem_export
    from erniem_rt import ErnieMError

    link = folder / THEIR_PIPELINE.artifact
    link.unlink(missing_ok=True)
    link.symlink_to(CHECKPOINT, target_is_directory=True)
    try:
        erniem_export.export(CHECKPOINT, folder / OUR_PIPELINE.artifact, quiet=True)
    except ErnieMError as error:
        return f"exporting nano failed: {error}"
    return None


def _pairs() -> tuple[Any, ...]:
    examples = [e for code in NANO_LANGUAGES for e in nano_examples("cls", code, PER_LANGUAGE)]
    return tuple({"text": example["premise"], "text_pair": example["hypothesis"]} for example in examples)


def accuracy(
    folder: Path,
    names: Sequence[str],
    open_client: Callable[[EngineSpec, Path, Path], Client],
    pace: Pace,
    say: Say,
) -> dict[str, Any]:
    """Return per engine the result of :func:`judge` and its speed; a gap without weights or reference."""
    if find_weights() is None:
        return {"gap": GAP}
    folder.mkdir(parents=True, exist_ok=True)
    gap = prepare("checkpoint", folder, MODEL)
    if gap is not None:
        return {"gap": gap}
    source, texts = real_texts()
    rows = _write_rows(folder, texts)
    gaps = _prepare_all(folder, names)
    chosen = [ENGINES[name] for name in (REFERENCE, *JUDGED)]
    clients = open_all(chosen, lambda spec: open_client(spec, folder, rows), gaps, say)
    try:
        if REFERENCE in gaps:
            return {"gap": f"{ENGINES[REFERENCE].label} {gaps[REFERENCE]}"}
        verdicts = _judge_all(clients, folder, say)
        correct = [name for name, verdict in verdicts.items() if verdict["gap"] is None]
        seconds, late = _time({name: clients[name] for name in (REFERENCE, *correct)}, pace)
    except WorkerError as error:
        return {"gap": f"{ENGINES[REFERENCE].label}: {error}"}
    finally:
        close_all(clients)
    for name in correct:
        verdicts[name] |= {"gap": late[name]} if name in late else {"seconds": spread(seconds[name])}
    return {
        "gap": None,
        "model": "all-MiniLM-L6-v2",
        "texts": len(texts),
        "timed_texts": len(texts[:TIMED]),
        "source": source,
        "reference": {"label": ENGINES[REFERENCE].label, "seconds": spread(seconds[REFERENCE])},
        "engines": {name: verdicts[name] if name in verdicts else {"gap": gaps[name]} for name in JUDGED},
    }


def _write_rows(folder: Path, texts: list[str]) -> Path:
    """Write the workers' input: the texts to compare, and those of them to time."""
    ids = tuple(map(tuple, tokenize(folder / "checkpoint", texts)))
    workloads = {"texts": ids, "timed": ids[:TIMED]}
    return write_workloads(folder / "rows.json", [Workload(name, name, r, (), BATCH) for name, r in workloads.items()])


def _prepare_all(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Make the artifacts; return why engines have none."""
    gaps = {name: "left out of this run" for name in JUDGED if name not in names}
    for name in (name for name in JUDGED if name in names):
        gap = prepare(ENGINES[name].artifact, folder, MODEL)
        if gap is not None:
            gaps[name] = gap
    return gaps


def _judge_all(clients: dict[str, Client], folder: Path, say: Say) -> dict[str, dict[str, Any]]:
    expected = _states(clients[REFERENCE], folder, BATCH)
    verdicts = {}
    for name, client in clients.items():
        if name != REFERENCE:
            say(f"accuracy on trained weights: {client.spec.label}")
            verdicts[name] = _judged(client, folder, expected)
    return verdicts


def _states(client: Client, folder: Path, batch_size: int) -> States:
    path = folder / f"{client.spec.name}.npz"
    client.ask("hidden_states", workload="texts", batch_size=batch_size, to=str(path))
    with np.load(path) as arrays:
        found = [arrays[key] for key in arrays.files]
    path.unlink()
    return found


def _judged(client: Client, folder: Path, expected: States) -> dict[str, Any]:
    try:
        return judge(expected, _states(client, folder, BATCH), _states(client, folder, 1))
    except WorkerError as error:
        return {"gap": str(error)}


def _time(clients: dict[str, Client], pace: Pace) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time the hidden states of the timed texts in seconds, one sample per round, engines in turns; return gaps too.

    Raises :class:`WorkerError` if the reference fails.
    """
    samples: dict[str, list[float]] = {name: [] for name in clients}
    gaps: dict[str, str] = {}
    for number in range(pace.rounds):
        for name in turn_order([name for name in clients if name not in gaps], number):
            time.sleep(pace.pause)
            request = {"workload": "timed", "untimed": 1, "calls": 1, "states": True}
            try:
                samples[name] += clients[name].ask("time", **request)["seconds"]
            except WorkerError as error:
                if name == REFERENCE:
                    raise
                gaps[name] = f"failed while it was timed: {error}"
    return samples, gaps


def judge(expected: States, in_batches: States, alone: States) -> dict[str, Any]:
    """Compare hidden states ``(tokens, hidden)`` per text with fp32's, and each text alone with itself in a batch.

    ``relative_l2`` is over all hidden states; ``same_neighbour`` is the share of texts with the same nearest neighbour
    as in fp32, by cosine similarity of the mean hidden states; ``worst_alone`` is the lowest cosine similarity of a
    text's mean hidden state alone and in its batch.
    """
    reference, found = np.concatenate(expected), np.concatenate(in_batches)
    ours, theirs = _embeddings(in_batches), _embeddings(expected)
    return {
        "gap": None,
        "relative_l2": float(np.linalg.norm(found - reference) / np.linalg.norm(reference)),
        "same_neighbour": float((_neighbours(ours) == _neighbours(theirs)).mean()),
        "worst_alone": float((ours * _embeddings(alone)).sum(axis=1).min()),
    }


def _embeddings(states: States) -> NDArray[Any]:
    means = np.stack([state.mean(axis=0, dtype=np.float64) for state in states])
    unit: NDArray[Any] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return unit


def _neighbours(embeddings: NDArray[Any]) -> NDArray[Any]:
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[Any] = similarity.argmax(axis=1)
    return nearest
