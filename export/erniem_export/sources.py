"""Finds a checkpoint's files, in a local folder or on the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from erniem_export.errors import CheckpointError, ExportError, listed
from erniem_rt.files import is_lfs_pointer

CONFIG_FILE = "config.json"
# PaddleNLP's equivalent up to 2.4.
PADDLE_CONFIG_FILE = "model_config.json"
# Labelled examples of the checkpoint's task, for the accuracy gate.
TASK_SET_FILE = "task_set.jsonl"
# Texts for calibrating int8, a text on each line.
CALIBRATION_FILE = "calibration.txt"
TOKENIZER_FILES = (
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# XLM-R's fast tokenizer, which may be a checkpoint's only one, and the model_type of its config.
FAST_TOKENIZER = "tokenizer.json"
XLM_ROBERTA = "xlm-roberta"
# sentence-transformers: the list of modules, the model's settings, prompts, and the modules' folders.
MODULES_FILE = "modules.json"
SENTENCE_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
MODULE_FOLDERS = "[0-9]_*"
# The model's folder in its older versions.
_MODEL_FOLDER = "0_Transformer"
# peft's files of an adapter; weights in the order in which it prefers them.
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Suffixes of files that users may take for weights.
_OTHER_WEIGHTS = (".bin", ".safetensors", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx")
# Paddle's graphs for serving, whose weights have no names.
_STATIC = (".pdmodel", ".pdiparams")
_few = partial(listed, most=5)
# Prefixes of the names of Paddle's classes.
_PADDLE_CLASSES = ("UIEM", "ErnieM")
# In the order in which transformers prefers them, and Paddle's at the end.
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin", "model_state.pdparams")
_INDEX_FILES = tuple(f"{name}.index.json" for name in _SINGLE_FILES)
# Not "model*", which would download variants such as model.fp16.safetensors.
_HUB_PATTERNS = (
    ("model.safetensors", "model-*.safetensors", _INDEX_FILES[0]),
    ("pytorch_model.bin", "pytorch_model-*.bin", _INDEX_FILES[1]),
    ("model_state.pdparams", "model_state-*.pdparams", _INDEX_FILES[2]),
)


def find_folder(model: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return the folder of a checkpoint: ``model`` itself, or a download of that hub id at ``revision``, without the
    weights if ``weights`` is False.

    Raises:
        CheckpointError: There is no such folder, and no such model on the hub or in its local cache.
    """
    try:
        folder = Path(model).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"there is no folder {model}: {_first_line(error)}") from error
    if _is_broken_link(folder):
        raise CheckpointError(f"{model} is a broken link: there is nothing at {folder.readlink()}")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(
            f"{model} is a file; expected the folder that holds {CONFIG_FILE} and the weights: give {folder.parent} if "
            "it is that"
        )
    if _looks_like_path(model):
        raise CheckpointError(f"there is no folder {model}")
    return _download(model, revision, _HUB_PATTERNS if weights else ((),))


def find_tokenizer(given: str) -> Path:
    """Return the folder of a tokenizer, or a download of that hub id.

    Raises:
        CheckpointError: As for :func:`find_folder`, or it has no tokenizer.
    """
    if Path(given).is_file():
        raise CheckpointError(
            f"--tokenizer {given} is a file; expected the folder that holds {TOKENIZER_FILES[0]}: give "
            f"{Path(given).parent} if it is that"
        )
    folder = find_folder(given, weights=False)
    check_layout(folder)
    if not tokenizer_files(folder):
        raise CheckpointError(f"{given} has no {TOKENIZER_FILES[0]}: expected a folder with ErnieM's tokenizer")
    return folder


def check_layout(folder: Path) -> None:
    """Refuse Git LFS pointers, broken links and folders in place of files.

    Raises:
        CheckpointError: The folder has one.
    """
    names = (CONFIG_FILE, ADAPTER_FILE, PADDLE_CONFIG_FILE, TASK_SET_FILE, CALIBRATION_FILE, *TOKENIZER_FILES)
    for name in (*names, *_INDEX_FILES):
        _check_file(folder / name)
        if is_lfs_pointer(folder / name):
            raise CheckpointError(f"{folder / name} is a pointer of Git LFS, not the file itself: run git lfs pull")


