"""Initializers bear the names of their parameters, also where several parameters have the same values."""

import numpy as np
import pytest

from erniem_export.onnx_export import trace
from erniem_export.options import GraphOptions

LAYERS = "ernie_m.encoder.layers."


def _as_it_is(state):
    pass


def _fresh(state):
    """Biases of zeros and norms of ones, as training starts."""
    for name, tensor in state.items():
        if tensor.ndim == 1:
            tensor.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


def _copied_layers(state):
    for name, tensor in state.items():
        if name.startswith(f"{LAYERS}1."):
            tensor.copy_(state[name.replace("layers.1.", "layers.0.")])


def _tied_queries(state):
    for name, tensor in state.items():
        if ".k_proj." in name:
            tensor.copy_(state[name.replace("k_proj", "q_proj")])


def _zeroed(state):
    for name, tensor in state.items():
        if ".out_proj." in name or ".linear" in name or ".v_proj." in name:
            tensor.zero_()


EDITS = [_as_it_is, _fresh, _copied_layers, _tied_queries, _zeroed]
by_name = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__[1:].replace("_", " "))


# torch's optimizer merges what is small: 16 is below its limit for a matrix, 40 above.
@pytest.mark.parametrize(
    ("hidden", "edit"),
    [
        (16, _fresh),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(16, _copied_layers), (16, _tied_queries), (16, _zeroed), (40, _copied_layers), (40, _zeroed)]
        ),
    ],
)
def test_each_weight_is_stored_under_its_own_name(micro_model, trace_once, edit, hidden):
    model = micro_model("ner", hidden_size=hidden)
    expected = [node.op_type for node in trace_once(model, "ner", GraphOptions()).graph]
    edit(model.state_dict())

    graph = trace(model, "ner", GraphOptions()).graph

    assert [node.op_type for node in graph] == expected, "the graph depends on the weights' values"
    for name, parameter in model.state_dict().items():
        forms = {name: parameter.numpy(), f"{name}.T": parameter.numpy().T}
        stored = [form for form in forms if form in graph.initializers]
        assert stored, name
        for form in stored:
            np.testing.assert_array_equal(graph.initializers[form].const_value.numpy(), forms[form])


@pytest.mark.parametrize("options", [(), ("--fp16",), ("--int8", "--cpu", "avx2"), ("--target", "portable")], ids=str)
@by_name
def test_a_checkpoint_with_equal_weights_is_exported(write_checkpoint, erniem_export, tmp_path, edit, options):
    def edited(state):
        edit(state)
        return state

    model = write_checkpoint(tmp_path / "model", "ner", edit=edited)
    erniem_export("--model", model, "--output", tmp_path / "out", *options).ok()
