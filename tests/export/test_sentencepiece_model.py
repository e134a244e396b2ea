"""The model that is exported: its pieces in another order, its cuts the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from erniem_export.errors import CheckpointError
from erniem_export.sentencepiece_model import in_byte_order, parse
from erniem_rt.tokenizer import Tokenizer

MODEL = "sentencepiece.bpe.model"


@pytest.fixture(scope="module")
def content(tokenizer_dir: Path) -> bytes:
    return (tokenizer_dir / MODEL).read_bytes()


@pytest.fixture(scope="module")
def processors(content: bytes) -> list[Any]:
    models = (content, in_byte_order(content))
    return [sentencepiece.SentencePieceProcessor(model_proto=model) for model in models]


@pytest.fixture(scope="module")
def tokenizers(tokenizer_dir: Path, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    folder = tmp_path_factory.mktemp("ordered")
    shutil.copy(tokenizer_dir / "vocab.txt", folder)
    (folder / MODEL).write_bytes(in_byte_order(content))
    return [Tokenizer.from_dir(tokenizer_dir), Tokenizer.from_dir(folder)]


def test_only_the_order_changes(content: bytes) -> None:
    before, after = parse(content), parse(in_byte_order(content))
    encoded = [piece.piece.encode() for piece in after.pieces]
    assert encoded == sorted(encoded)
    assert encoded != [piece.piece.encode() for piece in before.pieces], "else this test would show nothing"
    rows = [sorted((piece.piece, piece.score, piece.type) for piece in model.pieces) for model in (before, after)]
    assert rows[0] == rows[1]
    for model in (before, after):
        del model.pieces[:]
    assert before == after


@given(text=st.text(max_size=60))
def test_any_text_is_cut_alike(processors: list[Any], tokenizers: list[Tokenizer], text: str) -> None:
    text = text.encode("utf-8", "replace").decode("utf-8")
    pieces = [processor.encode(text, out_type=str) for processor in processors]
    assert pieces[0] == pieces[1]
    encodings = [tokenizer(text) for tokenizer in tokenizers]
    assert encodings[0].input_ids == encodings[1].input_ids
    assert encodings[0].offsets == encodings[1].offsets


def test_sentences_are_cut_alike(tokenizers: list[Tokenizer], sentences: tuple[str, ...]) -> None:
    batches = [tokenizer.batch(list(sentences)) for tokenizer in tokenizers]
    assert batches[0].input_ids.tolist() == batches[1].input_ids.tolist()
    assert len(set(batches[0].input_ids.ravel().tolist())) > 100


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize("with_vocabulary", [True, False])
def test_what_is_exported(
    with_vocabulary: bool,
    content: bytes,
    tokenizer_dir: Path,
    tmp_path: Path,
    write_checkpoint: Callable[..., Path],
    erniem_export: Any,
) -> None:
    """Without vocab.txt a token's id is its piece's place in the model, which must not move then."""
    checkpoint, output = write_checkpoint(tmp_path / "checkpoint"), tmp_path / "out"
    (checkpoint / MODEL).write_bytes(content)
    if with_vocabulary:
        shutil.copy(tokenizer_dir / "vocab.txt", checkpoint)
    assert erniem_export("--model", checkpoint, "--output", output).code == 0
    assert (output / MODEL).read_bytes() == (in_byte_order(content) if with_vocabulary else content)
    assert Tokenizer.from_dir(output).get_vocab() == Tokenizer.from_dir(checkpoint).get_vocab()


@pytest.mark.usefixtures("quick_gate")
def test_a_model_that_lies_there_already_stays(
    content: bytes, tokenizer_dir: Path, tmp_path: Path, write_checkpoint: Callable[..., Path], erniem_export: Any
) -> None:
    """A folder that was filled by hand, then a second head beside the first."""
    checkpoint, output = write_checkpoint(tmp_path / "checkpoint"), tmp_path / "out"
    output.mkdir()
    for folder in (checkpoint, output):
        for name in (MODEL, "vocab.txt"):
            shutil.copy(tokenizer_dir / name, folder)
    for head in ("cls", "base"):
        result = erniem_export("--model", checkpoint, "--head", head, "--output", output)
        assert result.code == 0, result.err
        assert (output / MODEL).read_bytes() == content


def test_no_model() -> None:
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        in_byte_order(b"\x00\x01 no model")
