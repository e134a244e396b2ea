"""Finds the installed TensorRT: the full one, which builds for the local GPU, or that for RTX, which needs no GPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erniem_export.errors import EngineBuildError
from erniem_rt.engines.tensorrt_plan import listening, logger_of
from erniem_rt.manifest import FLAVOURS

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["AUTO", "Library", "gpu_capability", "load_library"]

AUTO = "auto"
_NEEDS_GPU = "tensorrt"
_CU_MAJOR, _CU_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR} of cuda.h
_REMEDY = 'pip install "erniem-rt[{flavour}]", or say --engine none'


@dataclass(frozen=True)
class Library:
    """A builder library: ``flavour`` is a key of :data:`erniem_rt.manifest.FLAVOURS`, ``module`` its Python module."""

    flavour: str
    version: str
    module: Any

    def __str__(self) -> str:
        return f"{'TensorRT for RTX' if self.flavour == 'tensorrt-rtx' else 'TensorRT'} {self.version}"

    @property
    def logger(self) -> Any:
        """Return the logger, which the runtime shares."""
        return logger_of(self.module)

    def listening(self) -> AbstractContextManager[list[str]]:
        """Collect the errors logged inside the ``with`` block."""
        return listening(self.module)


def load_library(engine: str) -> Library | None:
    """Return the builder library for ``--engine``; for ``auto`` an installed one that can build here, or None.

    Raises:
        EngineBuildError: The named library is not installed, or does not load.
    """
    if engine != AUTO:
        if engine == _NEEDS_GPU and gpu_capability() is None:
            raise EngineBuildError(
                "--engine tensorrt builds on the GPU that it builds for, and there is none here, or no driver: build "
                "where the plan is to run, or take --engine tensorrt-rtx"
            )
        try:
            return _load(engine)
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineBuildError(
                f"--engine {engine} needs the package {engine}, and it cannot be loaded ({error}): "
                f"{_REMEDY.format(flavour=engine)}"
            ) from error
    for flavour in FLAVOURS:
        if flavour == _NEEDS_GPU and gpu_capability() is None:
            continue
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            return _load(flavour)
    return None


def _load(flavour: str) -> Library:
    module: Any = importlib.import_module(FLAVOURS[flavour])
    return Library(flavour, str(module.__version__), module)


def gpu_capability() -> str | None:
    """Return the compute capability of the first GPU, such as ``8.9``; None without a GPU or a driver."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
        device = ctypes.c_int()
        failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
        for value, attribute in ((major, _CU_MAJOR), (minor, _CU_MINOR)):
            failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    except (OSError, AttributeError):
        return None
    return None if failed else f"{major.value}.{minor.value}"
