"""Where a checkpoint comes from: a local folder, the hub, or a seed."""

from __future__ import annotations

import json
from pathlib import Path

from erniem_export.errors import CheckpointError

__all__ = ["CONFIG_FILE", "TOKENIZER_FILES", "find_folder", "tokenizer_files", "weight_files"]

CONFIG_FILE = "config.json"
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
_HUB_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")


def find_folder(model: str) -> Path:
    """Return the folder of a checkpoint: ``model`` itself, or a download of that hub id.

    Raises:
        CheckpointError: There is no such folder, and no such model on the hub or in its local cache.
    """
    folder = Path(model).expanduser()
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


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizer's files that are there."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of weight files: {error!r}") from error
    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"{index} lists {', '.join(missing) or 'no files'}; {len(missing)} of them missing")
    return files


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1 or "\\" in model


def _download(model: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(*patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=list(patterns)))

    safetensors, pickled = _HUB_PATTERNS
    try:
        folder = fetch(CONFIG_FILE, *TOKENIZER_FILES, _INDEX_FILES[0], safetensors)
        return folder if any(folder.glob(safetensors)) else fetch(_INDEX_FILES[1], pickled)
    except HFValidationError as error:
        raise CheckpointError(f"{model!r} is neither a local folder nor a hub id: {_first_line(error)}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {model}, and the hub cannot be reached; "
            "download the model where there is a network and pass its folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"there is no folder {model}, and the hub refused it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
