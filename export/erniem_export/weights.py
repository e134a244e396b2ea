"""Does a checkpoint hold what its config says? Found out from names and shapes, before anything is loaded."""

from __future__ import annotations

import copy
import re
import zipfile
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from erniem_export.errors import CheckpointError
from erniem_export.heads import CLASSES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from erniem_export.configuration import ErnieMConfig

__all__ = ["Shapes", "check_weights", "expected_shapes", "read_shapes"]

Shapes = dict[str, tuple[int, ...]]

PREFIX = "ernie_m."

_LFS_POINTER = b"version https://git-lfs"

# What another head, or a pooler that this head does not use, leaves in a checkpoint.
_OTHER_HEADS = re.compile(r"(pooler\.dense|classifier|qa_outputs|linear_start|linear_end)\.(weight|bias)$")

# Which config key fixes which axis of a parameter.
_AXES = {
    "word_embeddings.weight": ("vocab_size", "hidden_size"),
    "position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "linear1.weight": ("intermediate_size", "hidden_size"),
    "linear1.bias": ("intermediate_size",),
    "linear2.weight": ("hidden_size", "intermediate_size"),
    "classifier.weight": ("num_labels", "hidden_size"),
    "classifier.bias": ("num_labels",),
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def read_shapes(files: Iterable[Path]) -> Shapes:
    """Return name to shape of every tensor in the weight files.

    Pickled files are opened with ``weights_only``: they cannot run code.

    Raises:
        CheckpointError: A file is truncated, is no weight file, or holds more than tensors.
    """
    shapes: Shapes = {}
    for file in files:
        with file.open("rb") as content:
            if content.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise CheckpointError(f"{file} is a pointer of Git LFS, not the weights: run git lfs pull")
        shapes.update(_safetensors_shapes(file) if file.suffix == ".safetensors" else _pickled_shapes(file))
    if not shapes:
        raise CheckpointError("the weight files hold no tensors")
    return shapes


def expected_shapes(head: str, config: ErnieMConfig) -> Shapes:
    """Return name to shape of every parameter of a head's class under ``config``; a ``qa`` head has two labels."""
    if head == "qa":
        config = copy.deepcopy(config)
        config.num_labels = 2
    try:
        with torch.device("meta"):
            model = CLASSES[head](config)
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"config.json describes no ErnieM model: {error}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_weights(head: str, config: ErnieMConfig, found: Shapes) -> None:
    """Raise :class:`CheckpointError`, naming what contradicts what, unless ``found`` fits head and config."""
    found = _with_prefix_of(head, found)
    for part in ("word_embeddings.", "encoder.layers."):
        if not any(part in name for name in found):
            raise CheckpointError(f"these are not ErnieM weights: no {part}* among {_some(found)}")
    _check_depth(config, found)
    if head == "qa" and config.num_labels != 2 and "qa_outputs.weight" in found:
        raise CheckpointError(
            f"config.json says num_labels = {config.num_labels}, but a qa head scores 2 things, start and end"
        )
    expected = expected_shapes(head, config)
    missing = expected.keys() - found.keys()
    if missing:
        raise CheckpointError(_missing(head, missing))
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(_mismatch(head, config, name, shape, found[name]))
    extra = {name for name in found.keys() - expected.keys() if not _OTHER_HEADS.search(name)}
    if extra:
        raise CheckpointError(f"the weights hold tensors that ErnieM does not have: {_some(extra)}")


def _safetensors_shapes(file: Path) -> Shapes:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or not a safetensors file ({error}): fetch it again") from error


def _pickled_shapes(file: Path) -> Shapes:
    try:
        # Files in torch's format from before 1.6 are no archives, and cannot be mapped.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle raises anything
        raise CheckpointError(
            f"{file} is damaged, or holds more than tensors, which is not loaded because it could run code: "
            "fetch it again, or convert it to safetensors where you trust it"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{file} holds no state dict: expected tensors by name, without anything around them")
    return {name: tuple(tensor.shape) for name, tensor in content.items()}


def _with_prefix_of(head: str, found: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Name the encoder's tensors as the head's class does: a base model has them without prefix."""
    bare = {name.removeprefix(PREFIX): shape for name, shape in found.items()}
    if head == "base":
        return bare
    encoder = ("embeddings.", "encoder.", "pooler.")
    return {PREFIX + name if name.startswith(encoder) else name: shape for name, shape in bare.items()}


def _check_depth(config: ErnieMConfig, found: Iterable[str]) -> None:
    layers = {int(match[1]) for name in found if (match := _LAYER.search(name))}
    depth = max(layers, default=-1) + 1
    if depth != config.num_hidden_layers:
        raise CheckpointError(
            f"config.json says num_hidden_layers = {config.num_hidden_layers}, but the weights have {depth} layers"
        )


def _mismatch(head: str, config: ErnieMConfig, name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    keys = next((axes for suffix, axes in _AXES.items() if name.endswith(suffix)), ("hidden_size",) * len(expected))
    for key, want, got in zip(keys, expected, found, strict=False):
        if want != got and getattr(config, key) == want:
            return f"config.json says {key} = {want}, but {name} has {got}: set {key} to {got} if the weights are right"
    return f"{name} has shape {found}; head {head!r} needs {expected}: is this a checkpoint of another head?"


def _missing(head: str, missing: Iterable[str]) -> str:
    names = sorted(missing)
    if all(_OTHER_HEADS.search(name) for name in names):
        modules = ", ".join(sorted({name.rsplit(".", 1)[0] for name in names}))
        return f"the weights have no {modules}, which head {head!r} needs: this checkpoint was not trained for it"
    return f"the weights lack {_some(names)}"


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
