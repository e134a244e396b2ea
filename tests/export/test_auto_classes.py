"""ErnieM in the auto classes of transformers 5, its tokenizer there, and training."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import erniem_export
from erniem_export import modeling
from erniem_export.checkpoint import randomize
from erniem_export.configuration import ErnieMConfig
from erniem_rt.tokenizer import Tokenizer

NANO = Path(__file__).parents[2] / "examples" / "nano" / "checkpoints"
# Whether transformers has ErnieM itself.
HAS_ERNIEM = int(transformers.__version__.partition(".")[0]) < 5
on_5 = pytest.mark.skipif(HAS_ERNIEM, reason="transformers 4 has ErnieM itself")
TEXTS = [
    "Johanna Keller wurde am 3. Mai 1961 in Rostock geboren.",
    "北京2022年冬奥会 [MASK] ok",
    "a\u00a0b  c\t㍻ ﬁn",
    "x",
    "",
    "Ａｂ１２ café naïve 😀 [SEP] end",
]
AUTO = {
    "base": "AutoModel",
    "cls": "AutoModelForSequenceClassification",
    "mc": "AutoModelForMultipleChoice",
    "ner": "AutoModelForTokenClassification",
    "qa": "AutoModelForQuestionAnswering",
}


@pytest.fixture(scope="module")
def tokenizer():
    erniem_export.register()
    return transformers.AutoTokenizer.from_pretrained(NANO / "cls")


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.from_dir(NANO / "cls")


@pytest.mark.skipif(not HAS_ERNIEM, reason="transformers 5 has no ErnieM")
def test_where_transformers_has_ernie_m_its_classes_stay():
    erniem_export.register()
    assert type(transformers.AutoConfig.from_pretrained(NANO / "cls")).__module__.startswith("transformers.")


@on_5
@pytest.mark.parametrize("head", AUTO)
def test_auto_classes_load_each_head(head, tokenizer):
    erniem_export.register()  # again, which changes nothing
    model = getattr(transformers, AUTO[head]).from_pretrained(NANO / head).eval()
    assert type(model).__module__ == "erniem_export.modeling"
    encoded = tokenizer(["ein Text", "noch ein längerer Text"], padding=True, return_tensors="pt")
    assert encoded["attention_mask"].tolist()[0][-1] == 0
    if head == "mc":
        encoded = {name: value[None] for name, value in encoded.items()}
    with torch.inference_mode():
        found = model(**encoded)[0]
    assert torch.isfinite(found).all()


@on_5
def test_pipelines_of_transformers_answer_as_the_model_does(tokenizer):
    pair = {"text": "Die Katze schläft.", "text_pair": "Ein Tier schläft."}
    found = transformers.pipeline("text-classification", model=str(NANO / "cls"))(pair, top_k=None)
    model = modeling.ErnieMForSequenceClassification.from_pretrained(NANO / "cls").eval()
    with torch.inference_mode():
        logits = model(**tokenizer(pair["text"], pair["text_pair"], return_tensors="pt")).logits[0]
    expected = {model.config.id2label[i]: float(p) for i, p in enumerate(logits.softmax(-1))}
    assert {item["label"]: item["score"] for item in found} == pytest.approx(expected, abs=1e-5)


@on_5
@pytest.mark.parametrize("pair", [None, "noch eins: [UNK] 12ab"])
def test_ids_and_offsets_are_those_of_the_reference(tokenizer, ours, pair):
    for text in TEXTS:
        found, expected = tokenizer(text, pair, return_offsets_mapping=True), ours(text, pair)
        assert found["input_ids"] == list(expected.input_ids)
        assert found["offset_mapping"] == list(expected.offsets)
        assert found["attention_mask"] == [1] * len(expected.input_ids)
        assert tokenizer(text, pair)["input_ids"] == found["input_ids"]
        assert tokenizer.tokenize(text) == ours.tokenize(text)


@on_5
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("truncation", ["longest_first", "only_first"])
def test_rows_are_cut_and_padded_with_their_offsets(tokenizer, ours, truncation, side):
    texts, pairs = [TEXTS[0], "kurz"], ["Wo wurde Johanna Keller geboren?", "ein wenig länger als kurz"]
    options = {"truncation": truncation, "max_length": 16, "padding": "max_length"}
    found = tokenizer(texts, pairs, return_offsets_mapping=True, return_tensors="np", padding_side=side, **options)
    expected = ours.batch(texts, pairs, padding_side=side, **options)
    np.testing.assert_array_equal(found["input_ids"], expected.input_ids)
    np.testing.assert_array_equal(found["attention_mask"], expected.attention_mask)
    np.testing.assert_array_equal(found["offset_mapping"], expected.offsets)


@on_5
def test_words_are_cut_one_by_one(tokenizer, ours):
    words = ["Johanna", "wohnt", "in", "北京"]
    found = tokenizer(words, is_split_into_words=True, return_offsets_mapping=True)
    rows = [ours(word, add_special_tokens=False) for word in words]
    assert found["input_ids"][1:-1] == [i for row in rows for i in row.input_ids]
    assert found["offset_mapping"][1:-1] == [span for row in rows for span in row.offsets]


@on_5
def test_lone_marks_are_dropped_where_the_files_say_so(tmp_path):
    erniem_export.register()
    shutil.copytree(NANO / "cls", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "drop_lone_marks": True}))
    found, plain = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (tmp_path, NANO / "cls"))
    text = "北 京 ok"
    assert found(text)["input_ids"] == list(Tokenizer.from_dir(tmp_path)(text).input_ids)
    assert found(text)["input_ids"] != plain(text)["input_ids"]


@on_5
def test_a_saved_tokenizer_is_the_same_and_ours_reads_it(tokenizer, tmp_path):
    copy = pickle.loads(pickle.dumps(tokenizer))
    copy.add_tokens(["Kuckuck"])
    assert copy.tokenize("ein Kuckuck") == ["▁ein", "Kuckuck"]
    assert tokenizer.tokenize("ein Kuckuck") != ["▁ein", "Kuckuck"]
    copy.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "ein Kuckuck", "KuckuckKuckuck x"):
        ids = copy(text)["input_ids"]
        assert again(text)["input_ids"] == ids
        assert list(Tokenizer.from_dir(tmp_path)(text).input_ids) == ids
        assert again.decode(ids) == copy.decode(ids)


def test_gradient_checkpointing_gives_the_same_gradients():
    config = ErnieMConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
    )  # fmt: skip
    model = modeling.ErnieMForSequenceClassification(config)
    randomize(model)
    model.train()
    batch = {"input_ids": torch.arange(12).view(2, 6), "labels": torch.tensor([0, 2])}

    def gradients():
        model.zero_grad()
        model(**batch).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    # The newer name of the same.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    calls = []
    encoder = model.ernie_m.encoder
    original = encoder._gradient_checkpointing_func
    encoder._gradient_checkpointing_func = lambda *args: calls.append(1) or original(*args)
    saved = gradients()
    assert len(calls) == 3
    assert saved.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, rtol=1e-5, atol=1e-7)


@on_5
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trained_model_is_exported(tokenizer, tmp_path, dtype):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(NANO / "cls", dtype=dtype)
    rows = [
        {**tokenizer(f"Satz {i}.", "Noch ein Satz, der länger ist." if i % 2 else "Kurz."), "labels": i % 3}
        for i in range(12)
    ]
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=4, activation_checkpointing=True,
            learning_rate=1e-4, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    before = model.classifier.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, model.classifier.weight)
    trainer.save_model(str(tmp_path / "trained"))
    graph, manifest = erniem_export.export(tmp_path / "trained", tmp_path / "out", quiet=True)
    assert manifest.parity  # the gate has passed, or export raises
    assert (graph.parent / "sentencepiece.bpe.model").is_file()
