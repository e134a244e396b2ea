"""onnxruntime as the exporter runs it: on the CPU, and quiet about what it makes of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erniem_rt._onnxruntime import import_onnxruntime

if TYPE_CHECKING:
    from pathlib import Path

    import onnxruntime

__all__ = ["open_session"]

ort = import_onnxruntime()  # Here, so that an export ends at once where it is not installed.

_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_LOG_ERRORS = 3


def open_session(model: Path | bytes, weights: Path | None = None) -> onnxruntime.InferenceSession:
    """Open a graph, by its file or serialized; then ``weights`` is the folder of its external data."""
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    if weights is not None:
        options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(weights.resolve()))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
