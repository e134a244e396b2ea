"""Finds an artifact from one of its files, its folder or a hub id."""

from __future__ import annotations

import contextlib
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniem_rt.errors import ArtifactError, EngineUnavailableError
from erniem_rt.files import as_path
from erniem_rt.manifest import HEADS, OPTIMUM_GRAPH, Manifest

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SUFFIXES = frozenset({".json", ".onnx", ".plan"})
_TOKENIZER_FILES = (
    "sentencepiece.bpe.model",
    "sentencepiece.sorted.model",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def find_artifact(where: str | os.PathLike[str], head: str | None = None) -> Path:
    """Return the path of an artifact or its manifest.

    Args:
        where: ``HEAD.onnx``, ``onnx/model.onnx``, ``HEAD.plan`` or ``HEAD.json``, which are returned unchanged; a
            folder with an artifact; or a hub id such as ``owner/name``, whose files are downloaded.
        head: Which artifact to use if a folder has several.

    Raises:
        ArtifactError: The folder has no artifact, or several and ``head`` is not given; the hub has no such model, or
            is not available.
        EngineUnavailableError: The package for the hub is not installed.
    """
    path = as_path("path", where)
    if path.is_dir():
        manifest = manifest_of(path / Path(OPTIMUM_GRAPH).name)  # elsewhere if the path is that of optimum's onnx/
        inner = manifest.parent != path and head in (None, manifest.stem)
        return manifest if inner else _chosen(path, head, str(path))
    if not _is_hub_id(where, path):
        if not path.suffix and not path.exists():
            raise ArtifactError(
                f"{where} does not exist: expected an exported folder, an artifact in it (HEAD.onnx, HEAD.plan or its "
                "manifest HEAD.json), or a hub id such as owner/name."
            )
        return path
    return _download(str(where), lambda folder: _chosen(folder, head, str(where)))


def find_folder(where: str | os.PathLike[str]) -> Path:
    """Return the folder of an artifact, with the tokenizer's files; ``where`` as for :func:`find_artifact`."""
    path = as_path("path", where)
    if path.is_file() and path.suffix in _SUFFIXES:
        return manifest_of(path).parent
    return path if not _is_hub_id(where, path) else _download(str(where), None)


def manifest_of(artifact: Path) -> Path:
    """Return the path of a graph's or plan's manifest: beside it, or for ``onnx/model.onnx`` in the folder above.

    All names of ``manifest.files`` are relative to its folder. The path of a manifest is returned as it is.
    """
    beside = artifact.with_suffix(".json")
    whole = artifact.absolute()
    if f"{whole.parent.name}/{whole.name}" != OPTIMUM_GRAPH or beside.exists():
        return beside
    for head in HEADS:
        above = whole.parents[1] / f"{head}.json"
        with contextlib.suppress(ArtifactError):  # not there, or not a manifest
            if Manifest.load(above).artifact == OPTIMUM_GRAPH:
                return above
    return beside


def _is_hub_id(where: object, path: Path) -> bool:
    named = isinstance(where, str) and path.suffix not in _SUFFIXES and _HUB_ID.fullmatch(where)
    return bool(named) and not (path.exists() or path.parent.is_dir())


def _chosen(folder: Path, head: str | None, shown: str) -> Path:
    found = [name for name in HEADS if (folder / f"{name}.json").is_file()]
    if head in found:
        return folder / f"{head}.json"
    if len(found) == 1 and head is None:
        return folder / f"{found[0]}.json"
    if not found:
        raise ArtifactError(
            f"{shown} holds no artifact: expected a manifest such as qa.json in it. Export with erniem-export."
        )
    files = ", ".join(map(partial(_shown, folder), found))
    if head is not None:
        raise ArtifactError(f"{shown} holds no artifact of head {head!r}, only {files}.")
    raise ArtifactError(f"{shown} holds several artifacts: {files}. Give the path of one of them.")


def _shown(folder: Path, head: str) -> str:
    """Return the file that names an artifact: in optimum's layout the manifest, otherwise the graph."""
    inside = (folder / OPTIMUM_GRAPH).exists() and not (folder / f"{head}.onnx").exists()
    return f"{head}.json" if inside else f"{head}.onnx"


def _download(model: str, choose: Callable[[Path], Path] | None) -> Path:
    """Download the manifests and the tokenizer of ``model``, then the files of the artifact that ``choose`` returns."""
    hub = _import_hub(model)
    try:
        folder = _snapshot(hub, model, [f"{head}.json" for head in HEADS] + list(_TOKENIZER_FILES))
        if choose is None:
            return folder
        manifest = choose(folder)
        return _snapshot(hub, model, [manifest.name, *Manifest.load(manifest).files]) / manifest.name
    except ArtifactError:
        raise
    except Exception as error:  # network errors have no common base class
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ArtifactError(
            f"there is no {model} here, and it cannot be downloaded from the hub: {reason.rstrip('.')}. Check the "
            "name, or give the path of an exported folder."
        ) from error


def _snapshot(hub: Any, model: str, patterns: Iterable[str]) -> Path:
    return Path(hub.snapshot_download(model, allow_patterns=list(patterns)))


def _import_hub(model: str) -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise EngineUnavailableError(
            f'there is no {model} here. If it is on the hub: pip install "erniem-rt[hub]" to download it.'
        ) from error
    return huggingface_hub