def _check_file(path: Path) -> None:
    """Refuse a broken link, or a folder, in place of a file."""
    if _is_broken_link(path):
        raise CheckpointError(f"{path} is a broken link, to {path.readlink()}: put the file there")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; expected a file: put the file there")


def _is_broken_link(path: Path) -> bool:
    """Return whether ``path`` is a link to nothing, or to itself."""
    return path.is_symlink() and not os.path.exists(path)  # noqa: PTH110  # Path's raises for a loop up to Python 3.12


def what_is_there(folder: Path) -> str:
    """Return what an incomplete checkpoint's folder has and what to do, as the end of a sentence; may be empty."""
    names = sorted((entry.name for entry in folder.iterdir()), key=lambda name: (len(name), name))
    if not (folder / ADAPTER_FILE).is_file() and any(name in names for name in ADAPTER_WEIGHTS):
        return (
            f"; it holds an adapter's weights: put the adapter's {ADAPTER_FILE} beside them, or merge it into its base"
        )
    inner = [name for name in names if any((folder / name / file).is_file() for file in (CONFIG_FILE, ADAPTER_FILE))]
    if inner:
        return f"; it holds {_few(inner)}: give such a folder, for example {folder / inner[-1]}"
    if static := [name for name in names if name.endswith(_STATIC)]:
        return (
            f"; {_few(static)} is Paddle's static model, whose weights have no names: give {_SINGLE_FILES[2]} instead"
        )
    if others := [name for name in names if name.endswith(".pdparams")]:
        return f"; it holds {_few(others)}: of Paddle, {_SINGLE_FILES[2]} is read, with {CONFIG_FILE} beside it"
    if "zero_to_fp32.py" in names:
        return "; DeepSpeed's zero_to_fp32.py, which is there, gathers its shards into pytorch_model.bin"
    files = [name for name in names if name.endswith(_OTHER_WEIGHTS)]
    return f"; it holds {_few(files)}" if files else ""


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint: safetensors if there are any, else PyTorch's pickled ones, else
    Paddle's; shards by their index.

    Raises:
        CheckpointError: There are none, or a shard is missing.
    """
    for kind in range(len(_SINGLE_FILES)):
        _check_file(folder / _SINGLE_FILES[kind])
        if files := _files_of_kind(folder, kind):
            return files
    *names, last = _SINGLE_FILES
    raise CheckpointError(
        f"{folder} has no weights: expected {', '.join(names)} or {last}, or shards{what_is_there(folder)}"
    )


def listed_by(files: list[Path]) -> dict[str, str]:
    """Return in which file each tensor is by the index of these weight files; empty for files without an index."""
    if len(files) == 1 and files[0].name in (*_SINGLE_FILES, *ADAPTER_WEIGHTS):
        return {}
    index = next((name for name in _INDEX_FILES if name.removesuffix(".index.json").endswith(files[0].suffix)), "")
    path = files[0].parent / index
    return _read_index(path) if path.is_file() else {}


def pickled_files(folder: Path) -> list[Path]:
    """Return PyTorch's pickled weight files."""
    return _files_of_kind(folder, 1)


def paddle_files(folder: Path) -> list[Path]:
    """Return Paddle's weight files."""
    return _files_of_kind(folder, 2)


def _files_of_kind(folder: Path, kind: int) -> list[Path]:
    if (folder / _SINGLE_FILES[kind]).is_file():
        return [folder / _SINGLE_FILES[kind]]
    return _shards(folder / _INDEX_FILES[kind]) if (folder / _INDEX_FILES[kind]).is_file() else []


def holds_weights(folder: Path) -> bool:
    """Return whether ``folder`` has weights."""
    return any((folder / name).is_file() for name in (*_SINGLE_FILES, *_INDEX_FILES))


def adapter_weights(folder: Path) -> Path | None:
    """Return the file of an adapter's tensors; None without one."""
    for name in ADAPTER_WEIGHTS:
        _check_file(folder / name)
    return next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)


def is_adapter(folder: Path) -> bool:
    """Return whether ``folder`` has a peft adapter."""
    return (folder / ADAPTER_FILE).is_file()


