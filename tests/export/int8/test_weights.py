"""The weights of an int8 artifact, held against the checkpoint's."""

import numpy as np
import onnx_ir as ir
import pytest

from erniem_export.gate.measures import Weights
from erniem_export.gate.weights import compare_weights
from erniem_export.onnx_export import write
from erniem_export.options import GraphOptions
from erniem_export.passes.int8 import to_int8, to_int8_openvino
from erniem_export.passes.precision import store_embedding
from erniem_export.quantization.quantize import calibration_for, quantize_encoder
from erniem_rt.manifest import Limits

INT8 = {"weights": "int8", "embedding": "int8"}
LAYER = "ernie_m.encoder.layers.1."
VALUE, OUT = f"{LAYER}self_attn.self_attn.v_proj", f"{LAYER}self_attn.out_proj"
PRODUCTS = tuple(LAYER + name for name in ("self_attn.self_attn.q_proj", "linear1", "linear2"))
TABLE = "ernie_m.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def model(outlying_model):
    return outlying_model


@pytest.fixture(scope="module", params=["exact", "pairs", "openvino"])
def quantized(request, model, trace_once, tmp_path_factory):
    """The graph as an export writes it, for a CPU with VNNI, for one without, and for OpenVINO."""
    folder = tmp_path_factory.mktemp("int8")
    calibration = calibration_for(None, folder, Limits(64, 1000, 1))
    products = quantize_encoder(model, calibration, form="pairs" if request.param == "pairs" else "exact").products
    assert any(product.fold for product in products.values()), "else factors that were moved are not tested"
    assert any(len(product.entering.exact) for product in products.values()), "else float32 is not tested"
    graph = trace_once(model, "cls", GraphOptions())
    (to_int8_openvino if request.param == "openvino" else to_int8)(graph, products)
    store_embedding(graph, "int8")
    write(graph, folder / "graph.onnx")
    return folder / "graph.onnx"


@pytest.fixture
def compared(quantized, model, tmp_path):
    """Change what is stored, and compare with the model."""

    def compare(edit):
        graph = ir.load(quantized)
        values = {name: value for name, value in graph.graph.initializers.items() if value.const_value is not None}
        stored = {name: value.const_value.numpy().copy() for name, value in values.items() if value.const_value}
        edit(stored)
        for name, value in values.items():
            value.const_value = ir.tensor(stored[name], name=name)
        write(graph, tmp_path / "graph.onnx")
        return compare_weights(tmp_path / "graph.onnx", model, INT8)

    return compare


def test_every_parameter_is_there_as_nearly_as_rounding_leaves_it(compared, model):
    assert compared(lambda stored: None) == Weights(compared=len(model.state_dict()))


@pytest.mark.parametrize("name", [*PRODUCTS, OUT])
@pytest.mark.parametrize(
    "damage",
    [
        lambda steps: steps[:, ::-1],
        lambda steps: np.roll(steps, 1, axis=0),
        np.negative,
        np.zeros_like,
    ],
    ids=["columns in another order", "rows in another order", "the other sign", "zeros"],
)
def test_a_damaged_matrix_is_named(compared, name, damage):
    def edit(stored):
        stored[f"{name}.weight.int8"] = np.ascontiguousarray(damage(stored[f"{name}.weight.int8"]))

    assert f"{name}.weight" in compared(edit).changed


def test_a_damaged_row_in_float32_is_named(compared):
    damaged = []

    def edit(stored):
        name = next(name for name in stored if name.endswith("linear1.weight.exact"))
        stored[name][0] = stored[name][0][::-1]
        damaged.append(name.removesuffix(".exact"))

    changed = compared(edit).changed
    assert changed == tuple(damaged)


def test_two_layers_in_each_others_place_are_named(compared):
    first, second = (f"ernie_m.encoder.layers.{i}.linear1" for i in (0, 1))

    def edit(stored):
        for part in (".weight.int8", ".weight.scale", ".bias.int8"):
            stored[first + part], stored[second + part] = stored[second + part], stored[first + part]

    expected = {f"{name}.{part}" for name in (first, second) for part in ("weight", "bias")}
    assert expected <= set(compared(edit).changed)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.2, np.nan])
@pytest.mark.parametrize(("name", "changed"), [*((name, name) for name in PRODUCTS), (VALUE, OUT), (OUT, OUT)])
def test_one_scale_off_is_named(compared, name, changed, factor):
    def edit(stored):
        stored[f"{name}.weight.scale"][3] *= factor

    assert f"{changed}.weight" in compared(edit).changed


def test_one_weight_off_is_named(compared):
    def edit(stored):
        steps = stored[f"{PRODUCTS[1]}.weight.int8"]
        value = int(steps[5, 7])
        steps[5, 7] = -value if abs(value) > 15 else 50

    assert compared(edit).changed == (f"{PRODUCTS[1]}.weight",)


@pytest.mark.parametrize("name", [PRODUCTS[0], VALUE, OUT])
@pytest.mark.parametrize("damage", [np.zeros_like, lambda bias: bias[::-1].copy()], ids=["zeros", "reversed"])
def test_a_damaged_bias_is_named(compared, name, damage):
    def edit(stored):
        stored[f"{name}.bias.int8"] = damage(stored[f"{name}.bias.int8"])

    assert compared(edit).changed == (f"{name}.bias",)


def test_rows_of_the_table_in_each_others_place_are_named(compared):
    def edit(stored):
        for name in (TABLE, f"{TABLE}.scale"):
            stored[name][[900, 901]] = stored[name][[901, 900]]

    assert compared(edit).changed == (TABLE,)
