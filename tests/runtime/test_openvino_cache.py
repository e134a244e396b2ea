"""Compiled models of OpenVINO, kept in a folder: found again, never taken for another's, never in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from erniem_rt import ArtifactError, InvalidInputError, Session
from erniem_rt.engines import openvino as engine_module

openvino = pytest.importorskip("openvino")

FEEDS = {"input_ids": [[3, 4, 5, 6]]}


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("ERNIEM_RT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home/erniem-rt"


@pytest.fixture
def loaded(monkeypatch):
    """Whether each model that was compiled came from a cache."""
    found = []
    real = openvino.Core.compile_model

    def spy(self, *arguments):
        model = real(self, *arguments)
        found.append(model.get_property("LOADED_FROM_CACHE"))
        return model

    monkeypatch.setattr(openvino.Core, "compile_model", spy)
    return found


def answer(artifact, **options):
    with Session(artifact.path, engine="openvino", **options) as session:
        return session.run(FEEDS)["start_logits"]


def assert_right(artifact, **options):
    np.testing.assert_allclose(answer(artifact, **options), artifact.answer(**FEEDS)["start_logits"], atol=1e-5)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_beside_the_artifact_one_for_all_threads(artifact, loaded):
    for threads in (1, 2):
        assert_right(artifact, threads=threads)
    assert loaded == [False, True]
    (entry,) = entries(artifact.folder / ".erniem-rt")
    assert entry.startswith("qa-")


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_a_folder_of_ones_own(artifact, loaded, tmp_path, monkeypatch, where):
    options = {"cache": tmp_path / "mine" / "deep"} if where == "argument" else {}
    monkeypatch.setenv("ERNIEM_RT_CACHE", str(tmp_path / "mine/deep"))
    assert_right(artifact, **options)
    assert_right(artifact, **options)
    assert loaded == [False, True]
    assert len(entries(tmp_path / "mine/deep")) == 1
    assert not (artifact.folder / ".erniem-rt").exists()


@pytest.mark.parametrize("options", [{"cache": False}, {}])
def test_no_cache(artifact, loaded, monkeypatch, user_folder, options):
    if not options:
        monkeypatch.setenv("ERNIEM_RT_CACHE", "0")
    assert_right(artifact, **options)
    assert_right(artifact, **options)
    assert loaded == [False, False]
    assert not (artifact.folder / ".erniem-rt").exists()
    assert not user_folder.exists()


def test_other_weights_are_another_model(artifact, loaded, make_artifact):
    """With the same size and time of change, by which OpenVINO would take them for the same."""
    before = artifact.data.stat()
    assert_right(artifact)
    weights = np.frombuffer(artifact.data.read_bytes(), np.float32) * 2
    artifact.data.write_bytes(weights.tobytes())
    os.utime(artifact.data, ns=(before.st_atime_ns, before.st_mtime_ns))
    artifact.rehash()
    first, second = answer(artifact), answer(artifact)
    np.testing.assert_allclose(first, 4 * artifact.answer(**FEEDS)["start_logits"], rtol=1e-5)
    np.testing.assert_array_equal(first, second)
    assert loaded == [False, False, True]
    assert len(entries(artifact.folder / ".erniem-rt")) == 1, "that of the old weights is gone"


def damage(how, entry):
    (blob,) = entry.glob("*.blob")
    content = bytearray(blob.read_bytes())
    blob.chmod(0o600)
    if how == "changed":
        for at in range(len(content) // 2, len(content) // 2 + 64):
            content[at] ^= 255
        blob.write_bytes(content)
    elif how == "truncated":
        blob.write_bytes(content[: len(content) // 2])
    elif how == "no blob":
        blob.unlink()
    elif how == "no record":
        (entry / "compiled.json").unlink()
    else:
        (entry / "compiled.json").write_text(how)


@pytest.mark.parametrize(
    "how", ["changed", "truncated", "no blob", "no record", "{", "[1]", '["x", {"size": 3}]', "[" * 10**6]
)
def test_what_is_damaged_is_built_again(artifact, loaded, how):
    assert_right(artifact)
    (entry,) = (artifact.folder / ".erniem-rt").iterdir()
    damage(how, entry)
    assert_right(artifact)
    assert_right(artifact)
    assert loaded == [False, False, True]


def test_another_version_of_openvino(artifact, loaded, monkeypatch):
    assert_right(artifact)
    monkeypatch.setattr(openvino, "__version__", "2027.0.0-1-abc")
    assert_right(artifact)
    assert loaded == [False, False]
    assert len(entries(artifact.folder / ".erniem-rt")) == 1


def test_a_folder_that_cannot_be_made_falls_to_the_users(artifact, loaded, user_folder):
    (artifact.folder / ".erniem-rt").write_text("a file in its place")
    assert_right(artifact)
    assert_right(artifact)
    assert loaded == [False, True]
    assert len(entries(user_folder)) == 1


def test_nowhere_to_write_is_no_error(artifact, loaded, user_folder):
    for place in (artifact.folder / ".erniem-rt", user_folder.parent):
        place.write_text("a file in its place")
    assert_right(artifact)
    assert loaded == [False]


def test_a_folder_by_name_that_cannot_be_written_is_a_warning(artifact, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the compiled model was not kept in .*inner: Not a directory"):
        assert_right(artifact, cache=tmp_path / "file/inner")


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_name_that_is_too_long_is_a_warning(artifact, loaded, monkeypatch, tmp_path, by_variable):
    folder = tmp_path / ("x" * 300)  # stat fails, as in a folder of another user
    monkeypatch.setenv("ERNIEM_RT_CACHE", str(folder))
    with pytest.warns(UserWarning, match="the compiled model was not kept in .*xxx: File name too long"):
        assert_right(artifact, cache=None if by_variable else folder)
    assert loaded == [False]


@pytest.mark.parametrize("name", ["a\0b", "~\0", "a\udcffb", "", 0])
def test_a_name_that_is_none(artifact, name):
    with pytest.raises(InvalidInputError, match=r"cache must be the path of a folder, .*, got"):
        assert_right(artifact, cache=name)


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_file_is_no_folder(artifact, monkeypatch, by_variable):
    monkeypatch.setenv("ERNIEM_RT_CACHE", str(artifact.path))
    name = "ERNIEM_RT_CACHE" if by_variable else "cache"
    with pytest.raises(InvalidInputError, match=rf"{name} must be the path of a folder, and .*qa\.onnx is a file"):
        answer(artifact, cache=None if by_variable else artifact.path)


def test_a_variable_that_is_not_utf_8(artifact, monkeypatch):
    monkeypatch.setenv("ERNIEM_RT_CACHE", "a\udcffb")
    with pytest.raises(InvalidInputError, match="ERNIEM_RT_CACHE must be the path of a folder, in UTF-8, got"):
        answer(artifact)


def test_the_home_has_a_short_name(artifact, loaded, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert_right(artifact, cache="~/compiled")
    assert (loaded, len(entries(tmp_path / "compiled"))) == ([False], 1)


def test_a_full_disk(artifact, loaded, monkeypatch, user_folder):
    usage = shutil.disk_usage(artifact.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert_right(artifact)
    with pytest.warns(UserWarning, match="was not kept in .*: the disk is nearly full"):
        assert_right(artifact, cache=user_folder)
    assert entries(artifact.folder / ".erniem-rt") == entries(user_folder) == []


def test_a_disk_that_fills_up_meanwhile(artifact):
    """Files may grow to a kilobyte, as on a disk that has no more."""
    code = (
        "import resource, sys, erniem_rt\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))\n"
        f"s = erniem_rt.Session({str(artifact.path)!r}, engine='openvino')\n"
        f"print(s.run(**{FEEDS!r})['start_logits'].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "(1, 4)\n"), done.stderr
    assert entries(artifact.folder / ".erniem-rt") == []


def test_what_did_not_pass_the_check_is_not_kept(artifact, loaded):
    content = artifact.data.read_bytes()
    times = artifact.data.stat()
    artifact.data.write_bytes(content[:-4] + b"\0\0\0\0")
    os.utime(artifact.data, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ArtifactError, match="was changed after export"):
        answer(artifact)
    assert entries(artifact.folder / ".erniem-rt") == []
    answer(artifact, verify=False)
    artifact.data.write_bytes(content)
    os.utime(artifact.data, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert_right(artifact)
    assert loaded == [False, False, False]


def test_two_processes_at_once(artifact):
    code = f"import erniem_rt; erniem_rt.Session({str(artifact.path)!r}, engine='openvino').close()"
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    assert [(each.communicate(timeout=120)[1], each.returncode) for each in both] == [(b"", 0)] * 2
    assert len(entries(artifact.folder / ".erniem-rt")) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_right(artifact)


def test_what_a_killed_process_left_is_cleared(artifact):
    folder = artifact.folder / ".erniem-rt"
    answer(artifact)
    (entry,) = folder.iterdir()
    family = entry.name.rpartition("-")[0]
    for name, age in ((f".{family}-old", 7200), (f".{family}-new", 60)):
        (folder / name).mkdir()
        at = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (at, at))
    shutil.rmtree(entry)
    answer(artifact)
    assert entries(folder) == [f".{family}-new", entry.name]
    assert engine_module._ABANDONED == 3600
