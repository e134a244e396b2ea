"""Loads the installed TensorRT, the full one or that for RTX, and builds a plan from an ONNX file.

The full one builds for the local GPU; that for RTX needs no GPU. Networks are strongly typed: they compute in the
graph's types only.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniem_export.errors import EngineBuildError, ExportError
from erniem_export.options import EngineOptions, input_shapes
from erniem_export.progress import Terminal
from erniem_rt.engines.tensorrt_plan import listening, logger_of
from erniem_rt.files import replacing
from erniem_rt.manifest import FLAVOURS, HEADS, Manifest, Profile

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


_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|bad_alloc|MEM_ALLOC|insufficient memory|within workspace limit", re.IGNORECASE
)
_MIB = 1 << 20
_HINT = "; try without --version-compatible"


def make_builder(library: Library) -> Any:
    """Return a builder; :class:`EngineBuildError` if the library cannot create one, as without a suitable driver."""
    with library.listening() as messages:
        try:
            return library.module.Builder(library.logger)
        except TypeError as error:  # the bindings raise it for a null pointer; the reason is in the log
            raise EngineBuildError(
                f"{library} cannot create a builder here: {_joined(messages)}. Check nvidia-smi, update the driver, "
                "or say --engine none"
            ) from error


def parse(library: Library, builder: Any, path: Path) -> Any:
    """Return the network; :class:`EngineBuildError` names the first node that the parser refuses."""
    module = library.module
    flags = 0
    if hasattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):  # later versions know no other networks
        flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = module.OnnxParser(network, library.logger)
    with library.listening() as messages:
        taken = parser.parse_from_file(str(path))
    if not taken:
        raise EngineBuildError(f"{library} cannot take {path.name}: {_reason(parser, messages)}")
    return network


def _reason(parser: Any, messages: list[str]) -> str:
    if not parser.num_errors:
        return "; ".join(messages) or "the parser gives no reason"
    error = parser.get_error(0)
    name, operator = error.node_name(), error.node_operator()
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    node = f"node {name} ({operator}): " if name or operator else ""
    return f"{node}{' '.join(str(error.desc()).split())}{more}"


def layers_of(network: Any) -> list[Any]:
    """Return all layers, in the network's order."""
    return [network.get_layer(i) for i in range(network.num_layers)]


def configure(library: Library, builder: Any, options: EngineOptions) -> Any:
    """Return the builder's configuration, without profiles.

    Raises:
        EngineBuildError: The library lacks or refuses an option.
    """
    module, config = library.module, builder.create_builder_config()
    if hasattr(module, "ProfilingVerbosity"):  # without it the inspector omits types
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if hasattr(module.BuilderFlag, "TF32"):  # on by default, but its 10-bit mantissa is not fp32
        config.clear_flag(module.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace * _MIB)
    if options.compute_capabilities:
        _target(library, config, options.compute_capabilities)
    if options.hardware_compatible:
        _make_hardware_compatible(library, config)
    if options.version_compatible:
        if not hasattr(module.BuilderFlag, "VERSION_COMPATIBLE"):
            raise _lacking(library, "--version-compatible", "plans that other releases run")
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if options.timing_cache is not None:
        _open_timing_cache(library, config, options)
    return config


def add_profiles(library: Library, builder: Any, config: Any, manifest: Manifest, profiles: Sequence[Profile]) -> None:
    """Add a profile for each of ``profiles``, over all inputs with dynamic axes."""
    axes = HEADS[manifest.head].axes
    for profile in profiles:
        added = builder.create_optimization_profile()
        for spec in manifest.inputs:
            if any(isinstance(axis, str) for axis in spec.shape):
                added.set_shape(spec.name, *input_shapes(profile, axes, spec))
        with library.listening() as messages:
            refused = config.add_optimization_profile(added) < 0
        if refused:
            raise EngineBuildError(f"{library} refuses the profile {profile}: {_joined(messages)}")


def build(
    library: Library, builder: Any, network: Any, config: Any, options: EngineOptions, progress: Terminal
) -> memoryview:
    """Build and return the plan.

    Raises:
        EngineBuildError: The build failed or ran out of memory. Gives the library's reason and the node, if known.
        KeyboardInterrupt: The build was interrupted.
    """
    monitor = _monitor_for(library.module, progress)
    if monitor is not None and hasattr(config, "progress_monitor"):
        config.progress_monitor = monitor
    with library.listening() as messages:
        try:
            plan = builder.build_serialized_network(network, config)
        except MemoryError:
            plan, messages[:] = None, ["out of memory"]
        finally:
            if monitor is not None:
                monitor.close()
    if monitor is not None and monitor.interrupted is not None:
        raise monitor.interrupted
    if plan is None:
        raise EngineBuildError(_why(library, network, messages) + _HINT * options.version_compatible)
    if options.timing_cache is not None:
        _save_timing_cache(config, options)
    return memoryview(plan)


