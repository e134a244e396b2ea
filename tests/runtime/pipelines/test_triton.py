"""``erniem-rt triton`` without Triton: what it writes, and the model for the Python backend on a stand-in."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import erniem_rt
from erniem_rt.cli import main
from erniem_rt.files import hash_file
from erniem_rt.manifest import Manifest, Plan, Profile, TensorSpec
from erniem_rt.triton import TritonPythonModel, _extra


def write(capsys, *words):
    code = main(["triton", *map(str, words)])
    printed = capsys.readouterr()
    assert printed.out == ""
    return code, printed.err


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def settings_of(config):
    return json.loads(json.loads(config.partition("string_value: ")[2].rpartition(" } }")[0]))


def test_a_model_of_texts(capsys, nano_artifact, tmp_path):
    artifact = nano_artifact("cls").parent
    words = ("--repository", tmp_path / "models", "--name", "it", "--instances", 3, "--site-packages", "/opt/it's")
    code, told = write(capsys, artifact, *words, "--options", '{"top_k": 2}')
    target = tmp_path / "models" / "it"
    assert (code, told) == (0, f"{target} needs erniem-rt[ort,text] in Triton's Python\n")
    copied = [f"1/artifact/{path.name}" for path in artifact.iterdir() if path.is_file()]
    assert files_of(target) == sorted(["1/model.py", *copied, "config.pbtxt"])
    config = (target / "config.pbtxt").read_text()
    assert 'name: "it"\nbackend: "python"\nmax_batch_size: 16\n' in config
    assert '{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }' in config
    assert '{ name: "text_pair" data_type: TYPE_STRING dims: [ 1 ] optional: true }' in config
    assert "instance_group [ { count: 3 kind: KIND_CPU } ]" in config
    assert settings_of(config)["options"] == {"threads": 1, "top_k": 2}, "each process has one thread"
    assert """sys.path[:0] = ["/opt/it's"]""" in (target / "1" / "model.py").read_text()
    compile((target / "1" / "model.py").read_text(), "model.py", "exec")
    code, told = write(capsys, artifact, *words)
    assert (code, told) == (1, f"error: {target} exists: give another --name or --repository, or remove it.\n")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["it"]
    assert files_of(tmp_path) == sorted(f"models/it/{path}" for path in files_of(target)), "nothing lies beside it"


def test_a_model_of_arrays(capsys, make_text_artifact, tmp_path):
    artifact = make_text_artifact("mc").path
    code, told = write(capsys, artifact, "--repository", tmp_path, "--name", "it", "--arrays")
    assert (code, told) == (0, f"{tmp_path / 'it'} needs onnxruntime 1.21 or newer, as in Triton 25.03 and later\n")
    assert files_of(tmp_path / "it") == ["1/mc.onnx", "config.pbtxt"]
    config = (
        'name: "{}"\nbackend: "onnxruntime"\ndefault_model_filename: "mc.onnx"\nmax_batch_size: {}\n'
        'input [ {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1, -1 ] }}, '
        '{{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1, -1 ] }} ]\n'
        'output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ -1 ] }} ]\ndynamic_batching {{ }}\n'
    )
    assert (tmp_path / "it" / "config.pbtxt").read_text() == config.format("it", 64)
    limits = ("--instances", 2, "--threads", 3, "--max-batch", 8)
    assert write(capsys, artifact, "--repository", tmp_path, "--name", "limited", "--arrays", *limits)[0] == 0
    assert (tmp_path / "limited" / "config.pbtxt").read_text() == config.format("limited", 8) + (
        'instance_group [ { count: 2 } ]\nparameters { key: "intra_op_thread_count" value { string_value: "3" } }\n'
    )


def change(artifact, **fields):
    described = artifact.with_suffix(".json")
    dataclasses.replace(Manifest.load(described), **fields).save(described)


@pytest.mark.parametrize(
    ("least", "weights", "needs"),
    [
        (None, "fp32", "onnxruntime 1.21 or newer, as in Triton 25.03 and later"),
        ("1.24", "bf16", "onnxruntime 1.24 or newer, as in Triton 26.02 and later, and a GPU"),
        ("1.99", "fp32", "onnxruntime 1.99 or newer"),
    ],
)
def test_what_a_graph_needs_of_triton(capsys, make_text_artifact, tmp_path, least, weights, needs):
    artifact = make_text_artifact("mc").path
    change(artifact, onnxruntime=least, precision={"weights": weights, "embedding": weights})
    assert write(capsys, artifact, "--repository", tmp_path, "--name", "it", "--arrays") == (
        0,
        f"{tmp_path / 'it'} needs {needs}\n",
    )


def test_the_weights_beside_the_graph_belong_to_it(capsys, nano_artifact, tmp_path):
    artifact = nano_artifact("cls")
    assert write(capsys, artifact, "--repository", tmp_path, "--name", "it", "--arrays")[0] == 0
    assert files_of(tmp_path / "it") == ["1/cls.onnx", "1/cls.onnx.data", "config.pbtxt"]
    for name in ("cls.onnx", "cls.onnx.data"):
        assert (tmp_path / "it" / "1" / name).read_bytes() == artifact.with_name(name).read_bytes()


def test_a_damaged_graph(capsys, make_text_artifact, tmp_path):
    artifact = make_text_artifact("mc").path
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"?")
    code, told = write(capsys, artifact, "--repository", tmp_path / "models", "--arrays")
    assert (code, "mc.onnx" in told) == (1, True)
    assert not (tmp_path / "models").exists()


def test_tensors_without_rows(capsys, make_text_artifact, tmp_path):
    artifact = make_text_artifact("mc").path
    inputs = (*Manifest.load(artifact.with_suffix(".json")).inputs, TensorSpec("head_mask", "float32", (2, 4)))
    change(artifact, inputs=inputs)
    words = (artifact, "--repository", tmp_path, "--name", "it", "--arrays")
    code, told = write(capsys, *words, "--max-batch", 8)
    assert (code, "no rows to put together" in told) == (1, True)
    assert write(capsys, *words)[0] == 0
    config = (tmp_path / "it" / "config.pbtxt").read_text()
    assert "max_batch_size: 0\n" in config
    assert '{ name: "head_mask" data_type: TYPE_FP32 dims: [ 2, 4 ] }' in config
    assert '{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1, -1, -1 ] }' in config
    assert "dynamic_batching" not in config


@pytest.fixture
def planned(make_text_artifact):
    """A plan, as far as ``erniem-rt triton`` reads it."""

    def make(*most, flavour="tensorrt", version_compatible=False):
        graph = make_text_artifact("qa").path
        path = graph.with_suffix(".plan")
        path.write_bytes(b"a plan")
        manifest = Manifest.load(graph.with_suffix(".json"))
        plan = Plan(
            file=path.name,
            flavour=flavour,
            version="10.13.2.6",
            precision=manifest.precision,
            compute_capabilities=("9.0",),
            hardware_compatible=False,
            version_compatible=version_compatible,
            profiles=tuple(Profile((1, 1), (1, 1), shape) for shape in most),
            attention={},
            proof={},
            build={},
            parity={},
        )
        files = {**manifest.files, path.name: hash_file(path)}
        dataclasses.replace(manifest, plan=plan, files=files).save(graph.with_suffix(".json"))
        return path

    return make


def test_a_plan(capsys, planned, tmp_path):
    words = ("--repository", tmp_path, "--arrays", "--name")
    assert write(capsys, planned((4, 64), (32, 64)), *words, "it") == (
        0,
        f"{tmp_path / 'it'} needs a Triton image with TensorRT 10.13.2.6\n",
    )
    assert files_of(tmp_path / "it") == ["1/qa.plan", "config.pbtxt"]
    tensors = '{{ name: "{}" data_type: TYPE_{} dims: [ -1 ] }}'
    inputs, outputs = (
        ", ".join(tensors.format(name, kind) for name in names)
        for names, kind in ((("input_ids", "attention_mask"), "INT64"), (("start_logits", "end_logits"), "FP32"))
    )
    assert (tmp_path / "it" / "config.pbtxt").read_text() == (
        'name: "it"\nbackend: "tensorrt"\ndefault_model_filename: "qa.plan"\nmax_batch_size: 32\n'
        f"input [ {inputs} ]\noutput [ {outputs} ]\ndynamic_batching {{ }}\n"
        'instance_group [ { count: 1 kind: KIND_GPU profile: [ "0", "1" ] } ]\n'
    )


def test_requests_that_run_together_fit_a_profile_at_each_length(capsys, planned, tmp_path):
    artifact = planned((1, 64), (64, 32), (8, 40))
    for name, words, rows in (("safe", (), 1), ("short", ("--max-batch", 64), 64)):
        assert write(capsys, artifact, "--repository", tmp_path, "--arrays", "--name", name, *words)[0] == 0
        assert f"max_batch_size: {rows}\n" in (tmp_path / name / "config.pbtxt").read_text()


def test_the_graph_without_the_plan_and_the_plan_without_the_graph(capsys, planned, tmp_path):
    plan = planned((8, 64))
    graph = plan.with_suffix(".onnx")
    content = graph.read_bytes()
    graph.unlink()
    assert write(capsys, plan, "--repository", tmp_path, "--arrays", "--name", "plan")[0] == 0
    graph.write_bytes(content)
    plan.unlink()
    assert write(capsys, graph, "--repository", tmp_path, "--arrays", "--name", "graph")[0] == 0
    assert files_of(tmp_path / "graph") == ["1/qa.onnx", "config.pbtxt"]


def test_a_plan_of_texts_has_no_threads(capsys, monkeypatch, nano_artifact, planned, tmp_path):
    """A pipeline on a CPU stands for the plan's."""
    opened = []

    def open_pipeline(artifact, options):
        opened.append((artifact.name, options))
        return erniem_rt.pipeline(nano_artifact("qa"))

    monkeypatch.setattr(erniem_rt.triton, "open_pipeline", open_pipeline)
    code, told = write(capsys, planned((8, 64)), "--repository", tmp_path, "--name", "it")
    assert opened == [("qa.plan", {})]
    assert (code, told) == (0, f"{tmp_path / 'it'} needs erniem-rt[ort,text] in Triton's Python\n")
    assert "instance_group [ { count: 1 kind: KIND_CPU } ]" in (tmp_path / "it" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("has_plan", "options", "weights", "extra"),
    [
        (True, {}, "fp16", "tensorrt-rtx"),
        (False, {}, "fp32", "ort"),
        (False, {"engine": "openvino"}, "int8", "openvino"),
        (False, {}, "bf16", "openvino"),
        (False, {"device": "cuda:1"}, "bf16", "gpu"),
    ],
)
def test_the_extra_with_the_engine(planned, has_plan, options, weights, extra):
    manifest = Manifest.load(planned((8, 64), flavour="tensorrt-rtx").with_suffix(".json"))
    manifest = dataclasses.replace(manifest, precision={"weights": weights, "embedding": "fp32"})
    assert _extra(manifest, options, has_plan) == extra