def is_checkpoint(folder: Path) -> bool:
    """Return whether ``folder`` has an ErnieM or XLM-R model (weights and its config) or an adapter."""
    if is_adapter(folder):
        return True
    config = _said(folder, CONFIG_FILE if (folder / CONFIG_FILE).is_file() else PADDLE_CONFIG_FILE)
    known = config.get("model_type") in ("ernie_m", XLM_ROBERTA)
    return holds_weights(folder) and (known or str(config.get("init_class")).startswith(_PADDLE_CLASSES))


def has_own_config(folder: Path) -> bool:
    """Return whether the artifact has the checkpoint's config: it is no adapter and not only Paddle's."""
    paddle = bool(paddle_files(folder)) and weight_files(folder) == paddle_files(folder)
    return not paddle and not is_adapter(folder)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizer's existing files; none without the sentencepiece model.

    XLM-R has no vocabulary, and may have its fast tokenizer's file in place of the model.
    """
    model, vocabulary, *others = TOKENIZER_FILES
    if is_xlm_roberta(folder):
        names = [model if (folder / model).is_file() else FAST_TOKENIZER, *others]
    else:
        names = [model, vocabulary, *others]
    if not (folder / names[0]).is_file():
        return []
    return [folder / name for name in names if (folder / name).is_file()]


def is_xlm_roberta(folder: Path) -> bool:
    """Return whether ``folder`` has the config of an XLM-R model."""
    return bool(_said(folder, CONFIG_FILE).get("model_type") == XLM_ROBERTA)


def _said(folder: Path, name: str) -> dict[str, Any]:
    """Return what a config says; nothing if it cannot be read."""
    try:
        return read_object(folder / name)
    except CheckpointError:
        return {}


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one without the file.

    Raises:
        CheckpointError: The file cannot be read, or holds something else.
    """
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; :class:`CheckpointError` if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def as_json(content: Mapping[str, Any]) -> str:
    """Return the text of a JSON file with this content."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def read_text(path: Path, what: str) -> str:
    """Return the text in a user's file; :class:`ExportError`, which says ``what`` it is, if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ExportError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"the {what} {path} is not UTF-8: {error.reason} at byte {error.start}") from error


def _shards(index: Path) -> list[Path]:
    names = sorted(set(_read_index(index).values()))
    if not names:
        raise CheckpointError(f"{index} lists no weight files")
    if elsewhere := [name for name in names if _is_elsewhere(name)]:
        raise CheckpointError(
            f"{index} lists {_few(elsewhere)}; expected names of files in its folder: put the shards beside it"
        )
    files = [index.parent / name for name in names]
    for file in files:
        _check_file(file)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{index} lists {', '.join(missing)}, which {_be(missing)} not there: fetch them again")
    return files


def _read_index(index: Path) -> dict[str, str]:
    """Return the file of each tensor."""
    try:
        places = read_object(index).get("weight_map")
    except CheckpointError as error:
        raise CheckpointError(f"{index} is not an index of weight files: {error}") from error
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(
            f'{index} is not an index of weight files; expected {{"weight_map": {{"NAME": "FILE"}}}}: fetch it again'
        )
    return places


def _is_elsewhere(name: str) -> bool:
    """Return whether a path leaves its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or bool(PureWindowsPath(name).drive) or ".." in path.parts


def _be(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1 or "\\" in model


def _download(model: str, revision: str | None, choices: Iterable[tuple[str, ...]]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    def fetch(*patterns: str) -> Path:
        wanted = [
            CONFIG_FILE,
            ADAPTER_FILE,
            *ADAPTER_WEIGHTS,
            PADDLE_CONFIG_FILE,
            TASK_SET_FILE,
            CALIBRATION_FILE,
            SENTENCE_FILE,
            *TOKENIZER_FILES,
            FAST_TOKENIZER,
            *patterns,
        ]
        modules = [MODULES_FILE, PROMPTS_FILE, f"{MODULE_FOLDERS}/{CONFIG_FILE}"]
        wanted += [*modules, *(f"{_MODEL_FOLDER}/{name}" for name in wanted)]
        at = {"revision": revision} if revision else {}
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=wanted, **at))

    try:
        for patterns in choices:
            folder = fetch(*patterns)
            if any(holds_weights(folder / part) for part in ("", _MODEL_FOLDER)):
                break
        return folder
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
    except Exception as error:  # network errors have no common class, and differ between versions of the hub library
        reason = f"there is no folder {model}, and the download from the hub failed: {_first_line(error)}"
    raise CheckpointError(reason)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