def _joined(messages: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(messages)) or "it gives no reason"


def _why(library: Library, network: Any, messages: Sequence[str]) -> str:
    reason = _joined(messages)
    if _OUT_OF_MEMORY.search(reason):
        return (
            f"{library} ran out of memory while building ({reason}): allow more with --workspace, or ask for a "
            "--profile with a smaller MAX"
        )
    return f"{library} cannot build this graph: {_blamed(network, messages)}{reason}"


def _target(library: Library, config: Any, capabilities: Sequence[str]) -> None:
    if not hasattr(config, "set_compute_capability"):
        raise EngineBuildError(
            f"{library} builds for the GPU that it builds on: leave out --compute-capability, or try "
            "--hardware-compatible"
        )
    known = library.module.ComputeCapability
    names = {capability: f"SM{capability.replace('.', '')}" for capability in capabilities}
    unknown = [capability for capability, name in names.items() if not hasattr(known, name)]
    config.num_compute_capabilities = len(names)  # first, else TensorRT silently ignores the capabilities
    if unknown or not all(
        config.set_compute_capability(getattr(known, name), i) for i, name in enumerate(names.values())
    ):
        have = sorted(int(name[2:]) for name in dir(known) if re.fullmatch(r"SM\d+", name))
        raise EngineBuildError(
            f"{library} cannot build for compute capability {', '.join(unknown or capabilities)}: it knows "
            f"{', '.join(f'{number // 10}.{number % 10}' for number in have)}"
        )


def _make_hardware_compatible(library: Library, config: Any) -> None:
    levels = getattr(library.module, "HardwareCompatibilityLevel", None)
    if levels is not None and hasattr(config, "hardware_compatibility_level"):
        config.hardware_compatibility_level = levels.AMPERE_PLUS
        if config.hardware_compatibility_level == levels.AMPERE_PLUS:
            return
    raise _lacking(library, "--hardware-compatible", "plans for all GPUs, only for those of --compute-capability")


def _open_timing_cache(library: Library, config: Any, options: EngineOptions) -> None:
    path = options.timing_cache
    if path is None or not hasattr(config, "create_timing_cache"):
        raise _lacking(library, "--timing-cache", "timing cache")
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise ExportError(f"--timing-cache {path} cannot be read: {error.strerror or error}") from error
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        cache = config.create_timing_cache(content)
        taken = cache is not None and config.set_timing_cache(cache, False)
    # TensorRT for RTX has these calls, but warns that they do nothing.
    if warned or not taken:
        raise _lacking(library, f"--timing-cache {path}", "timing cache, or none that this file fits")


def _save_timing_cache(config: Any, options: EngineOptions) -> None:
    path = options.timing_cache
    cache = config.get_timing_cache()
    if path is None or cache is None:
        return
    try:
        with replacing(path) as file:  # atomically: the next build would refuse half a file
            file.write(memoryview(cache.serialize()))
    except OSError as error:
        raise ExportError(f"--timing-cache {path} cannot be written: {error.strerror or error}") from error


def _lacking(library: Library, option: str, what: str) -> EngineBuildError:
    return EngineBuildError(f"{library} has no {what}: leave out {option}")


def _blamed(network: Any, messages: Iterable[str]) -> str:
    """Return the node that a failed build's messages name, as the start of a sentence; empty if there is none."""
    text = " ".join(messages)
    found = [
        layer.name
        for layer in layers_of(network)
        # Some messages name the node's output tensor.
        for name in (layer.name, *(layer.get_output(i).name for i in range(layer.num_outputs)))
        if name and re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text.replace("node_of_", ""))
    ]
    return f"node {max(found, key=len)}: " if found else ""


def _monitor_for(module: Any, progress: Terminal) -> Any:
    """Return an ``IProgressMonitor`` that shows the build's phase on ``progress``; None if the library has none.

    An exception must not leave a callback of the library. So ``interrupted`` keeps that of Ctrl-C, and the callback
    returns False, which stops the build. ``close()`` removes the display.
    """
    if not hasattr(module, "IProgressMonitor"):
        return None

    class Watcher(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.interrupted: KeyboardInterrupt | None = None
            self._phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = num_steps
            self._show(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._show(phase_name, step + 1)
            return self.interrupted is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def close(self) -> None:
            progress.phase("", 0, 0)

        def _show(self, phase: str, done: int) -> None:
            try:
                progress.phase(phase, done, self._phases.get(phase, 0))
            except KeyboardInterrupt as error:
                self.interrupted = error

    return Watcher()
