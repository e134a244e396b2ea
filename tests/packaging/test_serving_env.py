"""The wheel in an environment with numpy and onnxruntime alone: it answers, and says what is not there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from erniem_rt.files import hash_file
from erniem_rt.manifest import HEADS, Limits, Manifest, TensorSpec

LABELS = ("entailment", "neutral", "contradiction")
VOCABULARY, HIDDEN, MAX_LENGTH = 50, 8, 16
ABSENT = ("torch", "transformers", "onnx", "onnxscript", "safetensors", "sentencepiece", "pytest")


def run(binaries: Path, code: str, *arguments: str, cwd: Path) -> str:
    """Standard output of ``code`` in the serving environment, warnings being errors."""
    command = [str(binaries / "python"), "-I", "-W", "error", "-c", code, *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "table": rng.normal(size=(VOCABULARY, HIDDEN)).astype(np.float32),
        "classifier": rng.normal(size=(HIDDEN, len(LABELS))).astype(np.float32),
    }


@pytest.fixture(scope="module")
def artifact(weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier, exported as erniem-export would: the sum of the attended embeddings, then a product."""
    folder = tmp_path_factory.mktemp("artifact")
    rows = ("batch", "sequence")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Unsqueeze", ["attention_mask", "last"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["scale"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["embedded", "scale"], ["attended"]),
        helper.make_node("ReduceSum", ["attended", "second"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "classifier"], ["logits"]),
    ]
    constants = {**weights, "last": np.array([-1]), "second": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(name, TensorProto.INT64, rows) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", len(LABELS)))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "cls.onnx", save_as_external_data=True, location="cls.onnx.data", size_threshold=64)
    Manifest(
        head="cls",
        task=HEADS["cls"].task,
        labels=LABELS,
        problem_type="single_label_classification",
        limits=Limits(MAX_LENGTH, VOCABULARY, 1),
        inputs=tuple(TensorSpec(name, "int64", rows) for name in ("input_ids", "attention_mask")),
        outputs=(TensorSpec("logits", "float32", ("batch", len(LABELS))),),
        precision={"weights": "fp32", "embedding": "fp32"},
        opset=20,
        target="any",
        artifact="cls.onnx",
        files={name: hash_file(folder / name) for name in ("cls.onnx", "cls.onnx.data")},
        checkpoint={},
        versions={},
        engine=None,
        parity={},
    ).save(folder / "cls.json")
    return folder / "cls.onnx"


def test_the_environment_lacks_what_it_should(serving_environment, tmp_path):
    code = (
        "import importlib.util, json, sys; print(json.dumps([n for n in sys.argv[1:] if importlib.util.find_spec(n)]))"
    )
    assert json.loads(run(serving_environment, code, *ABSENT, cwd=tmp_path)) == []
    # The same probe finds what is there.
    present = ["erniem_rt", "numpy", "onnxruntime"]
    assert json.loads(run(serving_environment, code, *present, cwd=tmp_path)) == present


def test_every_module_of_the_runtime_imports(serving_environment, tmp_path, root):
    code = """
import importlib, json, pkgutil
import erniem_rt
names = [module.name for module in pkgutil.walk_packages(erniem_rt.__path__, "erniem_rt.")]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""
    package = root / "erniem_rt"
    paths = [path.relative_to(root).with_suffix("") for path in package.rglob("*.py")]
    expected = {".".join(path.parts).removesuffix(".__init__") for path in paths} - {"erniem_rt"}
    assert set(json.loads(run(serving_environment, code, cwd=tmp_path))) == expected


def test_a_session_answers(serving_environment, artifact, weights, tmp_path):
    code = """
import json, sys
import erniem_rt
ids, mask = json.loads(sys.argv[2])
with erniem_rt.Session(sys.argv[1]) as session:
    logits = session.run(input_ids=ids, attention_mask=mask)["logits"]
print(json.dumps([str(logits.dtype), logits.tolist()]))
"""
    ids = np.array([[0, 7, 9, 2], [0, 4, 2, 1]])
    mask = np.array([[1, 1, 0, 1], [1, 1, 1, 0]])
    inputs = json.dumps([ids.tolist(), mask.tolist()])
    dtype, logits = json.loads(run(serving_environment, code, str(artifact), inputs, cwd=tmp_path))
    expected = np.einsum("bsh,bs->bh", weights["table"][ids], mask) @ weights["classifier"]
    assert dtype == "float32"
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_a_tokenizer_without_sentencepiece_names_the_extra(serving_environment, tmp_path):
    (tmp_path / "sentencepiece.bpe.model").touch()
    code = """
import erniem_rt
try:
    erniem_rt.Tokenizer.from_dir(".")
except erniem_rt.EngineUnavailableError as error:
    print(error)
"""
    message = run(serving_environment, code, cwd=tmp_path)
    assert "sentencepiece" in message
    assert 'pip install "erniem-rt[text]"' in message


def test_an_application_without_ray_names_the_extra(serving_environment, tmp_path):
    code = """
from erniem_rt import EngineUnavailableError, ray
try:
    ray.application("out")
except EngineUnavailableError as error:
    print(error)
"""
    assert run(serving_environment, code, cwd=tmp_path).strip() == (
        'erniem_rt.ray.application needs Ray Serve: pip install "erniem-rt[ray]".'
    )


@pytest.mark.parametrize("command", ["erniem-export", "erniem-verify", "erniem-convert"])
def test_help_of_the_commands(command, serving_environment, tmp_path):
    arguments = [str(serving_environment / command), "--help"]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {command} ")


def test_export_without_torch_names_the_extra(serving_environment, tmp_path):
    command = [str(serving_environment / "erniem-export"), "--model", "random:tiny", "--head", "cls", "--output", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert 'pip install "erniem-rt[export]"' in error
    assert not list(tmp_path.iterdir())
