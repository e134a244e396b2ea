"""Makes the data in this folder with real PaddlePaddle and PaddleNLP; by hand, not in CI. README.md says what is what.

    python -m venv v && v/bin/pip install paddlepaddle==2.6.2 "numpy<2" "setuptools<70"
    v/bin/pip install --no-deps paddlenlp==2.8.1 aistudio-sdk==0.2.6 pyarrow==17.0.0
    v/bin/pip install "numpy<2" jieba colorlog colorama seqeval tqdm sentencepiece "huggingface-hub<1" fastapi uvicorn \
        typer rich safetensors tool-helpers jinja2 regex "datasets<4" dill multiprocess paddlefsl requests six psutil \
        bce-python-sdk prettytable
    v/bin/python make.py OUT

The texts, schemas and rows of nano/ are those that are there; only what Paddle makes of them is computed again.
"""

# ruff: noqa: I001
import scipy.linalg  # before paddle, whose wheel brings a zlib that scipy cannot be imported with
import sklearn.metrics

import json
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import paddle
from paddlenlp import Taskflow, transformers
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
NANO = HERE.parents[2] / "examples" / "nano" / "checkpoints" / "ie"
HIDDEN, VOCABULARY, POSITIONS, WIDE, WIDTH = 16, 40, 26, 24, 14
LABELS = ("contradiction", "entailment", "neutral")
NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
# Class, layers, and what its config has besides.
HEADS = {
    "base": (transformers.ErnieMModel, 1, {}),
    "ie": (transformers.UIEM, 2, {}),
    "cls": (transformers.ErnieMForSequenceClassification, 1, {"num_labels": 3, "classifier_dropout": 0.2, **NAMED}),
    "ner": (transformers.ErnieMForTokenClassification, 1, {"num_labels": 5}),
    "qa": (transformers.ErnieMForQuestionAnswering, 1, {}),
    "mc": (transformers.ErnieMForMultipleChoice, 1, {"num_choices": 3}),
}
CHOICE_CASES = ("right_nomask", "right_mask", "right_mask_pos", "left_mask")


def config(layers, **given):
    # The intermediate size is ignored: Paddle's is 4 x hidden.
    return transformers.ErnieMConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=3 * HIDDEN,
        max_position_embeddings=POSITIONS,
        pad_token_id=1,
        **given,
    )


def seeded(model, seed):
    rng = np.random.RandomState(seed)
    for name, parameter in model.named_parameters():
        values = rng.randn(*parameter.shape)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif name.endswith("bias"):
            values = 0.15 * values
        elif any(part in name for part in ("embeddings", "linear_", "classifier")):
            values = 0.7 * values
        else:
            values = 0.45 * values
        parameter.set_value(values.astype("float32"))
    model.eval()
    return model


def make_cases():
    rng = np.random.RandomState(1)

    def row(size):
        return [0, *rng.randint(4, VOCABULARY, size - 2), 2] if size > 1 else [0]

    rows = [row(size) for size in (14, 9, 1, 4)]

    def laid(cells, width, fill, left):
        return np.array(
            [[fill] * (width - len(c)) + c if left else c + [fill] * (width - len(c)) for c in cells], dtype="int64"
        )

    def ids(width, left=False):
        return laid(rows, width, 1, left)

    def mask(width, left=False):
        return laid([[1] * len(one) for one in rows], width, 0, left)

    def places(width, left=False):
        return laid([list(range(len(one))) for one in rows], width, 0, left)

    one = np.array(rows[:1], dtype="int64")
    half = np.ones((2, 6), dtype="int64")
    half[0] = [0, 7, 8, 9, 10, 2]
    zero = np.array([row(10)], dtype="int64")
    zero[0, 3] = 0
    return {
        "single_nomask": {"input_ids": one},
        "single_mask": {"input_ids": one, "attention_mask": np.ones_like(one)},
        "single_nomask_pos": {"input_ids": one, "position_ids": np.arange(WIDTH, dtype="int64")[None]},
        "right_nomask": {"input_ids": ids(WIDTH)},
        "right_mask": {"input_ids": ids(WIDTH), "attention_mask": mask(WIDTH)},
        "right_mask_pos": {"input_ids": ids(WIDTH), "attention_mask": mask(WIDTH), "position_ids": places(WIDTH)},
        "right_nomask_pos": {"input_ids": ids(WIDTH), "position_ids": places(WIDTH)},
        "taskflow": {"input_ids": ids(WIDE), "position_ids": places(WIDE)},
        "left_nomask": {"input_ids": ids(WIDTH, True)},
        "left_mask": {"input_ids": ids(WIDTH, True), "attention_mask": mask(WIDTH, True)},
        "left_mask_pos": {
            "input_ids": ids(WIDTH, True),
            "attention_mask": mask(WIDTH, True),
            "position_ids": places(WIDTH, True),
        },
        "padrow_nomask": {"input_ids": half},
        "padrow_mask": {"input_ids": half, "attention_mask": (half != 1).astype("int64")},
        "zero_inside_nomask": {"input_ids": zero},
        "all_zero_nomask": {"input_ids": np.zeros((1, 5), dtype="int64")},
        "mask_bool": {"input_ids": ids(WIDTH), "attention_mask": mask(WIDTH).astype("bool")},
        "mask_4d_additive": {
            "input_ids": ids(WIDTH),
            "attention_mask": ((1.0 - mask(WIDTH).astype("float32")) * -1e4)[:, None, None, :],
        },
    }


def computed(model, given):
    with paddle.no_grad():
        found = model(**{name: paddle.to_tensor(value) for name, value in given.items()})
    return [one.numpy() for one in (found if isinstance(found, (tuple, list)) else [found])]


