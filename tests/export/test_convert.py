"""ErnieM checkpoints as XLM-R's and back, to the bit."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from erniem_export import cli, convert
from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import ExportError, OptionError
from erniem_rt.errors import ErnieMError
from erniem_rt.tokenizer import Tokenizer

NANO = Path(__file__).parents[2] / "examples" / "nano" / "checkpoints"
CLASSES = {
    "base": "XLMRobertaModel",
    "cls": "XLMRobertaForSequenceClassification",
    "ner": "XLMRobertaForTokenClassification",
    "qa": "XLMRobertaForQuestionAnswering",
}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("head", CLASSES)
def test_there_and_back_weights_are_equal_to_the_bit(head, tmp_path, files_in):
    there = convert(NANO / head, tmp_path / "xlm-r", quiet=True)
    assert there.head == head
    back = convert(tmp_path / "xlm-r", tmp_path / "back", to="ernie-m", quiet=True)
    assert back.head == head
    original, returned = load_checkpoint(str(NANO / head)), load_checkpoint(str(tmp_path / "back"))
    expected = original.model.state_dict()
    found = returned.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(bits(found[name]) == bits(tensor) for name, tensor in expected.items())
    assert returned.config.to_dict().keys() == original.config.to_dict().keys()
    assert returned.config.id2label == original.config.id2label
    texts = ["Heute, 2024, in Köln.", "公司成立于1998年。", "a [MASK] b"]
    ours, theirs = (Tokenizer.from_dir(folder) for folder in (tmp_path / "back", NANO / head))
    assert [ours(text) for text in texts] == [theirs(text) for text in texts]


@pytest.mark.parametrize("head", CLASSES)
def test_transformers_reads_it_and_computes_the_same(head, tmp_path):
    convert(NANO / head, tmp_path / "out", quiet=True)
    theirs = getattr(transformers, CLASSES[head]).from_pretrained(tmp_path / "out").eval()
    ours = load_checkpoint(str(NANO / head)).model
    ids = torch.randint(4, 3000, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    ids[0, 7:] = 1
    with torch.no_grad():
        one, other = (
            model(input_ids=ids, attention_mask=mask, return_dict=True).to_tuple() for model in (ours, theirs)
        )
    for found, expected in zip(other, one, strict=True):
        if found.shape[:2] == ids.shape:
            found, expected = found[mask.bool()], expected[mask.bool()]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_the_tokenizer_has_the_same_vocabulary_and_transformers_reads_it(tmp_path):
    convert(NANO / "cls", tmp_path / "out", quiet=True)
    ours, theirs = Tokenizer.from_dir(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    own = Tokenizer.from_dir(NANO / "cls")
    names = {"[CLS]": "<s>", "[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "<unk>", "[MASK]": "<mask>"}
    assert ours.get_vocab() == {names.get(token, token): index for token, index in own.get_vocab().items()}
    for text in ("Heute, 2024, in Köln.", "公司成立于1998年。", "a <mask> b"):
        assert ours(text).input_ids == theirs(text)["input_ids"]


def test_rows_with_other_ids_are_counted(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Das Haus ist in Köln\n\n公司成立于1998年，总部设在上海\n公司在上海。\n", encoding="utf-8")
    done = convert(NANO / "cls", tmp_path / "out", text=text, quiet=True)
    assert (done.rows, done.other_ids) == (3, 2)
    assert not any("--text" in note for note in done.notes)


def test_half_precision_stays_as_it_is(write_checkpoint, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "half", "cls", edit=lambda state: {k: v.half() for k, v in state.items()})
    convert(checkpoint, tmp_path / "xlm-r", quiet=True)
    convert(tmp_path / "xlm-r", tmp_path / "back", to="ernie-m", quiet=True)
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    assert before.keys() == after.keys()
    assert all(bits(after[name]) == bits(tensor) for name, tensor in before.items())


def test_a_negative_zero_stays_one(write_checkpoint, tmp_path):
    def edit(state):
        state["ernie_m.embeddings.position_embeddings.weight"][5] = -0.0
        return state

    checkpoint = write_checkpoint(tmp_path / "model", "ner", edit=edit)
    convert(checkpoint, tmp_path / "xlm-r", quiet=True)
    convert(tmp_path / "xlm-r", tmp_path / "back", to="ernie-m", quiet=True)
    name = "ernie_m.embeddings.position_embeddings.weight"
    assert torch.signbit(load_file(tmp_path / "back" / "model.safetensors")[name][5]).all()


def test_an_xlm_r_model_becomes_ernie_m(xlm_roberta, tmp_path):
    """With its token type in the positions; its ids follow from the pieces, which ErnieM cuts further."""
    source = xlm_roberta("cls", type_vocab_size=2)
    done = convert(source, tmp_path / "out", to="ernie-m", quiet=True)
    assert any("give the model XLM-R's ids" in note for note in done.notes)
    assert load_checkpoint(str(tmp_path / "out")).identity() == load_checkpoint(str(source)).identity()
    assert Tokenizer.from_dir(tmp_path / "out").settings.family == "ernie-m"


def test_half_precision_does_not_round_the_sum_of_positions_and_token_type(xlm_roberta, tmp_path):
    source = tmp_path / "half"
    shutil.copytree(xlm_roberta("cls", type_vocab_size=2), source)
    state = load_file(source / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, source / "model.safetensors")
    convert(source, tmp_path / "out", to="ernie-m", quiet=True)
    assert load_checkpoint(str(tmp_path / "out")).identity() == load_checkpoint(str(source)).identity()
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert [name for name, tensor in written.items() if tensor.dtype != torch.float16] == [
        "ernie_m.embeddings.position_embeddings.weight"
    ]


def test_the_command(tmp_path, capsys):
    code = cli.convert_main([str(NANO / "cls"), "--to", "xlm-roberta", "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out.splitlines()
    assert code == 0
    assert any("not on rows padded on the left, with [PAD] inside, or without a mask" in line for line in out)
    assert any("--text FILE counts" in line for line in out)
    assert out[-1] == f"{tmp_path / 'out'}: head cls as xlm-roberta"


@pytest.mark.parametrize(
    ("head", "options", "reason"),
    [
        ("mc", {}, "head mc is not supported for XLM-R; expected one of base, cls, ner, qa"),
        ("ie", {}, "head ie is not supported for XLM-R; expected one of base, cls, ner, qa"),
        ("cls", {"to": "ernie-m"}, "is ErnieM already"),
        ("ie", {"to": "ernie-m"}, "is ErnieM already"),
        ("cls", {"text": "nothing.txt"}, "the text nothing.txt cannot be read"),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(head, options, reason, tmp_path):
    with pytest.raises(ErnieMError, match=reason):
        convert(NANO / head, tmp_path / "new" / "out", quiet=True, **options)
    assert not (tmp_path / "new").exists()


def test_neither_model_is_refused(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "bert" / "model.safetensors")
    with pytest.raises(ErnieMError, match="says model_type = 'bert'; expected 'ernie_m' or 'xlm-roberta'"):
        convert(tmp_path / "bert", tmp_path / "out", quiet=True)
    with pytest.raises(OptionError, match="--to bert is not known"):
        convert(NANO / "cls", tmp_path / "out", to="bert", quiet=True)
    assert not (tmp_path / "out").exists()


def test_no_file_of_the_user_is_lost(tmp_path, files_in):
    folder = tmp_path / "out"
    shutil.copytree(NANO / "cls", folder)
    before = files_in(folder)
    with pytest.raises(ExportError, match="is there already and would be"):
        convert(folder, folder, quiet=True)
    assert files_in(folder) == before
    convert(NANO / "cls", tmp_path / "again", quiet=True)
    convert(NANO / "cls", tmp_path / "again", quiet=True)  # the same files may stand there


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "vocab.txt"])
def test_another_tokenizer_s_files_are_not_read_with_the_new_ones(name, tmp_path, files_in):
    """transformers would take the ids from tokenizer.json, and the special tokens from their map."""
    (tmp_path / name).write_text("{}")
    before = files_in(tmp_path)
    with pytest.raises(ExportError, match=rf"{name} is there already and would be read with the new tokenizer"):
        convert(NANO / "cls", tmp_path, quiet=True)
    assert files_in(tmp_path) == before
