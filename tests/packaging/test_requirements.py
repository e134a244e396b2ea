"""The pinned environments are of the kind that users are promised in pyproject.toml."""

from __future__ import annotations

from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import Path as ZipPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import erniem_rt
from erniem_export.onnx_export import ONNXRUNTIME

ENVIRONMENTS = {
    "serve": {"", "ort", "text"},
    "serving": {"", "ort", "text", "serve", "ray"},
    "triton": {"", "ort", "text"},
    "dev": {"", "ort", "text", "languages", "export", "dev"},
    "transformers5": {"", "ort", "text", "export"},
}


def read_pins(path: Path) -> dict[str, Requirement]:
    """What ``path`` and the files that it includes ask for, by name."""
    pins: dict[str, Requirement] = {}
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            found = read_pins(path.with_name(line.removeprefix("-r ")))
        elif line and not line.startswith("#"):
            requirement = Requirement(line)
            found = {canonicalize_name(requirement.name): requirement}
        else:
            continue
        assert not pins.keys() & found.keys(), f"{path.name} pins {sorted(pins.keys() & found.keys())} twice"
        pins |= found
    return pins


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_pin_is_exact(name, root):
    pins = read_pins(root / "requirements" / f"{name}.txt")
    assert pins
    for requirement in pins.values():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"expected an exact pin, got {requirement}"
        assert "*" not in specifier.version


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_pins_meet_the_extras(name, root, wheel):
    pins = read_pins(root / "requirements" / f"{name}.txt")
    distribution = PathDistribution(ZipPath(wheel, f"erniem_rt-{erniem_rt.__version__}.dist-info/"))
    needed = [
        requirement
        for requirement in map(Requirement, distribution.requires or [])
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in ENVIRONMENTS[name])
    ]
    assert len(needed) > 2
    for requirement in needed:
        pin = pins[canonicalize_name(requirement.name)]
        (specifier,) = pin.specifier
        assert requirement.specifier.contains(specifier.version), f"{name}.txt pins {pin}, the extra says {requirement}"


def test_the_floor_is_what_the_extras_admit_and_what_artifacts_ask_for(root, wheel):
    lines = [line for line in (root / "requirements" / "floor.txt").read_text().splitlines() if line[:1].strip("#")]
    pins = [pin for pin in map(Requirement, lines) if pin.marker is None or pin.marker.evaluate()]
    oldest = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    distribution = PathDistribution(ZipPath(wheel, f"erniem_rt-{erniem_rt.__version__}.dist-info/"))
    wanted = [
        requirement
        for requirement in map(Requirement, distribution.requires or [])
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("ort", "text"))
    ]
    assert {requirement.name for requirement in wanted} == {"numpy", "onnxruntime", "sentencepiece"}
    for requirement in wanted:
        assert requirement.specifier.contains(oldest[requirement.name])
    (least,) = (str(requirement.specifier) for requirement in wanted if requirement.name == "onnxruntime")
    assert f">={ONNXRUNTIME}" in least.split(",")
    assert oldest["onnxruntime"] == f"{ONNXRUNTIME}.0"


def test_the_two_transformers_are_the_last_with_ernie_m_and_a_newer_major(root):
    versions = [
        next(iter(read_pins(root / "requirements" / f"{name}.txt")["transformers"].specifier)).version
        for name in ("dev", "transformers5")
    ]
    assert [version.split(".")[0] for version in versions] == ["4", "5"]
