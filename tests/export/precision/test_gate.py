"""The gate in every precision: rounding is judged by the model's own, and a wrong graph is caught whatever it costs."""

import copy
import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch

from erniem_export import cli, pipeline
from erniem_export.bundle import build_manifest, files_of
from erniem_export.checkpoint import Checkpoint
from erniem_export.errors import ParityError, PrecisionError
from erniem_export.gate.cases import build_cases
from erniem_export.gate.diagnosis import Rounding, sensitive_parts
from erniem_export.gate.measures import THRESHOLDS, measure, widened
from erniem_export.gate.parity import judge
from erniem_export.onnx_export import write
from erniem_export.options import GraphOptions, Int8, Precision
from erniem_export.passes.precision import HALF_TYPES, apply_precision
from erniem_export.pipeline import optimize_for
from erniem_export.progress import Terminal
from erniem_export.quantization import quantize
from erniem_rt.manifest import Limits

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
HALVES = ("fp16", "bf16")
LAYER = "ernie_m.encoder.layers.1."


def sharper(parameters):
    """Attention with higher peaks than the fixed thresholds were found on."""
    for name, parameter in parameters.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter *= 2


def no_damage(graph):
    """Leave it as it is."""


def mask_of_ones(graph):
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    same = ir.node("Equal", [mask, mask], name="x_same")
    ones = ir.node("Cast", [same.outputs[0]], {"to": ir.DataType.INT64}, name="x_ones")
    for node, name, dtype in ((same, "x_same", ir.DataType.BOOL), (ones, "x_mask", ir.DataType.INT64)):
        node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, dtype, mask.shape
    for use in [use for use in mask.uses() if use.node is not same]:
        use.node.replace_input_with(use.idx, ones.outputs[0])
    graph.insert_before(graph[0], [same, ones])


def no_bias(graph):
    fused = [node for node in graph if node.op_type == "MatMulIntegerToFloat"]
    if fused:
        node = next(node for node in fused if LAYER + "linear1" in str(node.inputs[1].name))
        node.replace_input_with(6, None)
        return
    bias = graph.initializers[LAYER + "linear1.bias"]
    node = next(iter(bias.uses())).node
    (product,) = (value for value in node.inputs if value is not bias)
    ir.convenience.replace_all_uses_with(node.outputs[0], product)
    graph.remove(node, safe=True)


def swapped_outputs(graph):
    first, second = graph.outputs
    first.name, second.name = "x_first", "x_second"
    first.name, second.name = "end_logits", "start_logits"
    graph.outputs[:] = [second, first]


DAMAGES = {
    mask_of_ones: "attention mask|padding",
    no_bias: "linear1",
    swapped_outputs: "the outputs are swapped",
}


@pytest.fixture
def artifact(tmp_path, graph_of):
    """Write the artifact of a model in a precision, for the target that is its default."""

    def make(model, precision, damage=no_damage, head="qa"):
        graph, options = graph_of(model, head), GraphOptions()
        engine = optimize_for(
            "onnxruntime-cuda" if precision in HALF_TYPES else "onnxruntime-cpu", graph, head, 2, options
        )
        packed = bool(engine and engine.pop("packed"))
        checkpoint = Checkpoint(model, head, "test", model.config.to_json_string(use_diff=False), None)
        manifest = build_manifest(checkpoint, options, tmp_path)
        if precision == "int8":
            limits = Limits(64, model.config.vocab_size, 1)
            done = quantize.quantize(graph, checkpoint, tmp_path, Int8("avx2"), limits, Terminal(quiet=True))
            engine = {**(engine or {}), "int8": done}
        cases = build_cases(manifest, None, seed=1)
        facts = apply_precision(graph, Precision(precision), cases, tmp_path)
        damage(graph.graph)
        path = tmp_path / f"{head}.onnx"
        write(graph, path)
        files = files_of(tmp_path)
        manifest = dataclasses.replace(manifest, precision=facts, files=files, engine=engine, packed=packed)
        manifest.save(path.with_suffix(".json"))
        return path

    return make


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_wrong_graph_is_caught_in_every_precision(precision, damage, artifact, small_model):
    model = small_model("qa", sharper)
    with pytest.raises(ParityError, match=DAMAGES[damage]) as caught:
        judge(artifact(model, precision, damage), model)
    assert not isinstance(caught.value, PrecisionError), "rounding is not to blame"
    assert "costs this model" not in str(caught.value)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("head", ["base", "mc", "ie"])
def test_what_rounding_costs_the_model_itself_is_allowed(head, precision, artifact, small_model):
    model = small_model(head, sharper)
    report = judge(artifact(model, precision, head=head), model)[f"{head}.onnx"]
    fixed = THRESHOLDS[precision]
    assert report["passed"]
    assert report["without_rounding"]["relative_l2"] < THRESHOLDS["fp32"].relative_l2
    assert report["thresholds"]["cosine"] < fixed.cosine or report["thresholds"]["relative_l2"] > fixed.relative_l2


