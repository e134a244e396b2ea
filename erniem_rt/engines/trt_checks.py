"""Whether a plan can run here: flavour, version, GPU, content. All of it before TensorRT is given the plan."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from erniem_rt._files import read_whole
from erniem_rt.engines.cuda import OutOfMemoryError
from erniem_rt.errors import ArtifactError, EngineError, EngineUnavailableError, ErnieMError
from erniem_rt.plan import FLAVOURS

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from erniem_rt.engines.cuda import Cuda
    from erniem_rt.manifest import Manifest
    from erniem_rt.plan import Plan

__all__ = ["check_capability", "check_header", "import_library", "install_command", "read_plan"]

# The first GPUs that plans built with --hardware-compatible run on.
_AMPERE = [8, 0]
_COMPATIBLE = ", or on another of 8.0 or later with --hardware-compatible"


def install_command(plan: Plan) -> str:
    """What installs all that a plan of this flavour runs on."""
    return f'pip install "erniem-rt[{plan.flavour}]"'


def import_library(path: Path, plan: Plan, *, trust: bool) -> Any:
    """Import the TensorRT that built the plan; :class:`EngineUnavailableError` if it is not there in that version.

    With ``trust``, the plan need not be the one that the manifest describes, so TensorRT itself checks the version.
    """
    module = FLAVOURS[plan.flavour]
    try:
        library = _import(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise EngineUnavailableError(
            f"{path} was built by {plan.flavour} {plan.version}, and running it needs that package: "
            f"{install_command(plan)}."
        ) from error
    except (ImportError, OSError, RuntimeError) as error:  # A library that the module loads is not there.
        raise EngineUnavailableError(
            f"{plan.flavour} is installed and cannot be used: {error}. Install it again: {install_command(plan)}."
        ) from error
    if not trust and not _runs(plan, library.__version__):
        wanted = f"{plan.version} or a later one of that major version" if plan.version_compatible else plan.version
        raise EngineUnavailableError(
            f"{path} was built by {plan.flavour} {plan.version} and needs {wanted}, but {library.__version__} is "
            f'installed: pip install "{plan.flavour}=={plan.version}", or build the plan again with the version here.'
        )
    return library


def _import(module: str) -> Any:
    # Written out, for tools that pack programs.
    if module == "tensorrt":
        import tensorrt

        return tensorrt
    import tensorrt_rtx

    return tensorrt_rtx


def _runs(plan: Plan, installed: str) -> bool:
    if not plan.version_compatible or installed == plan.version:
        return installed == plan.version
    built, here = _numbers(plan.version), _numbers(installed)
    return here[:1] == built[:1] and here >= built


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def check_capability(path: Path, plan: Plan, cuda: Cuda, library: Any) -> None:
    """Raise :class:`EngineUnavailableError` unless the plan was built for a GPU like this one."""
    here = cuda.capability
    if here in plan.compute_capabilities:
        return
    lowest = min(plan.compute_capabilities, key=_numbers)
    if plan.hardware_compatible and _numbers(here) >= _numbers(lowest):
        return
    later = " and later ones" if plan.hardware_compatible else ""
    raise EngineUnavailableError(
        f"{path} was built for GPUs of compute capability {', '.join(plan.compute_capabilities)}{later}, and this one "
        f"has {here}: {_build_for(here, plan, library)}, or open the .onnx file with device='cuda'."
    )


def _build_for(capability: str, plan: Plan, library: Any) -> str:
    """How to get a plan for this GPU, of the flavour that the plan has if that can be."""
    if plan.flavour == "tensorrt":
        shared = not plan.hardware_compatible and _numbers(capability) >= _AMPERE
        return "build the plan again on this GPU" + _COMPATIBLE * shared
    if hasattr(getattr(library, "ComputeCapability", None), f"SM{capability.replace('.', '')}"):
        return f"build the plan again with --compute-capability {capability}"
    return f"{plan.flavour} {library.__version__} builds none for that, so build one on this GPU with --engine tensorrt"


def read_plan(path: Path, manifest: Manifest, *, trust: bool) -> NDArray[np.uint8]:
    """Read the plan into memory; unless it is trusted, those very bytes must be the ones that were exported.

    A plan is code. Were it mapped, or read a second time, another content than the one checked could be run.
    """
    content, digest = read_whole(path)
    if trust:
        return content
    record = manifest.files[path.name]
    if digest != record.sha256:
        raise ArtifactError(
            f"{path} is not the plan that was exported: expected sha256 {record.sha256}, found {digest}. A plan is "
            "code, so it is not run. Restore it or export again; if you built it yourself, pass trust_plan=True."
        )
    return content


# What TensorRT's diagnostics of a header mean, by their names: the error, what it says, and what to do.
_FINDINGS: dict[str, tuple[type[ErnieMError], str, str]] = {
    "MALFORMED_ENGINE": (ArtifactError, "is no plan or is damaged", "Restore the file or export again."),
    "VERSION_MISMATCH": (EngineUnavailableError, "was built by another version", "Build the plan again."),
    "UNSUPPORTED_CC": (EngineUnavailableError, "was built for other GPUs", "Build the plan again for this one."),
    "OLD_CUDA_DRIVER": (EngineUnavailableError, "needs a newer NVIDIA driver", "Update the driver."),
    "OLD_CUDA_RUNTIME": (EngineUnavailableError, "needs a newer CUDA runtime", "Update cuda-python."),
    "INSUFFICIENT_GPU_MEMORY": (
        OutOfMemoryError,
        "needs more memory than the GPU has",
        "Build the plan with smaller profiles (--profile).",
    ),
    "CUDA_ERROR": (EngineError, "could not be checked, because CUDA failed", "Check nvidia-smi."),
}


def check_header(path: Path, library: Any, runtime: Any, content: NDArray[np.uint8]) -> None:
    """Ask TensorRT what it thinks of the header, where it has a word for that, without loading the plan."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(content)
    if validity != library.EngineValidity.INVALID:
        return
    for name, (kind, finding, remedy) in _FINDINGS.items():
        flag = getattr(library.EngineInvalidityDiagnostics, name, None)
        if flag is not None and int(diagnostics) & int(flag.value):
            raise kind(f"{path} {finding}, says {library.__name__} {library.__version__}. {remedy}")
    raise ArtifactError(
        f"{path} is not valid, says {library.__name__} {library.__version__}. Restore the file or export again."
    )
