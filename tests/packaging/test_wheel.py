"""The wheel holds the two packages, whole, and nothing else."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import Path as ZipPath
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

import erniem_rt

EXTRAS = {
    "adapters",
    "ort",
    "openvino",
    "gpu",
    "hub",
    "tensorrt",
    "tensorrt-rtx",
    "text",
    "languages",
    "serve",
    "ray",
    "export",
    "bench",
    "dev",
}
INFO = f"erniem_rt-{erniem_rt.__version__}.dist-info"


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def distribution(wheel: Path) -> PathDistribution:
    return PathDistribution(ZipPath(wheel, f"{INFO}/"))


def test_the_wheel_is_for_every_python_3_and_platform(wheel):
    assert wheel.name == f"erniem_rt-{erniem_rt.__version__}-py3-none-any.whl"


def test_top_level_holds_the_two_packages_only(names):
    assert {name.split("/")[0] for name in names} == {"erniem_rt", "erniem_export", INFO}
    assert max(Counter(names).values()) == 1


@pytest.mark.parametrize("package", ["erniem_rt", "export/erniem_export"])
def test_a_package_is_whole_and_typed(package, names, root):
    folder = root / package
    kinds = (".py", ".txt", ".typed")  # modules, calibration text, the mark of a typed package
    files = {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if path.suffix in kinds}
    assert len(files) > 3
    assert f"{folder.name}/py.typed" in files
    assert {name for name in names if name.startswith(f"{folder.name}/")} == files


def test_metadata_folder_holds_the_licence_and_what_installers_need(names, wheel, root):
    expected = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert {name.removeprefix(f"{INFO}/") for name in names if name.startswith(INFO)} == expected
    with ZipFile(wheel) as archive:
        assert archive.read(f"{INFO}/licenses/LICENSE") == (root / "LICENSE").read_bytes()


def test_metadata(distribution):
    metadata = distribution.metadata
    assert metadata["Name"] == "erniem-rt"
    assert metadata["Version"] == erniem_rt.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS


def test_numpy_is_the_only_package_that_is_always_needed(distribution):
    requirements = [Requirement(text) for text in distribution.requires or []]
    assert [requirement.name for requirement in requirements if requirement.marker is None] == ["numpy"]
    # What has a marker must be held back by an extra, not by a platform.
    assert not [
        str(requirement)
        for requirement in requirements
        if requirement.marker is not None and requirement.marker.evaluate({"extra": ""})
    ]


def test_commands(distribution):
    assert {(entry.group, entry.name, entry.value) for entry in distribution.entry_points} == {
        ("console_scripts", "erniem-convert", "erniem_export.cli:convert_main"),
        ("console_scripts", "erniem-export", "erniem_export.cli:main"),
        ("console_scripts", "erniem-rt", "erniem_rt.__main__:run"),
        ("console_scripts", "erniem-verify", "erniem_export.cli:verify_main"),
    }
