"""The accuracy gate lets through what answers as well as PyTorch, and stops what does not."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import erniem_rt
from erniem_export import pipeline
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import ParityError
from erniem_export.gate import accuracy as accuracy_module
from erniem_export.gate.accuracy import FEWEST, Accuracy, AccuracyCheck, figures, task_set_of
from erniem_rt.errors import InvalidInputError
from erniem_rt.files import hash_file
from erniem_rt.manifest import Manifest

NANO = Path(__file__).parents[3] / "examples" / "nano" / "checkpoints"


@pytest.mark.parametrize(
    ("before", "after", "may_fall", "fails"),
    [
        (100 * 521 / 600, 100 * 518 / 600, 0.5, False),  # half a point, but for the last bit
        (100 * 521 / 600, 100 * 517 / 600, 0.5, True),
        (90.0, 95.0, 0.5, False),
        (90.0, float("nan"), 0.5, True),
        (100 * 521 / 600, 100 * 520 / 600, 0.05, True),
        (90.0, 90.0, 0.05, False),
    ],
)
def test_half_a_point_may_be_lost(before, after, may_fall, fails):
    accuracy = Accuracy(
        "set.jsonl", 600, {"f1": 50.0, "accuracy": before}, {"f1": 50.0, "accuracy": after}, 9, may_fall
    )
    assert bool(accuracy.failures()) is fails
    if fails and after == after:
        (problem,) = accuracy.failures()
        assert problem.startswith(f"accuracy on set.jsonl (600 examples) falls from {before:.2f} to {after:.2f}, by ")
        assert problem.endswith(f" points; {may_fall:g} are allowed")


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(str(NANO / "cls"), "cls")


@pytest.fixture(scope="module")
def opened(checkpoint):
    """It asks PyTorch once."""
    task_set = task_set_of(checkpoint, None)
    assert task_set is not None
    assert checkpoint.tokenizer_dir is not None
    return AccuracyCheck(task_set, checkpoint.model, checkpoint.tokenizer_dir)


@pytest.fixture
def changed(nano_artifact, tmp_path):
    """A copy of nano's classifier in another precision, by its word, with noise in the classifier's weights."""

    def make(noise, **precision):
        folder = Path(shutil.copytree(nano_artifact("cls").parent, tmp_path / "changed"))
        model = onnx.load(folder / "cls.onnx")
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.weight")
        array = numpy_helper.to_array(tensor)
        moved = array + noise * array.std() * np.random.default_rng(1).normal(size=array.shape).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
        (folder / "cls.onnx.data").unlink()
        onnx.save(model, folder / "cls.onnx", save_as_external_data=True, location="cls.onnx.data", size_threshold=64)
        manifest = Manifest.load(folder / "cls.json")
        files = {name: hash_file(folder / name) for name in manifest.files}
        facts = {**manifest.precision, **precision}
        dataclasses.replace(manifest, files=files, precision=facts).save(folder / "cls.json")
        return folder / "cls.onnx"

    return make


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        ({"weights": "int8"}, "--calibration FILE"),
        ({"embedding": "fp16"}, "Take a higher precision"),
        ({}, "Export ag"),
    ],
)
def test_a_head_whose_weights_have_worsened_is_stopped(precision, remedy, changed, opened):
    with pytest.raises(ParityError, match=r"^cls.onnx answers worse than the PyTorch model: accuracy on task_set") as e:
        opened.compare(changed(6.0, **precision), {"passed": True})
    report = e.value.report
    assert report is not None
    assert report["passed"] is False
    pair = report["accuracy"]["metrics"]["accuracy"]
    limit = 0.5 if precision else 0.05
    assert pair["reference"] == 93.0
    assert pair["found"] < pair["reference"] - limit
    assert f"falls from {pair['reference']:.2f} to {pair['found']:.2f}, by " in str(e.value)
    assert f"points; {limit} are allowed. " in str(e.value)
    assert remedy in str(e.value)
    assert "\n" not in str(e.value)


def test_what_moves_too_little_to_change_an_answer_passes(changed, opened):
    report = opened.compare(changed(1e-5, weights="int8"), {"passed": True})
    assert report["accuracy"]["metrics"] == {"accuracy": {"reference": 93.0, "found": 93.0}}
    assert report["accuracy"]["same_answers"] == report["accuracy"]["examples"] == 600
    assert report["passed"] is True


@pytest.mark.parametrize("head", ["qa", "cls", "ner", "mc", "ie"])
def test_a_float32_export_answers_as_pytorch_does(head, nano_artifact):
    path = nano_artifact(head)
    accuracy = Manifest.load(path.with_suffix(".json")).parity[path.name]["accuracy"]
    assert accuracy["examples"] == accuracy["same_answers"] == 200
    assert all(pair["found"] == pair["reference"] > 80 for pair in accuracy["metrics"].values())
    assert sorted(accuracy["metrics"]) == {"qa": ["exact_match", "f1"]}.get(head, [*accuracy["metrics"]])
    assert not (path.parent / "task_set.jsonl").exists()


def test_the_figures_are_those_of_the_pipeline_that_users_call(nano_artifact):
    """With labels read by other means than the gate's."""
    path = nano_artifact("ner")
    asked = path.parents[2] / "ner" / "task_set.jsonl"
    lines = [json.loads(line) for line in asked.read_text(encoding="utf-8").splitlines()]
    right = given = wanted = 0
    with erniem_rt.pipeline(path, aggregation_strategy="simple") as name:
        for line, found in zip(lines, name([line["text"] for line in lines]), strict=True):
            ours = {(e["word"], e["start"], e["entity_group"]) for e in found}
            gold = {(line["text"][e["start"] : e["end"]], e["start"], e["label"]) for e in line["entities"]}
            right, given, wanted = right + len(ours & gold), given + len(ours), wanted + len(gold)
    accuracy = Manifest.load(path.with_suffix(".json")).parity[path.name]["accuracy"]
    assert accuracy["metrics"]["f1"]["found"] == pytest.approx(200 * right / (given + wanted), abs=1e-4)


