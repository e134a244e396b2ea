"""The gate lets the right graph through and stops every wrong one, saying what is wrong with it."""

import contextlib
import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from erniem_export.errors import ParityError
from erniem_export.gate import diagnosis, parity
from erniem_export.gate.measures import THRESHOLDS
from erniem_export.gate.parity import check_parity
from erniem_rt import Session
from erniem_rt.errors import ArtifactError, EngineError
from erniem_rt.manifest import Manifest

LAYER = "ernie_m.encoder.layers.{}"


# Edits of a graph.


def node_of(model, op_type, reads=""):
    """The first node of a type that reads a value."""
    return next(node for node in model.graph.node if node.op_type == op_type and (not reads or reads in node.input))


def weight(name, change):
    def edit(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return edit


def one_element(array):
    array[np.abs(array).argmax()] *= -1
    return array


def padding_embedding(array):
    array[1, 5] += 1e-3
    return array


def attribute(op_type, **values):
    def edit(model):
        nodes = [node for node in model.graph.node if node.op_type == op_type]
        assert nodes
        for node in nodes:
            kept = [entry for entry in node.attribute if entry.name not in values]
            del node.attribute[:]
            node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])

    return edit


def rename(model, names, *, inputs=True, outputs=True):
    for node in model.graph.node:
        for values in [node.input] * inputs + [node.output] * outputs:
            values[:] = [names.get(value, value) for value in values]


def insert(model, nodes, constants=None):
    """Add nodes after those that they read from; what reads the graph's inputs only goes first."""
    for name, value in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    made = {value: i for i, node in enumerate(model.graph.node) for value in node.output}
    place = 1 + max((made[value] for node in nodes for value in node.input if value in made), default=-1)
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)


def swap_outputs(model):
    rename(model, {"start_logits": "end_logits", "end_logits": "start_logits"}, inputs=False)


def attend_to_all(model):
    node = node_of(model, "GreaterOrEqual", "attention_mask")
    node.input[1] = node.input[0]


def count_the_mask(model):
    """As many tokens from the left as the mask has ones: right only where padding is on the right."""
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "last_axis"], ["x_length"], keepdims=1),
        helper.make_node("GreaterOrEqual", ["attention_mask", "attention_mask"], ["x_true"]),
        helper.make_node("Cast", ["x_true"], ["x_ones"], to=onnx.TensorProto.INT64),
        helper.make_node("CumSum", ["x_ones", "axis_1"], ["x_positions"]),
        helper.make_node("GreaterOrEqual", ["x_length", "x_positions"], ["x_attend"]),
    ]
    node = node_of(model, "GreaterOrEqual", "attention_mask")
    rename(model, {node.output[0]: "x_attend"}, outputs=False)
    insert(model, nodes, {"last_axis": np.array([1]), "axis_1": np.array(1)})


def positions_from_the_mask(model):
    """What other models do: padding has no positions."""
    node = next(node for node in model.graph.node if node.op_type == "Gather" and "position" in node.input[0])
    nodes = [
        helper.make_node("CumSum", ["attention_mask", "axis_1"], ["x_counted"]),
        helper.make_node("Add", ["x_counted", "one"], ["x_positions"]),
    ]
    node.input[1] = "x_positions"
    insert(model, nodes, {"axis_1": np.array(1), "one": np.array(1)})


def shift_positions(by):
    def edit(model):
        node = next(node for node in model.graph.node if node.op_type == "Gather" and "position" in node.input[0])
        nodes = [helper.make_node("Add", [node.input[1], "shift"], ["x_positions"])]
        insert(model, nodes, {"shift": np.array(by)})
        node.input[1] = "x_positions"

    return edit


def subtract_the_batch_mean(model):
    norm = node_of(model, "LayerNormalization", "ernie_m.embeddings.layer_norm.weight").output[0]
    rename(model, {norm: "x_centred"}, outputs=False)
    nodes = [
        helper.make_node("ReduceMean", [norm, "axes_0"], ["x_mean"], keepdims=1),
        helper.make_node("Mul", ["x_mean", "x_share"], ["x_scaled"]),
        helper.make_node("Sub", [norm, "x_scaled"], ["x_centred"]),
    ]
    insert(model, nodes, {"axes_0": np.array([0]), "x_share": np.float32(0.01)})


