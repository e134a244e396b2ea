"""The OpenVINO engine: the numbers of ONNX Runtime, which engine is chosen, and what is said of what cannot be."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from erniem_rt import ArtifactError, EngineError, EngineUnavailableError, InvalidInputError, Session, engines, pipeline
from erniem_rt.engines import GraphOptions
from erniem_rt.files import FileRecord
from erniem_rt.machine import cpu_class
from erniem_rt.manifest import HEADS, Manifest, TensorSpec

pytest.importorskip("openvino")

from erniem_rt.engines.openvino import OpenVINOEngine

BF16 = "bf16" in cpu_class() or "amx" in cpu_class()
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU has no bf16")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("ERNIEM_RT_CACHE", "")


def inputs(head, width, vocabulary=50, seed=0):
    """Rows padded on the right, on the left, in the middle, not at all, and one of padding alone."""
    rng = np.random.default_rng(seed)
    shape = (5, 3, width) if head == "mc" else (5, width)
    mask = np.ones(shape, np.int64)
    mask[1, ..., width // 2 :] = 0
    mask[2, ..., : width // 3] = 0
    mask[3, ..., 1::2] = 0
    mask[4] = 0
    return {"input_ids": rng.integers(0, vocabulary, shape), "attention_mask": mask}


def opened(artifact, **options):
    return Session(artifact.path, **{"engine": "openvino", **options})


@pytest.mark.parametrize("head", HEADS)
def test_answers_are_the_graphs(heads, head):
    with opened(heads[head]) as session:
        for seed, width in enumerate((1, 7, 16, 7)):
            feeds = inputs(head, width, seed=seed)
            found = session.run(feeds)
            for name, expected in heads[head].answer(**feeds).items():
                np.testing.assert_allclose(found[name], expected, atol=1e-5, rtol=1e-5)
                assert found[name].dtype == np.float32


@pytest.mark.parametrize("head", HEADS)
def test_exported_graphs_give_the_numbers_of_onnx_runtime(nano_artifact, head):
    path = nano_artifact(head)
    with Session(path, engine="openvino") as ours, Session(path, engine="onnxruntime") as theirs:
        for seed, width in enumerate((1, 33, 150)):
            feeds = inputs(head, width, ours.limits.vocab_size, seed)
            expected = theirs.run(feeds)
            for name, found in ours.run(feeds).items():
                np.testing.assert_allclose(found, expected[name], atol=5e-5, rtol=1e-5)


def test_the_graph_speaks_for_itself(heads):
    artifact = heads["base"]
    options = GraphOptions(engine="openvino", cache=False)
    manifest = Manifest.load(artifact.manifest)
    engine = OpenVINOEngine(artifact.path, options=options, manifest=manifest, checked=lambda: None)
    assert engine.inputs == (
        TensorSpec("input_ids", "int64", ("?", "?")),
        TensorSpec("attention_mask", "int64", ("?", "?")),
    )
    assert engine.outputs[0] == TensorSpec("last_hidden_state", "float32", ("?", "?", 8))
    engine.close()
    engine.close()
    with pytest.raises(InvalidInputError, match="the engine is closed; open the artifact again"):
        engine.run({}, ["last_hidden_state"])


def test_answers_stay_when_the_next_ones_come(heads):
    with opened(heads["qa"]) as session:
        first = session.run(input_ids=[[3, 4, 5]])["start_logits"]
        kept = first.copy()
        session.run(input_ids=[[7, 8, 9]])
        np.testing.assert_array_equal(first, kept)


def test_what_changes_is_found(artifact):
    content = bytearray(artifact.data.read_bytes())
    content[40] ^= 1
    artifact.data.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"qa\.onnx\.data was changed after export"):
        opened(artifact)


def test_many_threads(heads):
    feeds = [inputs("qa", width, seed=width) for width in range(1, 13)]
    expected = [heads["qa"].answer(**each) for each in feeds]
    wrong = []
    with opened(heads["qa"], shrink_memory=True) as session:

        def work(start):
            for step in range(24):
                at = (start + step) % len(feeds)
                found = session.run(feeds[at])["end_logits"]
                if np.abs(found - expected[at]["end_logits"]).max() > 1e-5:
                    wrong.append(at)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def settings_of(monkeypatch):
    """What OpenVINO is told of each model that it compiles."""
    import openvino

    told = []
    real = openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core,
        "compile_model",
        lambda self, model, device, config: told.append(config) or real(self, model, device, config),
    )
    return told


def test_precision_and_threads_are_always_said(artifact, monkeypatch):
    told = settings_of(monkeypatch)
    opened(artifact, threads=1).close()
    opened(artifact, threads=3, precision="fp32").close()
    assert [(each["INFERENCE_PRECISION_HINT"], each["INFERENCE_NUM_THREADS"]) for each in told] == [
        ("f32", 1),
        ("f32", 3),
    ]
    assert not any(each["ENABLE_CPU_PINNING"] for each in told)


@needs_bf16
def test_bf16_by_name_where_it_was_proven(nano_artifact, tmp_path):
    shutil.copytree(nano_artifact("ner").parent, tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out/ner.json")
    replace(manifest, proven=("fp32", "bf16")).save(tmp_path / "out/ner.json")
    feeds = inputs("ner", 40, 1000)
    with (
        Session(tmp_path / "out", precision="bf16") as half,
        Session(tmp_path / "out", engine="openvino") as whole,
    ):
        assert (half.engine, half.precision, whole.precision) == ("openvino", "bf16", "fp32")
        difference = np.abs(half.run(feeds)["logits"] - whole.run(feeds)["logits"]).max()
    assert 1e-3 < difference < 1


def test_bf16_that_was_not_proven(artifact):
    with pytest.raises(InvalidInputError) as caught:
        opened(artifact, precision="bf16")
    assert str(caught.value) == (
        f"{artifact.path} did not pass the gate in bf16; its manifest lists nothing as proven. Leave precision out, or "
        "export again: the export tries bf16 and reports the result."
    )


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_graph_in_half_precision_by_another_name(artifact, kind):
    artifact.edit(lambda manifest: manifest.update(precision={"weights": kind}))
    with pytest.raises(InvalidInputError, match=f"precision='bf16' is for graphs .* is in {kind}"):
        opened(artifact, precision="bf16")
    with pytest.raises(InvalidInputError, match=f"a graph in {kind}, needs engine='openvino' on a CPU"):
        Session(artifact.path, engine="onnxruntime", precision="fp32")
    with Session(artifact.path, precision="fp32") as session:
        assert (session.engine, session.precision) == ("openvino", "fp32")


def test_bf16_on_a_cpu_without_it(artifact, monkeypatch):
    import openvino

    artifact.edit(lambda manifest: manifest.update(proven=["bf16"]))
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(
        EngineUnavailableError, match=r"precision='bf16' needs a CPU with AVX-512 BF16 or AMX, and this one is"
    ):
        opened(artifact, precision="bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "onnxruntime", "precision": "bf16"}, "precision='bf16' needs engine='openvino' on a CPU"),
        ({"engine": "openvino", "share_weights": True}, "share_weights=True needs engine='onnxruntime'"),
        ({"engine": "openvino", "spinning": True}, "spinning=True needs engine='onnxruntime'"),
        ({"engine": "openvino", "device": "cuda"}, "engine='openvino' is for device='cpu', got device='cuda:0'"),
        ({"engine": "tensorrt"}, "engine='tensorrt' runs a plan, and .* is a graph: open qa.plan"),
        ({"engine": "torch"}, "engine must be one of auto, onnxruntime, openvino, tensorrt, got 'torch'"),
        ({"precision": "int8"}, "precision must be one of auto, fp32, bf16, got 'int8'"),
    ],
)
def test_what_does_not_go_together(heads, options, message):
    with pytest.raises(InvalidInputError, match=message):
        Session(heads["qa"].path, **options)


def test_openvino_that_is_not_installed(heads, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineUnavailableError) as caught:
        opened(heads["qa"])
    assert str(caught.value) == (
        'OpenVINO, for engine="openvino" and for precision="bf16" on a CPU, is not installed: '
        'pip install "erniem-rt[openvino]".'
    )


def test_a_graph_that_openvino_cannot_read(artifact):
    import onnx

    model = onnx.load(artifact.path, load_external_data=False)
    model.graph.node[0].op_type = "Gatherer"
    onnx.save(model, artifact.path)
    artifact.rehash()
    with pytest.raises(
        ArtifactError, match=r"qa\.onnx cannot be compiled by openvino 20.*Gatherer.*engine='onnxruntime'"
    ):
        opened(artifact)


def test_a_run_that_fails_is_one_error(heads):
    with opened(heads["qa"]) as session:
        session._engine._model = type("Broken", (), {"create_infer_request": lambda self: 1 / 0})()
        session._engine._requests.clear()
        with pytest.raises(
            EngineError, match=r"^openvino failed on cpu: division by zero\. If memory ran out, give it"
        ):
            session.run(input_ids=[[3, 4]])


@pytest.mark.parametrize(
    ("cpu", "weights", "size", "installed", "options", "expected"),
    [
        ("avx512-vnni-bf16", "fp32", 10**9, ("openvino", "onnxruntime"), {}, "onnxruntime"),
        ("avx512-vnni-bf16", "int8", 10**9, ("openvino", "onnxruntime"), {}, "openvino"),
        ("avx512-vnni-bf16", "int8", 10**9, ("onnxruntime",), {}, "onnxruntime"),
        ("avx512-vnni-bf16", "int8", 10**6, ("openvino", "onnxruntime"), {}, "onnxruntime"),
        ("avx512-vnni-bf16", "int8", 10**9, ("openvino", "onnxruntime"), {"share_weights": True}, "onnxruntime"),
        ("avx512-vnni-bf16", "fp16", 10**9, ("openvino", "onnxruntime"), {}, "onnxruntime"),
        ("avx2", "int8", 10**9, ("openvino", "onnxruntime"), {}, "onnxruntime"),
        ("avx2", "fp32", 10**9, ("openvino",), {}, "openvino"),
        ("aarch64", "fp32", 10**9, ("openvino", "onnxruntime"), {}, "onnxruntime"),
        ("avx2", "bf16", 10**6, ("openvino", "onnxruntime"), {}, "openvino"),
        ("avx2", "fp32", 10**6, (), {}, "onnxruntime"),
    ],
)
def test_the_engine_that_is_chosen(heads, monkeypatch, cpu, weights, size, installed, options, expected):
    manifest = Manifest.load(heads["qa"].manifest)
    files = {"qa.onnx": FileRecord("0" * 64, size)}
    manifest = replace(manifest, precision={"weights": weights}, files=files)
    monkeypatch.setattr(engines, "cpu_class", lambda: cpu)
    monkeypatch.setattr(engines, "_installed", lambda package: package in installed)
    found = engines.choose_engine(heads["qa"].path, manifest, GraphOptions(engine="auto", **options))
    assert found == expected

    made_for_it = replace(manifest, target="openvino")
    found = engines.choose_engine(heads["qa"].path, made_for_it, GraphOptions(engine="auto", **options))
    assert found == ("openvino" if "openvino" in installed and not options else "onnxruntime")


def run_in_child(session, feeds, queue):
    queue.put(session.run(feeds)["start_logits"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_it_again(heads):
    feeds = inputs("qa", 9)
    with opened(heads["qa"]) as session:
        expected = session.run(feeds)["start_logits"]
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=run_in_child, args=(session, feeds, queue))
        child.start()
        found = queue.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0
    np.testing.assert_array_equal(found, expected)


def test_a_pickle_keeps_engine_and_precision(heads):
    with opened(heads["qa"], precision="fp32") as session, pickle.loads(pickle.dumps(session)) as again:
        assert (again.engine, again.precision) == ("openvino", "fp32")
        assert "engine='openvino'" in repr(again)
        np.testing.assert_array_equal(
            again.run(input_ids=[[3, 4]])["end_logits"], session.run(input_ids=[[3, 4]])["end_logits"]
        )


def test_many_batches_and_a_pipeline(nano_artifact):
    path = nano_artifact("ner")
    with pipeline(path, engine="openvino") as ours, pipeline(path, engine="onnxruntime") as theirs:
        assert (ours.session.engine, theirs.session.engine) == ("openvino", "onnxruntime")
        texts = ["Anna lives in Rostock.", "Sie kam am 3. Mai 1961 nach Leipzig und blieb dort.", "x"]
        for found, expected in zip(ours(texts), theirs(texts), strict=True):
            assert [(each["entity"], each["start"]) for each in found] == [
                (each["entity"], each["start"]) for each in expected
            ]
        with pytest.raises(InvalidInputError, match="engine is an option of the session"):
            pipeline(ours.session, engine="openvino")


def test_nothing_is_sent_when_openvino_is_imported(heads, tmp_path):
    """A package in the place of OpenVINO's telemetry notes that it was imported."""
    (tmp_path / "openvino_telemetry.py").write_text("print('imported')\nraise ImportError\n")
    code = f"import erniem_rt; print(erniem_rt.Session({str(heads['qa'].path)!r}, engine='openvino').engine)"
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("openvino\n", "")


class Busy:
    """A model that gives memory back only when no other thread is at work with it."""

    def __init__(self, model):
        self.create_infer_request = model.create_infer_request
        self.asked, self.busy = 0, False

    def release_memory(self):
        self.asked += 1
        if self.busy:
            raise RuntimeError("Attempt to call release_memory() on a compiled model in a busy state.")


def test_memory_is_given_back_as_soon_as_it_can_be(artifact):
    with opened(artifact) as session:
        engine = session._engine
        engine._model = model = Busy(engine._model)
        session.run(input_ids=np.full((400, 16), 7))
        assert model.asked == 0
        model.busy = True
        session.run(input_ids=[[7]])
        assert model.asked == 1
        model.busy = False
        for _ in range(3):
            session.run(input_ids=[[7]])
        assert model.asked == 2
