"""The tokenizer's files in an exported folder, held to what the export's manifests say of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from erniem_rt._files import check_hash, check_size
from erniem_rt.errors import ArtifactError
from erniem_rt.manifest import HEADS, Manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def check_exported(folder: Path, names: Sequence[str]) -> None:
    """Check those of the files ``names`` that a manifest in ``folder`` lists; a checkpoint's folder has none.

    Raises:
        ArtifactError: A file is missing, truncated or edited.
    """
    listed = {name: record for manifest in _manifests(folder) for name, record in manifest.files.items()}
    records = {folder / name: listed[name] for name in names if name in listed}
    for path, record in records.items():
        check_size(path, record.size)
    for path, record in records.items():
        check_hash(path, record)


def was_exported_without(folder: Path, name: str) -> bool:
    """Whether ``folder`` is an exported one, and no manifest in it lists the file ``name``."""
    manifests = _manifests(folder)
    return bool(manifests) and all(name not in manifest.files for manifest in manifests)


def _manifests(folder: Path) -> list[Manifest]:
    found = []
    for head in HEADS:
        with contextlib.suppress(ArtifactError):  # not there, or not a manifest
            found.append(Manifest.load(folder / f"{head}.json"))
    return found
