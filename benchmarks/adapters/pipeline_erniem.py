"""From text with ours: erniem_rt.pipeline on the exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

import erniem_rt
from benchmarks.adapters.base import Adapter, Array, scores_by_label


class ErnieMPipeline(Adapter):
    def __init__(self, artifact: Path, threads: int) -> None:
        self.versions = {"erniem_rt": erniem_rt.__version__, "onnxruntime": onnxruntime.__version__}
        self._path, self._threads = artifact / "cls.onnx", threads
        self._pipelines: dict[int, Any] = {}

    def run(self, rows: Any, batch_size: int) -> Array:
        if batch_size not in self._pipelines:
            self._pipelines[batch_size] = erniem_rt.pipeline(self._path, threads=self._threads, batch_size=batch_size)
        return scores_by_label(self._pipelines[batch_size](list(rows), top_k=None))


load = ErnieMPipeline
