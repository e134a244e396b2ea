"""Every head of nano passes the gate in int8, as a CPU with VNNI computes it and as one without, on any machine."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from erniem_export import pipeline
from erniem_export.checkpoint import load_checkpoint
from erniem_export.gate.parity import check_parity
from erniem_export.onnx_export import write
from erniem_export.options import ExportOptions, Int8, Precision
from erniem_export.passes.rewriter import Rewriter
from erniem_export.pipeline import export
from erniem_export.progress import Terminal
from erniem_export.quantization import quantize
from erniem_export.quantization.quantize import Quantization, quantize_encoder
from erniem_rt import Session, machine
from erniem_rt.files import hash_file
from erniem_rt.manifest import HEADS, Manifest

CHECKPOINTS = Path(__file__).parents[3] / "examples" / "nano" / "checkpoints"

pytestmark = pytest.mark.slow


def emulate(graph, cpu):
    """Replace products in int8 by what a CPU of this class computes, in float32; return how many.

    With VNNI sums are exact. Without, each pair of neighbouring products is added in 16 bits, which saturate.
    """

    def stored(name, array):
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(value)
        return value

    nodes = [node for node in graph if node.op_type == "MatMulIntegerToFloat"]
    for node in nodes:
        steps, weight, scale, scales, zero, _, bias = node.inputs
        name, integers = node.name, weight.const_value.numpy().astype(np.float32)
        offset = zero.const_value.numpy().astype(np.float32) * integers.sum(0)
        rewriter = Rewriter(graph)
        entering = rewriter.op("Cast", steps, name=f"{name}.wide", to=ir.DataType.FLOAT)
        if cpu == "vnni":
            total = rewriter.op("MatMul", entering, stored(f"{name}.weight.wide", integers), name=f"{name}.total")
        else:
            count, width = len(integers) // 2, integers.shape[1]
            split = rewriter.op(
                "Reshape", entering, stored(f"{name}.shape", np.array([-1, count, 2])), name=f"{name}.split"
            )
            pairs = rewriter.op("Transpose", split, name=f"{name}.pairs", perm=[1, 0, 2])
            matrices = stored(f"{name}.weight.pairs", integers.reshape(count, 2, width))
            sums = rewriter.op("MatMul", pairs, matrices, name=f"{name}.sums")
            ends = [stored(f"{name}.{end}", np.array(end, dtype=np.float32)) for end in (-32768, 32767)]
            held = rewriter.op("Clip", sums, *ends, name=f"{name}.held")
            axis = stored(f"{name}.axis", np.array([0]))
            flat = rewriter.op("ReduceSum", held, axis, name=f"{name}.flat", keepdims=0)
            shape = rewriter.op("Shape", steps, name=f"{name}.rows", start=0, end=-1)
            wide = stored(f"{name}.width", np.array([width]))
            whole = rewriter.op("Concat", shape, wide, name=f"{name}.whole", axis=0)
            total = rewriter.op("Reshape", flat, whole, name=f"{name}.total")
        moved = rewriter.op("Sub", total, stored(f"{name}.offset", offset), name=f"{name}.moved")
        step = stored(f"{name}.step", scale.const_value.numpy() * scales.const_value.numpy())
        scaled = rewriter.op("Mul", moved, step, name=f"{name}.scaled")
        result = rewriter.op("Add", scaled, bias, name=f"{name}.result")
        rewriter.insert_before(node)
        ir.convenience.replace_all_uses_with(node.outputs[0], result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    return len(nodes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """``exported(head, cpu)``: the artifact, and its emulation beside a manifest.

    nano's heads have one encoder and one calibration text, so each class is quantized once.
    """
    folder = tmp_path_factory.mktemp("nano-int8")
    done = {}
    written = {}

    def once(model, *arguments, form, mask_mode):
        prefix = "" if type(model).__name__ == "ErnieMModel" else "ernie_m."
        if form not in done:
            done[form] = quantize_encoder(model, *arguments, form=form, mask_mode=mask_mode)
        products = {}
        for product in done[form].products.values():
            name = prefix + product.name.removeprefix("ernie_m.")
            products[name] = dataclasses.replace(product, name=name)
        return Quantization(products, done[form].error)

    def make(head, cpu):
        if (head, cpu) in written:
            return written[head, cpu]
        target = folder / cpu / head
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quantize, "quantize_encoder", once)
            patch.setattr(quantize, "cpu_for", lambda options, _target: options.cpu)
            patch.setattr(pipeline, "judge", lambda artifact, *_, **__: {artifact.name: {"passed": True}})
            artifact, manifest = export(
                ExportOptions(
                    model=str(CHECKPOINTS / head), head=head, output=target, precision=Precision("int8"), int8=Int8(cpu)
                ),
                Terminal(),
            )
        graph = ir.load(artifact)
        assert emulate(graph.graph, cpu) == 24
        emulated = target / "emulated" / artifact.name
        emulated.parent.mkdir()
        write(graph, emulated)
        files = {file.name: hash_file(file) for file in emulated.parent.iterdir()}
        dataclasses.replace(manifest, files=files).save(emulated.with_suffix(".json"))
        written[head, cpu] = artifact, emulated
        return artifact, emulated

    return make


@pytest.mark.filterwarnings("ignore:this artifact was exported for a CPU with VNNI")  # which is emulated
@pytest.mark.parametrize(
    ("head", "cpu"), [*((head, "vnni") for head in HEADS), ("base", "avx2"), ("ner", "avx2")]
)  # the heads share an encoder
def test_every_head_passes_the_gate(exported, head, cpu):
    artifact, emulated = exported(head, cpu)
    checkpoint = load_checkpoint(str(CHECKPOINTS / head), head)
    report = check_parity(
        artifact, checkpoint.model, tokenizer_dir=checkpoint.tokenizer_dir, open_session=lambda _: Session(emulated)
    )
    assert report.weights.compared


def test_what_is_emulated_is_what_this_machine_computes(exported):
    vnni = machine.has_vnni()
    if vnni is None:
        pytest.skip("whether this CPU has VNNI cannot be told")
    artifact, emulated = exported("ie", "vnni" if vnni else "avx2")
    limits = Manifest.load(artifact.with_suffix(".json")).limits
    ids = np.random.default_rng(3).integers(5, limits.vocab_size, (4, 60))
    with Session(artifact) as session, Session(emulated) as expected:
        for name, values in session.run(input_ids=ids).items():
            np.testing.assert_allclose(values, expected.run(input_ids=ids)[name], rtol=1e-3, atol=1e-3)
