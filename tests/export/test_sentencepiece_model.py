"""The sentencepiece models that are exported: the checkpoint's, and one that loads faster and cuts alike."""

import dataclasses
import json
import pickle
import shutil

import pytest
import sentencepiece
import transformers
from hypothesis import given
from hypothesis import strategies as st

from erniem_export.errors import CheckpointError
from erniem_export.tokenizer import in_byte_order, parse
from erniem_rt.errors import ArtifactError
from erniem_rt.files import hash_file
from erniem_rt.manifest import Manifest
from erniem_rt.tokenizer import Tokenizer
from erniem_rt.tokenizer.settings import SORTED_FILE

MODEL, SETTINGS = "sentencepiece.bpe.model", "tokenizer_config.json"


@pytest.fixture(scope="module")
def content(tokenizer_dir):
    return (tokenizer_dir / MODEL).read_bytes()


@pytest.fixture(scope="module")
def processors(content):
    models = (content, in_byte_order(content))
    return [sentencepiece.SentencePieceProcessor(model_proto=model) for model in models]


@pytest.fixture(scope="module")
def tokenizers(tokenizer_dir, content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ordered")
    shutil.copy(tokenizer_dir / "vocab.txt", folder)
    (folder / MODEL).write_bytes(in_byte_order(content))
    return [Tokenizer.from_dir(tokenizer_dir), Tokenizer.from_dir(folder)]


def test_only_the_order_changes(content):
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
def test_any_text_is_cut_alike(processors, tokenizers, text):
    text = text.encode("utf-8", "replace").decode("utf-8")
    pieces = [processor.encode(text, out_type=str) for processor in processors]
    assert pieces[0] == pieces[1]
    encodings = [tokenizer(text) for tokenizer in tokenizers]
    assert encodings[0].input_ids == encodings[1].input_ids
    assert encodings[0].offsets == encodings[1].offsets


def test_sentences_are_cut_alike(tokenizers, sentences):
    batches = [tokenizer.batch(list(sentences)) for tokenizer in tokenizers]
    assert batches[0].input_ids.tolist() == batches[1].input_ids.tolist()
    assert len(set(batches[0].input_ids.ravel().tolist())) > 100


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize("with_vocabulary", [True, False])
def test_what_is_exported(with_vocabulary, content, tokenizer_dir, tmp_path, write_checkpoint, erniem_export):
    """The checkpoint's model under its name; without vocab.txt a token's id is its piece's place in it."""
    checkpoint, output = write_checkpoint(tmp_path / "checkpoint"), tmp_path / "out"
    (checkpoint / MODEL).write_bytes(content)
    if with_vocabulary:
        shutil.copy(tokenizer_dir / "vocab.txt", checkpoint)
    erniem_export("--model", checkpoint, "--output", output).ok()
    assert (output / MODEL).read_bytes() == content
    assert (output / SORTED_FILE).exists() == with_vocabulary
    if with_vocabulary:
        assert (output / SORTED_FILE).read_bytes() == in_byte_order(content)
        assert SORTED_FILE in Manifest.load(output / "cls.json").files
    assert Tokenizer.from_dir(output).get_vocab() == Tokenizer.from_dir(checkpoint).get_vocab()


@pytest.fixture
def exported_folder(tokenizer_dir, tmp_path, write_checkpoint, erniem_export, quick_gate):
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    shutil.copytree(tokenizer_dir, checkpoint, dirs_exist_ok=True)
    erniem_export("--model", checkpoint, "--output", tmp_path / "out").ok()
    return tmp_path / "out"


def test_the_ids_of_other_readers(exported_folder, tokenizer_dir, sentences):
    """They take the model by its name, and its order for the ids: XLM-R's tokenizer, and ours without vocab.txt."""
    readers = [Tokenizer]
    if transformers.__version__.startswith("4."):  # that of transformers 5 does not read such a file
        readers.append(transformers.XLMRobertaTokenizer)
    for reader in readers:
        first, second = (reader(str(folder / MODEL)) for folder in (tokenizer_dir, exported_folder))
        for text in sentences:
            assert first(text).input_ids == second(text).input_ids


def test_a_copy_has_the_checkpoint_s_model(exported_folder, content, tmp_path):
    (tmp_path / "saved").mkdir()
    tokenizer = Tokenizer.from_dir(exported_folder)
    tokenizer.save_vocabulary(tmp_path / "saved")
    assert (tmp_path / "saved" / MODEL).read_bytes() == content
    copied = pickle.loads(pickle.dumps(tokenizer))
    (exported_folder / MODEL).unlink()
    copied.save_vocabulary(tmp_path / "saved")
    assert (tmp_path / "saved" / MODEL).read_bytes() == content
    assert copied("Zwei Sätze.").input_ids == tokenizer("Zwei Sätze.").input_ids
    with pytest.raises(ArtifactError, match=r"sentencepiece\.bpe\.model cannot be read: No such file"):
        tokenizer.save_vocabulary(tmp_path / "saved")


@pytest.mark.parametrize("name", [MODEL, SORTED_FILE])
def test_either_model_that_was_edited(name, exported_folder):
    path = exported_folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=f"{name} was changed after export"):
        Tokenizer.from_dir(exported_folder)


