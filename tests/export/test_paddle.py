"""Checkpoints of PaddleNLP, against what real Paddle wrote and computed (tests/data/paddle)."""

import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from erniem_export import convert
from erniem_export.checkpoint import load_checkpoint, stored_dtypes
from erniem_export.errors import CheckpointError, OptionError
from erniem_export.mask_mode import note_of_mask
from erniem_export.options import ExportOptions
from erniem_export.paddle import read_arrays
from erniem_export.sources import tokenizer_files
from erniem_rt.tokenizer import Tokenizer

PADDLE = Path(__file__).parents[1] / "data" / "paddle"
NANO = Path(__file__).parents[2] / "examples" / "nano" / "checkpoints"
HEADS = ("base", "cls", "ie", "mc", "ner", "qa")
FORMATS = ("pdparams", "protocol2", "float16", "bfloat16", "sharded", "safetensors", "legacy")
# Rows that attend to nothing: Paddle attends to all of it, ours evenly.
NOTHING = ("padrow_mask", "all_zero_nomask")
WEIGHTS = "model_state.pdparams"


def cases():
    content, found = np.load(PADDLE / "inputs.npz"), {}
    for key in content.files:
        case, name = key.split("/")
        found.setdefault(case, {})[name] = content[key]
    return found


CASES = cases()
OUTPUTS = np.load(PADDLE / "outputs.npz")


def computed(model, head, given):
    """Outputs as Paddle has them, which masks id 0 where the caller gives no mask."""
    ids, feeds = given["input_ids"], dict(given)
    mask = feeds.get("attention_mask", (ids != 0).astype("int64"))
    feeds["attention_mask"] = (mask[:, 0, 0] == 0) if mask.ndim == 4 else mask
    with torch.inference_mode():
        found = model(**{name: torch.as_tensor(value) for name, value in feeds.items()}, return_dict=True)
    if head == "base":
        return [found.last_hidden_state.numpy(), found.pooler_output.numpy()]
    if head in ("qa", "ie"):
        spans = [found.start_logits, found.end_logits]
        return [(torch.sigmoid(one) if head == "ie" else one).numpy() for one in spans]
    return [found.logits.numpy()]


@pytest.mark.parametrize("head", HEADS)
def test_all_ways_of_calling_give_paddles_numbers(head):
    checkpoint = load_checkpoint(str(PADDLE / "models" / head))
    assert checkpoint.head == head
    assert checkpoint.config.intermediate_size == 64  # 4 x 16, whatever the config says
    compared = [case for case in CASES if case not in NOTHING and f"{head}/{case}/0" in OUTPUTS.files]
    assert len(compared) == (4 if head == "mc" else 15)
    for case in compared:
        given = CASES[case]
        if head == "mc":
            given = {name: np.stack([value[:3], value[1:4]]) for name, value in given.items()}
        for i, found in enumerate(computed(checkpoint.model, head, given)):
            np.testing.assert_allclose(found, OUTPUTS[f"{head}/{case}/{i}"], rtol=0, atol=1e-5, err_msg=case)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_bytes(name):
    checkpoint, plain = (load_checkpoint(str(PADDLE / "formats" / one)) for one in (name, "pdparams"))
    assert (checkpoint.head, checkpoint.architecture) == ("ie", "ErnieMForInformationExtraction")
    assert json.loads(checkpoint.config_text)["architectures"] == ["ErnieMForInformationExtraction"]
    step = {"float16": 2**-10, "bfloat16": 2**-7}.get(name, 0.0)  # Paddle cuts the digits off
    for key, tensor in checkpoint.model.state_dict().items():
        torch.testing.assert_close(tensor, plain.model.state_dict()[key], rtol=step, atol=1e-6 * bool(step))
    for case in ("right_mask", "taskflow"):
        for i, found in enumerate(computed(plain.model, "ie", CASES[case])):
            np.testing.assert_allclose(found, OUTPUTS[f"formats/{case}/{i}"], rtol=0, atol=1e-5)


def as_paddle(state):
    """PyTorch's weights with Paddle's names and layout."""
    found = {}
    for name, tensor in state.items():
        name = name.replace("self_attn.self_attn.", "self_attn.").replace("qa_outputs.", "classifier.")
        transposed = tensor.ndim == 2 and not name.endswith("_embeddings.weight")
        found[name] = np.ascontiguousarray(tensor.T if transposed else tensor)
    return found


@pytest.fixture
def paddle_model(micro_model):
    return lambda head: micro_model(head, 5, intermediate_size=64)


