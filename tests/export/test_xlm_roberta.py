"""XLM-R checkpoints: exported, held against transformers' own class, and run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from erniem_export.checkpoint import load_checkpoint
from erniem_export.gate.parity import Reference, check_parity
from erniem_rt import Session, pipeline
from erniem_rt.manifest import Defaults, Manifest
from erniem_rt.tokenizer import Tokenizer

CLASSES = {
    "base": transformers.XLMRobertaModel,
    "cls": transformers.XLMRobertaForSequenceClassification,
    "ner": transformers.XLMRobertaForTokenClassification,
    "qa": transformers.XLMRobertaForQuestionAnswering,
}


@pytest.fixture(scope="session")
def exported_once(once_per_run, xlm_roberta, trace_once):
    """``exported_once(head)``: the folder of the checkpoint's artifact in fp32; do not change it."""

    def export(head, folder):
        import erniem_export

        erniem_export.export(xlm_roberta(head, type_vocab_size=2), folder / "out", quiet=True)

    return lambda head: once_per_run(f"xlm-roberta-{head}", lambda folder: export(head, folder)) / "out"


@pytest.fixture
def copied(tmp_path, xlm_roberta):
    """A copy of a checkpoint, to be changed."""
    return lambda head, **config: Path(shutil.copytree(xlm_roberta(head, **config), tmp_path / "checkpoint"))


def feeds():
    """Rows padded on the right, on the left and in between, one with the id of padding where it is attended to."""
    ids = np.random.default_rng(0).integers(4, 90, (5, 14))
    mask = np.ones_like(ids)
    mask[0, 9:] = mask[1, :6] = mask[2, [3, 5, 8]] = 0
    ids[mask == 0] = 1
    ids[3, 5] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("head", CLASSES)
