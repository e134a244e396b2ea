"""Writes an artifact's folder: prepares and checks the files in a temporary folder, then installs all or none."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import filecmp
import importlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx

import erniem_rt
from erniem_export.checkpoint import Checkpoint
from erniem_export.config_file import without_paths
from erniem_export.configuration import ErnieMConfig
from erniem_export.errors import CheckpointError, ExportError
from erniem_export.heads import LABELLED, graph_inputs, graph_outputs
from erniem_export.modeling import POSITION_OFFSET
from erniem_export.onnx_export import ONNXRUNTIME, OPSET
from erniem_export.options import PORTABLE, GraphOptions
from erniem_export.sentence_folder import modules_of
from erniem_export.sources import (
    CONFIG_FILE,
    FAST_TOKENIZER,
    MODULES_FILE,
    TOKENIZER_FILES,
    as_json,
    holds_weights,
    read_object,
    tokenizer_files,
)
from erniem_export.tokenizer import in_byte_order
from erniem_rt.engines.onnxruntime import import_onnxruntime
from erniem_rt.errors import ArtifactError
from erniem_rt.files import FileRecord, hash_file, require_utf_8
from erniem_rt.manifest import HEADS, OPTIMUM_GRAPH, Limits, Manifest, weights_name
from erniem_rt.tokenizer import Tokenizer
from erniem_rt.tokenizer.settings import SORTED_FILE

_ELSE = "choose another --output"
# The disk or the user's share of it.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STAGE_PREFIX = ".erniem-export-"
_MODEL, _VOCABULARY, _SETTINGS, *_ = TOKENIZER_FILES

# Module names, not package names: onnxruntime may be installed as onnxruntime-gpu.
_LIBRARIES = ("torch", "transformers", "onnx")


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside the final files, on the same disk, and always remove it afterwards.

    Also removes ``output`` if it is new and nothing was installed in it.

    Raises:
        ExportError: ``output`` cannot be written, or the disk is full.
        ArtifactError: The path ``output`` is not UTF-8.
    """
    require_utf_8(output.absolute())
    created: list[Path] = []
    stage: Path | None = None
    try:
        created += [folder for folder in (output, *output.parents) if not folder.exists()]
        output.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=_STAGE_PREFIX, dir=output))
        yield stage
    except OSError as error:
        raise ExportError(
            f"cannot write to {output}: {error.strerror or error}; nothing was left there: "
            f"{'make room, or ' if error.errno in _FULL else ''}{_ELSE}"
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for folder in created:
            with contextlib.suppress(OSError):  # not empty: the export succeeded
                folder.rmdir()


def copy_companions(checkpoint: Checkpoint, stage: Path, *, drop_lone_marks: bool = False) -> Checkpoint:
    """Copy the config and the tokenizer's files beside the graph.

    If ``vocab.txt`` defines the ids, a second copy of the sentencepiece model has its fastest order. The settings name
    ``attention_mask``, so that transformers' tokenizer returns it; in a checkpoint's own folder they stay unchanged.

    Returns:
        The checkpoint, with the tokenizer in ``stage`` if ``drop_lone_marks`` is set.

    Raises:
        CheckpointError: A file of the tokenizer cannot be read.
    """
    (stage / CONFIG_FILE).write_text(checkpoint.config_text, encoding="utf-8")
    files = tokenizer_files(checkpoint.tokenizer_dir) if checkpoint.tokenizer_dir else []
    has_vocabulary = any(file.name == _VOCABULARY for file in files)
    for file in files:
        try:
            content = file.read_bytes()
            if file.name == FAST_TOKENIZER:
                _write_model(checkpoint, stage)
                continue
            faster = in_byte_order(content) if file.name == _MODEL and has_vocabulary else None
            if file.suffix == ".json":
                content = without_paths(content.decode("utf-8")).encode("utf-8")
        except (OSError, UnicodeDecodeError, CheckpointError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        (stage / file.name).write_bytes(content)
        if faster is not None:
            (stage / SORTED_FILE).write_bytes(faster)
    if files and not _stays(stage.parent / _SETTINGS, stage / _SETTINGS, checkpoint.head):
        _set(stage / _SETTINGS, model_input_names=["input_ids", "attention_mask"])
    if files and checkpoint.lower_case:
        _set(stage / _SETTINGS, do_lower_case=True)
    if not files or not drop_lone_marks:
        return checkpoint
    _set(stage / _SETTINGS, drop_lone_marks=True)
    return dataclasses.replace(checkpoint, tokenizer_dir=stage)


def _write_model(checkpoint: Checkpoint, stage: Path) -> None:
    """The sentencepiece model of an XLM-R tokenizer that has none, and the added tokens that only its file lists."""
    assert checkpoint.tokenizer_dir is not None
    tokenizer = Tokenizer.from_dir(checkpoint.tokenizer_dir, verify=False)
    tokenizer.save_vocabulary(stage)
    source = checkpoint.tokenizer_dir / _SETTINGS
    if source.is_file():
        (stage / _SETTINGS).write_bytes(source.read_bytes())
    without = Tokenizer.from_dir(stage, verify=False)
    tokens = tokenizer.settings.all_special_tokens
    if (tokenizer.get_vocab(), tokens) == (without.get_vocab(), without.settings.all_special_tokens):
        return
    added = {str(index): dataclasses.asdict(token) for index, token in tokenizer.settings.added_tokens.items()}
    _set(stage / _SETTINGS, added_tokens_decoder=added)


def _set(settings: Path, **given: object) -> None:
    settings.write_text(as_json({**read_object(settings), **given}), encoding="utf-8")


def build_manifest(checkpoint: Checkpoint, graph: GraphOptions, stage: Path) -> Manifest:
    """Return the manifest of the files in ``stage``, in full precision and without a parity report."""
    config, head = checkpoint.config, checkpoint.head
    return Manifest(
        head=head,
        task=HEADS[head].task,
        labels=tuple(str(config.id2label[i]) for i in range(config.num_labels)) if head in LABELLED else None,
        problem_type=config.problem_type if head == "cls" else None,
        limits=limits_of(config),
        inputs=graph_inputs(head, config, graph),
        outputs=graph_outputs(head, checkpoint.model, graph),
        precision={"weights": "fp32", "embedding": "fp32"},
        opset=OPSET,
        onnxruntime=ONNXRUNTIME,
        target=PORTABLE,
        artifact=f"{head}.onnx",
        files=files_of(stage),
        checkpoint={
            "source": checkpoint.source,
            **checkpoint.adapter,
            "architecture": checkpoint.architecture,
            "sha256": checkpoint.identity(),
        },
        versions={
            "erniem_rt": erniem_rt.__version__,
            **{name: str(importlib.import_module(name).__version__) for name in _LIBRARIES},
            "onnxruntime": str(import_onnxruntime().__version__),
        },
        engine=None,
        parity={},
        defaults=checkpoint.defaults,
        mask_mode=graph.mask_mode,
    )


def files_of(stage: Path) -> dict[str, FileRecord]:
    """Return the files in ``stage``, with their sizes and hashes."""
    return {file.name: hash_file(file) for file in sorted(stage.iterdir())}


def note_of_settings(stage: Path) -> str | None:
    """Return what to say if the settings stayed as they were and do not name ``attention_mask``."""
    names = read_object(stage / _SETTINGS).get("model_input_names") or ()
    if "attention_mask" in names or not (stage / _MODEL).is_file():
        return None
    return (
        f"{_SETTINGS} is the checkpoint's own and stays as it is, so optimum finds no attention_mask: add "
        '"model_input_names": ["input_ids", "attention_mask"] to it, or choose another --output'
    )


def _stays(there: Path, coming: Path, head: str) -> bool:
    """Return whether the settings stay as they are: in a checkpoint's folder, and where others put the same file."""
    if holds_weights(there.parent):
        return True
    if not (there.is_file() and coming.is_file() and filecmp.cmp(there, coming, shallow=False)):
        return False
    _, others = _manifests(there.parent, head)
    return any(there.name in manifest.files for manifest in others.values()) or _is_theirs(there, head)


def _is_theirs(there: Path, head: str) -> bool:
    """Return whether a file exists and is not from an export."""
    return there.is_file() and there.name not in _ours(there.parent, *_manifests(there.parent, head))


def lay_out_for_optimum(stage: Path, manifest: Manifest) -> Manifest:
    """Move the graph and its weights in ``stage`` to the names that optimum looks for; return the manifest with them.

    A base model with a pooling of its own gets the files from which sentence-transformers knows it, unless the folder
    has them.
    """
    graph, weights = stage / OPTIMUM_GRAPH, stage / weights_name(OPTIMUM_GRAPH)
    graph.parent.mkdir()
    (stage / weights_name(manifest.artifact)).replace(weights)
    content = onnx.load(stage / manifest.artifact, load_external_data=False)
    for tensor in content.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = weights.name
    graph.write_bytes(content.SerializeToString())
    files = dict(manifest.files)
    del files[manifest.artifact]
    files[OPTIMUM_GRAPH] = hash_file(graph)
    files[weights_name(OPTIMUM_GRAPH)] = files.pop(weights_name(manifest.artifact))
    if manifest.defaults.pooling is not None and not _is_theirs(stage.parent / MODULES_FILE, manifest.head):
        hidden = next(int(spec.shape[-1]) for spec in manifest.outputs if spec.name == "last_hidden_state")
        for name, written in modules_of(manifest.defaults, manifest.limits.max_length, hidden).items():
            (stage / name).parent.mkdir(exist_ok=True)
            (stage / name).write_text(as_json(written), encoding="utf-8")
            files[name] = hash_file(stage / name)
    return dataclasses.replace(manifest, artifact=OPTIMUM_GRAPH, files=files)


def limits_of(config: ErnieMConfig) -> Limits:
    """Return the bounds on ids and positions."""
    return Limits(
        max_length=config.max_position_embeddings - POSITION_OFFSET,
        vocab_size=config.vocab_size,
        pad_token_id=config.pad_token_id,
    )


def check_room(stage: Path, output: Path, head: str, names: Iterable[str]) -> None:
    """Check that the files ``names`` of ``head``, which are or will be in ``stage``, may be installed in ``output``.

    Raises:
        ExportError: Another head in ``output`` shares a file whose content differs (it came from another
            checkpoint), a file of the same name but other content is not an export's, or a folder has the name of
            a file.
    """
    previous, others = _manifests(output, head)
    ours = _ours(output, previous, others)
    for name in names:
        there, coming = output / name, stage / name
        if there.is_dir():
            raise ExportError(f"{there} is a folder, and a file of that name must go there: move it away")
        if there.parent.is_file():
            raise ExportError(f"{there.parent} is a file, and a folder of that name must go there: move it away")
        sharing = next((other for other, manifest in others.items() if name in manifest.files), None)
        if sharing and name == OPTIMUM_GRAPH:
            raise ExportError(f"{output} holds head {sharing} in optimum's layout, and has room for one: {_ELSE}")
        if sharing and others[sharing].files[name] != hash_file(coming):
            raise ExportError(
                f"{output} holds head {sharing} of another checkpoint or from an older version, with its own {name}: "
                f"{_ELSE}"
            )
        same = coming.exists() and there.exists() and filecmp.cmp(coming, there, shallow=False)
        if name not in ours and there.exists() and not same:
            raise ExportError(f"{there} is not from an export and would be lost: {_ELSE}")


def install(stage: Path, output: Path, manifest: Manifest) -> None:
    """Move a finished artifact from ``stage`` to ``output``, and replace an earlier one of its head.

    Removes the old manifest first and moves the new one last, so that no manifest is ever beside the files of another
    export. A failure or an interruption restores ``output``.

    Raises:
        ExportError: See :func:`check_room`.
        OSError: The file system's error.
    """
    arriving = [*manifest.files, f"{manifest.head}.json"]
    check_room(stage, output, manifest.head, arriving)
    previous, others = _manifests(output, manifest.head)
    stale = set(previous.files) - {file for other in others.values() for file in other.files} if previous else set()
    stale = {name for name in stale & _ours(output, previous, others) if not (output / name).is_dir()}
    leaving = [*reversed(arriving), *sorted(stale.difference(arriving))]
    _exchange(stage, output, leaving, arriving)


def install_files(stage: Path, output: Path) -> None:
    """Move the files of ``stage`` to ``output``, all or none.

    Raises:
        ExportError: A file of that name, with other content, is there.
        OSError: As the file system gives it.
    """
    names = sorted(file.name for file in stage.iterdir())
    for name in names:
        there = output / name
        if there.exists() and not (there.is_file() and filecmp.cmp(stage / name, there, shallow=False)):
            raise ExportError(f"{there} is there already and would be lost: choose another --output")
    _exchange(stage, output, names, names)


def _exchange(stage: Path, output: Path, leaving: list[str], arriving: list[str]) -> None:
    """Move ``leaving`` out of ``output`` and ``arriving`` in; undo all moves after a failure."""
    backup = stage / "replaced"
    backup.mkdir()
    try:
        for name in leaving:
            if (output / name).exists():
                _move(name, output, backup)
        for name in arriving:
            _move(name, stage, output)
    except BaseException:
        # Depends only on which files exist, so it works after any number of moves.
        for name in reversed(arriving):
            if not (stage / name).exists():
                (output / name).unlink()
        for name in reversed(leaving):
            if (backup / name).exists():
                _move(name, backup, output)
        raise
    finally:
        for folder in {(output / name).parent for name in (*leaving, *arriving) if "/" in name}:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def _move(name: str, source: Path, target: Path) -> None:
    (target / name).parent.mkdir(exist_ok=True)
    (source / name).replace(target / name)


def _manifests(output: Path, head: str) -> tuple[Manifest | None, dict[str, Manifest]]:
    """Return the manifest of ``head`` in ``output``, and those of the other heads."""
    found = {name: manifest for name in HEADS if (manifest := _manifest_of(output, name))}
    return found.pop(head, None), found


def _ours(output: Path, previous: Manifest | None, others: Mapping[str, Manifest]) -> set[str]:
    """Return the files in ``output`` that exports wrote and may be replaced."""
    manifests = {**others, **({previous.head: previous} if previous else {})}
    listed = {file for manifest in manifests.values() for file in manifest.files}
    listed |= {f"{head}.json" for head in manifests}
    # In a checkpoint's own folder, a manifest lists files that existed before the export.
    return listed.difference((CONFIG_FILE, *TOKENIZER_FILES) if holds_weights(output) else ())


def _manifest_of(output: Path, head: str) -> Manifest | None:
    try:
        return Manifest.load(output / f"{head}.json")
    except ArtifactError:
        return None  # missing, damaged, or not ours
