"""Converts ErnieM checkpoints to XLM-R and back, and Paddle's to PyTorch's: the same weights under other names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from erniem_export.bundle import copy_companions, install_files, staging
from erniem_export.checkpoint import Checkpoint, load_checkpoint, stored_dtypes
from erniem_export.config_file import read_config
from erniem_export.errors import ExportError, OptionError, ParityError
from erniem_export.heads import CLASSES, LABELLED
from erniem_export.mask_mode import UIE_M
from erniem_export.progress import Terminal
from erniem_export.sources import (
    CONFIG_FILE,
    FAST_TOKENIZER,
    MODULES_FILE,
    TOKENIZER_FILES,
    XLM_ROBERTA,
    as_json,
    find_folder,
    read_text,
)
from erniem_export.tokenizer import with_pieces
from erniem_export.xlm_roberta import (
    POSITIONS,
    TOKEN_TYPES,
    XLM_ROBERTA_CLASSES,
    XLM_ROBERTA_HEADS,
    Original,
    as_xlm_roberta,
)
from erniem_rt.tokenizer import Tokenizer
from erniem_rt.tokenizer.settings import SORTED_FILE, AddedToken

ERNIE_M = "ernie-m"
TARGETS = (XLM_ROBERTA, ERNIE_M)
_WEIGHTS = "model.safetensors"
_MODEL, _VOCABULARY, _SETTINGS, *_ = TOKENIZER_FILES
_NAMES = {XLM_ROBERTA: "XLM-R", ERNIE_M: "ErnieM"}
_FIRST = ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
_LAST = "[MASK]"
# Keys with the same meaning in both configs.
_SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "classifier_dropout",
    "act_dropout",
    "problem_type",
)
_PAD = 1
# Lengths of the compared rows, and the tolerance: the models sum in different orders.
_ROWS = (7, 12, 3)
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Conversion:
    """The head that was written, notes for the user, the rows of a text, and how many of them get other ids."""

    head: str
    notes: tuple[str, ...]
    rows: int | None = None
    other_ids: int | None = None


def convert(model: str, output: Path, to: str, head: str, text: Path | None, progress: Terminal) -> Conversion:
    """Write a checkpoint to ``output`` as one of :data:`TARGETS`, completely or not at all.

    Raises:
        ErnieMError: The checkpoint cannot be read, the other model has no equivalent, or files in the folder would be
            lost.
    """
    if to not in TARGETS:
        raise OptionError(f"--to {to} is not known; expected one of {', '.join(TARGETS)}")
    lines = None if text is None else _lines(text)
    with staging(output) as stage:
        progress.step(f"loading {model}")
        checkpoint = load_checkpoint(model, head)
        if checkpoint.paddle and to == ERNIE_M:
            if lines is not None:
                raise OptionError("--text compares the tokenizers of ErnieM and XLM-R: leave it out")
            progress.step("writing PyTorch's weights")
            notes = _write_paddle(model, checkpoint, stage)
            _refuse_others(stage, output)
            install_files(stage, output)
            return Conversion(checkpoint.head, (*checkpoint.notes, *notes))
        _check(checkpoint, to)
        progress.step(f"writing {_NAMES[to]}'s weights")
        difference = _write_weights(model, checkpoint, to, stage)
        notes = [*checkpoint.notes, *_write_tokenizer(checkpoint, to, stage)]
        if (find_folder(model) / MODULES_FILE).is_file():
            notes.append(f"{MODULES_FILE} and the folders of its modules are not converted: copy them")
        counts = _count(checkpoint, stage, lines)
        _refuse_others(stage, output)
        install_files(stage, output)
    return Conversion(checkpoint.head, (*notes, *_what_differs(to, difference, counted=lines is not None)), *counts)


def _write_paddle(model: str, checkpoint: Checkpoint, stage: Path) -> list[str]:
    """Write Paddle's weights, config and tokenizer as PyTorch's; return notes."""
    dtypes, head = stored_dtypes(model, checkpoint), checkpoint.head
    copy_companions(checkpoint, stage, drop_lone_marks=True)
    (stage / SORTED_FILE).unlink(missing_ok=True)  # of artifacts
    (stage / CONFIG_FILE).write_text(as_json(_config_of_paddle(checkpoint)), encoding="utf-8")
    state = checkpoint.model.state_dict()
    _save({name: _as_stored(tensor, dtypes[name]) for name, tensor in state.items()}, stage)
    if load_checkpoint(str(stage)).identity() != checkpoint.identity():
        raise ParityError("the written weights are not those of the checkpoint: report it with your versions")
    notes = ["the weights are equal to the bit"]
    if checkpoint.tokenizer_dir is not None:
        notes.append("the tokenizer drops lone word-start marks, as Paddle's does (drop_lone_marks)")
    if head == "ie":
        notes.append(
            f"uie-m was trained with another mask, which is an option of the export: erniem-export --mask {UIE_M}"
        )
    return notes


def _config_of_paddle(checkpoint: Checkpoint) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(checkpoint.config_text)
    for key in ("num_classes", "num_labels", "id2label", "label2id"):
        given.pop(key, None)
    given |= _labels(checkpoint) or {"num_labels": checkpoint.config.num_labels}
    # The key reminds the export of the mask.
    origin = {"paddlenlp_version": given.get("paddlenlp_version")}
    return {**given, **origin, "architectures": [CLASSES[checkpoint.head].__name__], "model_type": "ernie_m"}


def _labels(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a config's names of the labels; none for heads without them."""
    if checkpoint.head not in LABELLED:
        return {}
    names = {str(number): label for number, label in sorted(checkpoint.config.id2label.items())}
    return {"id2label": names, "label2id": {str(label): int(number) for number, label in names.items()}}