@pytest.fixture
def write_paddle(paddle_model):
    """A checkpoint of PyTorch as PaddleNLP has it; ``dump`` writes the arrays, ``config`` changes config.json."""

    def write(folder, head="ie", *, dump=pickle.dumps, edit=dict, **config):
        model = paddle_model(head)
        folder.mkdir()
        names = ["UIEM"] if head == "ie" else [type(model).__name__]
        content = {
            **json.loads(model.config.to_json_string()),
            "architectures": names,
            "intermediate_size": 3,
            **config,
        }
        (folder / "config.json").write_text(json.dumps({key: v for key, v in content.items() if v is not None}))
        arrays = edit(as_paddle(model.state_dict()))
        (folder / WEIGHTS).write_bytes(dump({**arrays, "StructuredToParameterName@@": {"a": "linear_0.w_0"}}))
        return folder

    return write


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("head", ["base", "cls", "ner", "mc", "qa", "ie"])
def test_every_head_comes_back_to_the_bit(head, protocol, tmp_path, paddle_model, write_paddle):
    folder = write_paddle(tmp_path / "model", head, dump=lambda state: pickle.dumps(state, protocol=protocol))
    checkpoint = load_checkpoint(str(folder))
    state = checkpoint.model.state_dict()
    expected = paddle_model(head).state_dict()
    assert (checkpoint.head, state.keys()) == (head, expected.keys())
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_legacy_config_whose_outer_keys_win(tmp_path, write_paddle):
    folder = write_paddle(tmp_path / "model", "cls")
    config = json.loads((folder / "config.json").read_text())
    inner = {key: config[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    legacy = {
        "init_args": [{**inner, "max_position_embeddings": 7, "init_class": "ErnieMModel"}],
        "num_classes": 3,
        "max_position_embeddings": config["max_position_embeddings"],
        "init_class": "ErnieMForSequenceClassification",
    }
    (folder / "config.json").unlink()
    (folder / "model_config.json").write_text(json.dumps(legacy))
    checkpoint = load_checkpoint(str(folder))
    assert (checkpoint.head, checkpoint.config.num_labels, checkpoint.config.max_position_embeddings) == ("cls", 3, 130)


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_released_configs(size, tmp_path):
    from erniem_export.config_file import as_paddle_reads, read_config

    folder = PADDLE / "released" / f"uie-m-{size}"
    shutil.copy(folder / "model_config.json", tmp_path)
    configs = [as_paddle_reads(one, read_config(one)[0])[1] for one in (folder, tmp_path)]
    for config in configs:
        assert config.architectures == ["ErnieMForInformationExtraction"]
        assert config.intermediate_size == {"base": 3072, "large": 4096}[size]


def test_an_optimizer_or_a_copy_beside_the_weights_is_not_read(tmp_path, write_paddle):
    folder = write_paddle(tmp_path / "model")
    (folder / "model_state.old.pdparams").write_bytes(b"anything")
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert load_checkpoint(str(folder)).head == "ie"
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_pytorchs_weights_are_taken_and_that_is_said(tmp_path, paddle_model, write_paddle):
    folder = write_paddle(tmp_path / "model", intermediate_size=64)
    said = f"the folder has Paddle's weights too ({WEIGHTS}): PyTorch's are taken"
    torch.save(paddle_model("ie").state_dict(), folder / "pytorch_model.bin")
    assert load_checkpoint(str(folder)).notes[0] == said
    save_file(paddle_model("ie").state_dict(), folder / "model.safetensors")
    assert load_checkpoint(str(folder)).notes[0] == said
    (folder / WEIGHTS).unlink()
    save_file(
        {name: torch.from_numpy(one) for name, one in as_paddle(paddle_model("ie").state_dict()).items()},
        folder / "model.safetensors",
    )
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.notes[0] == said.replace(WEIGHTS, "model.safetensors")
    assert not checkpoint.paddle
    (folder / "pytorch_model.bin").unlink()
    assert load_checkpoint(str(folder)).paddle


def test_bfloat16_in_safetensors(tmp_path, write_paddle, paddle_model):
    folder = write_paddle(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    arrays = {
        name: torch.from_numpy(one).bfloat16() for name, one in as_paddle(paddle_model("ie").state_dict()).items()
    }
    save_file({name: one.view(torch.uint16) for name, one in arrays.items()}, folder / "model.safetensors")
    found = load_checkpoint(str(folder)).model.state_dict()
    assert torch.equal(found["linear_start.weight"], paddle_model("ie").linear_start.weight.bfloat16().float())


def renamed(state, old, new, only=""):
    return {name.replace(old, new) if only in name else name: value for name, value in state.items()}


class Evil:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda state: {"model": state, "epoch": 3}, f"{WEIGHTS} holds a dict around the weights (model): save"),
        (lambda state: {**state, "epoch": 3}, f"{WEIGHTS} holds more than weights (epoch): save"),
        (lambda state: {**state, "x": Evil()}, "names builtins.print, which is not weights and could run code"),
        (lambda state: {**state, "x": OrderedDict(a=Evil)}, "which is not weights and could run code"),
        (lambda state: {**state, "x": np.array(["a"])}, f"{WEIGHTS} is not a state dict that Paddle saved"),
        (lambda state: {**state, "x": np.array([b"a", None])}, f"{WEIGHTS} is not a state dict that Paddle saved"),
        (lambda state: {**state, "x": np.zeros(2, ">f4")}, "little-endian"),
        (lambda state: {**state, "x": 1.5}, f"{WEIGHTS} is not a state dict that Paddle saved (opcode b'G')"),
        (lambda state: {**state, "UnpackBigParamInfor@@": {"x": {"OriginShape": (2,)}}}, "holds weights in slices"),
        (lambda state: renamed(state, "ernie_m.", "encoder.", "layers.0"), "the prefixes of two versions of PaddleNLP"),
        (lambda state: {n: v for n, v in state.items() if "linear2" not in n}, "the weights lack ernie_m.encoder."),
        (
            lambda state: {n: v[..., :-1] if "linear1" in n else v for n, v in state.items()},
            "the feed-forward layers of PaddleNLP's ErnieM have 4 x hidden_size = 64 units, whatever config.json says",
        ),
        (
            lambda state: {**state, "linear_start.bias": np.zeros(1, "i4")},
            " stores linear_start.bias as int32; expected",
        ),
        (
            lambda state: {n: v if "embeddings" in n else np.ascontiguousarray(v.T) for n, v in state.items()},
            "the weights look transposed: they have PyTorch's layout in Paddle's file",
        ),
        (
            lambda state: {**state, "linear_end.weight": np.full((16, 1), np.nan, "f4")},
            "linear_end.weight holds 16 NaN",
        ),
        (lambda state: {**state, "linear_end.weight": np.zeros((3, 1), "f4")}, "linear_end.weight has 3"),
    ],
)
def test_what_is_not_weights_is_refused(edit, said, tmp_path, write_paddle, export_fails, capfd):
    assert said in export_fails(write_paddle(tmp_path / "model", edit=edit))
    assert "it ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", f"{WEIGHTS} is empty: fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, not the weights: run git lfs pull"),
        (pickle.dumps([1, 2], protocol=2)[:-1] + b".", "opcode b']'"),
        (pickle.dumps({"a": 1}, protocol=0), "it does not begin as a pickle of protocol 2, 3 or 4"),
        (b"\x80\x05}.", "it does not begin as a pickle of protocol 2, 3 or 4"),
        (b"\x80\x02}q\x00h\x07.", "a reference to nothing"),
        (b"\x80\x02R.", "a value is missing"),
        (b"\x80\x02u.", "a mark is missing"),
        (b"\x80\x02N.", "holds no state dict"),
        (b"\x80\x02}q\x00.junk", "4 bytes follow its end; expected none): fetch it again"),
        (b"\x80\x02N}.", "it holds more than one object"),
        (b"\x80\x02}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.", "it has a twice"),
        (b"\x80\x02}.", f"{WEIGHTS} holds no tensors: fetch it again"),
    ],
)
def test_files_that_are_no_weights(content, said, tmp_path, write_paddle, export_fails):
    folder = write_paddle(tmp_path / "model")
    (folder / WEIGHTS).write_bytes(content)
    assert said in export_fails(folder)


