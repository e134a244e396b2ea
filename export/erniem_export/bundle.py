"""The folder of an artifact: written aside, checked, then moved into place; all of it or nothing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import erniem_rt
from erniem_export.encoder import POSITION_OFFSET
from erniem_export.errors import ExportError
from erniem_export.heads import GraphOptions, graph_inputs, graph_outputs
from erniem_export.onnx_export import OPSET
from erniem_export.sources import CONFIG_FILE, tokenizer_files
from erniem_rt.errors import ArtifactError
from erniem_rt.manifest import HEADS, Limits, Manifest, hash_file

if TYPE_CHECKING:
    from erniem_export.checkpoint import Checkpoint

__all__ = ["build_manifest", "copy_companions", "install", "staging"]

_STAGE_PREFIX = ".erniem-export-"


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside the final files, on the same disk; it is gone afterwards, whatever happens.

    Raises:
        ExportError: ``output`` cannot be written, or the disk is full.
    """
    created = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=_STAGE_PREFIX, dir=output))
    except OSError as error:
        raise ExportError(f"cannot write to {output}: {error.strerror or error}; choose another --output") from error
    try:
        yield stage
    except OSError as error:
        raise ExportError(f"cannot write to {output}: {error.strerror or error}; nothing was left there") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in created:
            with contextlib.suppress(OSError):  # not empty: the export succeeded
                folder.rmdir()


def copy_companions(checkpoint: Checkpoint, stage: Path) -> None:
    """Put the config and the tokenizer's files beside the graph."""
    (stage / CONFIG_FILE).write_text(checkpoint.config_text, encoding="utf-8")
    if checkpoint.tokenizer_dir is not None:
        for file in tokenizer_files(checkpoint.tokenizer_dir):
            shutil.copyfile(file, stage / file.name)


def build_manifest(checkpoint: Checkpoint, graph: GraphOptions, stage: Path) -> Manifest:
    """Describe what lies in ``stage``; the parity report is still empty."""
    config, head = checkpoint.config, checkpoint.head
    files = {file.name: hash_file(file) for file in sorted(stage.iterdir())}
    return Manifest(
        head=head,
        task=HEADS[head].task,
        labels=tuple(str(config.id2label[i]) for i in range(config.num_labels)) if head in ("cls", "ner") else None,
        problem_type=config.problem_type if head == "cls" else None,
        limits=Limits(
            max_length=config.max_position_embeddings - POSITION_OFFSET,
            vocab_size=config.vocab_size,
            pad_token_id=config.pad_token_id,
        ),
        inputs=graph_inputs(head, config, graph),
        outputs=graph_outputs(head, config, graph),
        precision={"weights": "fp32", "embedding": "fp32"},
        opset=OPSET,
        target="any",
        artifact=f"{head}.onnx",
        files=files,
        checkpoint={
            "source": checkpoint.source,
            "architecture": checkpoint.architecture,
            "sha256": checkpoint.identity(),
        },
        versions={
            "erniem_rt": erniem_rt.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
        },
        engine=None,
        parity={},
    )


def install(stage: Path, output: Path, manifest: Manifest) -> None:
    """Move a finished artifact from ``stage`` to ``output``; the manifest goes last and makes it valid.

    Raises:
        ExportError: Another head in ``output`` shares a file whose content differs (it came from another checkpoint).
    """
    _refuse_conflicts(output, manifest)
    name = f"{manifest.head}.json"
    (output / name).unlink(missing_ok=True)  # from here on, what was there is being replaced
    for file in sorted(stage.iterdir(), key=lambda file: file.name == name):
        file.replace(output / file.name)


def _refuse_conflicts(output: Path, manifest: Manifest) -> None:
    for head in HEADS:
        path = output / f"{head}.json"
        if head == manifest.head or not path.is_file():
            continue
        try:
            other = Manifest.load(path)
        except ArtifactError:
            continue  # it is broken already, or not ours
        clashes = [file for file in other.files if manifest.files.get(file, other.files[file]) != other.files[file]]
        if clashes:
            raise ExportError(
                f"{output} holds head {head} of another checkpoint, with its own {', '.join(clashes)}: "
                "choose another --output"
            )
