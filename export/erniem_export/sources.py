"""Where a checkpoint comes from: a local folder or the hub."""

from __future__ import annotations

import json
from pathlib import Path

from erniem_export.errors import CheckpointError

__all__ = [
    "CALIBRATION_FILE",
    "CONFIG_FILE",
    "TASK_SET_FILE",
    "TOKENIZER_FILES",
    "find_folder",
    "holds_weights",
    "is_checkpoint",
    "tokenizer_files",
    "weight_files",
]

CONFIG_FILE = "config.json"
# Labelled examples of the checkpoint's task, for the accuracy gate.
TASK_SET_FILE = "task_set.jsonl"
# Texts like those to be served, a text on each line, for int8.
CALIBRATION_FILE = "calibration.txt"
TOKENIZER_FILES = (
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# In the order in which transformers prefers them.
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SAFE_FILES = (_SINGLE_FILES[0], _INDEX_FILES[0])
# Not "model*": model.fp16.safetensors and the like are variants that nobody asked for.
_HUB_PATTERNS = (
    ("model.safetensors", "model-*.safetensors", _INDEX_FILES[0]),
    ("pytorch_model.bin", "pytorch_model-*.bin", _INDEX_FILES[1]),
)


def find_folder(model: str) -> Path:
    """Return the folder of a checkpoint: ``model`` itself, or a download of that hub id.

    Raises:
        CheckpointError: There is no such folder, and no such model on the hub or in its local cache.
    """
    try:
        folder = Path(model).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"there is no folder {model}: {_first_line(error)}") from error
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{model} is a file; expected the folder that holds {CONFIG_FILE} and the weights")
    if _looks_like_path(model):
        raise CheckpointError(f"there is no folder {model}")
    return _download(model)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint: safetensors if there are any, else pickled ones; shards by their index.

    Raises:
        CheckpointError: There are none, or a shard is missing.
    """
    for single, index in zip(_SINGLE_FILES, _INDEX_FILES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder / index)
    paddle = next(iter(sorted(folder.glob("*.pdparams"))), None)
    hint = f"; {paddle.name} holds Paddle weights, which must be converted to PyTorch first" if paddle else ""
    raise CheckpointError(f"{folder} has no weights: expected {' or '.join(_SINGLE_FILES)}, or shards{hint}")


def holds_weights(folder: Path) -> bool:
    """Whether ``folder`` is a checkpoint's."""
    return any((folder / name).is_file() for name in (*_SINGLE_FILES, *_INDEX_FILES))


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds an ErnieM model: weights, and a config that says so."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "ernie_m" and holds_weights(folder)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizer's files that are there; none without the sentencepiece model."""
    if not (folder / TOKENIZER_FILES[0]).is_file():
        return []
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of weight files: {error!r}") from error
    if not files:
        raise CheckpointError(f"{index} lists no weight files")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{index} lists {', '.join(missing)}, which {_be(missing)} not there: fetch them again")
    return files


def _be(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1 or "\\" in model


def _download(model: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    def fetch(*patterns: str) -> Path:
        wanted = [CONFIG_FILE, TASK_SET_FILE, CALIBRATION_FILE, *TOKENIZER_FILES, *patterns]
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=wanted))

    safetensors, pickled = _HUB_PATTERNS
    try:
        folder = fetch(*safetensors)
        return folder if any((folder / name).is_file() for name in _SAFE_FILES) else fetch(*pickled)
    except HFValidationError as error:
        reason = f"{model!r} is neither a local folder nor a hub id: {_first_line(error)}"
    except GatedRepoError:
        reason = f"{model} is gated: accept its terms on the hub and log in, or pass the folder of a copy"
    except RepositoryNotFoundError:
        reason = f"there is no folder {model}, and no such model on the hub, unless it is private: then log in first"
    except LocalEntryNotFoundError:
        reason = (
            f"there is no folder {model}, and the hub cannot be reached; "
            "download the model where there is a network and pass its folder"
        )
    except Exception as error:  # the network's errors have no common class, and other ones in each version of the hub
        reason = f"there is no folder {model}, and the download from the hub failed: {_first_line(error)}"
    raise CheckpointError(reason)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