def test_any_row_with_a_mask_gives_transformers_numbers(head, exported_once, xlm_roberta):
    reference = CLASSES[head].from_pretrained(xlm_roberta(head, type_vocab_size=2)).eval()
    inputs = feeds()
    with torch.no_grad():
        expected = reference(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    with Session(exported_once(head)) as session:
        found = session.run(**inputs)
        assert session.manifest.checkpoint["architecture"] == CLASSES[head].__name__
        assert session.manifest.parity[f"{head}.onnx"]["passed"]
    kept = inputs["attention_mask"].astype(bool)
    for name, array in found.items():
        wanted = expected[name].numpy()
        if array.shape[:2] == kept.shape:
            array, wanted = array[kept], wanted[kept]
        np.testing.assert_allclose(array, wanted, rtol=0, atol=2e-5)


def test_the_gate_sees_what_differs_from_transformers_class(exported_once, xlm_roberta):
    """Not only from our form of it: a token type that is not folded in is one."""
    checkpoint = load_checkpoint(str(xlm_roberta("cls", type_vocab_size=2)))
    artifact = exported_once("cls") / "cls.onnx"
    assert checkpoint.original is not None
    reference = Reference(checkpoint.model, checkpoint.original)
    assert not check_parity(artifact, checkpoint.model, reference=reference).failures()
    # Every second one: LayerNorm would take off a constant.
    checkpoint.original.tables["embeddings.token_type_embeddings.weight"][:, ::2] += 0.1
    with pytest.raises(Exception, match="does not compute what the PyTorch model computes"):
        check_parity(artifact, checkpoint.model, reference=Reference(checkpoint.model, checkpoint.original))


def test_pipelines_read_texts_with_xlm_r_tokenizer(exported_once, xlm_roberta, sentences):
    folder, checkpoint = exported_once("cls"), xlm_roberta("cls", type_vocab_size=2)
    theirs = CLASSES["cls"].from_pretrained(checkpoint).eval()
    tokenizer = Tokenizer.from_dir(checkpoint)
    assert Tokenizer.from_dir(folder)(sentences[0]).input_ids == tokenizer(sentences[0]).input_ids
    with torch.no_grad():
        ids = torch.tensor([tokenizer(sentences[0]).input_ids])
        expected = theirs(ids, attention_mask=torch.ones_like(ids)).logits.softmax(-1)[0]
    answers = pipeline(folder)(sentences[0], top_k=None)
    assert {one["label"]: pytest.approx(one["score"], abs=1e-5) for one in answers} == {
        f"LABEL_{i}": float(score) for i, score in enumerate(expected)
    }
    answer = pipeline(exported_once("qa"))(question="Wo?", context="Gestern in Besançon.")
    assert answer["answer"] in "Gestern in Besançon."
    assert pipeline(exported_once("ner"))(sentences[1])[0]["word"] in sentences[1]


def test_verify_and_int8(erniem_export, erniem_verify, xlm_roberta, exported_once, tmp_path):
    checkpoint = xlm_roberta("cls", type_vocab_size=2)
    erniem_verify(exported_once("cls"), "--model", checkpoint).ok()
    other = erniem_verify(exported_once("cls"), "--model", xlm_roberta("cls", type_vocab_size=2, layer_norm_eps=0.1))
    assert other.code == 1
    erniem_export("--model", checkpoint, "--output", tmp_path / "out", "--int8").ok()


def test_a_part_of_the_vocabulary(erniem_export, erniem_verify, xlm_roberta, tmp_path, sentences):
    checkpoint, text = xlm_roberta("cls", type_vocab_size=2), tmp_path / "keep.txt"
    text.write_text("\n".join(sentences[:3]), encoding="utf-8")
    erniem_export("--model", checkpoint, "--output", tmp_path / "out", "--keep-tokens", text).ok()
    part, whole = Tokenizer.from_dir(tmp_path / "out"), Tokenizer.from_dir(checkpoint)
    assert len(part) < len(whole)
    for sentence in sentences[:3]:
        assert part.tokenize(sentence) == whole.tokenize(sentence)
        assert part.convert_ids_to_tokens(part(sentence).input_ids) == ["<s>", *whole.tokenize(sentence), "</s>"]
    erniem_verify(tmp_path / "out", "--model", checkpoint).ok()


def test_positions_go_as_far_as_the_table(erniem_export, xlm_roberta, tmp_path):
    checkpoint = xlm_roberta("base", pooler=False, max_position_embeddings=1026, num_hidden_layers=1)
    done = erniem_export("--model", checkpoint, "--output", tmp_path / "out").ok()
    assert Manifest.load(tmp_path / "out" / "base.json").limits.max_length == 1024
    assert "the weights have no pooler" in done.err


def test_a_checkpoint_with_tokenizer_json_alone(erniem_export, copied, tmp_path, sentences):
    """As transformers 5 saves it; the artifact has the model that it was made from."""
    checkpoint = copied("cls")
    expected = Tokenizer.from_dir(checkpoint)
    fast = transformers.XLMRobertaTokenizerFast.from_pretrained(checkpoint)
    fast.backend_tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "sentencepiece.bpe.model").unlink()
    done = erniem_export("--model", checkpoint, "--output", checkpoint)  # as in the checkpoint's own folder
    assert done.code == 0, done.err
    assert "gives other ids" not in done.err
    shutil.copytree(checkpoint, tmp_path / "out", ignore=shutil.ignore_patterns("tokenizer.json", "model.safetensors"))
    found = Tokenizer.from_dir(tmp_path / "out")
    assert found.settings.model_max_length == 128
    for text in (*sentences, "a <mask> b"):
        assert found(text) == expected(text)
    assert pipeline(tmp_path / "out")([sentences[0]])[0]["label"].startswith("LABEL_")


