"""Whether the gate holds as well where a CPU computes a graph in bf16, which it was not exported in."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniem_export.onnx_export import read, write
from erniem_export.parity.gate import check_parity
from erniem_export.passes.emulation import emulate_half
from erniem_export.passes.half import to_half
from erniem_rt.errors import ErnieMError
from erniem_rt.machine import cpu_class
from erniem_rt.manifest import Manifest, hash_file
from erniem_rt.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from erniem_export.accuracy.gate import AccuracyGate
    from erniem_export.modeling import ErnieMPreTrainedModel
    from erniem_export.parity.cases import Case

__all__ = ["prove_bf16", "with_bf16"]

_BY_OPENVINO = "in bf16 on a CPU, as OpenVINO computes it"
_EMULATED = "in bf16 on a CPU, every result rounded by a float32 graph"


def with_bf16(
    manifest: Manifest, artifact: Path, model: ErnieMPreTrainedModel, note: Callable[[str], None], **gate: Any
) -> Manifest:
    """``manifest``, saved beside ``artifact``, with what :func:`prove_bf16` found; ``note`` is told that in a line."""
    if manifest.target not in ("onnxruntime-cpu", "portable") or manifest.precision["weights"] not in ("fp32", "int8"):
        return manifest
    try:
        method, report = prove_bf16(artifact, model, **gate)
    except ErnieMError as error:
        note(f"bf16 on a CPU is not proven: {error}")
        return dataclasses.replace(manifest, proven=("fp32",))
    largest = max(figures["relative_l2"] for figures in report["outputs"].values())
    note(f"the gate holds {method}: relative L2 {largest:.1e}")
    return dataclasses.replace(
        manifest, proven=("fp32", "bf16"), parity={**manifest.parity, f"{artifact.name} in bf16": report}
    )


def prove_bf16(
    artifact: Path,
    model: ErnieMPreTrainedModel,
    *,
    tokenizer_dir: Path | None = None,
    scratch: Path | None = None,
    progress: Callable[[list[Case]], Iterable[Case]] = iter,
    accuracy: AccuracyGate | None = None,
) -> tuple[str, dict[str, Any]]:
    """Run the gate on an artifact in fp32 or int8 that passed it, now computed in bf16; return how, and the report.

    OpenVINO computes it where it is installed and this CPU has bf16. Elsewhere a graph in fp32 is emulated.

    Args:
        artifact: ``HEAD.onnx``, beside its manifest and weights.
        model: As for :func:`erniem_export.parity.judge.judge`, and so are the others.

    Raises:
        ErnieMError: The gate does not hold, or bf16 can neither be computed nor emulated here.
    """
    manifest = Manifest.load(artifact.with_suffix(".json"))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        copy = Path(folder) / artifact.name
        if importlib.util.find_spec("openvino") is not None and {"bf16", "amx"} & set(cpu_class().split("-")):
            method = _BY_OPENVINO
            for name in manifest.files:
                _link(artifact.with_name(name), copy.with_name(name))
            dataclasses.replace(manifest, proven=("bf16",)).save(copy.with_suffix(".json"))
            opened = partial(Session, engine="openvino", precision="bf16", cache=False, verify=False)
        elif manifest.precision["weights"] == "fp32":
            method = _EMULATED
            _write_emulation(artifact, copy, manifest)
            opened = partial(Session, engine="onnxruntime", verify=False)
        else:
            raise ErnieMError("for int8 it takes OpenVINO and a CPU with bf16")
        report = check_parity(
            copy, model, tokenizer_dir=tokenizer_dir, progress=progress, open_session=opened
        ).to_json()
        report = {**report, "method": method}
        return method, report if accuracy is None else accuracy.compare(copy, report, opened)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_emulation(artifact: Path, copy: Path, manifest: Manifest) -> None:
    graph = read(artifact)
    to_half(graph, "bf16", {})
    emulate_half(graph)
    write(graph, copy)
    files = {file.name: hash_file(file) for file in sorted(copy.parent.iterdir())}
    precision = {**manifest.precision, "weights": "bf16"}
    dataclasses.replace(manifest, files=files, plan=None, precision=precision).save(copy.with_suffix(".json"))
