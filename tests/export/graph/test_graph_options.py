"""Optional inputs and outputs of the graph: their signature, their numbers, and that they do something."""

import numpy as np
import pytest
import torch

from erniem_export.gate.parity import check_parity
from erniem_rt.session import Session

ALL = ("position_ids", "head_mask", "inputs_embeds", "hidden_states", "attentions")
FLAGS = [
    ("base", ("position_ids", "hidden_states")),
    ("qa", ("head_mask",)),
    ("ner", ("inputs_embeds",)),
    ("mc", ALL),
]


@pytest.fixture(params=FLAGS, ids=lambda param: f"{param[0]}: {', '.join(param[1]) if param[1] != ALL else 'all'}")
def artifact(request, exported):
    head, flags = request.param
    return exported(head, **dict.fromkeys(flags, True))


def test_signature(artifact):
    options, rows = artifact.options, ("batch", "sequence")
    axes = ("batch", "choices", "sequence") if artifact.head == "mc" else rows
    expected = {"inputs_embeds": (*axes, 32)} if options.inputs_embeds else {"input_ids": axes}
    expected["attention_mask"] = axes
    if options.position_ids:
        expected["position_ids"] = axes
    if options.head_mask:
        expected["head_mask"] = (2, 4)
    with Session(artifact.path) as session:  # which holds the graph against the manifest
        assert list({spec.name: spec.shape for spec in session.manifest.inputs}.items()) == list(expected.items())
        outputs = {spec.name: spec.shape for spec in session.manifest.outputs}
    batch = "batch*choices" if artifact.head == "mc" else "batch"
    extra = {name: shape for name, shape in outputs.items() if "." in name}
    states = {f"hidden_states.{i}": (batch, "sequence", 32) for i in range(3) if options.hidden_states}
    weights = {f"attentions.{i}": (batch, 4, "sequence", "sequence") for i in range(2) if options.attentions}
    assert list(extra.items()) == list((states | weights).items())


def test_numbers_are_the_models(artifact, case_inputs):
    feeds = case_inputs(artifact, batch=3, sequence=11, choices=2)
    with torch.no_grad():
        expected = artifact.model(
            **{name: torch.from_numpy(array) for name, array in feeds.items()},
            output_hidden_states=True,
            output_attentions=True,
        )
    with Session(artifact.path) as session:
        for name, found in session.run(feeds).items():
            field, _, index = name.partition(".")
            reference = (expected[field][int(index)] if index else expected[field]).numpy()
            assert found.shape == reference.shape
            np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5, err_msg=name)


def test_every_input_matters(artifact, case_inputs):
    feeds = case_inputs(artifact, batch=2, sequence=6, choices=2)
    with Session(artifact.path) as session:
        before = session.run(feeds)
        for name in feeds:
            changed = 1 - feeds[name] if name == "attention_mask" else np.roll(feeds[name], 1, axis=-1)
            after = session.run(feeds | {name: changed})
            main = next(iter(before))
            assert np.abs(before[main] - after[main]).max() > 1e-3, name


def test_gate_passes_and_compares_the_further_outputs(artifact):
    report = check_parity(artifact.path, artifact.model)
    assert {output for output, _ in report.differences} == {spec.name for spec in artifact.manifest.outputs}
    assert report.failures() == []


def test_attentions_of_a_pruned_model(make_model, export_model):
    model = make_model("cls")
    model.prune_heads({1: [0, 2]})
    artifact = export_model("cls", model, attentions=True)
    shapes = {spec.name: spec.shape for spec in artifact.manifest.outputs}
    assert shapes["attentions.0"] == ("batch", 4, "sequence", "sequence")
    assert shapes["attentions.1"] == ("batch", 2, "sequence", "sequence")
    assert check_parity(artifact.path, model).failures() == []
