"""Saving in one step, hashes, and files that are no longer what the manifest recorded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import zlib
from dataclasses import replace

import pytest

from erniem_rt import ArtifactError, files
from erniem_rt.files import check_hash
from erniem_rt.manifest import FileRecord, Manifest, hash_file


@pytest.fixture
def manifest(heads, tmp_path):
    """A manifest of two files, saved in ``tmp_path``; the files are the test's to write."""
    files = {"qa.onnx": FileRecord("a" * 64, 123), "qa.onnx.data": FileRecord("b" * 64, 0)}
    loaded = replace(Manifest.load(heads["qa"].manifest), files=files)
    loaded.save(tmp_path / "qa.json")
    return loaded


def test_saving_replaces_in_one_step(manifest, tmp_path, monkeypatch):
    """A disk that is full leaves the old manifest, whole, and nothing else."""
    before = (tmp_path / "qa.json").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace(manifest, opset=21).save(tmp_path / "qa.json")
    assert (tmp_path / "qa.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["qa.json"]
    monkeypatch.undo()
    replace(manifest, opset=21).save(tmp_path / "qa.json")
    assert Manifest.load(tmp_path / "qa.json").opset == 21
    assert [path.name for path in tmp_path.iterdir()] == ["qa.json"]


def test_numbers_that_json_lacks_are_not_saved(manifest, tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(manifest, parity={"max": float("nan")}).save(tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


@pytest.mark.skipif(os.name != "posix", reason="permission bits are those of POSIX")
def test_saved_files_have_the_usual_permissions(manifest, tmp_path):
    manifest.save(tmp_path / "new.json")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "new.json").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_hashes_are_those_of_the_whole_content(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "data").write_bytes(content)
    assert hash_file(tmp_path / "data") == FileRecord(hashlib.sha256(content).hexdigest(), size)


@pytest.mark.parametrize("extra", [0, 1, 5000])
def test_a_large_file_is_recorded_and_checked_in_pieces(tmp_path, monkeypatch, extra):
    monkeypatch.setattr(files, "PIECE", 4096)
    content = os.urandom(8192 + extra)
    pieces = tuple(zlib.crc32(content[start : start + 4096]) for start in range(0, len(content), 4096))
    path = tmp_path / "data"
    path.write_bytes(content)
    record = hash_file(path)
    assert record == FileRecord(hashlib.sha256(content).hexdigest(), len(content), pieces)
    for threads in (1, 3):
        check_hash(path, record, threads)
    for place in (0, 4095, 4096, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        number = place // 4096
        expected = rf"data was changed after export: expected CRC-32 {pieces[number]:08x} for bytes {number * 4096} to"
        with pytest.raises(ArtifactError, match=expected):
            check_hash(path, record, 2)
    path.write_bytes(content[4096:8192] + content[:4096] + content[8192:])
    with pytest.raises(ArtifactError, match="was changed after export"):
        check_hash(path, record, 2)


def test_a_file_of_one_piece_has_one_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 4096)
    (tmp_path / "data").write_bytes(b"x" * 4096)
    assert hash_file(tmp_path / "data").crc32 is None


def test_pieces_survive_the_manifest(manifest, tmp_path):
    files = {**manifest.files, "qa.onnx.data": FileRecord("a" * 64, 40 << 20, (0, 0xDEADBEEF, 0xFFFFFFFF))}
    replace(manifest, files=files).save(tmp_path / "qa.json")
    assert Manifest.load(tmp_path / "qa.json").files == files
    written = json.loads((tmp_path / "qa.json").read_text())
    assert written["files"]["qa.onnx.data"]["crc32"] == "00000000deadbeefffffffff"
    assert "crc32" not in written["files"]["qa.onnx"]
    for wrong in ("00000000deadbeef", "00000000DEADBEEFFFFFFFFF", 7):
        written["files"]["qa.onnx.data"]["crc32"] = wrong
        (tmp_path / "qa.json").write_text(json.dumps(written))
        with pytest.raises(ArtifactError, match=r"'files.qa.onnx.data.crc32' must be 24 lower-case hex digits"):
            Manifest.load(tmp_path / "qa.json")


def test_hashing_what_is_not_there(tmp_path):
    with pytest.raises(ArtifactError, match="data cannot be read: No such file"):
        hash_file(tmp_path / "data")


def test_verify_names_the_file(manifest, tmp_path):
    for name in manifest.files:
        (tmp_path / name).write_bytes(b"content")
    good = replace(manifest, files={name: hash_file(tmp_path / name) for name in manifest.files})
    good.verify(tmp_path)

    (tmp_path / "qa.onnx.data").write_bytes(b"c0ntent")
    good.verify(tmp_path, hashes=False)
    with pytest.raises(ArtifactError, match=r"qa\.onnx\.data was changed after export: expected sha256 ed70.*, found "):
        good.verify(tmp_path)

    (tmp_path / "qa.onnx.data").write_bytes(b"cont")
    for hashes in (True, False):
        with pytest.raises(ArtifactError, match=r"qa\.onnx\.data is truncated: expected 7 bytes, found 4\."):
            good.verify(tmp_path, hashes=hashes)

    (tmp_path / "qa.onnx.data").unlink()
    for hashes in (True, False):
        with pytest.raises(ArtifactError, match=r"qa\.onnx\.data is missing: the manifest lists it"):
            good.verify(tmp_path, hashes=hashes)


def test_all_sizes_come_before_any_hash(manifest, tmp_path):
    """A truncated last file is found without reading gigabytes of the first."""
    (tmp_path / "qa.onnx").write_bytes(b"x" * 123)
    (tmp_path / "qa.onnx.data").write_bytes(b"not empty")
    with pytest.raises(ArtifactError, match=r"qa\.onnx\.data is longer than what was exported: expected 0 bytes"):
        manifest.verify(tmp_path)
