from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy import judge
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
