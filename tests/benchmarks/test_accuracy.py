from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import accuracy
from benchmarks.accuracy import JUDGED, judge
from benchmarks.client import WorkerError
from benchmarks.engines import REFERENCE, EngineSpec
from benchmarks.minilm import _renamed
from benchmarks.texts import COUNT, real_texts
from benchmarks.xlm_roberta import as_xlm_roberta
from erniem_export.checkpoint import load_checkpoint

LENGTHS = (3, 7, 5, 4)
STATES = [np.random.default_rng(i).normal(size=(length, 8)).astype(np.float32) for i, length in enumerate(LENGTHS)]


def test_the_same_states_are_without_fault() -> None:
    verdict = judge(STATES, STATES, STATES)
    assert verdict["relative_l2"] == 0
    assert verdict["same_neighbour"] == 1
    assert verdict["worst_alone"] == pytest.approx(1)


def test_relative_l2_is_over_all_hidden_states() -> None:
    assert judge(STATES, [1.1 * states for states in STATES], STATES)["relative_l2"] == pytest.approx(0.1)


def test_a_neighbour_that_changed_counts() -> None:
    # On a circle: each text's neighbour is the one 10 degrees away, until the last moves to the other side.
    before = [np.array([[np.cos(angle), np.sin(angle)]]) for angle in np.deg2rad([0, 10, 90, 100])]
    after = [*before[:3], np.array([[np.cos(-0.1), np.sin(-0.1)]])]
    assert judge(before, after, after)["same_neighbour"] == 0.25


def test_a_text_that_differs_alone_shows_however_many_agree() -> None:
    alone = [*STATES[:3], -STATES[3]]
    assert judge(STATES, STATES, alone)["worst_alone"] == pytest.approx(-1)


class Worker:
    """Stands in for an engine's process: ``error`` is how far its hidden states are off, ``dies_in`` what ends it."""

    def __init__(self, spec: EngineSpec, error: float, dies_in: str = "") -> None:
        self.spec = spec
        self._error, self._dies_in = error, dies_in

    def ask(self, question: str, **request: Any) -> dict[str, Any]:
        if question == self._dies_in:
            raise WorkerError("out of memory")
        if question == "time":
            return {"seconds": [1 + self._error]}
        np.savez(request["to"], *[(1 + self._error) * states for states in STATES])
        return {}

    def close(self) -> None: ...


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "find_weights", lambda: Path("weights"))
    monkeypatch.setattr(accuracy, "prepare", lambda step, *_: "no room" if step == "openvino-int8" else None)
    monkeypatch.setattr(accuracy, "real_texts", lambda: ("somewhere", ["text"] * len(STATES)))
    monkeypatch.setattr(accuracy, "tokenize", lambda _, texts: [[0, 2]] * len(texts))
    monkeypatch.setattr(accuracy, "PAUSE", 0)


@pytest.mark.usefixtures("prepared")
def test_each_engine_is_judged_and_timed_or_its_gap_named(tmp_path: Path) -> None:
    def open_client(spec: EngineSpec, *_: Path) -> Any:
        if spec.name == "ort-int8":
            raise WorkerError("no such file")
        return Worker(spec, 0.0 if spec.name == REFERENCE else 0.1)

    names = [name for name in JUDGED if name != "erniem-rt"]
    found = accuracy.accuracy(tmp_path, names, open_client, 3, print)
    assert found["reference"]["seconds"]["median"] == 1
    gaps = {name: engine["gap"] for name, engine in found["engines"].items() if engine["gap"]}
    assert gaps == {
        "ort-int8": "could not be loaded: no such file",
        "openvino-int8": "no room",
        "erniem-rt": "left out of this run",
    }
    for name in ("ctranslate2-int8", "erniem-rt-int8"):
        assert found["engines"][name]["relative_l2"] == pytest.approx(0.1)
        assert found["engines"][name]["seconds"]["median"] == pytest.approx(1.1)


@pytest.mark.usefixtures("prepared")
def test_without_the_reference_there_is_one_gap(tmp_path: Path) -> None:
    def open_client(spec: EngineSpec, *_: Path) -> Any:
        if spec.name == REFERENCE:
            raise WorkerError("out of memory")
        return Worker(spec, 0.1)

    found = accuracy.accuracy(tmp_path, JUDGED, open_client, 1, print)
    assert found == {"gap": "PyTorch, eager could not be loaded: out of memory"}


@pytest.mark.usefixtures("prepared")
def test_an_engine_that_dies_while_it_is_timed_is_a_gap(tmp_path: Path) -> None:
    def open_client(spec: EngineSpec, *_: Path) -> Any:
        return Worker(spec, 0.1, dies_in="time" if spec.name == "erniem-rt" else "")

    engines = accuracy.accuracy(tmp_path, JUDGED, open_client, 2, print)["engines"]
    assert engines["erniem-rt"]["gap"] == "failed while it was timed: out of memory"
    assert "seconds" not in engines["erniem-rt"]
    assert engines["erniem-rt-int8"]["seconds"]["median"] == pytest.approx(1.1)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("question", ["hidden_states", "time"])
def test_a_reference_that_dies_is_one_gap(tmp_path: Path, question: str) -> None:
    def open_client(spec: EngineSpec, *_: Path) -> Any:
        return Worker(spec, 0.0, dies_in=question if spec.name == REFERENCE else "")

    found = accuracy.accuracy(tmp_path, JUDGED, open_client, 1, print)
    assert found == {"gap": "PyTorch, eager: out of memory"}


def test_texts_are_seeded_spread_over_languages_and_without_repetition(tmp_path: Path) -> None:
    source, texts = real_texts(tmp_path)
    assert "nano" in source
    assert len(set(texts)) == len(texts) == COUNT
    assert real_texts(tmp_path)[1] == texts
    assert any("一" <= letter <= "鿿" for text in texts[:12] for letter in text)


def test_fortunes_are_used_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "de").mkdir()
    entries = [f"Das ist \x1b[1mSpruch\x1b[0m\nNummer {i}." for i in range(COUNT)]
    (tmp_path / "de" / "sprueche").write_text("\n%\n".join([*entries, "kurz"]))
    (tmp_path / "de" / "sprueche.dat").write_text("an index, no text\n%\nand no text either")
    source, texts = real_texts(tmp_path)
    assert source == "Debian's fortunes in de"
    assert sorted(texts) == sorted(f"Das ist Spruch Nummer {i}." for i in range(COUNT))


def test_bert_s_parameters_find_their_places() -> None:
    network = load_checkpoint("random:tiny", "base").model
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    parts += ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
    names = [f"encoder.layer.1.{part}.{end}" for part in parts for end in ("weight", "bias")]
    names += ["embeddings.word_embeddings.weight", "embeddings.LayerNorm.bias", "pooler.dense.weight"]
    found = [_renamed(name) for name in names]
    assert len(set(found)) == len(names)
    assert set(found) <= network.state_dict().keys()
    assert _renamed("embeddings.token_type_embeddings.weight") is None


def test_xlm_roberta_with_erniem_s_weights_computes_the_same() -> None:
    network = load_checkpoint("random:tiny", "base").model
    ids = torch.tensor([[0, 5, 9, 2], [0, 7, 2, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        expected = network(input_ids=ids, attention_mask=mask)
        found = as_xlm_roberta(network).roberta(input_ids=ids, attention_mask=mask)
    rows = mask.bool()
    torch.testing.assert_close(found.last_hidden_state[rows], expected.last_hidden_state[rows], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