def test_every_truncation_and_every_changed_byte_is_an_error_or_read(tmp_path):
    """No file makes the reader do anything else than to raise its own error."""
    content = bytearray((PADDLE / "formats" / "sharded" / "model_state-00001-of-00002.pdparams").read_bytes())
    file = tmp_path / WEIGHTS
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content[: rng.integers(1, len(content))] if rng.random() < 0.3 else content)
        for at in rng.integers(0, min(len(changed), 700), 3):
            changed[at] = rng.integers(0, 256)
        file.write_bytes(changed)
        try:
            for array in read_arrays(file).values():
                array.tensor()
        except CheckpointError:
            continue


def test_shards_of_two_saves(tmp_path, export_fails):
    folder = tmp_path / "model"
    shutil.copytree(PADDLE / "formats" / "sharded", folder)
    one, other = sorted(folder.glob("model_state-*.pdparams"))
    content = one.read_bytes()
    shutil.copy(other, one)
    assert " both hold " in export_fails(folder)
    one.write_bytes(content)
    index = folder / f"{WEIGHTS}.index.json"
    said = json.loads(index.read_text())
    name = next(name for name, file in said["weight_map"].items() if file == one.name)
    moved = {**said["weight_map"], name: other.name}
    index.write_text(json.dumps({**said, "weight_map": moved}))
    assert f"{one} holds {name}, which the index lists in {other.name}: the files are of two saves" in export_fails(
        folder
    )
    index.write_text(json.dumps({**said, "weight_map": {key: file for key, file in moved.items() if key != name}}))
    assert load_checkpoint(str(folder)).notes == (
        f"the index of the weights does not list {name}, which its files hold",
    )


