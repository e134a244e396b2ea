"""What every exported graph must be: its signature, its operators, its weights, and dynamic where it says so."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import quantize_dynamic

from erniem_export import onnx_export
from erniem_export.errors import ExportError
from erniem_export.gate.parity import check_parity
from erniem_export.onnx_export import trace
from erniem_export.options import ON_CPU, PORTABLE, GraphOptions
from erniem_export.pipeline import optimize_for
from erniem_rt.manifest import TensorSpec

ROWS = ["batch", "sequence"]
SIGNATURES = {
    "base": (ROWS, {"last_hidden_state": [*ROWS, 32], "pooler_output": ["batch", 32]}),
    "cls": (ROWS, {"logits": ["batch", 3]}),
    "ner": (ROWS, {"logits": [*ROWS, 3]}),
    "mc": (["batch", "choices", "sequence"], {"logits": ["batch", "choices"]}),
    "qa": (ROWS, {"start_logits": ROWS, "end_logits": ROWS}),
    "ie": (ROWS, {"start_logits": ROWS, "end_logits": ROWS}),
}
SIZES = [(1, 1), (1, 512), (2, 3), (7, 13), (7, 1)]
TOLERANCE = 1e-5


@pytest.fixture
def artifact(head, exported):
    return exported(head)


@pytest.fixture
def proto(artifact):
    return onnx.load(artifact.path, load_external_data=False)


def signature(values):
    return {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


def test_inputs_have_names_order_dtypes_and_axes(head, proto):
    axes, _ = SIGNATURES[head]
    expected = {"input_ids": ("INT64", axes), "attention_mask": ("INT64", axes)}
    assert list(signature(proto.graph.input).items()) == list(expected.items())


def test_outputs_have_names_order_dtypes_and_axes(head, proto):
    expected = {name: ("FLOAT", axes) for name, axes in SIGNATURES[head][1].items()}
    assert list(signature(proto.graph.output).items()) == list(expected.items())


def test_only_standard_operators(proto):
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert sum(node.op_type == "Softmax" for node in proto.graph.node) == 2


def test_layers_are_in_the_form_that_fusion_knows(proto):
    counts = {name: sum(node.op_type == name for node in proto.graph.node) for name in ("Gelu", "LayerNormalization")}
    assert counts == {"Gelu": 2, "LayerNormalization": 5}


def test_checker_accepts_the_file(artifact):
    onnx.checker.check_model(str(artifact.path), full_check=True)


@pytest.mark.parametrize("target", [PORTABLE, ON_CPU])
def test_stock_quantization_takes_the_graph(artifact, target, case_inputs, tmp_path):
    """It transposes the weights of a Gemm in place, and a second note of their shape would then be wrong."""
    path, quantized = artifact.path, tmp_path / "quantized.onnx"
    if target == ON_CPU:
        graph, path = onnx_export.read(path), tmp_path / "fused.onnx"
        optimize_for(target, graph, artifact.head, 2, artifact.options)
        onnx_export.write(graph, path)
    quantize_dynamic(path, quantized, reduce_range=True)  # without VNNI, 16-bit sums overflow with all 8 bits
    feeds = case_inputs(artifact, batch=2, sequence=7, choices=2)
    expected, found = (onnx_export.open_session(model).run(None, feeds) for model in (artifact.path, quantized))
    for one, other in zip(expected, found, strict=True):
        attended = feeds["attention_mask"] > 0 if one.shape[:2] == (2, 7) else slice(None)
        error = np.linalg.norm((one - other)[attended]) / np.linalg.norm(one[attended])
        assert 0 < error < 0.2


def test_weights_are_external_in_one_file(artifact, proto):
    inside = {
        tensor.name: tensor.ByteSize()
        for tensor in proto.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    places = {
        entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert places == {f"{artifact.head}.onnx.data"}
    assert sum(inside.values()) < 2000, inside
    large = [name for name, tensor in arrays(artifact.path).items() if tensor.nbytes >= 64]
    assert large
    assert not set(large) & set(inside)
    assert {file.name for file in artifact.folder.iterdir()} == {
        f"{artifact.head}{ending}" for ending in (".onnx", ".onnx.data", ".json")
    }


def test_data_file_holds_the_weights_and_nothing_else(artifact, proto):
    spans = []
    for tensor in proto.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            spans.append((int(place["offset"]), int(place["length"])))
    assert len(set(spans)) == len(spans)
    size = Path(f"{artifact.path}.data").stat().st_size
    # What is between them is alignment.
    assert sum(length for _, length in spans) <= size <= sum(length for _, length in spans) + len(spans) * 65536


def test_nothing_tells_of_the_machine_or_the_tracer(artifact, proto):
    content = artifact.path.read_bytes()
    home = str(Path(__file__).parents[3]).encode()
    assert home not in content
    assert not re.search(rb"site-packages|Traceback|File \"|\.py\b|torch|pkg\.", content)
    assert not proto.metadata_props
    assert not proto.graph.metadata_props
    assert not proto.graph.doc_string
    for entry in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        assert not entry.doc_string
        assert not entry.metadata_props
    assert (proto.producer_name, proto.producer_version, proto.graph.name) == ("erniem-rt", "", "ernie_m")


def arrays(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_every_parameter_is_there_once_under_its_name(artifact):
    stored = arrays(artifact.path)
    expected = {}
    unused = {"ner": set(), "qa": set(), "ie": {"ernie_m.pooler.dense.weight", "ernie_m.pooler.dense.bias"}}
    for name, parameter in artifact.model.state_dict().items():
        if name in unused.get(artifact.head, ()):
            assert name not in stored
            assert f"{name}.T" not in stored
            continue
        assert (name in stored) != (f"{name}.T" in stored), name
        expected[name] = parameter.numpy()
        found = stored.pop(name) if name in stored else stored.pop(f"{name}.T").T
        np.testing.assert_array_equal(found, expected[name], err_msg=name)
    assert expected
    assert all(value.nbytes < 64 for value in stored.values()), {name: value.shape for name, value in stored.items()}


@pytest.mark.parametrize(("batch", "length"), SIZES)
def test_axes_are_dynamic(artifact, case_inputs, batch, length):
    session = onnxruntime.InferenceSession(artifact.path, providers=["CPUExecutionProvider"])
    for choices in (1, 2, 5) if artifact.head == "mc" else (1,):
        feeds = case_inputs(artifact, batch=batch, sequence=length, choices=choices)
        with torch.no_grad():
            expected = artifact.model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        for spec, found in zip(artifact.manifest.outputs, session.run(None, feeds), strict=True):
            reference = expected[spec.name].numpy()
            sizes = {"batch": batch, "sequence": length, "choices": choices}
            assert found.shape == tuple(sizes.get(axis, axis) for axis in spec.shape)
            np.testing.assert_allclose(found, reference, rtol=0, atol=TOLERANCE * max(1, np.abs(reference).max()))


def test_same_model_gives_the_same_bytes(exported, export_model):
    artifact = exported("cls")
    again = export_model("cls", artifact.model)
    assert again.manifest.files == artifact.manifest.files


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_labels": 1, "hidden_act": "relu"},
        {"vocab_size": 2, "max_position_embeddings": 3, "pad_token_id": 0, "num_hidden_layers": 1},
    ],
    ids=["regression with relu", "tiniest, padding is id 0"],
)
def test_unusual_configs(overrides, make_model, export_model):
    artifact = export_model("cls", make_model("cls", **overrides))
    assert check_parity(artifact.path, artifact.model).failures() == []


def test_a_graph_that_is_not_as_specified_is_refused(exported, monkeypatch):
    specs = (TensorSpec("logits", "float32", ("batch", "sequence", 4)),)
    monkeypatch.setattr(onnx_export, "graph_outputs", lambda *_: specs)
    with pytest.raises(ExportError, match=r"outputs are .*expected .*4"):
        trace(exported("ner").model, "ner", GraphOptions())
