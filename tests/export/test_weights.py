"""Weight files that are damaged, dangerous, of something else, or at odds with their config."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from erniem_export.checkpoint import load_checkpoint
from erniem_export.errors import CheckpointError
from erniem_export.weights import read_shapes

State = dict[str, torch.Tensor]
Write = Callable[..., Path]
Fails = Callable[..., str]


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_truncated(keep: int, pickled: bool, tmp_path: Path, write_checkpoint: Write, export_fails: Fails) -> None:
    folder = write_checkpoint(tmp_path / "model", pickled=pickled)
    file = folder / ("pytorch_model.bin" if pickled else "model.safetensors")
    file.write_bytes(file.read_bytes()[:keep])
    message = export_fails(folder)
    assert str(file) in message
    assert "fetch it again" in message


def test_a_pointer_of_git_lfs(tmp_path: Path, write_checkpoint: Write, export_fails: Fails) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "is a pointer of Git LFS, not the weights: run git lfs pull" in export_fails(folder)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_does_not_run(
    zipped: bool, tmp_path: Path, write_checkpoint: Write, export_fails: Fails
) -> None:
    folder = write_checkpoint(tmp_path / "model", pickled=True)
    file = folder / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    target = tmp_path / "executed"
    torch.save({**state, "payload": Payload(target)}, file, _use_new_zipfile_serialization=zipped)
    message = export_fails(folder)
    assert "holds more than tensors, which is not loaded because it could run code" in message
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists()  # it would have


@pytest.mark.parametrize("wrap", [lambda state: {"state_dict": state, "epoch": 3}, lambda state: list(state.values())])
def test_a_pickle_of_something_around_the_weights(
    wrap: Callable[[State], Any], tmp_path: Path, write_checkpoint: Write, export_fails: Fails
) -> None:
    folder = write_checkpoint(tmp_path / "model", pickled=True)
    file = folder / "pytorch_model.bin"
    torch.save(wrap(torch.load(file, weights_only=True)), file)
    assert "holds no state dict: expected tensors by name" in export_fails(folder)


def test_pickles_from_before_torch_1_6(tmp_path: Path, write_checkpoint: Write) -> None:
    folder = write_checkpoint(tmp_path / "model", pickled=True)
    file, identity = folder / "pytorch_model.bin", load_checkpoint(str(folder)).identity()
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert load_checkpoint(str(folder)).identity() == identity


def test_no_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="hold no tensors"):
        read_shapes([tmp_path / "model.safetensors"])


def test_shards(tmp_path: Path, write_checkpoint: Write, export_fails: Fails) -> None:
    folder = write_checkpoint(tmp_path / "model")
    whole, identity = folder / "model.safetensors", load_checkpoint(str(folder)).identity()
    state = dict(load_checkpoint(str(folder)).model.state_dict())
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    assert load_checkpoint(str(folder)).identity() == identity
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors, which is not there" in export_fails(folder)


def as_bert(state: State) -> State:
    """The same tensors under BERT's names."""
    return {
        name.replace("ernie_m.", "bert.").replace(".layers.", ".layer.").replace(".self_attn.self_attn.", ".attention.")
        : tensor
        for name, tensor in state.items()
    }  # fmt: skip


def as_gpt(state: State) -> State:
    return {"wte.weight": torch.zeros(10, 4), "h.0.attn.c_attn.weight": torch.zeros(4, 12)}


@pytest.mark.parametrize("edit", [as_bert, as_gpt])
def test_another_architecture(edit: Any, tmp_path: Path, write_checkpoint: Write, export_fails: Fails) -> None:
    assert "these are not ErnieM weights: no " in export_fails(write_checkpoint(tmp_path / "model", edit=edit))


def test_missing_weights_are_named(tmp_path: Path, write_checkpoint: Write, export_fails: Fails) -> None:
    def edit(state: State) -> State:
        return {name: tensor for name, tensor in state.items() if ".norm1." not in name}

    message = export_fails(write_checkpoint(tmp_path / "model", edit=edit))
    assert message == (
        "the weights lack ernie_m.encoder.layers.0.norm1.bias, ernie_m.encoder.layers.0.norm1.weight, "
        "ernie_m.encoder.layers.1.norm1.bias and 1 more"
    )


