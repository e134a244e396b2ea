"""Reads and checks a checkpoint's ``config.json``, and removes local paths from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from transformers import activations

from erniem_export.configuration import ErnieMConfig
from erniem_export.errors import CheckpointError
from erniem_export.heads import CLASSES
from erniem_export.modeling import POSITION_OFFSET
from erniem_export.paddle import LAYER_NORM_EPS, flat_config
from erniem_export.sources import CONFIG_FILE, PADDLE_CONFIG_FILE, XLM_ROBERTA, as_json, what_is_there
from erniem_export.xlm_roberta import config_as_ernie_m
from erniem_rt.checks import is_count

_KIND = "ernie_m"
_KINDS = (_KIND, XLM_ROBERTA)
HEAD_OF_CLASS = {cls.__name__: head for head, cls in CLASSES.items()}

# The smallest valid value of each key.
_SIZES = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "max_position_embeddings": POSITION_OFFSET + 1,
    "pad_token_id": 0,
}
# transformers' default names of labels.
_UNNAMED = re.compile(r"LABEL_\d+")
# Keys that only training uses, or that select the implementation of attention: nothing here depends on them, and
# transformers or torch refuse unknown values.
_TRAINING_KEYS = re.compile(
    r"_?attn_implementation(_\w+)?|use_flash_attention_2|_flash_attn_2_enabled|gradient_checkpointing"
    r"|hidden_dropout_prob|attention_probs_dropout_prob|classifier_dropout|dropout|act_dropout|initializer_range"
)
# Endings of keys in which the library stores paths of files.
_PATH_KEYS = ("name_or_path", "_file", "_ckpt", "_path", "_dir")


def read_config(folder: Path) -> tuple[str, ErnieMConfig]:
    """Return the text of ``config.json`` without paths, and the configuration; or those of PaddleNLP's older
    ``model_config.json``.

    Raises:
        CheckpointError: It is missing, damaged, not ErnieM, or describes an impossible model.
    """
    path = config_file(folder)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}{what_is_there(folder)}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    if (flat := flat_config(content)) != content:
        _check_kind(path, flat)
        _check_init_args(path, content, flat)
        content, text = flat, as_json(flat)
    _check_kind(path, content)
    if content.get("model_type") == XLM_ROBERTA:
        content = config_as_ernie_m(path, content)
    return without_paths(text), _configured(path, content)


def config_file(folder: Path) -> Path:
    """Return the path of ``config.json``, or of PaddleNLP's older ``model_config.json`` if that is there alone."""
    own, paddle = folder / CONFIG_FILE, folder / PADDLE_CONFIG_FILE
    return paddle if paddle.is_file() and not own.is_file() else own


def as_paddle_reads(path: Path, text: str) -> tuple[str, ErnieMConfig]:
    """Return the same as :func:`read_config` from the text of a config of Paddle's weights, which ignores some keys.

    Raises:
        CheckpointError: See :func:`read_config`.
    """
    said = json.loads(text)
    given = {"model_type": _KIND, "layer_norm_eps": LAYER_NORM_EPS}
    if isinstance(said.get("hidden_size"), int):
        given["intermediate_size"] = 4 * said["hidden_size"]
    return with_values(path, text, given)


def with_values(path: Path, text: str, given: Mapping[str, Any]) -> tuple[str, ErnieMConfig]:
    """Return the same from the text of a config with changed values; a value of None removes the key.

    Raises:
        CheckpointError: As for :func:`read_config`.
    """
    content = json.loads(text) | dict(given)
    content = {key: value for key, value in content.items() if key not in given or value is not None}
    return as_json(content), _configured(path, content)


def _configured(path: Path, content: dict[str, Any]) -> ErnieMConfig:
    try:
        _check_given(content)
        given = {key: value for key, value in content.items() if not _TRAINING_KEYS.fullmatch(key)}
        # transformers 5 refuses null, which 4 reads as the default; and id2label takes precedence.
        if given.get("num_labels") is None or given.get("id2label"):
            given.pop("num_labels", None)
        config = ErnieMConfig(**given)
        _check_values(config)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} is not an ErnieM config: {error}") from error
    return config


def name_labels(config: ErnieMConfig, said: Mapping[str, Any]) -> str | None:
    """Name the labels by ``label2id`` if ``id2label`` has no names; return a note on contradictions, or None.

    ``said`` is the content of config.json. transformers' zero-shot pipeline reads ``label2id``, the others
    ``id2label``: if their names differ, those of ``id2label`` are used.
    """
    numbers = said.get("label2id")
    if not numbers or are_unnamed(numbers):
        return None
    given = said.get("id2label")
    counted = given or any(said.get(key) is not None for key in ("num_labels", "num_classes"))
    count = config.num_labels if counted else len(numbers)
    if not _is_numbering(numbers, count):
        return f"label2id of config.json does not number {count} labels from 0: the labels are {_listed(config)}"
    named = {number: label for label, number in numbers.items()}
    if named == {number: str(label) for number, label in config.id2label.items()}:
        return None
    if given and not are_unnamed(given.values()):
        return f"id2label and label2id of config.json differ: the labels are id2label's, {_listed(config)}"
    config.id2label, config.label2id = dict(sorted(named.items())), dict(numbers)
    return f"id2label of config.json names no labels: they are label2id's, {_listed(config)}" if given else None


def are_unnamed(labels: Iterable[Any]) -> bool:
    """Return whether all labels have transformers' default names."""
    return all(isinstance(label, str) and _UNNAMED.fullmatch(label) for label in labels)


