"""peft adapters: finds an adapter's base and merges the adapter into it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from erniem_export.config_file import HEAD_OF_CLASS, are_unnamed, name_labels, read_config
from erniem_export.configuration import ErnieMConfig
from erniem_export.errors import CheckpointError, some
from erniem_export.heads import CLASSES, LABELLED, make_model
from erniem_export.modeling import ErnieMPreTrainedModel
from erniem_export.sentence_folder import read_sentence_folder
from erniem_export.sources import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CONFIG_FILE,
    adapter_weights,
    check_layout,
    find_folder,
    holds_weights,
    is_adapter,
    read_object,
    what_is_there,
)
from erniem_export.weights import Shapes, check_floats, read_shapes, read_tensors
from erniem_rt.manifest import HEADS

# Each peft task's head.
_HEAD_OF_TASK = {"SEQ_CLS": "cls", "TOKEN_CLS": "ner", "QUESTION_ANS": "qa", "FEATURE_EXTRACTION": "base"}
# Types that cannot be merged: they add rows, layers or a choice by text. peft itself refuses others of this kind.
_NO_WEIGHTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "XLORA",
)
_BEFORE = "base_model.model."
# Parameters that an adapter may replace: those of heads (modules_to_save) and resized embeddings.
_WHOLE = re.compile(
    r"((?:ernie_m\.)?embeddings\.(?:word|position)_embeddings|(?:ernie_m\.)?pooler\.dense|classifier|qa_outputs"
    r"|linear_start|linear_end)(?:\.base_layer)?\.(weight|bias)"
)
# The part of the names of peft's modules that its files leave out.
_IN_MODULES = re.compile(r"\.(?:modules_to_save\.)?default(?=\.|$)")
# The rounding error that merging may cause, relative to the largest output.
_ROUNDING = 1e-3
# What gives the labels names.
_TO_NAME = f"save the trained model's {CONFIG_FILE}, with its id2label, beside the adapter to name them"


@dataclass(frozen=True)
class Adapter:
    """An adapter: its folder, peft's name of its type, and the head that it was trained with, if its file has it.

    ``base`` is the folder of its base model, ``base_name`` that model's name; ``notes`` are for the user. ``whole``
    maps PyTorch's names of the parameters that the adapter replaces to their names in ``file``; ``shapes`` has their
    shapes.
    """

    folder: Path
    kind: str
    head: str | None
    base: Path
    base_name: str
    file: Path
    notes: tuple[str, ...] = ()
    whole: dict[str, str] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)

    @property
    def config_folder(self) -> Path:
        """The folder of the merged model's config: the adapter's if it has one, otherwise the base's."""
        return self.folder if (self.folder / CONFIG_FILE).is_file() else self.base

    def values(self, head: str, config: ErnieMConfig, said: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Return the changes to ``config``, which ``said`` describes, and a note on the labels' names, or None.

        A value of None removes its key.
        """
        given: dict[str, Any] = {"architectures": [CLASSES[head].__name__]}
        words = next((shape for name, shape in self.shapes.items() if name.endswith("word_embeddings.weight")), None)
        given |= {} if words is None else {"vocab_size": words[0]}
        if head not in LABELLED:
            count = 2 if head == "qa" else config.num_labels
            return given | ({} if count == config.num_labels else _labels(count)), None
        count = self.shapes.get("classifier.weight", (config.num_labels,))[0]
        labels, note = self._names(count, config, said)
        return given | labels, note

    def _names(self, count: int, config: ErnieMConfig, said: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Return the names of ``count`` labels, where they are not those of ``config``, and what to say about them."""
        has_own = (self.folder / CONFIG_FILE).is_file()
        where = f"{CONFIG_FILE} beside the adapter" if has_own else f"{CONFIG_FILE} of {self.base_name}"
        if count == config.num_labels:
            named = not (are_unnamed(config.id2label.values()) and are_unnamed(said.get("label2id") or ()))
            if has_own or named or not self.brings("classifier"):
                return {}, None
            return {}, f"{where} names no labels, so they are {_unnamed(count)}: {_TO_NAME}"
        differs = f"the adapter's classifier has {count} labels, and {where} {config.num_labels}"
        if has_own and (names := _names_of(self.base, count)):
            listed = ", ".join(names)
            return _labels(count, names), f"{differs}: the names are those of {self.base_name}, {listed}; {_TO_NAME}"
        return _labels(count), f"{differs}: they are {_unnamed(count)}; {_TO_NAME}"

    def brings(self, module: str) -> bool:
        """Return whether the adapter replaces a module."""
        return f"{module}.weight" in self.whole

    def head_of_whole(self) -> str | None:
        """Return the head, if a replaced module shows it."""
        return next(
            (head for head, module in (("qa", "qa_outputs"), ("ie", "linear_start")) if self.brings(module)), None
        )

    def check_width(self, hidden_size: int) -> None:
        """Raise :class:`CheckpointError` if the adapter was trained on a model of another width."""
        widths = {shape[-1] for shape in self.shapes.values() if len(shape) > 1} - {hidden_size}
        if widths:
            raise CheckpointError(
                f"the adapter is of a model with hidden_size = {widths.pop()}, and this one has {hidden_size}: name "
                "the right one with --base"
            )

    @contextlib.contextmanager
    def of_base(self) -> Iterator[None]:
        """Add to errors that they are about the base."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{self.folder} is an adapter of {self.base_name}: {error}") from error


def find_adapter(folder: Path, base: str | None) -> Adapter | None:
    """Return the adapter in a folder, with ``base`` or else with the base that it names; None without adapter.

    Raises:
        CheckpointError: The adapter cannot be merged, or its base is missing; or there is none, and ``base`` is given.
    """
    path = folder / ADAPTER_FILE
    if not is_adapter(folder):
        if base is not None:
            raise CheckpointError(f"--base is for adapters, and {folder} has no {ADAPTER_FILE}: leave it out")
        return None
    said = read_object(path)
    _check_numbers(path, said)
    kind = said.get("peft_type")
    if not isinstance(kind, str):
        raise CheckpointError(f"{path} names no peft_type; expected an adapter that peft saved")
    if kind in _NO_WEIGHTS:
        raise CheckpointError(
            f"{folder} holds an adapter of type {kind}, which cannot be merged into the weights: train one that can, "
            "such as LORA"
        )
    if base is None and holds_weights(folder):
        raise CheckpointError(
            f"{folder} holds an adapter ({ADAPTER_FILE}) beside a model's weights: remove {ADAPTER_FILE} if they are "
            f"merged already, or else name the adapter's base, as --base {folder}"
        )
    file = adapter_weights(folder)
    if file is None:
        raise CheckpointError(f"{folder} has {ADAPTER_FILE} but no weights: expected {' or '.join(ADAPTER_WEIGHTS)}")
    given = read_shapes([file])
    check_floats(file, {n: t for n, t in read_tensors([file], given).items() if "indices" not in n})
    found = [(name, match) for name in given if (match := _WHOLE.fullmatch(name.removeprefix(_BEFORE)))]
    whole = {f"{match[1]}.{match[2]}": name for name, match in found}
    root, base_name = _base_of(folder, said, base)
    shapes = {name: given[there] for name, there in whole.items()}
    zero = [f"{key} = 0" for key in ("lora_alpha", "alpha") if said.get(key) == 0]
    notes = tuple(f"{ADAPTER_FILE} says {one}: the matrices of the adapter change nothing" for one in zero)
    return Adapter(folder, kind, _head_of(said), root, base_name, file, notes, whole, shapes)


def merge(model: ErnieMPreTrainedModel, head: str, adapter: Adapter) -> tuple[ErnieMPreTrainedModel, list[str]]:
    """Return ``model``, of ``head``, with the adapter merged into it, and peft's warnings.

    Raises:
        CheckpointError: peft is not installed, cannot load the adapter or cannot merge it; or merging changes the
            outputs.
    """
    peft = _peft()
    if adapter.kind not in peft.PeftType.__members__:
        raise CheckpointError(
            f"{adapter.folder} holds an adapter of type {adapter.kind}, which peft {peft.__version__} does not have: "
            "pip install --upgrade peft"
        )
    rows = _rows(model, head)
    try:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            adapted = peft.PeftModel.from_pretrained(model, str(adapter.folder), torch_device="cpu").eval()
            _check_names(adapter, adapted, peft)
            expected = adapted(**rows)[0]
            state = adapted.merge_and_unload(safe_merge=True).state_dict()
            # LN_TUNING keeps the original modules too.
            state = {
                _IN_MODULES.sub("", name): value for name, value in state.items() if ".original_module." not in name
            }
            merged = make_model(head, model.config, pooler=model.base_model.pooler is not None)
            merged.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
            found = merged.eval()(**rows)[0]
    except CheckpointError:
        raise
    except Exception as error:  # each type of adapter raises errors of its own
        raise CheckpointError(
            f"peft {peft.__version__} cannot merge {adapter.folder}, of type {adapter.kind}, into {adapter.base_name}: "
            f"{_reason(error)}{_remedy(error, adapter)}"
        ) from error
    if not (found.isfinite().all() and expected.isfinite().all()):
        raise CheckpointError(
            f"{adapter.folder} holds NaN or infinite values, or gives such outputs; save the adapter again"
        )
    if not torch.allclose(found, expected, rtol=0, atol=_ROUNDING * float(expected.abs().max())):
        raise CheckpointError(
            f"{adapter.folder} holds an adapter of type {adapter.kind}, which cannot be merged: the merged model has "
            "other outputs"
        )
    said = {str(item.message).strip().splitlines()[0] for item in caught if item.category is UserWarning}
    return merged, [f"peft warns: {text}" for text in sorted(said)]


def _labels(count: int, names: list[str] | None = None) -> dict[str, Any]:
    """Return the keys of a config with so many labels, which have names or none."""
    if names is None:
        return {"num_labels": count, "num_classes": None, "id2label": None, "label2id": None}
    return {**_labels(count), "id2label": {str(i): name for i, name in enumerate(names)}}


def _names_of(base: Path, count: int) -> list[str] | None:
    """Return the names of a base's labels, if it has so many with names."""
    try:
        text, config = read_config(base)
    except CheckpointError:  # the adapter's config is complete without it
        return None
    name_labels(config, json.loads(text))
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    return names if len(names) == count and not are_unnamed(names) else None


def _unnamed(count: int) -> str:
    return "LABEL_0" if count == 1 else f"LABEL_0 to LABEL_{count - 1}"


def _check_numbers(path: Path, said: dict[str, Any]) -> None:
    for key in ("r", "lora_alpha", "alpha"):
        if isinstance(said.get(key), (str, list, dict)):
            raise CheckpointError(f"{path} says {key} = {said[key]!r}; expected a number: save the adapter again")
    for key, value in _numbers(said):
        if not math.isfinite(value):
            raise CheckpointError(f"{path} says {key} = {value}; expected a finite number: save the adapter again")


def _numbers(said: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a JSON object, with their keys, and those of objects in it."""
    for key, value in said.items():
        if isinstance(value, float):
            yield key, value
        elif isinstance(value, dict):
            yield from ((f"{key}.{inner}", number) for inner, number in _numbers(value))


def _head_of(said: dict[str, Any]) -> str | None:
    if said.get("task_type") in _HEAD_OF_TASK:
        return _HEAD_OF_TASK[said["task_type"]]
    classes = said.get("auto_mapping")
    return HEAD_OF_CLASS.get(str(classes.get("base_model_class"))) if isinstance(classes, dict) else None


def _base_of(folder: Path, said: dict[str, Any], base: str | None) -> tuple[Path, str]:
    """Return the folder of the base's weights, and the base's name."""
    given, revision = base, None
    if base is None:
        given, revision = said.get("base_model_name_or_path"), said.get("revision")
    if not isinstance(given, str) or not given:
        raise CheckpointError(f"{folder / ADAPTER_FILE} does not name the adapter's base: give it with --base")
    if base is None and not Path(given).is_dir() and (folder / given).is_dir():
        given = str(folder / given)
    try:
        root = find_folder(given, revision if isinstance(revision, str) else None)
        name = root.resolve().name if Path(given).expanduser().is_dir() else given
        sentences = read_sentence_folder(root)
        home = root if sentences is None else sentences.model
        check_layout(home)
    except CheckpointError as error:
        remedy = "" if base is not None else "; name its base with --base"
        raise CheckpointError(f"{folder} is an adapter of {given}: {error}{remedy}") from error
    if is_adapter(home) and not home.samefile(folder):
        raise CheckpointError(
            f"{folder} is an adapter of {given}, which holds an adapter too: merge that one first, with peft's "
            "merge_and_unload() and save_pretrained, and name the result with --base"
        )
    if not holds_weights(home):
        which = "itself" if home.samefile(folder) else given
        raise CheckpointError(
            f"{folder} is an adapter of {which}, which has no model's weights{what_is_there(home)}; name its base with "
            "--base"
        )
    return home, name


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise CheckpointError(f"the package peft cannot be loaded: {error}") from error
        raise CheckpointError('adapters need the package peft: pip install "erniem-rt[adapters]"') from error
    except ImportError as error:  # this transformers lacks something that peft imports
        raise CheckpointError(f"the package peft cannot be loaded: {error}") from error
    return peft


def _check_names(adapter: Adapter, adapted: Any, peft: Any) -> None:
    """Raise unless the file has exactly the tensors that ``adapted`` takes from it."""
    given = set(read_shapes([adapter.file]))
    needed = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    places = needed | {_IN_MODULES.sub("", name) for name in adapted.state_dict()}
    if unused := given - places:
        raise CheckpointError(f"{adapter.file} has tensors that have no place in {adapter.base_name}: {some(unused)}")
    if missing := needed - given:
        raise CheckpointError(f"{adapter.file} lacks {some(missing)}: save the adapter again, or fetch it again")


def _rows(model: ErnieMPreTrainedModel, head: str) -> dict[str, torch.Tensor]:
    """Return two rows of random ids in the head's shape."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, 8) if len(HEADS[head].axes) == 3 else (2, 8)
    ids = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _remedy(error: Exception, adapter: Adapter) -> str:
    """Return what may help, as the end of a sentence."""
    if "size mismatch" not in str(error):
        return ""
    return (
        f"; {adapter.file.name} is not of the training that {ADAPTER_FILE} describes (r, target_modules), or the base "
        "is another; name the right one with --base"
    )


def _reason(error: Exception) -> str:
    """Return the most informative line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "mismatch" in line), lines[0] if lines else type(error).__name__)
    return line.rstrip(".")
