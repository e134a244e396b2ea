"""Artifacts that are damaged, mixed up or not there are named when they are opened."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from erniem_rt import ArtifactError, EngineUnavailableError, InvalidInputError, Session
from erniem_rt.engines.onnxruntime import version_of
from erniem_rt.manifest import Manifest


def refuses(path, *fragments, error=ArtifactError, **options):
    before = threading.active_count()
    with pytest.raises(error) as caught:
        Session(path, **options)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert threading.active_count() == before


def flip_a_bit(path: Path, at: int = 40) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_an_edited_weight(artifact):
    flip_a_bit(artifact.data)
    refuses(artifact.path, "qa.onnx.data was changed after export: expected sha256 ", ", found ")
    with Session(artifact.path, verify=False) as session:
        assert session.run(input_ids=[[0, 2]])["start_logits"].shape == (1, 2)


def test_an_edited_file_that_no_engine_reads(artifact):
    flip_a_bit(artifact.folder / "config.json", 3)
    refuses(artifact.path, "config.json was changed after export")


def test_an_edited_graph_is_named_by_its_hash_although_it_does_not_load(artifact):
    size = artifact.path.stat().st_size
    artifact.path.write_bytes(b"\xff" * size)
    refuses(artifact.path, "qa.onnx was changed after export")
    refuses(artifact.path, "qa.onnx cannot be loaded by onnxruntime", verify=False)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["qa.onnx", "qa.onnx.data", "config.json"])
def test_a_truncated_file(artifact, name, verify):
    path = artifact.folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    refuses(
        artifact.path,
        f"{name} is truncated: expected {len(whole)} bytes, found {len(whole) - 7}.",
        verify=verify,
    )


@pytest.mark.parametrize("name", ["qa.json", "qa.onnx", "qa.onnx.data", "config.json"])
def test_a_pointer_of_git_lfs(artifact, name):
    (artifact.folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refuses(artifact.path, f"{name} is a pointer of Git LFS, not the file itself: run git lfs pull.")


@pytest.mark.parametrize("path", [None, 3, b"qa.onnx", ["qa.onnx"]])
def test_a_path_that_is_none(path):
    message = f"path must be a str or a path, got {type(path).__name__}."
    refuses(path, message, error=InvalidInputError)


def test_a_file_that_grew(artifact):
    with artifact.data.open("ab") as file:
        file.write(b"more")
    refuses(artifact.path, "qa.onnx.data is longer than what was exported")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["qa.onnx.data", "config.json"])
def test_a_missing_file(artifact, name, verify):
    (artifact.folder / name).unlink()
    refuses(artifact.path, f"{name} is missing: the manifest lists it.", verify=verify)


def test_a_folder_in_place_of_a_file(artifact):
    artifact.data.unlink()
    artifact.data.mkdir()
    refuses(artifact.path, "qa.onnx.data is missing")


def test_a_missing_graph(artifact):
    artifact.path.unlink()
    refuses(artifact.path, "qa.onnx is missing. Check the path, or export with erniem-export.")
    refuses(artifact.manifest, "qa.onnx is missing: the manifest lists it.")


def test_a_missing_manifest(artifact):
    artifact.manifest.unlink()
    refuses(artifact.path, "qa.json: there is no such file, and an artifact needs its manifest; re-export with")


def test_a_file_that_the_manifest_lists_in_excess(artifact):
    artifact.edit(lambda m: m["files"].update({"vocab.txt": {"sha256": "0" * 64, "size": 1}}))
    refuses(artifact.path, "vocab.txt is missing: the manifest lists it.")


def test_weights_that_only_the_graph_knows(artifact):
    artifact.edit(lambda m: m["files"].pop("qa.onnx.data"))
    artifact.data.unlink()
    refuses(artifact.path, "qa.onnx cannot be loaded by onnxruntime", "qa.onnx.data")


def test_a_broken_protobuf(artifact):
    artifact.path.write_bytes(b"this is no protobuf at all")
    artifact.rehash()
    refuses(artifact.path, "qa.onnx cannot be loaded by onnxruntime", "Restore the file or export again.")


@pytest.mark.parametrize("weights", ["bf16", "fp32"])
def test_arithmetic_in_bfloat16_is_not_a_cpus(artifact, weights):
    model = onnx.load(artifact.path, load_external_data=False)
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["projection"], ["short"], to=TensorProto.BFLOAT16),
            helper.make_node("Transpose", ["short"], ["turned"]),
            helper.make_node("MatMul", ["short", "turned"], ["product"]),
            helper.make_node("Cast", ["product"], ["unused"], to=TensorProto.FLOAT),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [8, 8]))
    onnx.save(model, artifact.path)
    artifact.rehash()
    artifact.edit(lambda m: m["precision"].update(weights=weights))
    if weights == "fp32":
        refuses(artifact.path, "cannot be loaded by onnxruntime", "NOT_IMPLEMENTED")
    else:
        refuses(
            artifact.path,
            "qa.onnx is in bfloat16, and ONNX Runtime has no bfloat16 arithmetic on a CPU: open it with "
            'device="cuda" or, with pip install "erniem-rt[openvino]", engine="openvino", or export with --fp16 or in '
            "float32.",
            error=EngineUnavailableError,
        )


def test_one_head_under_the_name_of_another(heads, tmp_path):
    folder = shutil.copytree(next(iter(heads.values())).folder, tmp_path / "copy")
    shutil.copy(folder / "cls.onnx", folder / "qa.onnx")
    refuses(folder / "qa.onnx", "qa.onnx is ")
    swapped = Manifest.load(folder / "qa.json")
    assert swapped.files["qa.onnx"].size != (folder / "qa.onnx").stat().st_size


def test_one_head_under_the_name_of_another_with_good_hashes(heads, make_artifact):
    artifact = make_artifact("qa")
    other = heads["cls"]
    shutil.copy(other.path, artifact.path)
    shutil.copy(other.data, artifact.folder)
    artifact.rehash()
    refuses(
        artifact.path,
        "qa.onnx does not fit its manifest qa.json: the manifest says outputs start_logits, end_logits, "
        "the graph has logits. They come from different exports; export again.",
    )


def test_a_manifest_of_another_head(heads, tmp_path):
    folder = shutil.copytree(heads["qa"].folder, tmp_path / "copy")
    shutil.copy(folder / "ie.json", folder / "qa.json")
    refuses(folder / "qa.onnx", "qa.json describes ie.onnx, not qa.onnx.", "Exported files keep their names")


def test_a_manifest_of_another_version(artifact):
    artifact.edit(lambda m: m.update(format_version=2))
    refuses(artifact.path, "format version 2.0, and erniem-rt", "reads 1.x: update erniem-rt, or export again with")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda m: m["inputs"][0].update(dtype="int32"), "input input_ids of int32, the graph has int64"),
        (lambda m: m["outputs"][0].update(dtype="float16"), "output start_logits of float16, the graph has float32"),
        (
            lambda m: m["outputs"][0].update(shape=["batch"]),
            "output start_logits of shape (batch), the graph has (batch, sequence)",
        ),
        (
            lambda m: m["outputs"].append({**m["outputs"][0], "name": "extra"}),
            "outputs start_logits, end_logits, extra",
        ),
    ],
)
def test_a_graph_that_the_manifest_describes_otherwise(artifact, change, fragment):
    artifact.edit(change)
    refuses(artifact.path, "does not fit its manifest", fragment)


def test_fixed_axes_are_compared(make_artifact):
    artifact = make_artifact("base")
    artifact.edit(lambda m: m["outputs"][1].update(shape=["batch", 9]))
    refuses(artifact.path, "output pooler_output of shape (batch, 9), the graph has (batch, 8)")
    artifact.edit(lambda m: m["outputs"][1].update(shape=["batch", "hidden"]))
    refuses(artifact.path, "output pooler_output of shape (batch, hidden), the graph has (batch, 8)")


def test_a_manifest_may_narrow_a_dynamic_axis(artifact):
    artifact.edit(lambda m: [spec.update(shape=[1, "sequence"]) for spec in m["inputs"]])
    with Session(artifact.path) as session:
        session.run(input_ids=[[0, 2]])
        with pytest.raises(ValueError, match=r"input_ids must have shape \(1, sequence\), got \(2, 1\)"):
            session.run(input_ids=[[0], [2]])


def test_nothing_at_all(tmp_path):
    refuses(tmp_path / "qa.onnx", "qa.onnx is missing. Check the path")
    refuses(tmp_path / "qa.json", "qa.json: there is no such file")


@pytest.mark.parametrize("name", ["qa.onnx.data", "config.txt"])
def test_other_suffixes(artifact, name):
    refuses(artifact.folder / name, "expected a file HEAD.onnx or HEAD.plan (or the manifest HEAD.json)")


def test_a_plan_that_is_not_there(artifact):
    refuses(artifact.folder / "qa.plan", "qa.plan is missing. Check the path")


def test_an_engine_is_closed_when_the_check_fails(artifact, monkeypatch):
    closed = []
    from erniem_rt.engines.onnxruntime import OrtEngine

    monkeypatch.setattr(OrtEngine, "close", lambda engine: closed.append(engine))
    flip_a_bit(artifact.data)
    refuses(artifact.path, "was changed")
    artifact.rehash()
    artifact.edit(lambda m: m["inputs"][0].update(dtype="int32"))
    refuses(artifact.path, "does not fit")
    assert len(closed) == 2


def test_files_behind_links_are_read(artifact, tmp_path):
    """A cache keeps files under their hashes and links to them by name."""
    links = tmp_path / "links"
    links.mkdir()
    for path in artifact.folder.iterdir():
        (links / path.name).symlink_to(path)
    with Session(links / "qa.onnx") as session:
        assert session.run(input_ids=[[0, 2]])["start_logits"].shape == (1, 2)


def link_each(artifact, folder, targets):
    """Links in ``folder``, by the names of the artifact's files, to copies in the folder that ``targets`` gives."""
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(artifact.folder.iterdir())):
        target = targets(number)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / f"blob{number}")
        (folder / path.name).symlink_to(target / f"blob{number}")
    return folder / artifact.path.name