@pytest.mark.parametrize("after", [b"x", b"\0" * 8])
def test_bytes_behind_safetensors(after, tmp_path, write_checkpoint, export_fails):
    folder = write_checkpoint(tmp_path / "model")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(after)
    assert "model.safetensors is truncated or not a safetensors file" in export_fails(folder)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("inference.pdiparams", "inference.pdmodel"), "is Paddle's static model, whose weights have no names: give"),
        (("ernie_m_base.pdparams",), f"it holds ernie_m_base.pdparams: of Paddle, {WEIGHTS} is read"),
    ],
)
def test_other_files_of_paddle(files, said, tmp_path, write_paddle, export_fails):
    folder = write_paddle(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    for name in files:
        (folder / name).touch()
    assert said in export_fails(folder)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "model_config.json",
            {"init_args": [{"hidden_size": 8}], "init_class": "UIE"},
            "describes UIE; expected 'ernie_m'",
        ),
        (
            "model_config.json",
            {"init_args": [], "init_class": "ErnieForMaskedLM"},
            "describes ErnieForMaskedLM; expected",
        ),
        (
            "config.json",
            {"architectures": ["UIE"], "model_type": "ernie"},
            "says model_type = 'ernie'; expected 'ernie_m'",
        ),
    ],
)
def test_other_architectures_of_paddle(name, content, said, tmp_path, write_paddle, export_fails):
    folder = write_paddle(tmp_path / "model")
    (folder / "config.json").unlink()
    (folder / name).write_text(json.dumps(content))
    assert said in export_fails(folder)


@pytest.mark.parametrize("init_args", ["x", 3, None, [], ["x"], {}, [{"hidden_size": 16}]])
def test_a_config_without_the_models_arguments(init_args, tmp_path, write_paddle, export_fails):
    folder = write_paddle(tmp_path / "model")
    (folder / "config.json").unlink()
    (folder / "model_config.json").write_text(json.dumps({"init_args": init_args, "init_class": "UIEM"}))
    said = export_fails(folder)
    assert "model_config.json " in said
    assert "num_hidden_layers; expected the model's arguments in init_args" in said


def test_a_missing_key_is_not_what_the_config_says(tmp_path, write_paddle, export_fails):
    folder = write_paddle(tmp_path / "model", num_hidden_layers=None)
    assert export_fails(folder).startswith(
        "config.json has no num_hidden_layers, which means 12, but the weights have 2"
    )


def test_a_legacy_config_without_a_class(tmp_path, write_paddle, export_fails):
    folders = {head: write_paddle(tmp_path / head, head) for head in ("ie", "qa")}
    for folder in folders.values():
        given = json.loads((folder / "config.json").read_text())
        (folder / "config.json").unlink()
        inner = {k: v for k, v in given.items() if k not in ("architectures", "model_type")}
        (folder / "model_config.json").write_text(json.dumps({"init_args": [{**inner, "init_class": "ErnieMModel"}]}))
    checkpoint = load_checkpoint(str(folders["ie"]))
    assert checkpoint.head == "ie"
    assert "model_config.json has no init_class: this is head ie by the names of the weights" in checkpoint.notes
    assert "(architectures, or init_class in model_config.json)" in export_fails(folders["qa"])
    (folders["ie"] / "model_config.json").write_text(json.dumps(inner))
    assert "model_config.json has no init_class; expected the model's class there" in export_fails(folders["ie"])


