"""Saving in one step, hashes, and files that are no longer what the manifest recorded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import struct
from dataclasses import replace

import pytest

from erniem_rt import ArtifactError, files
from erniem_rt.files import FileRecord, check_hash, hash_file
from erniem_rt.manifest import Manifest

ROW = 1 << 18


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


@pytest.mark.parametrize("size", [0, 1, ROW - 1, ROW, ROW + 1, 3_000_000])
def test_hashes_are_those_of_the_whole_content(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "data").write_bytes(content)
    assert hash_file(tmp_path / "data") == FileRecord(hashlib.sha256(content).hexdigest(), size)


def slow_checksum(content):
    """The checksum as its documentation says, word by word."""
    rows = -(-len(content) // ROW) or 1
    words = struct.unpack(f"<{rows * ROW // 8}Q", content.ljust(rows * ROW, b"\0"))
    sums = [0] * (ROW // 8)
    for start in range(0, len(words), ROW // 8):
        for column in range(ROW // 8):
            sums[column] = (sums[column] * 6364136223846793005 + words[start + column]) % 2**64
    return hashlib.sha256(struct.pack(f"<{ROW // 8}Q", *sums)).hexdigest()


@pytest.mark.parametrize("size", [ROW, ROW + 1, 3 * ROW - 7, 3 * ROW])
def test_a_large_file_is_recorded_with_its_checksum(tmp_path, monkeypatch, size):
    monkeypatch.setattr(files, "LARGE", 4096)
    content = os.urandom(size)
    path = tmp_path / "data"
    path.write_bytes(content)
    record = hash_file(path)
    assert record == FileRecord(hashlib.sha256(content).hexdigest(), size, slow_checksum(content))
    check_hash(path, record)


def test_a_change_of_a_large_file_is_found_by_its_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 4096)
    content = os.urandom(3 * ROW + 5)
    path = tmp_path / "data"
    path.write_bytes(content)
    record = replace(hash_file(path), sha256="0" * 64)  # not looked at
    check_hash(path, record)
    swapped = content[ROW : 2 * ROW] + content[:ROW] + content[2 * ROW :]
    for changed in (
        swapped,
        *(flipped(content, place) for place in (0, 7, ROW - 1, ROW, 2 * ROW + 9, len(content) - 1)),
    ):
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=f"data was changed after export: expected checksum {record.checksum}"):
            check_hash(path, record)


def flipped(content, place):
    changed = bytearray(content)
    changed[place] ^= 0x80
    return bytes(changed)


def test_a_small_file_has_no_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 4096)
    (tmp_path / "data").write_bytes(b"x" * 4096)
    assert hash_file(tmp_path / "data").checksum is None


def test_checksums_survive_the_manifest(manifest, tmp_path):
    files = {**manifest.files, "qa.onnx.data": FileRecord("a" * 64, 40 << 20, "0123456789abcdef" * 4)}
    replace(manifest, files=files).save(tmp_path / "qa.json")
    assert Manifest.load(tmp_path / "qa.json").files == files
    written = json.loads((tmp_path / "qa.json").read_text())
    assert written["files"]["qa.onnx.data"]["checksum"] == "0123456789abcdef" * 4
    assert "checksum" not in written["files"]["qa.onnx"]
    for wrong in ("0123", "0123456789ABCDEF" * 4, 7):
        written["files"]["qa.onnx.data"]["checksum"] = wrong
        (tmp_path / "qa.json").write_text(json.dumps(written))
        with pytest.raises(ArtifactError, match=r"'files.qa.onnx.data.checksum' must be 64 lower-case hex digits"):
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
