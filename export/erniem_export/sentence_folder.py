"""Reads folders of sentence-transformers: the model's location, and how its states become one vector per text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniem_export.errors import CheckpointError
from erniem_export.sources import MODULE_FOLDERS, MODULES_FILE, PROMPTS_FILE, SENTENCE_FILE, read_json, read_object
from erniem_rt.manifest import Defaults

_PACKAGE = "sentence_transformers."
# Modules without effect in inference.
_IDLE = ("Dropout",)
# sentence-transformers' older names of pooling modes, in its order.
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLINGS = ("mean", "cls")
# Keys of the model's file that we read or that do not affect the vectors.
_KNOWN = (
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
)
_REMEDY = (
    f"; to export the hidden states alone, give a copy of the folder without {MODULES_FILE}, and compute the rest from "
    "them"
)


@dataclass(frozen=True)
class SentenceFolder:
    """A folder with a ``modules.json``; ``modules`` has the class and the folder of each module, the model first."""

    root: Path
    modules: tuple[tuple[str, str], ...]

    @property
    def model(self) -> Path:
        """The folder of the weights: ``0_Transformer`` in older layouts."""
        return self.root / self.modules[0][1]

    def defaults(self) -> tuple[Defaults, list[str]]:
        """Return the modules' defaults, and notes on them; ``max_seq_len`` is the file's value.

        Raises:
            CheckpointError: An artifact cannot reproduce these modules.
        """
        names = [name for name, _ in self.modules if name not in _IDLE]
        if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise CheckpointError(
                f"{self.root / MODULES_FILE} lists {', '.join(names)}, expected Transformer, Pooling and optionally "
                f"Normalize, which an artifact supports{_REMEDY}"
            )
        pooling = next(folder for name, folder in self.modules if name == "Pooling")
        said = read_object(self.model / SENTENCE_FILE)
        _check_states(self.model / SENTENCE_FILE, said)
        length = said.get("max_seq_length")
        if not (length is None or (type(length) is int and length > 0)):
            raise CheckpointError(
                f"{self.model / SENTENCE_FILE} says max_seq_length = {length!r}, expected a positive integer or null"
            )
        found = Defaults(length, _pooling_of(self.root / pooling / "config.json"), "Normalize" in names)
        unknown = [key for key, value in said.items() if key not in _KNOWN and value]
        unread = [f"{SENTENCE_FILE} says {key} = {said[key]!r}, which is not read" for key in unknown]
        return found, [*unread, *self._prompts()]

    def lower_case(self) -> bool:
        """Whether texts are lower-cased, even if the tokenizer's own file says otherwise."""
        return bool(read_object(self.model / SENTENCE_FILE).get("do_lower_case"))

    def _prompts(self) -> list[str]:
        said = read_object(self.root / PROMPTS_FILE)
        prompts = said.get("prompts") or {}
        written = {name: text for name, text in prompts.items() if text} if isinstance(prompts, dict) else {}
        if said.get("default_prompt_name") in written:
            raise CheckpointError(
                f"{self.root / PROMPTS_FILE} puts the prompt {said['default_prompt_name']!r} before every text, and an "
                "artifact puts none: remove default_prompt_name, and write the prompt before the texts yourself"
            )
        return [f"write prompts before the texts yourself: {', '.join(map(repr, written.values()))}"] if written else []


def read_sentence_folder(folder: Path) -> SentenceFolder | None:
    """Read ``modules.json``; None without one.

    Raises:
        CheckpointError: It is damaged, its first module is not a Transformer, or it names a missing folder.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, list) or not content or not all(map(_is_module, content)):
        raise CheckpointError(f"{path} must be a list of modules, each with type and path")
    modules = tuple((_name(entry["type"]), entry["path"]) for entry in content)
    for name, inner in modules:
        if Path(inner).is_absolute() or ".." in Path(inner).parts or (inner and not (folder / inner).is_dir()):
            if name in (*_IDLE, "Normalize"):  # these have no files
                continue
            raise CheckpointError(f"{path} lists {name} in {inner}, and there is no such folder: fetch it again")
    if modules[0][0] != "Transformer":
        raise CheckpointError(f"{path} begins with {modules[0][0]}, expected Transformer: this is not an ErnieM model")
    return SentenceFolder(folder, modules)


def modules_of(defaults: Defaults, max_length: int, hidden: int) -> dict[str, Any]:
    """The files, by name, from which sentence-transformers makes the same vectors: the inverse of reading a folder.

    Case is the tokenizer's own affair: an export writes it there.
    """
    names = ["Transformer", "Pooling", *["Normalize"] * bool(defaults.normalize)]
    paths = ["", *(f"{i}_{name}" for i, name in enumerate(names[1:], 1))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{_PACKAGE}models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    return {
        MODULES_FILE: modules,
        SENTENCE_FILE: {"max_seq_length": defaults.max_seq_len or max_length, "do_lower_case": False},
        f"{paths[1]}/config.json": {
            "word_embedding_dimension": hidden,
            **{key: mode == defaults.pooling for key, mode in _MODES.items()},
        },
    }


def unread_modules(folder: Path) -> str | None:
    """Return a note if ``folder`` has other files of sentence-transformers but no ``modules.json``; else None."""
    folder = folder.resolve()
    try:
        whole = read_sentence_folder(folder.parent)
    except CheckpointError:
        whole = None
    if whole is not None and whole.model.resolve() == folder:
        return f"{folder.name} is part of a sentence-transformers folder: give the whole folder to export its pooling"
    names = [SENTENCE_FILE] * (folder / SENTENCE_FILE).is_file()
    names += sorted(inner.name for inner in folder.glob(MODULE_FOLDERS) if inner.is_dir())
    return f"not read, because {MODULES_FILE} is missing: {', '.join(names)}" if names else None


def _is_module(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("type", "path"))


def _name(kind: str) -> str:
    """Return the class name of a module of sentence-transformers, whose path varies by version; else the full name."""
    return kind.rpartition(".")[2] if kind.startswith(_PACKAGE) else kind


def _pooling_of(path: Path) -> str:
    said = read_object(path)
    found = said.get("pooling_mode", [mode for key, mode in _MODES.items() if said.get(key)] or ["mean"])
    modes = found if isinstance(found, list) else [found]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise CheckpointError(
            f"{path} pools by {', '.join(map(str, modes))}, expected one of {', '.join(_POOLINGS)}{_REMEDY}"
        )
    return str(modes[0])


def _check_states(path: Path, said: dict[str, Any]) -> None:
    """Raise unless the vectors come from the last hidden state."""
    task = said.get("transformer_task") or "feature-extraction"
    text = (said.get("modality_config") or {}).get("text") or {}
    output = text.get("method_output_name") or "last_hidden_state"
    if (task, output) != ("feature-extraction", "last_hidden_state"):
        raise CheckpointError(
            f"{path} reads {output} for {task}, expected last_hidden_state for feature-extraction{_REMEDY}"
        )
