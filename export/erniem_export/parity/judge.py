"""All the comparisons that an artifact must pass, by its precision."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniem_export.onnx_export import read, write
from erniem_export.options import arithmetic_of
from erniem_export.parity.gate import check_parity
from erniem_export.passes.emulation import emulate_half
from erniem_export.passes.half import HALF_TYPES
from erniem_rt.manifest import Manifest, hash_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from erniem_export.accuracy.gate import AccuracyGate
    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_export.parity.cases import Case

__all__ = ["judge"]

_EMULATED = "every result in {precision} rounded as a GPU rounds it, by a float32 graph on CPU"
_ON_CPU = "as onnxruntime runs it on CPU"
# Without arithmetic in this type, onnxruntime does not load such a graph on a CPU.
_NOT_ON_CPU = "bf16"


def judge(
    artifact: Path,
    model: ErnieMPreTrainedModel,
    *,
    tokenizer_dir: Path | None = None,
    scratch: Path | None = None,
    progress: Callable[[list[Case]], Iterable[Case]] = iter,
    accuracy: AccuracyGate | None = None,
) -> dict[str, Any]:
    """Compare an artifact with the PyTorch model; return the manifest's ``parity``.

    In half precision a CPU alone proves little: onnxruntime skips most of the rounding there, or cannot run the graph.
    So what counts, under the artifact's name, is :func:`emulate_half`; fp16 must also pass as onnxruntime runs it.

    Args:
        artifact: ``HEAD.onnx``, beside its manifest and weights.
        model: The model that it was exported from, in float32.
        tokenizer_dir: As for :func:`check_parity`, and so is ``progress``.
        scratch: Folder for a copy of the artifact; the system's for temporary files if left out.
        accuracy: Asks it for answers too, where there is a task set.

    Raises:
        ErnieMError: As :func:`check_parity` and :meth:`AccuracyGate.compare`.
    """
    precision = arithmetic_of(Manifest.load(artifact.with_suffix(".json")).precision)

    def compare(path: Path) -> dict[str, Any]:
        report = check_parity(path, model, tokenizer_dir=tokenizer_dir, progress=progress).to_json()
        return report if accuracy is None else accuracy.compare(path, report)

    if precision not in HALF_TYPES:
        return {artifact.name: compare(artifact)}
    reports = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        emulated = _write_emulation(artifact, Path(folder))
        reports[artifact.name] = {**compare(emulated), "method": _EMULATED.format(precision=precision)}
    if precision != _NOT_ON_CPU:
        reports[f"{artifact.name} {_ON_CPU}"] = {**compare(artifact), "method": _ON_CPU}
    return reports


def _write_emulation(artifact: Path, folder: Path) -> Path:
    """Write the artifact's emulation into ``folder``, with a manifest that differs in its files only."""
    graph = read(artifact)
    emulate_half(graph)
    path = folder / artifact.name
    write(graph, path)
    files = {file.name: hash_file(file) for file in sorted(folder.iterdir())}
    manifest = Manifest.load(artifact.with_suffix(".json"))
    dataclasses.replace(manifest, files=files, plan=None).save(path.with_suffix(".json"))
    return path
