"""Which artifacts are made, in which order, and when again; and what they and the adapters are made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import erniem_rt
from benchmarks import adapters, artifacts
from benchmarks.engines import ENGINES, GPU_ENGINES
from benchmarks.related_models import as_xlm_roberta, from_bert
from benchmarks.texts import COUNT, real_texts
from benchmarks.workloads import GPU_FIXED, GPU_QUICK, build_gpu_workloads
from erniem_export.checkpoint import load_checkpoint
from erniem_export.tensorrt.profiles import parse_profile, resolve_profiles
from erniem_rt.batching import plan_runs


class Steps:
    """Stands in for the processes that make the artifacts; ``lost`` are those that fail, with what they say."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.lost: dict[str, str] = {}

    def run(self, command: list[str], **options: Any) -> Any:
        step, folder = command[3], Path(command[4])
        self.made.append(step)
        (folder / step / "model").write_bytes(bytes(7))
        failure = self.lost.get(step)
        if failure == "hangs":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return SimpleNamespace(returncode=int(failure is not None), stdout="", stderr=failure or "")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(artifacts.subprocess, "run", steps.run)
    return steps


def test_what_a_step_needs_is_made_first_and_once(steps: Steps, tmp_path: Path) -> None:
    assert artifacts.prepare("openvino-int8", tmp_path, "random:tiny") is None
    assert steps.made == ["checkpoint", "onnx-plain", "openvino", "openvino-int8"]
    assert artifacts.prepare("ctranslate2", tmp_path, "random:tiny") is None
    assert steps.made[4:] == ["ctranslate2"]
    assert artifacts.artifact_bytes(tmp_path / "ctranslate2") == 7  # without what we note beside it


def test_another_model_or_other_code_makes_it_again(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("random:tiny", "random:tiny", "small"):
        artifacts.prepare("checkpoint", tmp_path, model)
    assert steps.made == ["checkpoint"] * 2
    monkeypatch.setattr(artifacts, "_digest", lambda _: "other code")
    artifacts.prepare("checkpoint", tmp_path, "small")
    assert steps.made == ["checkpoint"] * 3


def test_a_step_that_fails_is_a_gap_for_all_that_need_it_and_is_tried_again(steps: Steps, tmp_path: Path) -> None:
    steps.lost["onnx-plain"] = "Traceback ...\nMemoryError: no room\n\n"
    gap = artifacts.prepare("openvino", tmp_path, "random:tiny")
    assert gap == "preparing onnx-plain failed with exit code 1: MemoryError: no room"
    assert steps.made == ["checkpoint", "onnx-plain"]
    assert "Traceback" in (tmp_path / "onnx-plain.log").read_text()
    steps.lost["onnx-plain"] = "hangs"
    gap = artifacts.prepare("openvino", tmp_path, "random:tiny", 30)
    assert gap == "left out, for preparing onnx-plain took longer than 30 s, all that the time budget had left"
    steps.lost.clear()
    assert artifacts.prepare("openvino", tmp_path, "random:tiny") is None
    assert steps.made[3:] == ["onnx-plain", "openvino"]


def test_every_engine_has_an_artifact_that_can_be_made_and_an_adapter() -> None:
    for spec in (*ENGINES.values(), *GPU_ENGINES.values()):
        assert spec.artifact in artifacts.SOURCES
        assert hasattr(adapters, spec.adapter)
    assert artifacts.SOURCES.keys() == artifacts.STEPS.keys() | artifacts.EXPORTS.keys()


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_every_batch_of_equal_rows_is_one_run_of_a_plan(flavour: str) -> None:
    options = artifacts.EXPORTS[f"gpu-erniem-rt-{flavour}-fp16"]
    assert (options["engine"], options["precision"]) == (flavour, "fp16")
    profiles = resolve_profiles([parse_profile(text) for text in options["profiles"]], "cls", 512)
    for workload in build_gpu_workloads([name for name in (*GPU_FIXED, *GPU_QUICK) if name != "mixed"], 1000):
        lengths = np.array([len(row) for row in workload.rows])
        assert len(plan_runs(lengths, lengths.max(), profiles)) == 1, workload.name


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_plain_export_in_fp16_answers_like_the_one_in_fp32(tmp_path: Path) -> None:
    """What a CPU's engines are made of is tried by ``make bench-quick``; this only a GPU machine would see."""
    steps = ("checkpoint", "gpu-onnx-plain", "gpu-onnx-plain-fp16")
    for step in steps:
        (tmp_path / step).mkdir()
        artifacts.STEPS[step](tmp_path, tmp_path / step, "random:tiny")
    rows = [[0, 5, 6, 7, 2], [0, 9, 2]]
    expected, found = (adapters.OnnxRuntime(tmp_path / step, 1).run(rows, 2) for step in steps[1:])
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())
    assert np.abs(found - expected).max() > 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cuda", ("CUDAExecutionProvider", {"device_id": "0"})),
        ("cuda:1", ("CUDAExecutionProvider", {"device_id": "1"})),
        ("cpu", ("CPUExecutionProvider", {})),
    ],
)
def test_onnxruntime_runs_on_the_device_that_was_named(
    given: str, expected: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def session(graph: str, options: Any, providers: list[Any]) -> Any:
        asked.extend(providers)
        return SimpleNamespace(get_providers=lambda: [expected[0]])

    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    adapters.OnnxRuntime(tmp_path, 1, given, "fp32")
    assert asked == [expected]


@pytest.mark.parametrize(("suffix", "threads", "trusted"), [(".plan", None, True), (".onnx", 3, False)])
def test_whether_a_plan_runs_is_left_to_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str, threads: int | None, trusted: bool
) -> None:
    """Or a GPU that the manifest does not list would be a gap before it was tried."""
    plan = SimpleNamespace(flavour="tensorrt-rtx", version="1.7.1.116")
    opened: list[dict[str, Any]] = []

    def session(_: Path, **options: Any) -> Any:
        opened.append(options)
        return SimpleNamespace(manifest=SimpleNamespace(precision={"weights": "fp16"}, plan=plan))

    monkeypatch.setattr(erniem_rt, "Session", session)
    (tmp_path / f"cls{suffix}").touch()
    adapters.ErnieM(tmp_path, 3, "cuda:1", "fp16", suffix=suffix, cuda_graphs=True)
    (options,) = opened
    assert (options["device"], options["threads"], options["trust_plan"]) == ("cuda:1", threads, trusted)
    assert (options["cuda_graphs"], options["share_weights"]) == (True, False)
    with pytest.raises(RuntimeError, match="is in fp16, expected fp32"):
        adapters.ErnieM(tmp_path, 3, "cuda:1", "fp32", suffix=suffix)