def drop_the_last_layer(model):
    norms = [LAYER.format(i) + ".norm2.weight" for i in range(2)]
    first, last = (node_of(model, "LayerNormalization", norm).output[0] for norm in norms)
    rename(model, {last: first}, outputs=False)
    needed = {value.name for value in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if needed.intersection(node.output):
            needed.update(node.input)
        else:
            model.graph.node.remove(node)


def swap_query_and_value(model):
    start, names = LAYER.format(0) + ".self_attn.self_attn.", {}
    for ending in (".weight.T", ".bias"):
        names |= {
            f"{start}q_proj{ending}": f"{start}v_proj{ending}",
            f"{start}v_proj{ending}": f"{start}q_proj{ending}",
        }
    rename(model, names)


def one_scale_for_the_batch(model):
    """What dynamic quantization does: every product's input in int8, by the range of the whole batch."""
    stored = {tensor.name for tensor in model.graph.initializer if LAYER[:-2] in tensor.name}
    for i, node in enumerate([node for node in model.graph.node if node.op_type == "MatMul"]):
        if node.input[1] in stored:
            parts = [f"x_{i}_{part}" for part in ("int8", "scale", "zero")]
            nodes = [
                helper.make_node("DynamicQuantizeLinear", [node.input[0]], parts),
                helper.make_node("DequantizeLinear", parts, [f"x_{i}"]),
            ]
            insert(model, nodes)
            node.input[0] = f"x_{i}"


def root_of_the_start(model):
    rename(model, {"start_logits": "x_raw"})
    insert(model, [helper.make_node("Sqrt", ["x_raw"], ["start_logits"])])


def mask_with_infinity(model):
    weight(node_of(model, "Where").input[1], lambda array: np.full_like(array, -np.inf))(model)


def reorder_labels(model):
    rename(model, {"logits": "x_raw"})
    insert(model, [helper.make_node("Gather", ["x_raw", "order"], ["logits"], axis=-1)], {"order": np.array([2, 0, 1])})


def ignore_head_mask(model):
    rename(model, {"head_mask": "x_ones"}, outputs=False)
    insert(model, [helper.make_node("Pow", ["head_mask", "zero"], ["x_ones"])], {"zero": np.float32(0)})


def drop_an_axis(model):
    rename(model, {"start_logits": "x_raw"})
    insert(model, [helper.make_node("Transpose", ["x_raw"], ["start_logits"], perm=[1, 0])])


# What is wrong: the edit, and what the message must say.

DAMAGES = {
    "bias negated": (weight(LAYER.format(1) + ".linear1.bias", np.negative), r"layers\.1\.linear1\.bias"),
    "one element of a bias": (
        weight(LAYER.format(0) + ".self_attn.self_attn.q_proj.bias", one_element),
        r"not the checkpoint's: \S+layers\.0\.self_attn\.self_attn\.q_proj\.bias \(1 of 38, limit 0\);.*Export again",
    ),
    "one element of a norm": (weight("ernie_m.embeddings.layer_norm.weight", one_element), r"embeddings\.layer_norm"),
    "NaN in a weight": (
        weight("qa_outputs.bias", lambda array: array * np.nan),
        r"qa_outputs\.bias \(1 of 38, limit 0\);.*NaN or infinite",
    ),
    "query off by 0.1 %": (
        weight(LAYER.format(0) + ".self_attn.self_attn.q_proj.weight.T", lambda array: array * np.float32(1.001)),
        r"layers\.0\.self_attn\.self_attn\.q_proj\.weight",
    ),
    "bias of the keys, which cancels out": (
        weight(LAYER.format(0) + ".self_attn.self_attn.k_proj.bias", np.negative),
        r"computes: these weights are not the checkpoint's: \S+k_proj\.bias \(1 of 38, limit 0\)\. Export again",
    ),
    "embedding that no batch looks up": (
        weight("ernie_m.embeddings.word_embeddings.weight", padding_embedding),
        r"these weights are not the checkpoint's: ernie_m\.embeddings\.word_embeddings\.weight",
    ),
    "positions off by 0.1 %": (
        weight("ernie_m.embeddings.position_embeddings.weight", lambda array: array * np.float32(1.001)),
        r"embeddings\.position_embeddings\.weight",
    ),
    "outputs swapped": (swap_outputs, "start_logits carries the values of end_logits"),
    "no mask": (attend_to_all, "Only batches with padding fail .*attention mask"),
    "mask for padding on the right only": (
        count_the_mask,
        r"Only batches with padding fail \(padding in between, padding on the left\).*attention mask",
    ),
    "mask of minus infinity": (mask_with_infinity, "NaN.*Only rows that are all padding.*finite"),
    "positions count the mask": (positions_from_the_mask, "Only batches with padding fail"),
    "positions shifted by one": (shift_positions(-1), "first in the embeddings"),
    "positions off the table": (shift_positions(2), "cannot run the case 'the longest row': .*Gather"),
    "rows depend on each other": (subtract_the_batch_mean, "changes with the padding and the rows beside it"),
    "norm without epsilon's size": (attribute("LayerNormalization", epsilon=1e-3), "first in the embeddings"),
    "gelu by tanh": (attribute("Gelu", approximate="tanh"), "first in the feed-forward part of layer 0"),
    "a layer is missing": (drop_the_last_layer, r"it has no ernie_m\.encoder\.layers\.1\.norm1"),
    "query and value swapped": (swap_query_and_value, "first in the self-attention of layer 0"),
    "NaN in an output": (root_of_the_start, r"start_logits.*NaN.*after the encoder"),
    "axes swapped": (drop_an_axis, r"start_logits of shape \(13, 1\).*expected \(1, 13\)"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_wrong_graph_is_stopped_and_named(name, exported, damaged):
    edit, message = DAMAGES[name]
    artifact = exported("qa")
    with pytest.raises(ParityError, match=message) as caught:
        check_parity(damaged(artifact, edit), artifact.model)
    assert str(caught.value).startswith("qa.onnx ")
    assert caught.value.report is None or caught.value.report["passed"] is False


@pytest.mark.parametrize("head", ["cls", "ner"])
def test_labels_in_another_order(head, exported, damaged):
    artifact = exported(head)
    with pytest.raises(ParityError, match=r"columns of logits are in another order.*\[1, 2, 0\].*") as caught:
        check_parity(damaged(artifact, reorder_labels), artifact.model)
    assert "decisions are the same" in str(caught.value)


def test_head_mask_that_does_nothing(exported, damaged):
    artifact = exported("qa", head_mask=True)
    with pytest.raises(ParityError, match="first in the self-attention of layer 0"):
        check_parity(damaged(artifact, ignore_head_mask), artifact.model)


def test_epsilon_shows_where_embeddings_are_as_small_as_trained_ones(exported, damaged):
    artifact = exported("qa")
    model = copy.deepcopy(artifact.model)
    tables = ("ernie_m.embeddings.word_embeddings.weight", "ernie_m.embeddings.position_embeddings.weight")
    with torch.no_grad():
        for name in tables:
            model.get_parameter(name).mul_(0.02)

    def edit(graph, epsilon):
        for name in tables:
            weight(name, lambda array: array * np.float32(0.02))(graph)
        attribute("LayerNormalization", epsilon=epsilon)(graph)

    with pytest.raises(ParityError, match="first in the embeddings"):
        check_parity(damaged(artifact, lambda graph: edit(graph, 1e-12)), model)


def test_other_names_are_no_excuse(exported, damaged):
    artifact = exported("qa")

    def edit(graph):
        for tensor in graph.graph.initializer:
            rename(graph, {tensor.name: f"w_{tensor.name}"})
            tensor.name = f"w_{tensor.name}"

    with pytest.raises(ParityError, match="no weight was compared"):
        check_parity(damaged(artifact, edit), artifact.model)


@pytest.mark.parametrize("keep_the_right_one", [False, True])
def test_one_other_name_is_no_excuse(keep_the_right_one, exported, damaged):
    """An embedding that no batch looks up is changed, in a table under another name."""
    artifact = exported("qa")
    table = "ernie_m.embeddings.word_embeddings.weight"

    def edit(graph):
        right = next(tensor for tensor in graph.graph.initializer if tensor.name == table)
        original = copy.deepcopy(right)
        weight(table, padding_embedding)(graph)
        rename(graph, {table: "table"})
        right.name = "table"
        if keep_the_right_one:
            graph.graph.initializer.append(original)

    with pytest.raises(ParityError, match=f"weights of the checkpoint are not in the graph: {table}") as caught:
        check_parity(damaged(artifact, edit), artifact.model)
    assert caught.value.report is not None
    assert caught.value.report["weights"]["missing"] == (table,)


def test_what_the_graph_has_no_use_for_may_be_missing(exported):
    for head, flags, count in (("ie", {}, 2), ("base", {"inputs_embeds": True}, 1)):
        artifact = exported(head, **flags)
        weights = check_parity(artifact.path, artifact.model).weights
        assert weights.missing == ()
        assert weights.compared == len(artifact.model.state_dict()) - count


def test_one_label_leaves_nothing_to_decide(export_model, make_model):
    for head, problem_type, decides in (
        ("ner", None, False),
        ("cls", "regression", False),
        ("cls", "multi_label_classification", True),
    ):
        artifact = export_model(head, make_model(head, num_labels=1, problem_type=problem_type))
        report = check_parity(artifact.path, artifact.model)
        assert report.decides is decides
        assert (report.agreement.compared > 0) is decides


def test_a_row_that_cannot_run_alone_is_named(exported, monkeypatch):
    artifact = exported("qa")
    run = parity.Session.run

    def fail(session, feeds):
        if feeds["input_ids"].shape == (1, 5):
            raise EngineError("out of memory")
        return run(session, feeds)

    monkeypatch.setattr(parity.Session, "run", fail)
    with pytest.raises(ParityError, match="cannot run the case 'padding on the right, row 2 alone': out of memory"):
        check_parity(artifact.path, artifact.model)


def test_a_probe_that_fails_loses_no_finding(exported, damaged, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such graph")

    monkeypatch.setattr(diagnosis, "open_session", fail)
    artifact = exported("qa")
    path = damaged(artifact, attribute("Gelu", approximate="tanh"))
    with pytest.raises(ParityError, match="the graph itself differs\\. Export again") as caught:
        check_parity(path, artifact.model)
    assert caught.value.report is not None


def test_untouched_copy_passes(exported, damaged):
    """The way in which copies are edited is not what the gate finds."""
    artifact = exported("qa")
    report = check_parity(damaged(artifact, lambda _: None), artifact.model)
    assert report.failures() == []
    assert report.agreement.compared == report.agreement.agreed > 50


def test_margins(head, exported):
    """What rounding alone makes stays ten times below every threshold."""
    artifact = exported(head)
    report = check_parity(artifact.path, artifact.model)
    assert 0 < report.worst()[2] < 0.1
    assert all(difference.excess(report.limits.alone) < 0.1 for difference in report.invariance.values())
    assert set(report.invariance) == {spec.name for spec in artifact.manifest.outputs}


def test_int8_by_the_range_of_a_batch_is_stopped_by_rows_alone(export_model, make_model, damaged):
    """Dynamic int8 passes what the precision may cost, and a text's answer depends on its batch."""
    model = make_model("ner")
    with torch.no_grad():
        for layer in model.ernie_m.encoder.layers:
            layer.norm1.weight[3] *= 10  # as trained norms have it
    path = damaged(export_model("ner", model), one_scale_for_the_batch)
    manifest = Manifest.load(path.with_suffix(".json"))
    dataclasses.replace(manifest, precision={"weights": "int8", "embedding": "fp32"}).save(path.with_suffix(".json"))
    row = r"ner\.onnx does not compute what the PyTorch model computes: logits of a row changes with the padding"
    with pytest.raises(ParityError, match=row + r".*relative L2 \S+ \(limit 3\.2e-02\).*A row alone differs") as caught:
        check_parity(path, model)
    assert caught.value.report is not None
    assert caught.value.report["thresholds"]["alone_cosine"] == 0.9995


@pytest.mark.parametrize("change", ["truncated", "edited"])
def test_damaged_file_is_named(change, exported, damaged):
    artifact = exported("qa")
    path = damaged(artifact, lambda _: None)
    data = Path(f"{path}.data")
    content = bytearray(data.read_bytes())
    if change == "truncated":
        del content[-100:]
    else:
        content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"qa\.onnx\.data"):
        check_parity(path, artifact.model)


def test_no_cases_is_a_failure(exported, monkeypatch):
    artifact = exported("qa")
    monkeypatch.setattr(parity, "build_cases", lambda *_: [])
    with pytest.raises(ParityError, match="nothing was compared"):
        check_parity(artifact.path, artifact.model)


def test_no_row_alone_is_a_failure(exported, monkeypatch):
    artifact = exported("qa")
    every = parity.build_cases
    monkeypatch.setattr(parity, "build_cases", lambda *args: every(*args)[:1])
    with pytest.raises(ParityError, match="nothing was compared"):
        check_parity(artifact.path, artifact.model)


def as_a_plan(session, precision):
    """Let the session say that it runs a plan in another precision."""
    plan = SimpleNamespace(precision={"weights": precision, "embedding": precision})
    session.engine, session.manifest = "tensorrt", dataclasses.replace(session.manifest, plan=plan)


def judged_as(precision):
    """Open an artifact in float32 as one in another precision."""

    @contextlib.contextmanager
    def opened(path):
        with Session(path) as session:
            as_a_plan(session, precision)
            yield session

    return opened


def with_head(artifact, **config):
    """The model and the edit of its graph for another classifier: its ``scale`` and its ``bias``."""
    model = copy.deepcopy(artifact.model)
    scale, bias = np.float32(config["scale"]), np.float32(config["bias"])
    with torch.no_grad():
        model.classifier.weight.mul_(float(scale))
        model.classifier.bias.mul_(float(scale)).add_(float(bias))

    def edit(graph):
        weight("classifier.weight", lambda array: array * scale)(graph)
        weight("classifier.bias", lambda array: array * scale + bias)(graph)

    return model, edit


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("scale", "bias", "decides"), [(0.0, 0.0, False), (1e-2, 0.0, True), (1.0, 1990.0, None)], ids=str
)
def test_what_cannot_be_decided_is_no_failure(precision, scale, bias, decides, exported, damaged):
    artifact = exported("cls")
    model, edit = with_head(artifact, scale=scale, bias=bias)
    report = check_parity(damaged(artifact, edit), model, open_session=judged_as(precision))
    assert report.agreement.agreed == report.agreement.compared
    if decides is not None:
        assert bool(report.agreement.compared) is decides


def test_several_numbers_are_no_choice(exported, damaged):
    artifact = exported("cls")
    model, edit = with_head(artifact, scale=1.0, bias=1990.0)
    path = damaged(artifact, edit)
    manifest = path.with_suffix(".json")
    dataclasses.replace(Manifest.load(manifest), problem_type="regression").save(manifest)
    report = check_parity(path, model, open_session=judged_as("fp16"))
    assert not report.agreement.compared
    assert report.to_json()["decisions"] is None


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("name", ["no mask", "outputs swapped", "bias negated", "mask for padding on the right only"])
def test_a_lower_precision_excuses_no_wrong_graph(precision, name, exported, damaged):
    artifact = exported("qa")
    with pytest.raises(ParityError) as caught:
        check_parity(damaged(artifact, DAMAGES[name][0]), artifact.model, open_session=judged_as(precision))
    assert "costs this model" not in str(caught.value)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_small_logits_in_another_order_are_wrong_decisions(precision, exported, damaged):
    artifact = exported("cls")
    model, edit = with_head(artifact, scale=1e-2, bias=0.0)
    path = damaged(artifact, lambda graph: (edit(graph), reorder_labels(graph)))
    with pytest.raises(ParityError, match="decisions are the same"):
        check_parity(path, model, open_session=judged_as(precision))


def test_a_narrow_miss_of_a_lower_precision_is_not_blamed_on_the_mask(exported, monkeypatch):
    artifact = exported("base")

    @contextlib.contextmanager
    def opened(path):
        with judged_as("int8")(path) as session:
            run = session.run

            def rounded(feeds):
                found = run(feeds)
                if not feeds.get("attention_mask", np.ones(1)).all():
                    found["pooler_output"].flat[0] += 0.5
                return found

            monkeypatch.setattr(session, "run", rounded)
            monkeypatch.setattr(parity, "_INVARIANCE_CASE", "equal lengths")
            yield session

    with pytest.raises(ParityError, match=r"int8 costs this model more.*--calibration") as caught:
        check_parity(artifact.path, artifact.model, open_session=opened)
    assert "mask" not in str(caught.value)


def test_reference_that_is_nan_is_a_failure(exported):
    artifact = exported("qa")
    model = copy.deepcopy(artifact.model)
    with torch.no_grad():
        model.qa_outputs.bias[0] = float("nan")
    with pytest.raises(ParityError, match="PyTorch model itself yields NaN or infinity in start_logits"):
        check_parity(artifact.path, model)


def test_diagnosis_runs_on_failure_only(exported, monkeypatch):
    artifact = exported("qa")
    monkeypatch.setattr(parity, "diagnose", lambda *_: pytest.fail("diagnosed"))
    assert check_parity(artifact.path, artifact.model).limits == THRESHOLDS["fp32"]


def test_a_plan_is_judged_by_its_own_precision_and_the_weights_by_the_graphs(exported, monkeypatch):
    artifact = exported("qa")

    @contextlib.contextmanager
    def opened(path):
        with Session(path) as session:
            as_a_plan(session, "fp16")
            yield session

    compare, asked = parity.compare_weights, []
    monkeypatch.setattr(parity, "compare_weights", lambda *args: (asked.append(args[2]), compare(*args))[1])
    report = check_parity(artifact.path, artifact.model, open_session=opened)
    assert (report.precision, report.limits.largest) == ("fp16", THRESHOLDS["fp16"].largest)
    assert asked == [artifact.manifest.precision]
    assert artifact.manifest.precision["weights"] == "fp32"
