"""What int8 costs on real trained weights: hidden states and nearest neighbours against fp32, alone and in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.client import Client, WorkerError
from benchmarks.engines import ENGINES, REFERENCE, EngineSpec
from benchmarks.measure import Say
from benchmarks.minilm import GAP, find_weights, tokenize
from benchmarks.prepare import prepare
from benchmarks.texts import real_texts

States = list[NDArray[Any]]

MODEL, BATCH = "minilm", 16
JUDGED = ("ort-int8", "openvino-int8", "ctranslate2-int8", "erniem-rt", "erniem-rt-int8")


def accuracy(
    folder: Path, names: Sequence[str], open_client: Callable[[EngineSpec, Path, Path], Client], say: Say
) -> dict[str, Any]:
    """Return per engine what :func:`judge` finds; only a gap if the weights are not installed."""
    if find_weights() is None:
        return {"gap": GAP}
    folder.mkdir(parents=True, exist_ok=True)
    gap = prepare("checkpoint", folder, MODEL)
    if gap is not None:
        return {"gap": gap}
    source, texts = real_texts()
    rows = folder / "rows.json"
    ids = tokenize(folder / "checkpoint", texts)
    rows.write_text(json.dumps({"texts": {"rows": ids, "checked": [], "batch_size": BATCH}}), encoding="utf-8")

    def states(name: str, batch_size: int) -> States:
        path = folder / f"{name}.npz"
        with open_client(ENGINES[name], folder, rows) as client:
            client.ask("hidden_states", workload="texts", batch_size=batch_size, to=str(path))
        with np.load(path) as arrays:
            found = [arrays[key] for key in arrays.files]
        path.unlink()
        return found

    expected = states(REFERENCE, BATCH)
    engines: dict[str, Any] = {}
    for name in JUDGED:
        if name not in names:
            engines[name] = {"gap": "left out of this run"}
            continue
        say(f"accuracy on trained weights: {ENGINES[name].label}")
        gap = prepare(ENGINES[name].artifact, folder, MODEL)
        try:
            engines[name] = {"gap": gap} if gap else judge(expected, states(name, BATCH), states(name, 1))
        except WorkerError as error:
            engines[name] = {"gap": str(error)}
    return {"gap": None, "model": "all-MiniLM-L6-v2", "texts": len(texts), "source": source, "engines": engines}


def judge(expected: States, in_batches: States, alone: States) -> dict[str, Any]:
    """Compare hidden states ``(tokens, hidden)`` per text with fp32's, and a text alone with the same in a batch.

    ``relative_l2`` is over all hidden states; ``same_neighbour`` the share of texts whose nearest other text, by the
    cosine of the mean hidden state, is the one of fp32; ``worst_alone`` the lowest cosine of a text's mean hidden
    states alone and in its batch.
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
