"""The names of a classifier's labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erniem_rt.errors import ArtifactError

if TYPE_CHECKING:
    from erniem_rt.manifest import Manifest

__all__ = ["label_names"]


def label_names(manifest: Manifest) -> tuple[str, ...]:
    """The manifest's labels by id.

    Raises:
        ArtifactError: There are none, or not as many as the graph has logits.
    """
    width = next(spec.shape[-1] for spec in manifest.outputs if spec.name == "logits")
    labels = manifest.labels or ()
    if not labels or (isinstance(width, int) and len(labels) != width):
        raise ArtifactError(
            f"the manifest of {manifest.artifact} names {len(labels)} labels and its logits are for {width}. "
            "Export again from a checkpoint whose id2label names each of them."
        )
    return labels
