"""Small graphs in every precision, run as they are or as a GPU would round them."""

import functools

import numpy as np
import onnx_ir as ir
import pytest
import torch

from erniem_export.onnx_export import open_session, write
from erniem_export.options import GraphOptions
from erniem_export.passes.precision import emulate_half


@pytest.fixture(scope="session")
def small_model(make_model):
    """A small random model of a head, the same each time; ``edit`` changed its parameters, by name."""

    @functools.cache
    def build(head="base", edit=None):
        model = make_model(head)
        if edit is not None:
            with torch.no_grad():
                edit(dict(model.named_parameters()))
        return model

    return build


@pytest.fixture(scope="session")
def graph_of(trace_once):
    """The graph of a model; each caller edits one of its own."""
    return lambda model, head="base", **flags: trace_once(model, head, GraphOptions(**flags))


@pytest.fixture
def run(tmp_path):
    """Run a graph in onnxruntime; ``rounded`` runs what it computes on a GPU."""

    def run_graph(model, feeds, *, rounded=False):
        path = tmp_path / "graph.onnx"
        write(model, path)
        if rounded:
            model = ir.load(path)
            assert emulate_half(model)
            write(model, tmp_path / "rounded.onnx")
            path = tmp_path / "rounded.onnx"
        session = open_session(path)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run_graph


@pytest.fixture(scope="session")
def feeds():
    """Four rows: full, padded on the right, padded in between, all padding."""
    ids = np.random.default_rng(5).integers(2, 211, (4, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = mask[2, 3:6] = mask[3] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="session")
def reference():
    """Run the PyTorch model."""

    def forward(model, feeds, **flags):
        with torch.no_grad():
            result = model(
                **{name: torch.from_numpy(array) for name, array in feeds.items()}, return_dict=True, **flags
            )
        return {name: value.numpy() for name, value in result.items() if isinstance(value, torch.Tensor)} | {
            f"{name}.{i}": tensor.numpy()
            for name, value in result.items()
            if isinstance(value, tuple)
            for i, tensor in enumerate(value)
        }

    return forward