def test_a_sorted_model_that_no_manifest_knows(exported_folder, tokenizer_dir):
    """Somebody put other files in: what lies there under the checkpoint's names counts."""
    (exported_folder / "cls.json").unlink()
    (exported_folder / SORTED_FILE).write_bytes(b"of another tokenizer")
    assert Tokenizer.from_dir(exported_folder)("Zwei").input_ids == Tokenizer.from_dir(tokenizer_dir)("Zwei").input_ids


def test_an_older_artifact(exported_folder, content, tokenizer_dir, erniem_export):
    """It has the sorted model alone, under the checkpoint's name, and names no attention_mask; an export renews it."""
    (exported_folder / SORTED_FILE).unlink()
    (exported_folder / MODEL).write_bytes(in_byte_order(content))
    manifest = Manifest.load(exported_folder / "cls.json")
    files = {name: record for name, record in manifest.files.items() if name != SORTED_FILE}
    dataclasses.replace(manifest, files=files | {MODEL: hash_file(exported_folder / MODEL)}).save(
        exported_folder / "cls.json"
    )
    assert Tokenizer.from_dir(exported_folder)("Zwei").input_ids == Tokenizer.from_dir(tokenizer_dir)("Zwei").input_ids
    checkpoint, output = exported_folder.parent / "checkpoint", exported_folder
    result = erniem_export("--model", checkpoint, "--head", "base", "--output", output)
    assert "holds head cls of another checkpoint or from an older version, with its own sentencepiece.b" in result.err
    erniem_export("--model", checkpoint, "--output", output).ok()
    assert (output / MODEL).read_bytes() == content
    assert json.loads((output / SETTINGS).read_text())["model_input_names"] == ["input_ids", "attention_mask"]


@pytest.mark.usefixtures("quick_gate")
def test_a_model_that_lies_there_already_stays(content, tokenizer_dir, tmp_path, write_checkpoint, erniem_export):
    """A folder that was filled by hand, then a second head beside the first."""
    checkpoint, output = write_checkpoint(tmp_path / "checkpoint"), tmp_path / "out"
    output.mkdir()
    for folder in (checkpoint, output):
        (folder / SETTINGS).write_text('{"model_max_length": 100}')
        for name in (MODEL, "vocab.txt"):
            shutil.copy(tokenizer_dir / name, folder)
    for head in ("cls", "base"):
        erniem_export("--model", checkpoint, "--head", head, "--output", output).ok()
        for name in (MODEL, SETTINGS):
            assert (output / name).read_bytes() == (checkpoint / name).read_bytes()


def test_no_model():
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        in_byte_order(b"\x00\x01 no model")