def _is_numbering(numbers: Mapping[str, Any], count: int) -> bool:
    return all(map(_is_count, numbers.values())) and sorted(numbers.values()) == list(range(count))


def _listed(config: ErnieMConfig) -> str:
    return ", ".join(str(label) for _, label in sorted(config.id2label.items()))


def without_paths(text: str) -> str:
    """Return the text of a JSON object without entries that are paths on some machine; other text unchanged."""
    try:
        content = json.loads(text)
    except ValueError:
        return text
    if not isinstance(content, dict):
        return text
    kept = {key: value for key, value in content.items() if not (key.endswith(_PATH_KEYS) and _is_path(value))}
    return text if len(kept) == len(content) else as_json(kept)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (
        PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith(("~", "."))
    )


def _check_init_args(path: Path, content: dict[str, Any], flat: dict[str, Any]) -> None:
    """Refuse a config of PaddleNLP's older versions that does not describe the model."""
    if path.name != PADDLE_CONFIG_FILE and "init_args" not in content:
        return
    given = content.get("init_args", [])
    missing = [key for key in ("vocab_size", "hidden_size", "num_hidden_layers") if key not in flat]
    if missing or not isinstance(given, (dict, list)):
        says = f"says init_args = {given!r}" if given or not isinstance(given, list) else ""
        lacks = f"has no {', '.join(missing)}" if missing else ""
        raise CheckpointError(
            f"{path} {' and '.join(filter(None, (says, lacks)))}; expected the model's arguments in init_args, as "
            '{"init_args": [{"hidden_size": 768, ...}]}: fetch it again'
        )


def _check_kind(path: Path, content: dict[str, Any]) -> None:
    architectures = content.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise CheckpointError(f"{path} says architectures = {architectures!r}; expected a list of names")
    kind = content.get("model_type")
    if kind is None and not architectures and path.name == PADDLE_CONFIG_FILE:
        raise CheckpointError(
            f"{path} has no init_class; expected the model's class there, as UIEM or ErnieMForTokenClassification"
        )
    if kind not in _KINDS and not (kind is None and any(name in HEAD_OF_CLASS for name in architectures or [])):
        what = (
            f"describes {', '.join(architectures)}" if kind is None and architectures else f"says model_type = {kind!r}"
        )
        raise CheckpointError(f"{path} {what}; expected {' or '.join(map(repr, _KINDS))}")
    if content.get("quantization_config"):
        raise CheckpointError(f"{path} has a quantization_config; expected a checkpoint that is not quantized")


_is_count = partial(is_count, least=0)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_by_number(value: Any) -> bool:
    return isinstance(value, dict) and all(key.isdecimal() for key in value)


def _are_heads(value: Any) -> bool:
    return _is_by_number(value) and all(
        isinstance(heads, list) and all(map(_is_count, heads)) for heads in value.values()
    )


def _is_activation(value: Any) -> bool:
    return isinstance(value, str) and value in activations.ACT2FN


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)


# Keys that transformers or torch do not name when they refuse a value: the check, its description, and whether null is
# valid too.
_GIVEN: dict[str, tuple[Callable[[Any], bool], str, bool]] = {
    "hidden_act": (_is_activation, f"one of {', '.join(sorted(activations.ACT2FN))}", False),
    "num_labels": (_is_count, "an integer of at least 0", True),
    "num_classes": (_is_count, "an integer of at least 0", False),
    "id2label": (_is_by_number, 'labels by number, as {"0": "no", "1": "yes"}', True),
    "label2id": (_is_object, 'numbers by label, as {"no": 0, "yes": 1}', True),
    "pruned_heads": (_are_heads, 'lists of heads by layer, as {"0": [1, 2]}', True),
    "dtype": (_is_dtype, "the name of a torch.dtype", True),
    "torch_dtype": (_is_dtype, "the name of a torch.dtype", True),
}


def _check_given(content: dict[str, Any]) -> None:
    """Raise :class:`ValueError` naming the key whose value has the wrong type."""
    for key, value in content.items():
        if key not in _GIVEN:
            continue
        fits, expected, nullable = _GIVEN[key]
        if not (fits(value) or (nullable and value is None)):
            raise ValueError(f"{key} = {value!r}, expected {expected}")


def _check_values(config: ErnieMConfig) -> None:
    """Raise :class:`ValueError` naming the key whose value makes it impossible to build, trace or serve a model."""
    for key, least in _SIZES.items():
        value = getattr(config, key)
        if not is_count(value, least):
            raise ValueError(f"{key} = {value!r}, expected an integer of at least {least}")
    for bound in ("vocab_size", "max_position_embeddings"):
        if config.pad_token_id >= getattr(config, bound):
            raise ValueError(f"pad_token_id = {config.pad_token_id} is not below {bound} = {getattr(config, bound)}")
    for layer in config.pruned_heads:
        if layer >= config.num_hidden_layers:
            raise ValueError(
                f"pruned_heads names layer {layer}, expected one below num_hidden_layers = {config.num_hidden_layers}"
            )
    if not isinstance(config.layer_norm_eps, (int, float)) or not config.layer_norm_eps >= 0:
        raise ValueError(f"layer_norm_eps = {config.layer_norm_eps!r}, expected a number of at least 0")
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise ValueError(
            f"id2label must name the labels 0 to {config.num_labels - 1}, and names {list(config.id2label)}"
        )
