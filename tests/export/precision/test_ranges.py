"""The ranges of a graph's values, against the PyTorch model's own."""

import copy
import functools

import numpy as np
import pytest
import torch

from erniem_export.passes.precision import measure_ranges


def note_largest(found, name, _module, _inputs, output):
    found[name] = max(found.get(name, 0.0), float(output.abs().max()))


def test_ranges_are_the_models(small_model, graph_of, feeds, tmp_path):
    model = copy.deepcopy(small_model())
    found = {}
    for name, module in model.named_modules():
        if name.endswith(("_proj", "linear1", "linear2", "norm1", "norm2")):
            module.register_forward_hook(functools.partial(note_largest, found, name))
    graph = graph_of(small_model())
    batches = [feeds, {name: array[:1, :5] for name, array in feeds.items()}]
    ranges = measure_ranges(graph, batches, tmp_path)
    for batch in batches:
        with torch.no_grad():
            model(**{name: torch.from_numpy(array) for name, array in batch.items()})
    assert len(found) == 16
    for name, largest in found.items():
        assert any(value == pytest.approx(largest, rel=1e-4) for value in ranges.values()), name
    assert list(tmp_path.iterdir()) == []


def test_masked_scores_count_as_large_as_they_were(small_model, graph_of, feeds, tmp_path):
    graph = graph_of(small_model())
    ranges = measure_ranges(graph, [feeds], tmp_path)
    masked = [node for node in graph.graph if node.op_type == "Where"]
    assert masked
    for node in masked:
        assert ranges[node.outputs[0].name] == ranges[node.inputs[2].name]
    assert np.isfinite(list(ranges.values())).all()
    assert max(ranges.values()) < 1e4
