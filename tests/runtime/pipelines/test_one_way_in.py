"""Where a path is taken: folders, artifacts, hub ids and open sessions; tasks by name, as in transformers."""

from __future__ import annotations

import argparse
import shutil
import sys
import types
from dataclasses import replace
from fnmatch import fnmatch

import numpy as np
import onnx
import pytest

import erniem_rt
from erniem_rt import ArtifactError, EngineUnavailableError, InvalidInputError, Session, Tokenizer, pipeline, triton
from erniem_rt.files import hash_file
from erniem_rt.manifest import Manifest

TEXT = "Guten Morgen"


@pytest.fixture
def folder(make_text_artifact):
    """A folder with one artifact, head base, and a tokenizer."""
    return make_text_artifact("base").path.parent


@pytest.fixture
def both(make_text_artifact, tmp_path):
    """A folder with two artifacts."""
    target = tmp_path / "both"
    for head in ("base", "qa"):
        shutil.copytree(make_text_artifact(head).path.parent, target, dirs_exist_ok=True)
    return target


@pytest.fixture
def hub(folder, monkeypatch, tmp_path):
    """A hub with one model, ``owner/name``; what was downloaded lies in a folder of its own."""
    cache, asked = tmp_path / "cache", []

    def snapshot_download(model, allow_patterns):
        if model != "owner/name":
            raise RuntimeError(f"no repository {model}\nmore about it")
        asked.extend(allow_patterns)
        cache.mkdir(exist_ok=True)
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (cache / name).parent.mkdir(exist_ok=True)
                shutil.copy(path, cache / name)
        return str(cache)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    return cache, asked


@pytest.fixture
def for_optimum(folder):
    """The same artifact in the layout of optimum."""
    graph = onnx.load(folder / "base.onnx")
    (folder / "onnx").mkdir()
    location = "model.onnx_data"
    onnx.save(graph, folder / "onnx" / "model.onnx", save_as_external_data=True, location=location, size_threshold=0)
    manifest = Manifest.load(folder / "base.json")
    files = {name: record for name, record in manifest.files.items() if not name.startswith("base.onnx")}
    for name in list(manifest.files.keys() - files.keys()):
        (folder / name).unlink()
    files |= {name: hash_file(folder / name) for name in ("onnx/model.onnx", "onnx/model.onnx_data")}
    replace(manifest, artifact="onnx/model.onnx", files=files).save(folder / "base.json")
    return folder


def test_the_layout_of_optimum(for_optimum, hub, make_text_artifact, monkeypatch, tmp_path):
    with pipeline(for_optimum) as pipe:
        expected = pipe(TEXT)
    for path in (for_optimum / "onnx", for_optimum / "onnx" / "model.onnx", "owner/name"):
        monkeypatch.chdir(tmp_path)
        with pipeline(path) as pipe:
            assert pipe.session.path.parts[-2:] == ("onnx", "model.onnx")
            assert np.array_equal(pipe(TEXT), expected)
        with Session(path) as session:
            assert np.array_equal(pipeline(session)(TEXT), expected)
    assert Tokenizer.from_dir(for_optimum / "onnx" / "model.onnx")(TEXT) == Tokenizer.from_dir(for_optimum)(TEXT)
    assert (hub[0] / "onnx" / "model.onnx_data").is_file()
    shutil.copytree(make_text_artifact("qa").path.parent, for_optimum, dirs_exist_ok=True)
    with pytest.raises(ArtifactError, match=r"holds several artifacts: base\.json, qa\.onnx\. Give the path of one"):
        Session(for_optimum)
    with Session(for_optimum / "onnx") as session:
        assert session.manifest.head == "base"
    with pytest.raises(ArtifactError, match="holds no artifact"):
        pipeline("question-answering", for_optimum / "onnx")


def test_triton_has_no_place_for_the_layout_of_optimum(for_optimum, tmp_path):
    for path in (for_optimum, for_optimum / "onnx" / "model.onnx"):
        arguments = argparse.Namespace(artifact=str(path), name="one", repository=str(tmp_path / "models"))
        with pytest.raises(InvalidInputError, match=r"is in the layout of optimum, .* export it without --layout"):
            triton.write(arguments, print)
    assert not (tmp_path / "models").exists()


def test_a_folder_an_artifact_and_a_manifest_are_the_same(folder):
    vectors = []
    for path in (folder, folder / "base.onnx", folder / "base.json"):
        with pipeline(path) as pipe:
            vectors.append(pipe(TEXT))
        with Session(path) as session:
            assert session.path == folder / "base.onnx"
        assert Tokenizer.from_dir(path)(TEXT) == Tokenizer.from_dir(folder)(TEXT)
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)