def _save(state: dict[str, Tensor], stage: Path) -> None:
    try:
        save_file(state, stage / _WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ExportError(f"{_WEIGHTS} cannot be written: {error}; nothing was left there") from error


def _refuse_others(stage: Path, output: Path) -> None:
    """Raise if the folder has files of another tokenizer, which transformers would read too."""
    for name in (*TOKENIZER_FILES, FAST_TOKENIZER) if (stage / _SETTINGS).exists() else ():
        if (output / name).exists() and not (stage / name).exists():
            raise ExportError(
                f"{output / name} is there already and would be read with the new tokenizer: choose another --output"
            )


def _check(checkpoint: Checkpoint, to: str) -> None:
    if (ERNIE_M if checkpoint.original is None else XLM_ROBERTA) == to:
        raise ExportError(f"{checkpoint.source} is {_NAMES[to]} already: expected the other one")
    if checkpoint.is_random:
        raise ExportError(f"{checkpoint.source} is not a checkpoint: expected a folder or a hub id")
    if checkpoint.head not in XLM_ROBERTA_HEADS:
        raise ExportError(
            f"head {checkpoint.head} is not supported for XLM-R; expected one of {', '.join(XLM_ROBERTA_HEADS)}"
        )
    if checkpoint.config.pad_token_id != _PAD:
        raise ExportError(f"pad_token_id is {checkpoint.config.pad_token_id}, and XLM-R's positions need {_PAD}")
    if checkpoint.config.pruned_heads:
        raise ExportError("the checkpoint has pruned attention heads, which XLM-R of transformers 5 cannot have")


def _write_weights(model: str, checkpoint: Checkpoint, to: str, stage: Path) -> float:
    """Write config and weights; return the largest difference of the two models on a few rows."""
    dtypes, state = stored_dtypes(model, checkpoint), checkpoint.model.state_dict()
    head, config = checkpoint.head, _config(checkpoint, to)
    text = as_json(config)
    (stage / CONFIG_FILE).write_text(text, encoding="utf-8")
    stored = {name: _as_stored(tensor, dtypes[name]) for name, tensor in state.items()}
    original = checkpoint.original
    if original is None:
        stored = {as_xlm_roberta(name, head): tensor for name, tensor in stored.items()}
        prefix = next(name for name in stored if name.endswith(POSITIONS)).removesuffix(POSITIONS)
        types = torch.zeros_like(stored[prefix + POSITIONS][:1])
        stored[prefix + TOKEN_TYPES] = types
        original = Original(
            head, text, checkpoint.model, {POSITIONS: stored[prefix + POSITIONS].float(), TOKEN_TYPES: types.float()}
        )
    difference = _difference(checkpoint, original)
    _save(stored, stage)
    read_config(stage)  # check that it can be opened
    return difference


def _as_stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a parameter in its file's type, or in float32 if that type would round it (a sum of XLM-R's tables)."""
    stored = tensor.to(dtype).contiguous()
    return stored if torch.equal(stored.to(tensor.dtype), tensor) else tensor.contiguous()


def _config(checkpoint: Checkpoint, to: str) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(checkpoint.config_text)
    config, head = checkpoint.config, checkpoint.head
    xlm_roberta = {"type_vocab_size": 1, "position_embedding_type": "absolute", "bos_token_id": 0, "eos_token_id": 2}
    dtype = given.get("dtype", given.get("torch_dtype"))
    theirs = next(name for name, its in XLM_ROBERTA_CLASSES.items() if its == head)
    return {
        "architectures": [theirs if to == XLM_ROBERTA else CLASSES[head].__name__],
        "model_type": XLM_ROBERTA if to == XLM_ROBERTA else "ernie_m",
        **{key: value for key in _SHARED_KEYS if (value := given.get(key, getattr(config, key, None))) is not None},
        **_labels(checkpoint),
        **(xlm_roberta if to == XLM_ROBERTA else {}),
        **({"torch_dtype": dtype} if dtype else {}),
    }


@torch.no_grad()
def _difference(checkpoint: Checkpoint, original: Original) -> float:
    """Return the largest difference of the two models on rows padded on the right.

    Raises:
        ParityError: The difference is larger than rounding.
    """
    config = checkpoint.config
    width = min(max(_ROWS), config.max_position_embeddings - 2)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_PAD + 1, max(config.vocab_size, _PAD + 2), (len(_ROWS), width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(_ROWS)[:, None]).long()
    ids = torch.where(mask.bool(), ids, _PAD)
    ours, theirs = (
        model(input_ids=ids, attention_mask=mask, return_dict=True).to_tuple() for model in (checkpoint.model, original)
    )
    worst, largest = 0.0, 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.shape[:2] == mask.shape:
            one, other = one[mask.bool()], other[mask.bool()]
        worst, largest = max(worst, float((one - other).abs().max())), max(largest, float(one.abs().max()))
    if not worst <= _TOLERANCE * max(largest, 1.0):
        raise ParityError(f"the two models differ by {worst:.1e} on the same rows: report it with your versions")
    return worst


def _write_tokenizer(checkpoint: Checkpoint, to: str, stage: Path) -> list[str]:
    """Write the other model's tokenizer with the same ids; return notes on why it is missing or what it cannot do."""
    folder = checkpoint.tokenizer_dir
    if folder is None:
        return [f"the checkpoint has no {_MODEL}: no tokenizer was written"]
    tokenizer = Tokenizer.from_dir(folder, verify=False)
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens = [names.get(index, "") for index in range(tokenizer.vocab_size)]
    special = (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id)
    pieces = tokens[len(_FIRST) : -1]
    if special != (0, 1, 2, 3) or tokenizer.mask_token_id != len(tokens) - 1 or len(set(pieces)) < len(pieces):
        return [
            "the vocabulary is not in XLM-R's order (four special tokens first, the mask last): no tokenizer was"
            " written; give the model the ids of its own"
        ]
    tokenizer.save_vocabulary(stage)
    content = (stage / _MODEL).read_bytes()
    if to == XLM_ROBERTA:
        (stage / _VOCABULARY).unlink()
        content = with_pieces(content, pieces)
    else:
        lines = [*_FIRST, *pieces, _LAST]
        (stage / _VOCABULARY).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    (stage / _MODEL).write_bytes(content)
    extra = {index: token for index, token in tokenizer.settings.added_tokens.items() if index >= len(tokens)}
    (stage / _SETTINGS).write_text(_settings(tokenizer, to, len(tokens), extra), encoding="utf-8")
    lowered = tokenizer.settings.do_lower_case and to == XLM_ROBERTA
    return ["the tokenizer reads in lower case, and XLM-R's does not: lower the case of texts yourself"] * lowered