def test_a_plan_for_newer_versions_of_tensorrt(capsys, planned, tmp_path):
    words = ("--repository", tmp_path, "--arrays", "--name", "it", "--max-batch", 4, "--instances", 2)
    code, told = write(capsys, planned((8, 64), version_compatible=True), *words)
    assert code == 0
    assert told.endswith(
        "TensorRT 10.13.2.6 or newer, and tritonserver --backend-config=tensorrt,version-compatible=true\n"
    )
    config = (tmp_path / "it" / "config.pbtxt").read_text()
    assert "max_batch_size: 4\n" in config
    assert config.endswith("instance_group [ { count: 2 } ]\n")


@pytest.mark.parametrize(
    ("plan", "words", "told"),
    [
        ({}, ("--threads", "1"), "--threads is for a CPU"),
        ({}, ("--max-batch", "9"), "--max-batch 9: the plan runs at most 8 rows"),
        ({"flavour": "tensorrt-rtx"}, (), "qa.plan is a plan of tensorrt-rtx, and Triton runs those of TensorRT"),
    ],
)
def test_a_plan_that_triton_cannot_run_so(capsys, planned, tmp_path, plan, words, told):
    code, said = write(capsys, planned((8, 64), **plan), "--repository", tmp_path / "models", "--arrays", *words)
    assert (code, told in said) == (1, True), said
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--options", "{"], "--options must be JSON"),
        (["--options", "[]"], "--options must be like"),
        (["--options", '{"task": "question-answering"}'], "needs an artifact of head 'qa'"),
        (["--options", '{"stride": 2}'], "takes no option 'stride'"),
        (["--instances", "0"], "instances must be an integer from 1 to 1024"),
        (["--options", ""], "--options must be JSON"),
        (["--max-batch", "0"], "max_batch must be an integer from 1 to 2147483647"),
        (["--options", '{"model": "cls"}'], "--options cannot have 'model'"),
        (["--threads", "1", "--options", '{"threads": 2}'], "threads is given twice"),
        (["--threads", "1025"], "threads must be an integer from 1 to 1024"),
        (["--instances", "1025"], "instances must be an integer from 1 to 1024"),
        (["--arrays", "--max-batch", "2147483648"], "max_batch must be an integer from 1 to 2147483647"),
        *(
            (["--name", name], "--name must have English letters")
            for name in ("a/b", "..", "a b", "it's", "$HOME", "été", "a\n")
        ),
        (["--arrays", "--options", "{}"], "--options is for texts: leave it out, or --arrays"),
        (["--arrays", "--site-packages", "/opt"], "--site-packages is for texts"),
        (["--arrays", "--max-characters", "9"], "--max-characters is for texts"),
        (["--arrays", "--threads", "0"], "threads must be an integer from 1 to 1024"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(capsys, nano_artifact, tmp_path, words, told):
    code, said = write(capsys, nano_artifact("cls"), "--repository", tmp_path / "models", *words)
    assert code == 1
    assert told in said
    assert not (tmp_path / "models").exists()


def test_triton_sees_no_half_of_a_model(capsys, monkeypatch, make_text_artifact, tmp_path):
    """It reads every folder of its repository, hidden ones too."""
    artifact, seen = make_text_artifact("mc").path, []
    (tmp_path / "models").mkdir()
    copy = shutil.copyfile

    def copied(source, target):
        seen.append(list((tmp_path / "models").iterdir()))
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copied)
    assert write(capsys, artifact, "--repository", tmp_path / "models", "--name", "it", "--arrays")[0] == 0
    assert seen[0] == []
    assert files_of(tmp_path / "models") == ["it/1/mc.onnx", "it/config.pbtxt"]


def test_a_link_to_nothing_is_there_too(capsys, make_text_artifact, tmp_path):
    (tmp_path / "it").symlink_to("nothing")
    code, told = write(capsys, make_text_artifact("mc").path, "--repository", tmp_path, "--name", "it", "--arrays")
    assert (code, "exists" in told) == (1, True)


def test_the_name_is_that_of_the_folder(capsys, monkeypatch, make_text_artifact, tmp_path):
    artifact = make_text_artifact("mc").path
    (artifact.parent / "inner").mkdir()
    monkeypatch.chdir(artifact.parent / "inner")
    assert write(capsys, "..", "--repository", tmp_path / "models", "--arrays")[0] == 0
    (tmp_path / "current").symlink_to(artifact.parent)
    assert write(capsys, tmp_path / "current", "--repository", tmp_path / "models", "--arrays")[0] == 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["current", "mc"]


def test_the_name_is_that_of_the_hub(capsys, monkeypatch, make_text_artifact, tmp_path):
    artifact = make_text_artifact("mc").path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(erniem_rt.triton, "find_artifact", lambda where: artifact)
    assert write(capsys, "owner/nice-mc", "--repository", "models", "--arrays")[0] == 0
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["nice-mc"]


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EACCES, errno.EROFS])
def test_a_repository_that_is_mounted(capsys, monkeypatch, make_text_artifact, tmp_path, reason):
    artifact, repository, moved = make_text_artifact("mc").path, tmp_path / "models", []
    rename = Path.rename

    def renamed(part, target):
        moved.append(part.parent)
        if part.parent != repository:
            raise OSError(reason, "refused")
        return rename(part, target)

    monkeypatch.setattr(Path, "rename", renamed)
    assert write(capsys, artifact, "--repository", repository, "--name", "it", "--arrays")[0] == 0
    assert moved == [tmp_path, repository]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert files_of(repository) == ["it/1/mc.onnx", "it/config.pbtxt"]


