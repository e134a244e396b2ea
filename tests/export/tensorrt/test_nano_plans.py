"""Plans of every head of nano, built by TensorRT for RTX without a GPU: what is in them and in their manifests."""

from pathlib import Path

import pytest

from erniem_export.tensorrt.builder import load_library
from erniem_rt.files import hash_file
from erniem_rt.manifest import HEADS

NANO = Path(__file__).parents[3] / "examples" / "nano" / "checkpoints"
PRECISIONS = ("fp32", "fp16", "int8")
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "HALF"}
BUILT = [*((head, precision) for precision in PRECISIONS for head in HEADS), ("qa", "bf16")]
LAYERS = 4
MAGIC = b"vtrt"  # how every plan of TensorRT for RTX begins
LENGTH = slice(16, 24)  # of the header: the size of the plan
RELEASE = slice(24, 28)
GPU_NEEDED = 2 | 4 | 8 | 16 | 64  # what EngineInvalidityDiagnostics says of the machine, not of the header

pytestmark = pytest.mark.slow


@pytest.fixture(params=BUILT, ids="-".join)
def built(request, planned):
    head, precision = request.param
    artifact, manifest = planned(head, precision)
    return artifact, manifest, precision


def test_the_plan_is_described_as_it_is(built, rtx, small_profile):
    artifact, manifest, _ = built
    plan = manifest.plan
    manifest.verify(artifact.parent)
    file = artifact.with_suffix(".plan")
    assert manifest.files[file.name] == hash_file(file)
    assert (plan.file, plan.flavour, plan.version) == (file.name, "tensorrt-rtx", rtx.__version__)
    assert plan.precision == manifest.precision
    assert plan.profiles == (small_profile(manifest.head),)
    assert plan.compute_capabilities == ("8.6", "8.9", "12.0", "12.1")
    assert plan.build["bytes"] == file.stat().st_size


def test_every_product_is_proven_to_compute_in_what_was_asked_for(built):
    _, manifest, precision = built
    proof = manifest.plan.proof
    assert proof["products"] == {TYPES[precision]: 6 * LAYERS}
    assert proof["outputs"] == dict.fromkeys(HEADS[manifest.head].outputs, "FLOAT")
    if precision == "int8":
        assert proof["int8"] == {"weights": 6 * LAYERS, "inputs": 0}
        assert proof["weight_bytes"]["INT8"] == LAYERS * (4 * 96 * 96 + 2 * 96 * 288)
    else:
        assert max(proof["weight_bytes"], key=proof["weight_bytes"].get) == TYPES[precision]


def test_attention_is_one_kernel_where_there_is_one(built):
    _, manifest, precision = built
    attention = manifest.plan.attention
    assert attention["form"] == ("MatMul-Softmax-MatMul" if precision == "fp32" else "Attention")
    assert attention["layers"] == LAYERS
    assert "trial build" in attention["reason"]


def test_the_graph_that_was_built_from_passed_the_gate_and_the_engine_is_said_not_to_have_run(built):
    _, manifest, _ = built
    parity = manifest.plan.parity
    assert parity["engine"].startswith("built, not run")
    assert len(parity["graph"]) == (1 if manifest.precision["weights"] in ("fp32", "bf16") else 2)
    assert all(report["passed"] and report["weights"]["compared"] for report in parity["graph"].values())


def test_the_header_is_one_that_the_runtime_reads(built, rtx):
    artifact, manifest, _ = built
    content = artifact.with_suffix(".plan").read_bytes()
    assert content.startswith(MAGIC)
    assert int.from_bytes(content[LENGTH], "little") == len(content)
    runtime = rtx.Runtime(load_library("tensorrt-rtx").logger)
    header = bytearray(content[: runtime.engine_header_size])

    def found_in(header):
        return runtime.get_engine_validity(bytes(header))[1]

    # Without a driver the validity cannot be had, but what is wrong with a header can.
    assert found_in(header) & ~GPU_NEEDED == 0
    assert found_in(b"\0" * len(header)) == int(rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    assert header[RELEASE] == bytes(int(part) for part in manifest.plan.version.split("."))


def test_an_artifact_with_a_plan_is_verified(planned, erniem_verify):
    """In half precision the gate writes a graph of its own, which has no plan."""
    artifact, _ = planned("qa", "fp16")
    result = erniem_verify(artifact, "--model", NANO / "qa").ok()
    assert result.out.splitlines()[-1].endswith("passed")
