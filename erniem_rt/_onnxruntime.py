"""The import of onnxruntime, which from 1.29 on sends telemetry unless the environment says otherwise before."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from erniem_rt.errors import EngineUnavailableError

__all__ = ["import_onnxruntime", "version_of"]

_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_FIRST_WITH_TELEMETRY = (1, 29)


def import_onnxruntime() -> Any:
    """The module, with telemetry off unless the user chose; :class:`EngineUnavailableError` if it is not installed.

    Warns, once, if it was imported before without a choice.
    """
    loaded = sys.modules.get("onnxruntime")
    if _TELEMETRY not in os.environ:
        os.environ[_TELEMETRY] = "1"
        if loaded is not None and version_of(loaded) >= _FIRST_WITH_TELEMETRY:
            warnings.warn(
                f"onnxruntime {loaded.__version__} was imported before erniem_rt could turn its telemetry off: it may "
                "send telemetry, and a process forked from this one may never end. Set ORT_DISABLE_TELEMETRY=1 before "
                "it is imported (0 if you want it on).",
                stacklevel=2,
            )
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise EngineUnavailableError(
            'Running an .onnx artifact needs the package onnxruntime: pip install "erniem-rt[ort]".'
        ) from error
    return onnxruntime


def version_of(ort: Any) -> tuple[int, ...]:
    """Major and minor version; empty where they cannot be told."""
    try:
        return tuple(map(int, ort.__version__.split(".")[:2]))
    except (AttributeError, ValueError):
        return ()