def _settings(tokenizer: Tokenizer, to: str, size: int, extra: dict[int, AddedToken]) -> str:
    settings = tokenizer.settings
    first, last = (("<s>", "<pad>", "</s>", "<unk>"), "<mask>") if to == XLM_ROBERTA else (_FIRST, _LAST)
    special = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), first, strict=True)) | {"mask_token": last}
    if to == XLM_ROBERTA:
        special |= {"bos_token": first[0], "eos_token": first[2]}
    tokens = {**dict(enumerate(map(AddedToken, first))), size - 1: AddedToken(last, lstrip=to == XLM_ROBERTA), **extra}
    content = {
        "tokenizer_class": "XLMRobertaTokenizer" if to == XLM_ROBERTA else "ErnieMTokenizer",
        **special,
        "added_tokens_decoder": {str(index): vars(token) for index, token in tokens.items()},
        "additional_special_tokens": [token.content for token in settings.additional_special_tokens],
        "model_max_length": settings.model_max_length,
        "padding_side": settings.padding_side,
        "truncation_side": settings.truncation_side,
        "clean_up_tokenization_spaces": settings.clean_up_tokenization_spaces,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if to == ERNIE_M and settings.do_lower_case:
        content["do_lower_case"] = True
    return as_json({key: value for key, value in content.items() if value not in (None, [])})


def _lines(path: Path) -> list[str]:
    texts = [line for line in read_text(path, "text").splitlines() if line.strip()]
    if not texts:
        raise ExportError(f"the text {path} is empty: give texts like those to be served, one a line")
    return texts


def _count(checkpoint: Checkpoint, stage: Path, lines: list[str] | None) -> tuple[int | None, int | None]:
    """Return the number of a text's rows, and of those with other ids in the other tokenizer."""
    if lines is None:
        return None, None
    if checkpoint.tokenizer_dir is None or not (stage / _MODEL).is_file():
        raise ExportError("--text needs both tokenizers, and the checkpoint has none: leave it out")
    own, other = (Tokenizer.from_dir(folder, verify=False) for folder in (checkpoint.tokenizer_dir, stage))
    return len(lines), sum(own(line).input_ids != other(line).input_ids for line in lines)


def _what_differs(to: str, difference: float, *, counted: bool) -> list[str]:
    other = _NAMES[ERNIE_M if to == XLM_ROBERTA else XLM_ROBERTA]
    ask = "" if counted else "; --text FILE counts for how many of your texts they differ"
    return [
        f"both models on the same rows: the largest difference is {difference:.1e}",
        "the same on rows padded on the right, with attention_mask; not on rows padded on the left, with [PAD] inside, "
        "or without a mask",
        f"the tokenizers differ: give the model {other}'s ids, or accept other ones{ask}",
    ]