def test_of_several_artifacts_the_task_chooses(both):
    for opened in (Session, pipeline):
        with pytest.raises(ArtifactError, match=r"holds several artifacts: base\.onnx, qa\.onnx\. Give the path"):
            opened(both)
    with pipeline("feature-extraction", both) as pipe:
        assert pipe.session.path == both / "base.onnx"
    with pytest.raises(ArtifactError, match=r"holds no artifact of head 'cls', only base\.onnx, qa\.onnx"):
        pipeline("text-classification", both)


def test_a_folder_without_artifacts(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no artifact: expected a manifest such as qa\.json"):
        Session(tmp_path)


@pytest.mark.parametrize("opened", [Session, pipeline])
def test_a_folder_that_is_not_there(opened, tmp_path):
    with pytest.raises(ArtifactError, match=r"out does not exist: expected an exported folder, an artifact in"):
        opened(tmp_path / "out")


def test_a_hub_id_is_downloaded(hub, folder, monkeypatch, tmp_path):
    cache, asked = hub
    (folder / "model.safetensors").write_bytes(b"not of the artifact")
    monkeypatch.chdir(tmp_path)
    with pipeline("feature-extraction", "owner/name") as pipe:
        assert pipe.session.path == cache / "base.onnx"
        assert pipe(TEXT).shape == pipe("Tag").shape
    assert not (cache / "model.safetensors").exists()
    assert {"vocab.txt", *Manifest.load(folder / "base.json").files} <= set(asked)
    assert len(Tokenizer.from_dir("owner/name")(TEXT)) > 0
    with pytest.raises(ArtifactError, match="no owner/other here, and it cannot be downloaded from the hub: no"):
        Session("owner/other")


def test_without_the_package_a_hub_id_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EngineUnavailableError, match=r'pip install "erniem-rt\[hub\]"'):
        Session("owner/name")


def test_a_folder_of_that_name_is_preferred_to_the_hub(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "owner" / "name")
    with Session("owner/name") as session:
        assert session.manifest.head == "base"
    with pytest.raises(ArtifactError, match="owner/other"):
        Session("owner/other")


def test_the_ways_to_name_task_and_model(folder):
    with pipeline(task="feature-extraction", model=folder) as pipe:
        assert isinstance(pipe, erniem_rt.FeatureExtractionPipeline)
    with pipeline(model=str(folder)) as pipe:
        assert pipe.task == "feature-extraction"
    with (
        pytest.warns(DeprecationWarning, match=r"write pipeline\('feature-extraction', '.*base\.onnx'\)"),
        pipeline(folder / "base.onnx", "feature-extraction") as pipe,
    ):
        assert pipe.task == "feature-extraction"
    for arguments in ((), ("feature-extraction",)):
        with pytest.raises(InvalidInputError, match="model is missing: write pipeline"):
            pipeline(*arguments)
    with pytest.raises(InvalidInputError, match="task 'embeddings' is not known; expected one of feature-extraction"):
        pipeline("embeddings", folder)


def test_several_pipelines_on_one_session(make_text_artifact):
    artifact = make_text_artifact("cls", labels=["entailment", "neutral", "contradiction"])
    with Session(artifact.path.parent) as session:
        with pipeline("text-classification", session) as classify, pipeline("zero-shot-classification", session) as ask:
            answer = classify(TEXT)
            assert set(ask(TEXT, ["a", "b"])["labels"]) == {"a", "b"}
        with pipeline(session) as classify:
            assert classify(TEXT) == answer
        with pytest.raises(InvalidInputError, match="threads is an option of the session, which is open already"):
            pipeline("text-classification", session, threads=1)
        with pytest.raises(InvalidInputError, match="needs an artifact of head 'qa'"):
            pipeline("question-answering", session)
        assert session.run(input_ids=[[0, 5, 2]])


def test_embeddings_of_a_list_are_one_array(folder):
    with pipeline(folder) as pipe:
        one = pipe(TEXT)
        many = pipe([TEXT, "Tag"])
        assert (many.dtype, many.shape) == (np.float32, (2, *one.shape))
        np.testing.assert_allclose(many[0], one, atol=1e-5)
        assert pipe([]).shape == (0, *one.shape)
        found = pipe([TEXT, ""], errors="return")
        assert isinstance(found, list)
        assert isinstance(found[1], InvalidInputError)
    with pipeline(folder, pooling="none") as pipe:
        assert [vectors.ndim for vectors in pipe([TEXT, "Tag"])] == [2, 2]
