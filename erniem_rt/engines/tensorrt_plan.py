"""Loads TensorRT plans: checks that they can run here and reads their shapes; has the logger and the kernel cache."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
import warnings
from typing import TYPE_CHECKING, Any

from erniem_rt.engines import check_signature
from erniem_rt.engines.cuda import Cuda, OutOfMemoryError
from erniem_rt.errors import ArtifactError, EngineError, EngineUnavailableError, ErnieMError, InvalidInputError
from erniem_rt.files import as_path, read_whole, replacing, unreadable
from erniem_rt.manifest import FLAVOURS, Profile, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from erniem_rt.engines import PlanOptions
    from erniem_rt.manifest import Manifest, Plan


# TensorRT's names of element types to numpy's.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
_NO_MEMORY = ("out of memory", "outofmemory", "memoryallocation", "mem_alloc_failed")


class LoadedPlan:
    """A deserialized plan on a device.

    Attributes:
        path: The file.
        cuda: The device.
        inputs: Inputs as the plan declares them; axes without a size are ``"?"``.
        outputs: Outputs, likewise.
        profiles: The ranges of the ids' shapes.
        largest_shapes: For each profile, the largest shape of each input.
        scratch_size: Bytes of scratch memory that the contexts of one lane share; 0 if each has its own.
        records_graphs: Whether we record CUDA graphs, rather than the library.

    Raises:
        ArtifactError: The file is damaged, changed, or differs from its manifest.
        EngineUnavailableError: The library, its version, the driver or the GPU is missing or does not match.
        EngineError: The device's memory is full.
        InvalidInputError: Plans of this flavour have no runtime cache.
    """

    def __init__(self, path: Path, manifest: Manifest, options: PlanOptions) -> None:
        plan = manifest.plan
        if plan is None:
            raise ArtifactError(f"{path.with_suffix('.json')} describes no plan: export again with --engine.")
        if options.runtime_cache is not None and plan.flavour != "tensorrt-rtx":
            raise InvalidInputError(
                f"runtime_cache applies to plans of TensorRT for RTX only; {path} is a plan of {plan.flavour}. "
                "Remove it."
            )
        self.path = path
        self._library = import_library(path, plan, trust=options.trust)
        self.cuda = Cuda(options.device, install_command(plan))
        if not options.trust:
            check_capability(path, plan, self.cuda, self._library)
        content = read_plan(path, manifest, trust=options.trust)
        reason(self._library)  # discard earlier errors
        self._runtime: Any = self._make_runtime()
        if plan.version_compatible:
            # Such a plan contains host code; its hash was checked.
            self._runtime.engine_host_code_allowed = True
        check_header(path, self._library, self._runtime, content)
        self._engine: Any = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._load_error()
        self._config: Any = None
        self._cache: RuntimeCache | None = None
        try:
            self._compare(manifest, None if options.trust else plan)
            self._configure(options)
        except BaseException:
            self._drop()  # a caller that keeps the error would keep this object
            raise
        self.records_graphs = options.cuda_graphs and self._config is None
        self.scratch_size = 0 if self._config is not None else int(self._engine.device_memory_size_v2)

    def create_context(self, scratch: int) -> Any:
        """Return a new execution context that uses the memory at ``scratch``, if not 0."""
        if self._config is not None:
            context = self._engine.create_execution_context(self._config)
            self.require(context is not None, "make an execution context")
            return context
        # Contexts of one lane run one at a time, so they can share scratch memory.
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        self.require(context is not None, "make an execution context")
        if scratch:
            context.set_device_memory(scratch, self.scratch_size)
        return context

    def require(self, done: bool, what: str) -> None:
        """Raise :class:`EngineError` with TensorRT's own reason unless ``done``."""
        if done:
            return
        said = reason(self._library)
        if any(sign in said.lower() for sign in _NO_MEMORY):
            raise OutOfMemoryError(
                f"{self.path} ran out of GPU memory: {said}. Free some, or build the plan with smaller profiles "
                "(--profile)."
            )
        raise EngineError(
            f"{self._library.__name__} could not {what}: {said or 'it gave no reason'}. Open the artifact again; if "
            "it stays so, build the plan again."
        )

    def release(self) -> None:
        """Free the plan, after all its contexts. May be called twice."""
        if self._runtime is None:
            return
        if self._cache is not None:
            self._cache.save()
        self._drop()

    def _drop(self) -> None:
        self._cache = self._config = self._engine = self._runtime = None

    def _make_runtime(self) -> Any:
        try:
            return self._library.Runtime(logger_of(self._library))
        except TypeError as error:  # the bindings raise it for a null pointer; the reason is in the log
            raise EngineError(
                f"{self._library.__name__} {self._library.__version__} cannot create a runtime here: "
                f"{reason(self._library) or 'it gave no reason'}. Check nvidia-smi and update the driver."
            ) from error

    def _load_error(self) -> Exception:
        said = reason(self._library)
        if any(sign in said.lower() for sign in _NO_MEMORY):
            return OutOfMemoryError(f"{self.path} does not fit into the memory of the GPU: {said}. Free some.")
        return ArtifactError(
            f"{self.path} cannot be loaded by {self._library.__name__} {self._library.__version__}: "
            f"{said or 'it gave no reason'}. Restore the file or export again."
        )

    def _compare(self, manifest: Manifest, plan: Plan | None) -> None:
        """Compare the engine's inputs, outputs and, unless trusted, profiles with the manifest."""
        self.inputs, self.outputs = self._signature()
        check_signature(self.path, manifest, self.inputs, self.outputs, converted=True)
        self.profiles, self.largest_shapes = self._read_profiles()
        if plan is not None and self.profiles != plan.profiles:
            raise ArtifactError(
                f"{self.path} does not fit its manifest: the manifest says profiles {_shown(plan.profiles)}, the plan "
                f"has {_shown(self.profiles)}. They come from different exports; export again."
            )

    def _signature(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        engine, modes = self._engine, self._library.TensorIOMode
        found: dict[Any, list[TensorSpec]] = {modes.INPUT: [], modes.OUTPUT: []}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            kind = engine.get_tensor_dtype(name).name
            shape = tuple("?" if size < 0 else int(size) for size in engine.get_tensor_shape(name))
            found[engine.get_tensor_mode(name)].append(TensorSpec(name, _DTYPES.get(kind, kind.lower()), shape))
        return tuple(found[modes.INPUT]), tuple(found[modes.OUTPUT])

    def _read_profiles(self) -> tuple[tuple[Profile, ...], tuple[dict[str, tuple[int, ...]], ...]]:
        profiles, largest = [], []
        for index in range(self._engine.num_optimization_profiles):
            shapes = {spec.name: self._range(spec, index) for spec in self.inputs}
            profiles.append(Profile(*shapes["attention_mask"]))
            largest.append({name: shape[2] for name, shape in shapes.items()})
        return tuple(profiles), tuple(largest)

    def _range(self, spec: TensorSpec, profile: int) -> list[tuple[int, ...]]:
        """Return the min, opt and max shape of an input in a profile."""
        fixed = tuple(axis for axis in spec.shape if isinstance(axis, int))
        if len(fixed) == len(spec.shape):
            return [fixed] * 3
        return [tuple(map(int, dims)) for dims in self._engine.get_tensor_profile_shape(spec.name, profile)]

    def _configure(self, options: PlanOptions) -> None:
        """Use the library's CUDA graphs, shape-specific kernels and kernel cache, if it has them (RTX does)."""
        strategies = getattr(self._library, "CudaGraphStrategy", None)
        if strategies is None:
            return
        self._config = self._engine.create_runtime_config()
        wanted = strategies.WHOLE_GRAPH_CAPTURE if options.cuda_graphs else strategies.DISABLED
        self._config.cuda_graph_strategy = wanted
        specialization = getattr(self._library, "DynamicShapesKernelSpecializationStrategy", None)
        if specialization is not None:  # by default, the first runs of each shape use a slower kernel
            self._config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        self._cache = RuntimeCache(self._config.create_runtime_cache, options.runtime_cache)
        self.require(self._config.set_runtime_cache(self._cache.handle), "take a runtime cache")


def _shown(profiles: tuple[Profile, ...]) -> str:
    return "; ".join(f"{profile.min} to {profile.max}" for profile in profiles)


# The least compute capability for plans built with --hardware-compatible.
_AMPERE = [8, 0]
_COMPATIBLE = ", or on another of 8.0 or later with --hardware-compatible"


def install_command(plan: Plan) -> str:
    """Return the command that installs the packages for plans of this flavour."""
    return f'pip install "erniem-rt[{plan.flavour}]"'


def import_library(path: Path, plan: Plan, *, trust: bool) -> Any:
    """Import the TensorRT that built the plan; :class:`EngineUnavailableError` if that version is not installed.

    With ``trust``, the plan may differ from the manifest's record, so TensorRT itself checks the version.
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
    except (ImportError, OSError, RuntimeError) as error:  # a shared library is missing
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
    # Plain imports, so that packaging tools find them.
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
    """Return how to build a plan for this GPU, of the same flavour if possible."""
    if plan.flavour == "tensorrt":
        shared = not plan.hardware_compatible and _numbers(capability) >= _AMPERE
        return "build the plan again on this GPU" + _COMPATIBLE * shared
    if hasattr(getattr(library, "ComputeCapability", None), f"SM{capability.replace('.', '')}"):
        return f"build the plan again with --compute-capability {capability}"
    return f"{plan.flavour} {library.__version__} builds none for that, so build one on this GPU with --engine tensorrt"


def read_plan(path: Path, manifest: Manifest, *, trust: bool) -> NDArray[np.uint8]:
    """Read the plan into memory; unless it is trusted, check the hash of these bytes.

    A plan is code. If it were mapped, or read again, the content could change after the check.
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


# TensorRT's diagnostics of a plan's header by name: the error's class, the reason, and the remedy.
_FINDINGS: dict[str, tuple[type[ErnieMError], str, str]] = {
    "MALFORMED_ENGINE": (ArtifactError, "is not a plan or is damaged", "Restore the file or export again."),
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
    """Let TensorRT check the plan's header without loading the plan, if this version can."""
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


_KEPT = 16


@functools.cache
def logger_of(library: Any) -> Any:
    """Return the process's only logger for a TensorRT module: TensorRT keeps the first logger for good."""

    class Logger(library.ILogger):  # type: ignore[misc]  # a class of the module that was found
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.lines: list[str] = []
            self.listeners: list[list[str]] = []
            self.lock = threading.Lock()

        def log(self, severity: Any, message: str) -> None:
            if severity not in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                return
            line = " ".join(str(message).split())
            with self.lock:
                if len(self.lines) < _KEPT:  # the first errors name the cause
                    self.lines.append(line)
                for listener in self.listeners:
                    listener.append(line)

    return Logger()


def reason(library: Any) -> str:
    """Return the first error since the last call, as one line without a full stop; empty if there was none."""
    logger = logger_of(library)
    with logger.lock:
        lines = list(logger.lines)
        logger.lines.clear()
    return str(lines[0]).rstrip(".") if lines else ""


@contextlib.contextmanager
def listening(library: Any) -> Iterator[list[str]]:
    """Collect all errors logged inside the ``with`` block, each as one line."""
    logger = logger_of(library)
    messages: list[str] = []
    with logger.lock:
        logger.listeners.append(messages)
    try:
        yield messages
    finally:
        with logger.lock:  # by identity: two empty lists are equal
            logger.listeners[:] = [each for each in logger.listeners if each is not messages]


class RuntimeCache:
    """The library's kernel cache, loaded from ``path`` if that exists and written there by :meth:`save`.

    Without a path, the contexts of one session share it in memory. The library refuses the content from another GPU,
    driver or version; that is a warning, the kernels are compiled, and the file is replaced.

    Raises:
        InvalidInputError: The path is a folder, or its folder does not exist.
        ArtifactError: The file cannot be read.
    """

    def __init__(self, create: Callable[[], Any], path: str | os.PathLike[str] | None) -> None:
        self.handle: Any = create()
        self._path = None if path is None else as_path("runtime_cache", path)
        self._found = b""
        if self._path is None:
            return
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise InvalidInputError(f"runtime_cache must be a file in a folder that exists, got {str(self._path)!r}.")
        try:
            self._found = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise unreadable(self._path, error) from error
        if not self.handle.deserialize(self._found):
            warnings.warn(
                f"the runtime cache {self._path} is damaged, or of another GPU, driver or version of TensorRT for RTX: "
                "the kernels are compiled anew, and it is replaced when the session is closed.",
                stacklevel=2,
            )

    def save(self) -> None:
        """Write newly compiled kernels; warn if the file cannot be written."""
        if self._path is None:
            return
        content = bytes(self.handle.serialize())
        if content == self._found:
            return
        try:
            with replacing(self._path) as file:
                file.write(content)
        except OSError as error:
            warnings.warn(f"the runtime cache {self._path} was not written: {error.strerror}.", stacklevel=2)