def test_an_example_that_cannot_be_asked_is_named(opened, nano_artifact, monkeypatch):
    def refuse(*_):
        raise InvalidInputError("input 3: too long")

    monkeypatch.setattr(accuracy_module, "answers", refuse)
    with pytest.raises(InvalidInputError, match=r"the task set task_set.jsonl cannot be used: input 3: too long"):
        opened.compare(nano_artifact("cls"), {})


# From the command line.


@pytest.fixture(scope="module")
def model(tmp_path_factory, write_checkpoint, tokenizer_dir):
    """A small random classifier with a tokenizer, and a task set of what it answers."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / "cls")
    return Path(shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def answered(model, sentences):
    """The checkpoint with a task set whose labels are its own answers, but for every fifth."""
    folder = Path(shutil.copytree(model, model.parent / "answered"))
    texts = [f"{sentence} {i}" for i in range(8) for sentence in sentences]
    path = folder / "task_set.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": "LABEL_0"}) + "\n" for text in texts))
    checkpoint = load_checkpoint(str(folder))
    task_set = task_set_of(checkpoint, None)
    assert task_set is not None
    assert len(texts) > FEWEST
    manifest = pipeline.build_manifest(checkpoint, pipeline.GraphOptions(), folder)
    own = accuracy_module.answers(
        task_set, accuracy_module.ReferenceSession(checkpoint.model, manifest), erniem_rt.Tokenizer.from_dir(folder)
    )
    labels = [label if i % 5 else "LABEL_1" for i, label in enumerate(own)]
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(texts, labels, strict=True)]
    path.write_text("".join(lines))
    assert 70 < figures("accuracy", own, labels)["accuracy"] < 100
    return folder


class Confused(accuracy_module.Session):
    """Gives the labels' scores in another order."""

    def run_all(self, batches):
        for outputs in super().run_all(batches):
            yield {name: np.roll(array, 1, axis=-1) for name, array in outputs.items()}


def test_an_export_whose_metric_falls_ends_with_one_line_and_no_file(answered, export_fails, monkeypatch):
    monkeypatch.setattr(accuracy_module, "Session", Confused)
    message = export_fails(answered, "--embedding", "fp16")
    assert message.startswith(
        "cls.onnx answers worse than the PyTorch model: accuracy on task_set.jsonl (216 examples) "
    )
    assert message.endswith("points; 0.5 are allowed. Take a higher precision.")


def test_an_export_and_its_verification_say_the_figures(answered, erniem_export, erniem_verify, tmp_path, monkeypatch):
    result = erniem_export("--model", answered, "--output", tmp_path / "out").ok()
    accuracy = json.loads((tmp_path / "out" / "cls.json").read_text())["parity"]["cls.onnx"]["accuracy"]
    shown = f"{accuracy['metrics']['accuracy']['found']:.2f}"
    line = f"task_set.jsonl, 216 examples: accuracy {shown} (PyTorch {shown}); 216 answers the same"
    assert line in result.out.splitlines()
    assert "task_set.jsonl" not in {file.name for file in (tmp_path / "out").iterdir()}
    other = tmp_path / "other.jsonl"
    shutil.copy(answered / "task_set.jsonl", other)
    artifact = tmp_path / "out" / "cls.onnx"
    result = erniem_verify(artifact, "--model", answered, "--task-set", other).ok()
    assert line.replace("task_set", "other") in result.out.splitlines()
    monkeypatch.setattr(accuracy_module, "Session", Confused)
    result = erniem_verify(artifact, "--model", answered)
    assert result.code == 1
    assert "FAILED" in result.out
    assert "0.05 are allowed" in result.err