class Response(SimpleNamespace):
    def __init__(self, tensors, error=None):
        super().__init__(tensors=tensors, error=error)


class Error(tuple):
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __new__(cls, message, code):
        return super().__new__(cls, (message, code))


def request(parameters=None, **columns):
    tensors = [
        SimpleNamespace(name=lambda name=name: name, as_numpy=lambda rows=rows: np.array(rows, object))
        for name, rows in columns.items()
    ]
    return SimpleNamespace(inputs=lambda: tensors, parameters=lambda: json.dumps(parameters or {}))


def test_the_model_answers_requests_together_and_each_for_itself(capsys, monkeypatch, nano_artifact, tmp_path):
    backend = SimpleNamespace(
        InferenceResponse=Response, TritonError=Error, Tensor=lambda name, array: (name, array.shape, array.reshape(-1))
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    artifact = nano_artifact("cls")
    assert write(capsys, artifact.parent, "--repository", tmp_path, "--name", "it")[0] == 0
    config = (tmp_path / "it" / "config.pbtxt").read_text()
    model = TritonPythonModel()
    model_config = json.dumps({"parameters": {"erniem_rt": {"string_value": json.dumps(settings_of(config))}}})
    model.initialize({"model_config": model_config, "model_repository": str(tmp_path / "it"), "model_version": "1"})
    texts = ["Haus und Hof", "Lakeside Motors"]
    found = model.execute(
        [
            request(text=[[texts[0]]]),
            request(text=[[""]]),
            request(parameters={"stride": 1}, text=[["a"]]),
            request(text=[[texts[1].encode()], [texts[0]]]),
            request(parameters={"top_k": "all"}, text=[[texts[0]]]),
        ]
    )
    assert model._batcher.stats.batch_sizes == {1: 1, 3: 1}
    model.finalize()
    assert [answer.error for answer in found] == [
        None,
        ("input 0: text is empty: expected text.", "invalid"),
        (
            "text-classification takes no parameter 'stride'; expected one of errors, top_k, function_to_apply.",
            "invalid",
        ),
        None,
        None,
    ]
    with erniem_rt.pipeline(artifact, threads=1) as pipeline:
        expected = pipeline([texts[0], texts[1], texts[0]])
        everything = pipeline([texts[0]], top_k=None)
    answers = [[json.loads(text) for text in answer.tensors[0][2]] for answer in (found[0], found[3], found[4])]
    assert answers == [expected[:1], expected[1:], everything]
    assert [answer.tensors[0][:2] for answer in (found[0], found[3])] == [("answer", (1, 1)), ("answer", (2, 1))]