def test_a_hub_cache(artifact, tmp_path):
    path = link_each(artifact, tmp_path / "snapshots" / "0a1b", lambda _: tmp_path / "blobs")
    with Session(path) as session:
        assert session.run(input_ids=[[0, 2]])["start_logits"].shape == (1, 2)


def test_hard_links_and_a_link_to_the_folder(artifact, tmp_path):
    (tmp_path / "hard").mkdir()
    for path in artifact.folder.iterdir():
        (tmp_path / "hard" / path.name).hardlink_to(path)
    (tmp_path / "link").symlink_to(tmp_path / "hard")
    for folder in ("hard", "link"):
        with Session(tmp_path / folder / "qa.onnx") as session:
            assert session.run(input_ids=[[0, 2]])["start_logits"].shape == (1, 2)


@pytest.mark.skipif(version_of(onnxruntime) < (1, 24), reason="this onnxruntime opens them")
def test_files_linked_one_by_one_into_other_folders(artifact, tmp_path):
    """onnxruntime refuses them since 1.24: nothing is to be restored."""
    path = link_each(artifact, tmp_path / "links", lambda number: tmp_path / f"folder{number}")
    refuses(
        path,
        f"{path} and qa.onnx.data are links into different folders, and onnxruntime ",
        f"link their whole folder, or copy the files (cp -rL {path.parent} COPY) and open the copy.",
    )
    shutil.copytree(path.parent, tmp_path / "copy")
    with Session(tmp_path / "copy" / "qa.onnx") as session:
        assert session.run(input_ids=[[0, 2]])["start_logits"].shape == (1, 2)


def test_a_hub_cache_on_onnxruntime_1_24_1(artifact, tmp_path, monkeypatch):
    """That version alone takes every link for a way out of the model's folder."""
    path = link_each(artifact, tmp_path / "snapshots" / "0a1b", lambda _: tmp_path / "blobs")

    def refuse(*_, **__):
        raise RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : External data path validation failed for initializer: words. Error: "
            f'External data path: "qa.onnx.data" escapes model directory: "{path.parent}"'
        )

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    refuses(path, f"does not open {path}.data, a link as in a hub cache: install another version, as pip install ")
    refuses(artifact.path, "qa.onnx cannot be loaded by onnxruntime")
