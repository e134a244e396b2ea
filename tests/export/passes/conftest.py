"""Canonical graphs of a small random model, a fresh copy for each caller, and batches with any kind of padding."""

import numpy as np
import pytest

from erniem_export.checkpoint import load_checkpoint
from erniem_export.onnx_export import open_session, write
from erniem_export.options import GraphOptions


@pytest.fixture(scope="session")
def traced(trace_once):
    """``traced(head, **flags)``: a random model of two layers and a fresh copy of its canonical graph."""
    models = {}

    def load(head, **flags):
        if head not in models:
            models[head] = load_checkpoint("random:tiny", head).model
        return models[head], trace_once(models[head], head, GraphOptions(**flags))

    return load


@pytest.fixture
def session_of(tmp_path):
    """Open a graph on the CPU."""

    def load(graph):
        write(graph, tmp_path / "graph.onnx")
        return open_session(tmp_path / "graph.onnx")

    return load


@pytest.fixture(scope="session")
def batch():
    """``batch(head, seed, side)``: ids and a mask whose rows attend to 0 or more tokens, padded on that side."""

    def draw(head, seed, side):
        rng = np.random.default_rng(seed)
        width = int(rng.integers(1, 40))
        shape = (int(rng.integers(1, 6)), 3, width) if head == "mc" else (int(rng.integers(1, 6)), width)
        mask = np.zeros(shape, np.int64)
        for row in mask.reshape(-1, width):
            length = int(rng.integers(0, width + 1))
            if side == "scattered":
                row[rng.permutation(width)[:length]] = 1
            else:
                row[slice(length) if side == "right" else slice(width - length, None)] = 1
        return {"input_ids": rng.integers(2, 1000, shape), "attention_mask": mask}

    return draw
