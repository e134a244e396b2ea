"""The text that int8 is calibrated on."""

import shutil
from pathlib import Path

import pytest

from erniem_export import pipeline
from erniem_export.errors import ExportError
from erniem_export.quantization.quantize import calibration_for, read_texts
from erniem_rt.manifest import Limits

NANO = Path(__file__).parents[3] / "examples" / "nano" / "checkpoints" / "base"
LIMITS = Limits(64, 1000, 1)


def test_the_built_in_text_is_many_lines_in_many_scripts():
    texts = read_texts(None)
    assert len(texts) == len(set(texts)) == 200
    joined = "".join(texts)
    assert all(character in joined for character in "eüéçчзאلहবரไ中日の회")


def test_blank_lines_and_marks_fall_away_and_long_files_are_thinned_evenly(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\ufeffone\n\n  two  \n", encoding="utf-8")
    assert read_texts(path) == ["one", "two"]
    path.write_text("\n".join(map(str, range(4000))), encoding="utf-8")
    assert read_texts(path) == [str(number) for number in range(0, 4000, 10)]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b" \n\t\n", "is empty"), (b"a\xff", "not UTF-8: .* at byte 1")],
)
def test_text_that_cannot_be_used_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=message):
        read_texts(path)


def test_without_a_tokenizer_ids_are_random_but_always_the_same(tmp_path):
    first, second = (calibration_for(None, tmp_path, LIMITS) for _ in range(2))
    assert first.source.startswith("random ids")
    for (ids, attend), (again, _) in zip(first.batches, second.batches, strict=True):
        assert ids.equal(again)
        assert ids.shape == attend.shape
        assert ids.shape[1] <= LIMITS.max_length
        assert ids.max() < LIMITS.vocab_size
        assert (ids[~attend] == LIMITS.pad_token_id).all()
    path = tmp_path / "texts.txt"
    path.write_text("a text\n")
    with pytest.raises(ExportError, match="the checkpoint has no tokenizer"):
        calibration_for(path, tmp_path, LIMITS)


def test_a_checkpoint_s_own_text_goes_before_ours_and_the_caller_s_before_both(tmp_path):
    folder, text = tmp_path / "checkpoint", tmp_path / "mine.txt"
    folder.mkdir()
    for file in ("sentencepiece.bpe.model", "vocab.txt"):
        shutil.copy(NANO / file, folder)
    text.write_text("a text\nanother\n")
    assert calibration_for(None, folder, LIMITS).source.startswith("built-in text")
    own = folder / "calibration.txt"
    own.write_text("one\ntwo\nthree\n")
    assert calibration_for(None, folder, LIMITS, own=own).source == "calibration.txt, 3 lines"
    assert calibration_for(text, folder, LIMITS, own=own).source == "mine.txt, 2 lines"
    assert calibration_for(None, tmp_path, LIMITS, own=own).source.startswith("random ids")


def test_a_mistake_ends_the_command_in_one_line_before_anything_is_loaded(export_fails, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "load_checkpoint", None)
    assert "cannot be read" in export_fails("random:tiny", "--int8", "--calibration", tmp_path / "missing.txt")


def test_a_checkpoint_s_own_text_that_cannot_be_used_is_found_before_the_graph_is_traced(
    write_checkpoint, tokenizer_dir, export_fails, monkeypatch, tmp_path
):
    model = write_checkpoint(tmp_path / "model")
    shutil.copytree(tokenizer_dir, model, dirs_exist_ok=True)
    (model / "calibration.txt").write_text(" \n")
    monkeypatch.setattr(pipeline, "trace", None)
    assert "calibration.txt is empty" in export_fails(model, "--int8")