def test_a_sentence_transformers_folder_brings_its_pooling(copied):
    checkpoint = copied("base", pooler=False)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (checkpoint / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    assert load_checkpoint(str(checkpoint)).defaults == Defaults(64, "cls", True)


def test_another_tokenizer_json_is_told(erniem_export, copied, tmp_path, quick_gate):
    checkpoint = copied("cls")
    fast = transformers.XLMRobertaTokenizerFast.from_pretrained(checkpoint)
    from tokenizers import normalizers

    fast.backend_tokenizer.normalizer = normalizers.Lowercase()
    fast.backend_tokenizer.save(str(checkpoint / "tokenizer.json"))
    done = erniem_export("--model", checkpoint, "--output", tmp_path / "out")
    assert "tokenizer.json, which transformers reads, gives other ids for" in done.err


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_of_training_and_leftovers_are_taken_off(copied, prefix):
    checkpoint = copied("cls")
    before = load_checkpoint(str(checkpoint)).identity()
    state = load_file(checkpoint / "model.safetensors")
    state = {prefix + name: tensor for name, tensor in state.items()}
    state[f"{prefix}roberta.embeddings.position_ids"] = torch.arange(130)[None]
    state[f"{prefix}roberta.pooler.dense.weight"] = torch.zeros(32, 32)
    save_file(state, checkpoint / "model.safetensors")
    found = load_checkpoint(str(checkpoint))
    assert found.identity() == before
    assert any("weights left out" in note and "roberta.pooler.dense.weight" in note for note in found.notes)


@pytest.mark.parametrize("head", CLASSES)
def test_a_config_without_classes_is_told_by_its_weights(copied, head):
    checkpoint = copied(head)
    config = json.loads((checkpoint / "config.json").read_text())
    del config["architectures"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(str(checkpoint)).head == head


def test_a_masked_language_model_is_refused_by_name(export_fails, erniem_export, xlm_roberta, tmp_path, quick_gate):
    checkpoint = xlm_roberta("mlm")
    assert export_fails(checkpoint) == (
        "config.json names XLMRobertaForMaskedLM, which is not one of the supported XLM-R heads, base, cls, ner, "
        "qa; --head base exports the encoder alone"
    )
    said = "the weights have no classifier.out_proj, classifier.dense, which head 'cls' needs"
    assert said in export_fails(checkpoint, "--head", "cls")
    done = erniem_export("--model", checkpoint, "--head", "base", "--output", tmp_path / "out").ok()
    assert "lm_head.bias" in done.err


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"position_embedding_type": "relative_key"},
            "= 'relative_key', expected 'absolute'",
        ),
        ({"pad_token_id": 0}, "says pad_token_id = 0, expected 1"),
        ({"is_decoder": True}, "says is_decoder = True: this is a decoder"),
        ({"pruned_heads": {"0": [1]}}, "names pruned_heads"),
        ({"model_type": "roberta"}, "says model_type = 'roberta'; expected 'ernie_m' or 'xlm-roberta'"),
        ({"model_type": "camembert"}, "says model_type = 'camembert'; expected 'ernie_m' or 'xlm-roberta'"),
        ({"model_type": "xlm-roberta-xl"}, "says model_type = 'xlm-roberta-xl'; expected 'ernie_m' or 'xlm-roberta'"),
        (
            {"tokenizer_class": "ErnieMTokenizer"},
            "= 'ErnieMTokenizer', expected 'XLMRobertaTokenizer'",
        ),
        ({"max_position_embeddings": 514}, "max_position_embeddings = 514, but"),
        ({"vocab_size": 20}, "vocab_size = 20, but roberta.embeddings.word_embeddings.weight has"),
        ({"intermediate_size": 20}, "but roberta.encoder.layer.0.intermediate.dense.weight has 48"),
    ],
)
def test_what_no_artifact_can_have_is_refused(export_fails, copied, config, reason):
    checkpoint = copied("cls")
    content = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**content, **config}))
    assert reason in export_fails(checkpoint)


def test_weights_of_another_model_are_refused(export_fails, copied, write_checkpoint, tmp_path):
    """ErnieM's names under XLM-R's config, where the two are alike but for the token types."""
    checkpoint = copied("cls")
    shutil.copy(write_checkpoint(tmp_path / "ernie-m", "cls") / "model.safetensors", checkpoint)
    said = export_fails(checkpoint)
    assert said == (
        "the weights lack embeddings.position_embeddings.weight, embeddings.token_type_embeddings.weight: these are "
        "not XLM-R's, which config.json says"
    )


def test_the_number_of_token_types_is_that_of_the_weights(copied):
    checkpoint = copied("cls")
    config = json.loads((checkpoint / "config.json").read_text())
    del config["type_vocab_size"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    original = load_checkpoint(str(checkpoint)).original
    assert original is not None
    ids = torch.tensor([[0, 5, 2]])
    assert original(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3)


def test_heads_and_inputs_that_xlm_r_has_not(export_fails, xlm_roberta):
    checkpoint = xlm_roberta("cls")
    assert (
        export_fails(checkpoint, "--head", "ie")
        == "--head ie is not supported for XLM-R; expected one of base, cls, ner, qa"
    )
    assert "--with-position-ids" in export_fails(checkpoint, "--with-position-ids")
    assert export_fails(checkpoint, "--head", "ner") == (
        "--head ner contradicts the checkpoint: config.json names XLMRobertaForSequenceClassification, which is head "
        "cls"
    )
