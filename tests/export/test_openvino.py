"""Every form of artifact in OpenVINO: the numbers of PyTorch, and of the gate in bf16."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from erniem_export.gate import parity
from erniem_rt import Session
from erniem_rt.machine import cpu_class, has_vnni
from erniem_rt.manifest import Manifest

pytest.importorskip("openvino")

# What exports are made with, and how far OpenVINO's numbers may be from PyTorch's.
FORMS = {
    "packed": ((), 1e-5),
    "portable": (("--target", "portable"), 1e-5),
    "embedding": (("--embedding", "int8"), 1e-1),
    "fp16": (("--fp16", "--engine", "none"), 3e-2),
    "int8": (("--int8",), 0.4),
    "target": (("--int8", "--target", "openvino"), 0.4),
}


@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_pytorchs(erniem_export, write_checkpoint, micro_model, tmp_path, form):
    if form == "target" and not has_vnni():
        pytest.skip("this CPU has no VNNI")
    options, tolerance = FORMS[form]
    checkpoint = write_checkpoint(tmp_path / "ner", "ner")
    erniem_export("--model", checkpoint, "--output", tmp_path / "out", *options).ok()
    model = micro_model("ner")
    rng = np.random.default_rng()
    with Session(tmp_path / "out", engine="openvino", cache=False) as session:
        for width in (1, 5, 12):
            ids = rng.integers(3, session.limits.vocab_size, (4, width))
            mask = np.ones_like(ids)
            mask[1, (width + 1) // 2 :] = 0
            mask[2, 1::2] = 0
            with torch.no_grad():
                expected = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
            found = session.run(input_ids=ids, attention_mask=mask)["logits"]
            scale = max(1, np.abs(expected).max())
            np.testing.assert_allclose(found[mask == 1], expected[mask == 1], atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("installed", [True, False], ids=["computed", "emulated"])
def test_the_gate_in_bf16(erniem_export, write_checkpoint, tmp_path, monkeypatch, installed):
    if installed and "bf16" not in cpu_class():
        pytest.skip("this CPU has no bf16")
    if not installed:
        monkeypatch.setattr(parity, "cpu_class", lambda: "avx2")
    erniem_export("--model", write_checkpoint(tmp_path / "ner", "ner"), "--output", tmp_path / "out").ok()
    manifest = Manifest.load(tmp_path / "out/ner.json")
    assert manifest.proven == ("fp32", "bf16")
    report = manifest.parity["ner.onnx in bf16"]
    assert report["method"] == (parity._BF16_BY_OPENVINO if installed else parity._BF16_EMULATED)
    assert 1e-4 < report["outputs"]["logits"]["relative_l2"] < 7e-2


def test_bf16_that_does_not_hold_is_said_and_stops_nothing(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise parity.ErnieMError("logits differ")

    monkeypatch.setattr(parity, "_prove_bf16", fail)
    monkeypatch.setattr(parity.dataclasses, "replace", lambda manifest, **changes: changes)
    notes = []
    manifest = SimpleNamespace(target="onnxruntime-cpu", precision={"weights": "int8"})
    assert parity.with_bf16(manifest, tmp_path / "ner.onnx", None, notes.append) == {"proven": ("fp32",)}
    assert notes == ["bf16 on a CPU is not proven: logits differ"]