def test_weights_that_ernie_m_does_not_have_are_named(
    tmp_path: Path, write_checkpoint: Write, export_fails: Fails
) -> None:
    def edit(state: State) -> State:
        return {**state, "ernie_m.encoder.layers.0.adapter.weight": torch.zeros(2, 2)}

    message = export_fails(write_checkpoint(tmp_path / "model", edit=edit))
    assert message == "the weights hold tensors that ErnieM does not have: ernie_m.encoder.layers.0.adapter.weight"


def resized(name: str, *sizes: int) -> Callable[[State], State]:
    """Give the weights whose name ends so another shape."""
    return lambda state: {
        key: torch.zeros(sizes[: tensor.ndim]) if key.rpartition(".")[0].endswith(name) else tensor
        for key, tensor in state.items()
    }


def wide(state: State) -> State:
    changed = resized("linear1", 32, 16)(state)
    return {name: torch.zeros(16, 32) if name.endswith("linear2.weight") else t for name, t in changed.items()}


def deep(state: State) -> State:
    third = {name.replace("layers.1.", "layers.2."): tensor for name, tensor in state.items()}
    return {**{name: tensor.clone() for name, tensor in third.items()}, **state}


@pytest.mark.parametrize(
    ("head", "edit", "key", "in_config", "in_weights"),
    [
        ("cls", wide, "intermediate_size", 24, 32),
        ("cls", resized("classifier", 5, 16), "num_labels", 3, 5),
        ("ner", resized("classifier", 9, 16), "num_labels", 3, 9),
        ("cls", resized("word_embeddings", 1001, 16), "vocab_size", 1000, 1001),
        ("cls", resized("position_embeddings", 514, 16), "max_position_embeddings", 130, 514),
        ("cls", lambda state: {name: t[..., :8].clone() for name, t in state.items()}, "hidden_size", 16, 8),
        ("base", deep, "num_hidden_layers", 2, 3),
        ("base", lambda state: {n: t for n, t in state.items() if "layers.1." not in n}, "num_hidden_layers", 2, 1),
    ],
)
def test_config_and_weights_contradict_each_other(
    head: str, edit: Any, key: str, in_config: int, in_weights: int, tmp_path: Path, write_checkpoint: Write,
    export_fails: Fails,
) -> None:  # fmt: skip
    message = export_fails(write_checkpoint(tmp_path / "model", head, edit=edit))
    assert f"config.json says {key} = {in_config}, but " in message
    assert f" {in_weights}" in message.split("but")[1]


def test_weights_of_another_shape_that_no_key_explains(
    tmp_path: Path, write_checkpoint: Write, export_fails: Fails
) -> None:
    folder = write_checkpoint(tmp_path / "model", "qa", edit=resized("qa_outputs", 3, 16))
    assert "qa_outputs.weight has shape (3, 16); head 'qa' needs (2, 16)" in export_fails(folder)


def test_question_answering_with_three_labels(tmp_path: Path, write_checkpoint: Write, export_fails: Fails) -> None:
    labels = {str(i): f"LABEL_{i}" for i in range(3)}
    edit = resized("qa_outputs", 3, 16)
    folder = write_checkpoint(tmp_path / "model", "qa", edit=edit, id2label=labels, label2id=None)
    message = export_fails(folder)
    assert message == "config.json says num_labels = 3, but a qa head scores 2 things, start and end"


@pytest.mark.usefixtures("quick_trace")
def test_damaged_numbers_are_told_from_a_wrong_export(
    tmp_path: Path, write_checkpoint: Write, export_fails: Fails
) -> None:
    def edit(state: State) -> State:
        state["ernie_m.encoder.layers.1.norm2.bias"][3] = float("nan")
        return state

    message = export_fails(write_checkpoint(tmp_path / "model", edit=edit))
    assert "the PyTorch model itself yields NaN or infinity in logits" in message
