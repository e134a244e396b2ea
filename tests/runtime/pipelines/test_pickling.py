"""Pickles: sessions and pipelines open their artifact where they are read; tokenizers and results need no file."""

from __future__ import annotations

import copy
import inspect
import pickle
import shutil

import numpy as np
import pytest

import erniem_rt
from erniem_rt import ArtifactError, InvalidInputError, Session, Tokenizer

QUESTION = {"question": "Wo ist das Haus?", "context": "Das Haus steht am See, der Hof im Dorf."}
CHOICE = {"prompt": "Was steht am See?", "choices": ["das Haus", "der Hof"]}
TEXT = "Das Haus steht am See."
CASES = [
    ("base", None, {"pooling": "cls", "normalize": True}, TEXT, {}),
    ("cls", None, {"batch_size": 3}, TEXT, {}),
    ("cls", "zero-shot-classification", {}, TEXT, {"candidate_labels": ["Haus", "Hof"]}),
    ("ner", None, {"aggregation_strategy": "simple"}, TEXT, {}),
    ("mc", None, {}, CHOICE, {}),
    ("qa", None, {"top_k": 2, "max_seq_len": 24, "doc_stride": 8}, QUESTION, {}),
    ("ie", None, {"schema": ["Haus", {"Hof": ["See[a,b]"]}], "threshold": 0.1}, TEXT, {}),
]
LABELS = {"cls": ("contradiction", "entailment"), "ner": ("O", "B-PER", "I-PER")}


def copied(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize(("head", "task", "options", "given", "call"), CASES)
def test_a_pipeline_comes_with_its_options_and_answers(make_text_artifact, head, task, options, given, call):
    artifact = make_text_artifact(head, **({"labels": LABELS[head]} if head in LABELS else {}))
    pipe = erniem_rt.pipeline(task, artifact.path, threads=1, **{"batch_size": 5, **options})
    expected = pipe(given, **call)
    again = copied(pipe)
    pipe.close()
    assert type(again) is type(pipe)
    assert again.batch_size == pipe.batch_size != 16
    assert again.session is not pipe.session
    np.testing.assert_equal(again(given, **call), expected)
    again.close()


def test_a_session_takes_all_its_options_along(heads, monkeypatch):
    path = heads["qa"].path
    monkeypatch.chdir(path.parent)
    session = Session(path.name, threads=2, share_weights=True, verify=False)
    monkeypatch.chdir("/")
    again = copied(session)
    np.testing.assert_array_equal(*(s.run(input_ids=[[0, 5, 2]])["start_logits"] for s in (session, again)))
    assert (again._options, again._graph_options) == (session._options, session._graph_options)
    assert set(session._options) == {*inspect.signature(Session).parameters} - {"path"}
    assert again._options["verify"] is False
    assert copied(session.manifest) == session.manifest


def test_a_closed_session_and_another_artifact_are_refused(make_artifact, tmp_path):
    artifact = make_artifact("qa")
    session = Session(artifact.path)
    pickled = pickle.dumps(session)
    session.close()
    with pytest.raises(InvalidInputError, match="is closed; open it again"):
        pickle.dumps(session)
    (artifact.folder / "config.json").write_text("{}\n", "utf-8")
    artifact.rehash()
    with pytest.raises(ArtifactError, match="is not the artifact whose session was pickled"):
        pickle.loads(pickled)
    shutil.rmtree(artifact.folder)
    with pytest.raises(ArtifactError, match="is missing"):
        pickle.loads(pickled)


def test_a_tokenizer_and_its_results_need_no_file(tokenizer_dir, tmp_path, sentences):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_dir, folder)
    tokenizer = Tokenizer.from_dir(folder)
    shutil.rmtree(folder)
    for again in (copied(tokenizer), copy.deepcopy(tokenizer)):
        assert again("a", sentences[0]) == tokenizer("a", sentences[0])
        assert again.get_vocab() == tokenizer.get_vocab()
        assert_same(again.batch(sentences, threads=2), tokenizer.batch(sentences))
    row = tokenizer(sentences[1])
    assert copied(row) == row
    for pairs in (None, sentences[::-1]):
        rows = tokenizer.batch([*sentences[:-1], "x [MASK] y"], pairs, truncation="longest_first", max_length=20)
        assert_same(copied(rows), rows)
        assert len(pickle.dumps(rows)) < 100_000  # without the model


def assert_same(found, expected):
    for name in ("input_ids", "attention_mask", "offsets", "text_sizes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.encodings == expected.encodings


@pytest.mark.parametrize("kind", ["InvalidInputError", "ArtifactError", "EngineUnavailableError", "EngineError"])
def test_errors_cross_processes(kind):
    error = copied(getattr(erniem_rt, kind)("what to do"))
    assert (type(error).__name__, str(error)) == (kind, "what to do")
