"""Which onnxruntime an artifact needs: older ones give wrong numbers, and are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from erniem_rt import ArtifactError, EngineUnavailableError, Session
from erniem_rt.engines.onnxruntime import version_of
from erniem_rt.manifest import Manifest

PADDED = np.array([[0, 5, 6, 7, 2, 1, 1, 1], [0, 8, 9, 10, 11, 12, 13, 2]])


@pytest.mark.parametrize("head", ["cls", "mc"])
def test_a_row_in_a_padded_batch_is_the_row_alone(nano_artifact: Callable[[str], Path], head: str) -> None:
    """onnxruntime 1.20 gives others, for the last layer has one query per row."""
    with Session(nano_artifact(head)) as session:
        batch, alone = PADDED, PADDED[:1, :5]
        if head == "mc":
            batch, alone = batch[:, None], alone[:, None]
        found, expected = session.run(input_ids=batch)["logits"][0], session.run(input_ids=alone)["logits"][0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if head == "cls":
        np.testing.assert_allclose(found, [-1.52, 2.37, 0.22], atol=0.01)


def needs(artifact: Any, version: object) -> None:
    artifact.edit(lambda manifest: manifest.update(onnxruntime=version))


def test_an_older_onnxruntime_is_refused(artifact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(artifact, "1.21")
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    with pytest.raises(EngineUnavailableError) as caught:
        Session(artifact.path)
    assert str(caught.value) == (
        f"{artifact.path} needs onnxruntime 1.21 or newer, and 1.20.1 may compute it wrongly: "
        'pip install --upgrade "onnxruntime>=1.21".'
    )


@pytest.mark.parametrize("found", ["1.21.0", "1.100.0", "2.0.0", "built here"])
def test_a_newer_one_is_taken(artifact: Any, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    needs(artifact, "1.21")
    monkeypatch.setattr(onnxruntime, "__version__", found)
    Session(artifact.path).close()


def test_the_manifest_need_not_say(artifact: Any, tmp_path: Path) -> None:
    manifest = Manifest.load(artifact.manifest)
    assert manifest.onnxruntime is None
    manifest.save(tmp_path / "saved.json")
    assert '"onnxruntime"' not in (tmp_path / "saved.json").read_text()
    needs(artifact, "1.9")
    assert Manifest.load(artifact.manifest).onnxruntime == "1.9"
    assert version_of(onnxruntime) > (1, 9)


@pytest.mark.parametrize("version", [1.21, "", "new", "1", "1.21.1"])
def test_what_is_no_version_is_refused(artifact: Any, version: object) -> None:
    needs(artifact, version)
    with pytest.raises(ArtifactError, match=r"'onnxruntime' must be a version such as '1\.21'"):
        Manifest.load(artifact.manifest)