def make_models(out, cases):
    outputs = {}
    for i, (head, (cls, layers, given)) in enumerate(HEADS.items()):
        model = seeded(cls(config(layers, **given)), 100 + i)
        for case, feeds in cases.items():
            if head == "mc":
                if case not in CHOICE_CASES:
                    continue
                feeds = {name: np.stack([value[:3], value[1:4]]) for name, value in feeds.items()}
            outputs |= {f"{head}/{case}/{j}": found for j, found in enumerate(computed(model, feeds))}
        model.save_pretrained(out / "models" / head)
    model = seeded(transformers.UIEM(config(1)), 200)
    for case in ("right_mask", "taskflow"):
        outputs |= {f"formats/{case}/{j}": found for j, found in enumerate(computed(model, cases[case]))}
    np.savez_compressed(out / "outputs.npz", **outputs)
    return model


def make_formats(out, model):
    state = model.state_dict()
    model.save_pretrained(out / "pdparams")
    model.save_pretrained(out / "safetensors", safe_serialization=True)
    model.save_pretrained(out / "sharded", max_shard_size="10KB")

    def save(name, content, **options):
        (out / name).mkdir()
        paddle.save(content, str(out / name / "model_state.pdparams"), **options)
        shutil.copy(out / "pdparams" / "config.json", out / name)

    save("protocol2", state, protocol=2)
    for dtype in ("float16", "bfloat16"):
        save(dtype, {name: value.astype(dtype) for name, value in state.items()})
    save("nested", {"model": state, "epoch": 3})
    # What PaddleNLP up to 2.4.4 wrote for UIEM: the encoder under "encoder.", and model_config.json.
    save("legacy", {name.replace("ernie_m.", "encoder.", 1): value for name, value in state.items()})
    inner = json.loads((out / "legacy" / "config.json").read_text())
    (out / "legacy" / "config.json").unlink()
    left_out = ("architectures", "intermediate_size", "model_type", "paddlenlp_version", "type_vocab_size", "dtype")
    inner = {key: value for key, value in inner.items() if key not in left_out} | {"init_class": "ErnieMModel"}
    (out / "legacy" / "model_config.json").write_text(json.dumps({"init_args": [inner], "init_class": "UIEM"}))


def nano_in_paddle(folder):
    """nano's ie weights; the feed-forward layers are filled up with zeros from 288 to 4 x 96, which changes nothing."""
    state = {}
    for name, array in load_file(str(NANO / "model.safetensors")).items():
        if ".linear1." in name:
            array = np.pad(array, [(0, 96), (0, 0)][: array.ndim])
        elif name.endswith("linear2.weight"):
            array = np.pad(array, [(0, 0), (0, 96)])
        if array.ndim == 2 and not name.endswith("_embeddings.weight"):
            array = np.ascontiguousarray(array.T)
        state[name.replace("self_attn.self_attn.", "self_attn.")] = paddle.to_tensor(array)
    paddle.save(state, str(folder / "model_state.pdparams"))
    content = json.loads((NANO / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "architectures": ["UIEM"]}))
    for name in ("sentencepiece.bpe.model", "vocab.txt"):
        shutil.copy(NANO / name, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(HERE / "released" / name, folder)


def make_nano(out):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        nano_in_paddle(folder)
        make_sentences(out, transformers.ErnieMTokenizer.from_pretrained(place))
        make_rows(out, transformers.UIEM.from_pretrained(place))
        make_answers(out, place)


def make_sentences(out, tokenizer):
    made = []
    for one in json.loads((HERE / "nano" / "sentences.json").read_text("utf-8")):
        found = {"text": one["text"], "ids": tokenizer(one["text"])["input_ids"]}
        try:
            found["offsets"] = [list(map(int, pair)) for pair in tokenizer.get_offset_mapping(one["text"])]
            found["offsets"] = [[0, 0], *found["offsets"], [0, 0]]
        except Exception as error:
            found["offset_error"] = type(error).__name__
        made.append(found)
    (out / "sentences.json").write_text(json.dumps(made, ensure_ascii=False), "utf-8")


def make_rows(out, model):
    model.eval()
    rows = dict(np.load(HERE / "nano" / "rows.npz"))
    given = {name: rows[name].astype("int64") for name in ("input_ids", "position_ids")}
    mask = {"attention_mask": (given["input_ids"] != 1).astype("int64")}
    rows["start_real"], rows["end_real"] = computed(model, given)
    rows["start_masked"], rows["end_masked"] = computed(model, {**given, **mask})
    np.savez_compressed(out / "rows.npz", **rows)


def make_answers(out, place):
    """The real Taskflow; it would call home, and writes into its folder."""
    made = []
    calls = json.loads((HERE / "nano" / "taskflow_real.json").read_text("utf-8"))
    with mock.patch("paddlenlp.utils.downloader.download_check"):
        for call in calls:
            ask = Taskflow(
                "information_extraction",
                model="uie-m-base",
                task_path=place,
                schema=call["schema"],
                schema_lang=call["lang"],
                split_sentence=bool(call.get("split_sentence")),
            )
            found = ask(call["texts"])
            made.append({**call, "result": json.loads(json.dumps(found, default=float))})
    (out / "taskflow_real.json").write_text(json.dumps(made, ensure_ascii=False), "utf-8")


def main(out):
    assert scipy.linalg
    assert sklearn.metrics
    for name in ("models", "formats", "nano"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    cases = make_cases()
    inputs = {f"{case}/{name}": value for case, feeds in cases.items() for name, value in feeds.items()}
    np.savez_compressed(out / "inputs.npz", **inputs)
    make_formats(out / "formats", make_models(out, cases))
    make_nano(out / "nano")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
