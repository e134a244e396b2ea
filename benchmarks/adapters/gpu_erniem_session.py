"""Ours on a GPU: a graph for ONNX Runtime or a TensorRT plan; rows of mixed length through batching.run_rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import erniem_rt
from benchmarks.adapters.base import Adapter, Array, Rows, pad
from erniem_rt.batching import run_rows


class ErnieMOnGpu(Adapter):
    def __init__(
        self,
        artifact: Path,
        threads: int,
        device: str,
        precision: str,
        suffix: str = ".onnx",
        cuda_graphs: bool = False,
    ) -> None:
        (path,) = artifact.glob(f"*{suffix}")
        is_plan = suffix == ".plan"
        # Plans were built a moment ago, so they are trusted: whether one runs on a GPU that its manifest does not list,
        # TensorRT says. CUDA graphs are said either way: left out, plans have them.
        self._session = erniem_rt.Session(
            path,
            device=device,
            threads=None if is_plan else threads,
            cuda_graphs=cuda_graphs,
            trust_plan=is_plan,
        )
        manifest = self._session.manifest
        if manifest.precision["weights"] != precision:
            raise RuntimeError(f"{path.name} is in {manifest.precision['weights']}, expected {precision}")
        self.versions = {"erniem_rt": erniem_rt.__version__, **_engine_version(manifest, suffix)}

    def run(self, rows: Rows, batch_size: int) -> Array:
        if len(rows) <= batch_size:
            input_ids, attention_mask = pad(rows)
            return self._session.run(input_ids=input_ids, attention_mask=attention_mask)["logits"]
        logits = dict(run_rows(self._session, rows, batch_size=batch_size))
        return np.stack([logits[i]["logits"] for i in range(len(rows))])


def _engine_version(manifest: Any, suffix: str) -> dict[str, str]:
    if suffix == ".plan" and manifest.plan is not None:
        return {manifest.plan.flavour: manifest.plan.version}
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


load = ErnieMOnGpu