def test_the_allowance_has_a_floor_and_a_cap():
    ones, fixed = np.ones(100), THRESHOLDS["fp16"]
    halves = {"weights": "fp16", "embedding": "fp16"}
    assert widened(fixed, halves, [measure(ones, ones)]) == fixed
    assert widened(fixed, halves, [measure(ones * np.nan, ones)]) == fixed, "what overflows allows nothing"
    far = widened(fixed, halves, [measure(-ones, ones)])
    assert (far.largest, far.relative_l2, far.cosine) == (0.1, 0.05, 0.998)


@pytest.mark.parametrize("precision", HALVES)
def test_pytorch_s_rounding_is_that_of_the_type(precision, small_model, feeds):
    """As far from float32 as the model run in that type, within a factor; norms and sums are rounded there too."""
    model = small_model("ner")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    attend = given["attention_mask"].bool()
    with torch.no_grad():
        exact = model(**given).logits[attend]
        whole = copy.deepcopy(model).to(dtype)(**given).logits[attend].float()
        with Rounding(model, {"weights": precision, "embedding": precision}):
            ours = model(**given).logits[attend]
        again = model(**given).logits[attend]
    assert torch.equal(again, exact)
    errors = [float((found - exact).norm()) for found in (ours, whole)]
    assert 0.2 * errors[1] < errors[0] < 1.5 * errors[1]


def test_the_parts_that_round_most_are_kept_first(small_model, tmp_path):
    def steep(parameters):
        parameters["ernie_m.encoder.layers.0.self_attn.self_attn.q_proj.weight"] *= 8

    model, halves = small_model("cls", steep), {"weights": "fp16", "embedding": "fp16"}
    manifest = build_manifest(Checkpoint(model, "cls", "test", "{}", None), GraphOptions(), tmp_path)
    cases = build_cases(manifest, None, seed=1)[:4]
    assert sensitive_parts(model, halves, cases, 0.5) == ["encoder.layers.0.self_attn"]
    assert len(sensitive_parts(model, halves, cases, 1.0)) == 4


def test_an_export_keeps_parts_in_fp32_until_the_gate_holds(write_checkpoint, erniem_export, tmp_path, monkeypatch):
    judged, tried = pipeline.judge, []

    def strict(path, *arguments, **options):
        tried.append(path)
        if len(tried) < 3:
            raise PrecisionError("ner.onnx in fp16 is too far from the PyTorch model: logits. Take another.")
        return judged(path, *arguments, **options)

    monkeypatch.setattr(pipeline, "judge", strict)
    model = write_checkpoint(tmp_path / "model", "ner")
    result = erniem_export("--model", model, "--fp16", "--output", tmp_path / "out").ok()
    assert len(tried) == 3
    kept = pipeline.Manifest.load(tmp_path / "out" / "ner.json").precision["kept_in_fp32"].split(", ")
    assert result.err.count("is too far from the PyTorch model: logits; so these stay in fp32: encoder.layers.") == 2
    assert f"{len(kept)} matmuls and operations stay in fp32: {kept[0]}, " in result.out
    assert 0 < len([name for name in kept if "proj" in name or "linear" in name]) < 12


def test_an_export_that_rounding_costs_too_much_names_precision_and_remedy(
    write_checkpoint, export_fails, tmp_path, monkeypatch
):
    strict = dataclasses.replace(THRESHOLDS["bf16"], largest=1e-6)
    monkeypatch.setattr("erniem_export.gate.parity.widened", lambda *_: strict)
    message = export_fails(write_checkpoint(tmp_path / "model", "qa"), "--bf16")
    assert message.startswith("qa.onnx in bf16 is too far from the PyTorch model: ")
    assert "in fp32: export with --fp16, or in fp32 (leave out --bf16)." in message
    for wrong in ("graph itself", "versions of torch", "attention mask"):
        assert wrong not in message


@pytest.mark.parametrize("text", [False, True])
def test_int8_that_is_too_far_off_blames_its_calibration(
    text, write_checkpoint, export_fails, tokenizer_dir, tmp_path, monkeypatch
):
    monkeypatch.setitem(THRESHOLDS, "int8", dataclasses.replace(THRESHOLDS["int8"], cosine=0.9999999))
    model = write_checkpoint(tmp_path / "model", "ner")
    if text:
        for file in tokenizer_dir.iterdir():
            (model / file.name).write_bytes(file.read_bytes())
    message = export_fails(model, "--int8")
    assert "cosine 0.9" in message
    assert "(limit 1.000000)" in message
    source = "built-in text, 200 lines" if text else "random ids without a tokenizer"
    assert f"The static scales of int8 were calibrated on {source}: " in message
    assert "--calibration" in message
    assert ("sentencepiece.bpe.model" in message) is not text
    assert "graph itself" not in message


def test_what_stays_in_fp32_is_one_line():
    names = ", ".join(f"encoder.layers.{i}.linear1" for i in range(6))
    assert cli._kept_line({"weights": "fp16"}) == []
    assert cli._kept_line({"kept_in_fp32": names}) == [
        "6 matmuls and operations stay in fp32: encoder.layers.0.linear1, encoder.layers.1.linear1, "
        "encoder.layers.2.linear1, encoder.layers.3.linear1 and 2 more"
    ]