def test_a_task_set_that_cannot_be_used_ends_an_export_before_the_work(model, tmp_path, export_fails, monkeypatch):
    monkeypatch.setattr(pipeline, "trace", lambda *_: pytest.fail("too late"))
    assert "missing.jsonl cannot be read: No such file" in export_fails(model, "--task-set", tmp_path / "missing.jsonl")
    of_mc = NANO / "mc" / "task_set.jsonl"
    message = export_fails(model, "--task-set", of_mc)
    assert message.startswith(f"the task set {of_mc}, line 1: 'text' is missing; a line of this task set has the keys")
    message = export_fails("random:tiny", "--head", "mc", "--task-set", of_mc)
    assert message.endswith("random:tiny has no tokenizer to read text with")


def test_a_checkpoint_without_a_task_set_gets_agreement_on_text(model, erniem_export, tmp_path):
    erniem_export("--model", model, "--output", tmp_path / "out").ok()
    report = json.loads((tmp_path / "out" / "cls.json").read_text())["parity"]["cls.onnx"]
    assert "accuracy" not in report
    assert {"real text", "real text, pairs"} < set(report["cases"])
    assert report["decisions"]["compared"] > 0


@pytest.mark.slow
def test_int8_of_nano_holds_the_line_on_text_like_that_to_be_served(erniem_export, tmp_path):
    """On other passages than those that are asked."""
    lines = (NANO / "ner" / "task_set.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "text").write_text("".join(f"{json.loads(line)['text']}\n" for line in lines), encoding="utf-8")
    options = ("--int8", "--calibration", tmp_path / "text", "--output", tmp_path / "out")
    erniem_export("--model", NANO / "ie", *options).ok()
    accuracy = json.loads((tmp_path / "out" / "ie.json").read_text())["parity"]["ie.onnx"]["accuracy"]
    assert accuracy["may_fall"] == 0.5
    assert 500 < accuracy["same_answers"] < 600
    assert accuracy["metrics"]["f1"]["found"] >= accuracy["metrics"]["f1"]["reference"] - 0.5


# The metrics, beside figures worked out by hand and plain definitions.


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1"),
    [
        ("The Eiffel-Tower!", ("eiffeltower",), 1, 1),
        ("Ann Lee of Rome", ("Ann Lee", "Lee"), 0, 2 * 2 / 6),
        ("Ann Ann", ("Ann",), 0, 2 * 1 / 3),
        ("", (), 1, 1),
        ("Ann", (), 0, 0),
        ("", ("Ann",), 0, 0),
        ("the", ("a",), 1, 1),
        ("上海市", ("上海",), 0, 2 * 2 / 5),
        ("«Вектор»", ("Вектор",), 1, 1),
    ],
)
def test_answers_to_questions(answer, wanted, exact, f1):
    found = figures("exact_match", [answer, "x"], [wanted, ("x",)])
    assert found == pytest.approx({"exact_match": 50 * (exact + 1), "f1": 50 * (f1 + 1)})


def test_accuracy():
    assert figures("accuracy", ["a", "b", "c"], ["a", "b", "d"]) == pytest.approx({"accuracy": 200 / 3})


@pytest.mark.parametrize("metric", ["f1", "micro_f1"])
def test_spans_count_alike_and_must_be_right_as_a_whole(metric):
    answers = [frozenset([(0, 3, "PER"), (4, 6, "LOC")]), frozenset(), frozenset([(1, 2, "PER")])]
    wanted = [frozenset([(0, 3, "PER"), (4, 6, "ORG")]), frozenset([(0, 1, "LOC")]), frozenset()]
    precision, recall = 1 / 3, 1 / 3
    expected = 100 * 2 * precision * recall / (precision + recall)
    assert figures(metric, answers, wanted) == pytest.approx({metric: expected})
    assert figures(metric, [frozenset()], [frozenset()]) == {metric: 100}


def test_correlation():
    rng = np.random.default_rng(0)
    answers, wanted = rng.normal(size=(2, 50))
    expected = 100 * np.corrcoef(answers, wanted + answers)[0, 1]
    assert figures("pearson", list(answers), list(wanted + answers)) == pytest.approx({"pearson": expected})
    assert figures("pearson", [1.0, 1.0], [0.0, 2.0]) == {"pearson": 0.0}
