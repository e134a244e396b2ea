"""peft adapters: finds an adapter's base and merges the adapter into it."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from erniem_export.config_file import HEAD_OF_CLASS
from erniem_export.errors import CheckpointError, some
from erniem_export.heads import CLASSES, LABELLED, make_model
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
)
from erniem_export.weights import Shapes, read_shapes
from erniem_rt.manifest import HEADS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from erniem_export.modeling import ErnieMPreTrainedModel

__all__ = ["Adapter", "find_adapter", "merge"]

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


@dataclass(frozen=True)
class Adapter:
    """An adapter: its folder, peft's name of its type, and the head that it was trained with, if its file has it.

    ``base`` is the folder of its base model, ``base_name`` that model's name. ``whole`` maps PyTorch's names of the
    parameters that the adapter replaces to their names in ``file``; ``shapes`` has their shapes.
    """

    folder: Path
    kind: str
    head: str | None
    base: Path
    base_name: str
    file: Path
    whole: dict[str, str] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)

    @property
    def config_folder(self) -> Path:
        """The folder of the merged model's config: the adapter's if it has one, otherwise the base's."""
        return self.folder if (self.folder / CONFIG_FILE).is_file() else self.base

    def values(self, head: str, labels: int) -> dict[str, Any]:
        """Return the changes to the config of a base with so many ``labels``; a value of None removes its key."""
        given: dict[str, Any] = {"architectures": [CLASSES[head].__name__]}
        count = self.shapes.get("classifier.weight", (labels,))[0] if head in LABELLED else labels
        count = 2 if head == "qa" else count
        if count != labels:
            given |= {"num_labels": count, "num_classes": None, "id2label": None, "label2id": None}
        words = next((shape for name, shape in self.shapes.items() if name.endswith("word_embeddings.weight")), None)
        return given | ({} if words is None else {"vocab_size": words[0]})

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
    said = _read(path)
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
    found = [(name, match) for name in given if (match := _WHOLE.fullmatch(name.removeprefix(_BEFORE)))]
    whole = {f"{match[1]}.{match[2]}": name for name, match in found}
    root, base_name = _base_of(folder, said, base)
    return Adapter(
        folder, kind, _head_of(said), root, base_name, file, whole, {name: given[w] for name, w in whole.items()}
    )


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
            f"{_reason(error)}"
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


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content


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
        raise CheckpointError(f"{folder} is an adapter of {given}, which holds an adapter too: merge that one first")
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


def _reason(error: Exception) -> str:
    """Return the most informative line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "mismatch" in line), lines[0] if lines else type(error).__name__)