@pytest.mark.parametrize("before", ["module.", "model."])
def test_a_prefix_of_every_name_is_taken_off(before, tmp_path, write_paddle, paddle_model):
    folder = write_paddle(tmp_path / "model", edit=lambda state: {before + name: v for name, v in state.items()})
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.notes == (f"the names of the tensors begin with {before}, which was taken off",)
    state = checkpoint.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in paddle_model("ie").state_dict().items())
    assert stored_dtypes(str(folder), checkpoint).keys() == state.keys()


@pytest.mark.parametrize("head", HEADS)
def test_it_becomes_a_checkpoint_of_pytorch(head, tmp_path):
    done = convert(PADDLE / "models" / head, tmp_path / "out", to="ernie-m", quiet=True)
    assert done.notes[0] == "the weights are equal to the bit"
    assert any("--mask uie-m" in note for note in done.notes) == (head == "ie")
    paddle, found = load_checkpoint(str(PADDLE / "models" / head)), load_checkpoint(str(tmp_path / "out"))
    assert (found.head, found.identity(), found.paddle) == (head, paddle.identity(), False)
    assert found.config.id2label == paddle.config.id2label
    assert found.config.to_dict() == {**paddle.config.to_dict(), **ours_alone(found)}
    reminder = note_of_mask(ExportOptions("model"), found)
    assert (reminder is not None and "looks like a copy of uie-m" in reminder) == (head == "ie")


def ours_alone(found):
    return {key: getattr(found.config, key) for key in ("architectures", "paddlenlp_version", "label2id")}


@pytest.mark.parametrize("name", ["bfloat16", "float16", "sharded", "safetensors", "legacy"])
def test_every_format_becomes_one_of_pytorch(name, tmp_path):
    convert(PADDLE / "formats" / name, tmp_path / "out", to="ernie-m", quiet=True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    kind = getattr(torch, name, torch.float32)
    assert {tensor.dtype for tensor in written.values()} == {kind}
    one, other = (load_checkpoint(str(folder)) for folder in (PADDLE / "formats" / name, tmp_path / "out"))
    assert one.identity() == other.identity()


def test_its_tokenizer_goes_along(tmp_path, write_paddle):
    folder = write_paddle(tmp_path / "model")
    for file in tokenizer_files(NANO / "ie"):
        shutil.copy(file, folder)
    before = {file.name for file in folder.iterdir()}
    convert(folder, tmp_path / "out", to="ernie-m", quiet=True)
    assert {file.name for file in (tmp_path / "out").iterdir()} == before - {WEIGHTS} | {"model.safetensors"}
    assert Tokenizer.from_dir(tmp_path / "out", verify=False).settings.drop_lone_marks
    with pytest.raises(OptionError, match="--text compares the tokenizers of ErnieM and XLM-R"):
        convert(folder, tmp_path / "again", to="ernie-m", text=__file__, quiet=True)


def test_without_a_class_the_weights_do_not_tell_every_head(tmp_path, write_paddle, export_fails):
    assert load_checkpoint(str(write_paddle(tmp_path / "ie", "ie", architectures=None))).head == "ie"
    folder = write_paddle(tmp_path / "qa", "qa", architectures=None)
    assert export_fails(folder).endswith("Paddle's weights do not tell which head: pass --head")
    assert load_checkpoint(str(folder), "qa").head == "qa"


def test_a_hub_id_of_a_paddle_repository(monkeypatch, tmp_path, write_paddle):
    folder, asked = write_paddle(tmp_path / "repository"), []

    def download(name, allow_patterns):
        asked.append([pattern for pattern in allow_patterns if pattern.startswith("model_state")])
        target = tmp_path / "cache"
        target.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in folder.glob(pattern):
                shutil.copy(file, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_checkpoint("PaddlePaddle/uie-m-base").head == "ie"
    assert asked == [[], [], [WEIGHTS, "model_state-*.pdparams", f"{WEIGHTS}.index.json"]]


def test_in_its_folder_an_export_goes_into_a_folder_of_its_own(
    tmp_path, write_paddle, erniem_export, files_in, export_fails, monkeypatch, quick_trace, quick_gate
):
    folder = write_paddle(tmp_path / "model", "cls")
    before = files_in(folder)
    said = "config.json is not from an export and would be lost: choose another --output"
    assert said in export_fails(folder, output=folder)
    monkeypatch.chdir(folder)
    erniem_export().ok()
    assert {name: content for name, content in files_in(folder).items() if not name.startswith("out")} == before
    assert (folder / "out" / "cls.onnx").is_file()