def test_kinds_of_torch_give_the_same_answers(tmp_path: Path) -> None:
    artifacts.checkpoint(tmp_path, tmp_path / "checkpoint", "random:tiny")
    rows = [[0, 5, 6, 7, 2], [0, 9, 2]]
    answers = {
        (kind, precision): adapters.TorchModel(tmp_path / "checkpoint", 1, "cpu", precision, kind).run(rows, 2)
        for kind in ("eager", "sdpa")
        for precision in ("fp32", "fp16")
    }
    expected = answers["eager", "fp32"]
    for (_, precision), found in answers.items():
        assert found.dtype == np.float32
        tolerance = 1e-5 if precision == "fp32" else 2e-2
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())
    assert np.abs(answers["sdpa", "fp16"] - answers["sdpa", "fp32"]).max() > 0


def test_bert_s_parameters_find_their_places() -> None:
    network = load_checkpoint("random:tiny", "base").model
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    parts += ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
    names = [f"encoder.layer.1.{part}.{end}" for part in parts for end in ("weight", "bias")]
    names += ["embeddings.word_embeddings.weight", "embeddings.LayerNorm.bias", "pooler.dense.weight"]
    found = {from_bert(name) for name in names}
    assert len(found) == len(names)
    assert found <= network.state_dict().keys()
    assert from_bert("embeddings.token_type_embeddings.weight") is None


def test_xlm_roberta_with_erniem_s_weights_computes_the_same() -> None:
    network = load_checkpoint("random:tiny", "base").model
    ids, mask = torch.tensor([[0, 5, 9, 2], [0, 7, 2, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        expected = network(input_ids=ids, attention_mask=mask)
        found = as_xlm_roberta(network).roberta(input_ids=ids, attention_mask=mask)
    rows = mask.bool()
    torch.testing.assert_close(found.last_hidden_state[rows], expected.last_hidden_state[rows], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)


def test_texts_are_seeded_spread_over_languages_and_without_repetition(tmp_path: Path) -> None:
    source, texts = real_texts(tmp_path)
    assert "nano" in source
    assert len(set(texts)) == len(texts) == COUNT
    assert any("一" <= letter <= "鿿" for text in texts[:12] for letter in text)


def test_fortunes_are_used_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "de").mkdir()
    entries = [f"Das ist \x1b[1mSpruch\x1b[0m\nNummer {i}." for i in range(COUNT)]
    (tmp_path / "de" / "sprueche").write_text("\n%\n".join([*entries, "kurz"]))
    (tmp_path / "de" / "sprueche.dat").write_text("an index, no text\n%\nand no text either")
    source, texts = real_texts(tmp_path)
    assert source == "Debian's fortunes in de"
    assert sorted(texts) == sorted(f"Das ist Spruch Nummer {i}." for i in range(COUNT))


def test_the_worker_s_process_is_this_python() -> None:
    """A fresh process of it imports no engine before it is told which."""
    code = "import sys, benchmarks.worker, benchmarks.adapters; print({'torch', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
