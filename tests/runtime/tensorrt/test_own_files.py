"""A plan and the graph beside it share a folder and a manifest; each needs its own files and those of both."""

from __future__ import annotations

import pytest

from erniem_rt import ArtifactError, Session, manifest


@pytest.fixture
def plan(heads, plan_of):
    return plan_of(heads["qa"].path)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


HARMS = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "edited": flip,
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("harm", HARMS)
def test_a_graph_is_not_to_blame_for_the_plan_beside_it(plan, harm, verify):
    HARMS[harm](plan)
    for suffix in (".onnx", ".json"):
        with Session(plan.with_suffix(suffix), verify=verify) as session:
            assert session.run(input_ids=[[5, 6]])["start_logits"].shape == (1, 2)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["qa.onnx", "qa.onnx.data"])
def test_a_plan_is_not_to_blame_for_the_graph_beside_it(machine, plan, name, harm, verify):
    HARMS[harm](plan.with_name(name))
    with Session(plan, verify=verify) as session:
        assert session.run(input_ids=[[5, 6]])["start_logits"].shape == (1, 2)


def test_neither_reads_more_than_its_own_files_and_those_of_both(machine, plan, monkeypatch):
    """Hashing takes about a second per GB, and the two are about as large as one another."""
    looked_at, real = [], manifest.check_hash
    monkeypatch.setattr(manifest, "check_hash", lambda path, *a: (looked_at.append(path.name), real(path, *a)))
    Session(plan.with_suffix(".onnx")).close()
    assert sorted(looked_at) == ["config.json", "qa.onnx", "qa.onnx.data"]
    looked_at.clear()
    Session(plan).close()
    assert looked_at == ["config.json"]  # and the plan, while it is read


@pytest.mark.parametrize("suffix", [".onnx", ".plan"])
@pytest.mark.parametrize("harm", HARMS)
def test_either_is_to_blame_for_itself(machine, plan, suffix, harm):
    HARMS[harm](plan.with_suffix(suffix))
    said = {"deleted": "is missing", "truncated": "is truncated", "edited": r"was changed|is not the plan that was"}
    with pytest.raises(ArtifactError, match=said[harm]):
        Session(plan.with_suffix(suffix))
