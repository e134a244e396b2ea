"""The manifest's key ``plan``: strict, optional, and written as it was read."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from erniem_rt import ArtifactError
from erniem_rt.manifest import Manifest, Plan, Profile

PLAN = {
    "file": "qa.plan",
    "flavour": "tensorrt-rtx",
    "version": "1.7.1.50",
    "precision": {"weights": "fp16", "embedding": "fp32"},
    "compute_capabilities": ["8.9", "12.0"],
    "hardware_compatible": False,
    "version_compatible": False,
    "profiles": [{"min": [1, 1], "opt": [1, 8], "max": [4, 16]}],
    "attention": {"form": "primitives", "reason": "probed"},
    "proof": {"half": 12},
    "build": {"seconds": 1.2},
    "parity": {},
}


@pytest.fixture
def planned(artifact):
    """An artifact whose manifest describes a plan."""
    (artifact.folder / "qa.plan").write_bytes(b"plan")
    artifact.edit(lambda m: m.update(plan=json.loads(json.dumps(PLAN))))
    artifact.edit(lambda m: m["files"].update({"qa.plan": {"sha256": "0" * 64, "size": 4}}))
    return artifact


def refused(artifact):
    with pytest.raises(ArtifactError) as caught:
        Manifest.load(artifact.manifest)
    message = str(caught.value)
    assert message.startswith(str(artifact.manifest))
    assert "\n" not in message
    return message


def test_a_plan_is_read_as_documented(planned):
    plan = Manifest.load(planned.manifest).plan
    assert plan == Plan(
        file="qa.plan",
        flavour="tensorrt-rtx",
        version="1.7.1.50",
        precision={"weights": "fp16", "embedding": "fp32"},
        compute_capabilities=("8.9", "12.0"),
        hardware_compatible=False,
        version_compatible=False,
        profiles=(Profile((1, 1), (1, 8), (4, 16)),),
        attention=PLAN["attention"],
        proof=PLAN["proof"],
        build=PLAN["build"],
        parity={},
    )
    with pytest.raises(FrozenInstanceError):
        plan.file = "cls.plan"


def test_what_is_saved_is_what_was_loaded(planned, tmp_path):
    manifest = Manifest.load(planned.manifest)
    manifest.save(tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text("utf-8"))["plan"] == PLAN
    assert Manifest.load(tmp_path / "copy.json") == manifest


@pytest.mark.parametrize("change", [lambda m: m.update(plan=None), lambda m: None])
def test_without_a_plan_the_key_may_be_null_or_absent_and_is_not_written(artifact, tmp_path, change):
    artifact.edit(change)
    manifest = Manifest.load(artifact.manifest)
    assert manifest.plan is None
    manifest.save(tmp_path / "copy.json")
    assert "plan" not in json.loads((tmp_path / "copy.json").read_text("utf-8"))


def test_profiles_have_the_axes_of_the_head(make_artifact):
    artifact = make_artifact("mc")
    shapes = {"min": [1, 2, 1], "opt": [1, 4, 8], "max": [4, 8, 16]}
    artifact.edit(lambda m: m.update(plan={**PLAN, "file": "mc.plan", "profiles": [shapes]}))
    artifact.edit(lambda m: m["files"].update({"mc.plan": {"sha256": "0" * 64, "size": 4}}))
    (profile,) = Manifest.load(artifact.manifest).plan.profiles
    assert profile == Profile((1, 2, 1), (1, 4, 8), (4, 8, 16))
    artifact.edit(lambda m: m["plan"].update(profiles=PLAN["profiles"]))
    assert "key 'plan.profiles[0].min' must be a list of 3 positive integers, got [1, 1]" in refused(artifact)


@pytest.mark.parametrize("key", PLAN)
def test_every_key_is_needed(planned, key):
    planned.edit(lambda m: m["plan"].pop(key))
    assert f"key 'plan.{key}' is missing" in refused(planned)


BAD = [
    (("plan",), "qa.plan", "key 'plan' must be an object, got \"qa.plan\""),
    (("plan", "more"), 1, "unknown key 'plan.more'"),
    (("plan", "file"), "cls.plan", "key 'plan.file' must be 'qa.plan', beside qa.onnx, got 'cls.plan'"),
    (("plan", "file"), "../qa.plan", "must hold plain file names inside the folder, got '../qa.plan'"),
    (("plan", "flavour"), "tensorrt_rtx", "key 'plan.flavour' must be 'tensorrt' or 'tensorrt-rtx'"),
    (("plan", "version"), "", "key 'plan.version' must be a non-empty string"),
    (("plan", "precision", "weights"), 16, "key 'plan.precision.weights' must be a non-empty string, got 16"),
    (("plan", "compute_capabilities"), [], "'plan.compute_capabilities' must be a non-empty list of capabilities"),
    (("plan", "compute_capabilities"), ["sm89"], "capabilities such as \"8.9\", got ['sm89']"),
    (("plan", "compute_capabilities"), [8.9], "key 'plan.compute_capabilities' must be a list of strings"),
    (("plan", "hardware_compatible"), 0, "key 'plan.hardware_compatible' must be true or false, got 0"),
    (("plan", "version_compatible"), "no", "key 'plan.version_compatible' must be true or false"),
    (("plan", "profiles"), [], "key 'plan.profiles' must be a non-empty list of objects"),
    (("plan", "profiles", 0, "min"), [1], "key 'plan.profiles[0].min' must be a list of 2 positive integers, got [1]"),
    (("plan", "profiles", 0, "opt"), [1, 0], "key 'plan.profiles[0].opt' must be a list of 2 positive integers"),
    (("plan", "profiles", 0, "max"), [4, True], "key 'plan.profiles[0].max' must be a list of 2 positive integers"),
    (("plan", "profiles", 0, "min"), [2, 1], "key 'plan.profiles[0]' must have min <= opt <= max along every axis"),
    (("plan", "profiles", 0, "max"), [4, 7], "key 'plan.profiles[0]' must have min <= opt <= max along every axis"),
    (("plan", "profiles", 0, "max"), [4, 17], "'plan.profiles[0]' takes 17 positions, and the model takes at most 16"),
    (("plan", "profiles", 0, "best"), [1, 1], "unknown key 'plan.profiles[0].best'"),
    (("plan", "proof"), "yes", "key 'plan.proof' must be an object"),
    (("plan", "parity"), None, "key 'plan.parity' must be an object, got null"),
]


@pytest.mark.parametrize(
    ("keys", "value", "fragment"), BAD, ids=[f"{keys[1:]}={value!r}"[:50] for keys, value, _ in BAD]
)
def test_wrong_values_are_named(planned, keys, value, fragment):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    planned.edit(change)
    assert fragment in refused(planned)


def test_the_files_list_the_plan(planned):
    manifest = Manifest.load(planned.manifest)
    files = {name: record for name, record in manifest.files.items() if name != "qa.plan"}
    replace(manifest, files=files).save(planned.manifest)
    assert "plan.file is 'qa.plan', which files does not list" in refused(planned)
