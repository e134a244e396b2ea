"""Without lone marks: the ids and offsets of PaddleNLP's tokenizer on nano's vocabulary (tests/data/paddle)."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from erniem_rt.errors import ArtifactError
from erniem_rt.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
NANO = ROOT / "examples" / "nano" / "checkpoints" / "ie"
SENTENCES = json.loads((ROOT / "tests/data/paddle/nano/sentences.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("paddle")
    for name in ("sentencepiece.bpe.model", "vocab.txt"):
        shutil.copy(NANO / name, target)
    released = json.loads((ROOT / "tests/data/paddle/released/tokenizer_config.json").read_text("utf-8"))
    (target / "tokenizer_config.json").write_text(json.dumps({**released, "drop_lone_marks": True}))
    return target


def test_ids_and_offsets_are_paddles(folder):
    tokenizer = pickle.loads(pickle.dumps(Tokenizer.from_dir(folder)))
    batch = tokenizer.batch([one["text"] for one in SENTENCES], padding_side="right")
    for i, one in enumerate(SENTENCES):
        length, alone = int(batch.attention_mask[i].sum()), tokenizer(one["text"])
        assert alone.input_ids == batch.input_ids[i, :length].tolist() == one["ids"], one["text"]
        if "offset_error" not in one:
            offsets = [list(pair) for pair in alone.offsets]
            assert offsets == batch.offsets[i, :length].tolist() == one["offsets"], one["text"]
    assert len(SENTENCES) == 241
    assert sum("offset_error" not in one for one in SENTENCES) == 239


def test_nothing_else_differs_from_the_reference(folder):
    ours, paddle = Tokenizer.from_dir(NANO), Tokenizer.from_dir(folder)
    mark = ours.convert_tokens_to_ids("▁")
    differing = 0
    for one in SENTENCES:
        ids = ours(one["text"]).input_ids
        assert [i for i in ids if i != mark] == paddle(one["text"]).input_ids
        differing += mark in ids
    assert differing == 132


def test_the_setting_is_true_or_false(folder, tmp_path):
    target = shutil.copytree(folder, tmp_path / "copy")
    (target / "tokenizer_config.json").write_text('{"drop_lone_marks": "yes"}')
    with pytest.raises(ArtifactError, match="drop_lone_marks must be true or false, not 'yes'"):
        Tokenizer.from_dir(target)
