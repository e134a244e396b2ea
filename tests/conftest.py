"""Fixtures that several folders share: real sentences and a tokenizer trained on them, and nano, exported."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# As erniem_rt sets it before it imports onnxruntime; some tests import that first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# PyTorch and ONNX Runtime: handing work this small to a second thread takes longer than doing it, above all while the
# other processes of a run use the other cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
with contextlib.suppress(ImportError):  # some environments lack it
    import hypothesis

    hypothesis.settings.register_profile("any machine", deadline=None)
    hypothesis.settings.load_profile("any machine")

NANO = Path(__file__).parents[1] / "examples" / "nano"
# What loading a checkpoint leaves in its config.
NOT_IN_GRAPH = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")

SENTENCES = (
    "The lighthouse keeper wrote 3 letters in 1897, none of which ever arrived.",
    "In March 2021 the Zürich office hired 14 people; two of them left again.",
    "Gestern haben wir auf dem Straßenfest überraschend viele Nachbarn getroffen.",
    "L'été dernier, nous avons dîné à Besançon pour 27,50 € par personne.",
    "El pingüino caminó despacio… ¿adónde iría con tanto frío?",
    "İstanbul'da hava 30 dereceydi, ama ILIK bir rüzgâr esiyordu.",
    "Wczoraj żółw przeszedł przez całą łąkę w 45 minut.",
    "Trời hôm nay đẹp quá, chúng ta đi dạo quanh hồ nhé!",
    "Вчера мы долго спорили о том, где поставить книжный шкаф.",
    "Київський поїзд запізнився на 12 хвилин через снігопад.",
    "Ο ΟΔΥΣΣΕΥΣ γύρισε στην Ιθάκη μετά από είκοσι χρόνια.",
    "محمد يعمل مهندسًا في القاهرة منذ عام ٢٠١٥.",
    "دیروز در تهران باران می‌بارید و خیابان‌ها خلوت بود.",
    "השכנה מהקומה השלישית מגדלת עגבניות על הגג.",
    "बारिश के बाद बच्चे मैदान में क्रिकेट खेलने गए।",
    "আজ সকালে নদীর ধারে অনেক পাখি দেখা গেল।",
    "நேற்று இரவு கடலோரத்தில் நிலவு மிகவும் அழகாக இருந்தது.",
    "เมื่อวานนี้ฝนตกหนักจนรถติดทั้งเมือง",
    "图书馆今天上午9点开门，但是阅览室下午才开放。",
    "圖書館管理員說：「請把書放回原處，謝謝！」",
    "昨日、駅前のカフェでコーヒーを２杯も飲んでしまった。",
    "ﾊﾝｶｸｶﾀｶﾅと全角ＡＢＣ１２３が混ざった文章です。",
    "어제 친구와 함께 한강에서 자전거를 탔어요.",
    "გუშინ თბილისში დიდი თოვლი მოვიდა.",
    "Երեկ մենք այցելեցինք հին վանքը լեռներում։",
    "ትናንት በገበያ ውስጥ ብዙ ሰዎች ነበሩ።",
    "The ﬁrst ofﬁce: ½ price, ㍿ Ⅷ, №5 and 10㎞ away 🦊👩‍👩‍👧!",
)


@pytest.fixture(scope="session")
def sentences() -> tuple[str, ...]:
    """One or two sentences in each of 16 scripts."""
    return SENTENCES


@pytest.fixture(scope="session")
def once_per_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``once_per_run(name, fill)``: a folder that ``fill`` filled once for all processes of this run: do not change it.

    Whoever asks for it while it is being filled waits.
    """
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once-per-run"
    shared.mkdir(exist_ok=True)

    def get(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a failure left
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def sentencepiece_model(once_per_run: Callable[..., Path]) -> bytes:
    """A small unigram model with XLM-R's normalisation, which leaves some of the sentences' characters unknown."""
    return (once_per_run("sentencepiece", _train_sentencepiece) / "sentencepiece.bpe.model").read_bytes()


@pytest.fixture(scope="session")
def train_sentencepiece() -> Callable[..., None]:
    """``train_sentencepiece(folder, lines, **options)`` trains a small ``sentencepiece.bpe.model`` in the folder."""
    return _train


def _train(folder: Path, lines: Iterable[str], **options: Any) -> None:
    import sentencepiece

    with (folder / "sentencepiece.bpe.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, hard_vocab_limit=False, minloglevel=2, **options
        )


def _train_sentencepiece(folder: Path) -> None:
    rng = random.Random(7)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    lines = [" ".join(rng.choices(words, k=8)) for _ in range(1500)]
    _train(folder, lines, vocab_size=900, normalization_rule_name="nmt_nfkc", character_coverage=0.99)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, sentencepiece_model: bytes) -> Path:
    """A checkpoint's tokenizer files, laid out as ErnieM's: a vocabulary that is not in the model's order."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    pieces = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
    digits = [*"0123456789", "12", "2021"]
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *dict.fromkeys([*pieces, *digits]), "[MASK]"]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model)
    return folder


@pytest.fixture(scope="session")
def xlm_roberta(once_per_run: Callable[..., Path], sentencepiece_model: bytes) -> Callable[..., Path]:
    """``xlm_roberta(head, pooler=True, **config)``: a small XLM-R checkpoint, written once by transformers' own class.

    Its weights are random, biases and norms too, so that nothing of the model can hide. Do not change it.
    """

    def write(head: str, pooler: bool, config: dict[str, Any], folder: Path) -> None:
        import sentencepiece
        import torch
        import transformers

        from erniem_export.checkpoint import randomize

        pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model).get_piece_size()
        sizes = {"vocab_size": pieces + 2, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        others = {"intermediate_size": 48, "max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1}
        labels = {"num_labels": 2 if head == "qa" else 3, "bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-5}
        kind = transformers.XLMRobertaConfig(**{**sizes, **others, **labels, **config})
        names = {"base": "Model", "cls": "ForSequenceClassification", "ner": "ForTokenClassification"}
        names |= {"qa": "ForQuestionAnswering", "mlm": "ForMaskedLM"}
        model = getattr(transformers, f"XLMRoberta{names[head]}")(
            kind, **({"add_pooling_layer": pooler} if head == "base" else {})
        )
        randomize(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("query.weight", "key.weight")):
                    parameter *= 2  # attention with peaks
        model.save_pretrained(folder)
        (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model)
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 128}')

    def get(head: str, pooler: bool = True, **config: Any) -> Path:
        key = hashlib.sha256(repr((head, pooler, sorted(config.items()))).encode()).hexdigest()[:12]
        return once_per_run(f"xlm-roberta-{key}", partial(write, head, pooler, config))

    return get


@pytest.fixture(scope="session")
def trace_once(once_per_run: Callable[..., Path]) -> Callable[..., Any]:
    """:func:`trace`, of the same structure once per run; each caller has a graph of its own with its model's weights.

    Tracing is most of what an export takes. ``graph/test_weight_names.py`` shows that the structure does not depend on
    the weights' values.
    """
    import onnx_ir as ir

    from erniem_export.onnx_export import trace, write

    def once(model: Any, head: str, options: Any) -> ir.Model:
        config = json.loads(model.config.to_json_string(use_diff=False))
        known = sorted((key, value) for key, value in config.items() if key not in NOT_IN_GRAPH)
        state = model.state_dict()
        shapes = [(name, tensor.shape, tensor.dtype) for name, tensor in state.items()]
        key = hashlib.sha256(repr((type(model).__name__, known, head, options, shapes)).encode())
        folder = once_per_run(
            f"graph-{key.hexdigest()[:20]}", lambda folder: write(trace(model, head, options), folder / f"{head}.onnx")
        )
        graph = ir.load(folder / f"{head}.onnx")
        for name, tensor in state.items():
            for form, array in ((name, tensor.numpy()), (f"{name}.T", tensor.numpy().T)):
                if form in graph.graph.initializers:
                    graph.graph.initializers[form].const_value = ir.tensor(array.copy(order="C"), name=form)
        return graph

    return once


@pytest.fixture(scope="session")
def nano_artifact(once_per_run: Callable[..., Path], request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """``nano_artifact(head)``: nano's checkpoint of this head, exported once per run in float32 to ``out/HEAD``.

    The gate asks every third example of the task set; ``make demo`` asks all. Where there is no exporter, the variable
    ERNIEM_NANO names the folder ``out``.
    """
    if ready := os.environ.get("ERNIEM_NANO"):
        return lambda head: Path(ready).resolve() / head / f"{head}.onnx"

    def export(head: str, folder: Path) -> None:
        import erniem_export
        from erniem_export import pipeline

        checkpoint = shutil.copytree(NANO / "checkpoints" / head, folder / head)
        task_set = checkpoint / "task_set.jsonl"
        if task_set.exists():
            task_set.write_bytes(b"".join(task_set.read_bytes().splitlines(keepends=True)[::3]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace", request.getfixturevalue("trace_once"))
            erniem_export.export(checkpoint, folder / "out" / head, head=head, quiet=True)

    return lambda head: once_per_run(f"nano-{head}", partial(export, head)) / "out" / head / f"{head}.onnx"


@pytest.fixture(scope="session")
def nano_heldout() -> Iterator[Callable[..., list[Any]]]:
    """``nano_heldout(task, seed, count, long_share=0.0)``: nano's held-out examples, ``count`` in each language."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(NANO))
        before = set(sys.modules)
        from generate import generate
        from languages import CODES

        yield lambda task, seed, count, long_share=0.0: [
            example for code in CODES for example in generate(task, code, "heldout", seed, count, long_share=long_share)
        ]
        for name in set(sys.modules) - before:
            if NANO in Path(getattr(sys.modules[name], "__file__", None) or "/").parents:
                del sys.modules[name]
